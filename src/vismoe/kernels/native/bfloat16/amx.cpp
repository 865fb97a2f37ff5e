// AMX: products of tiles of 16 rows and 32 columns.
#if defined(__x86_64__)
#include <immintrin.h>
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "../interface.h"
#include "../threads.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,prefer-vector-width=512")
#endif

namespace vismoe {
namespace amx {
namespace {

#include "sizes.h"

struct Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// While it lives, this thread has eight tiles of 16 rows of 64 bytes.
struct Products {
    Products() {
        Configuration configuration;
        for (int tile = 0; tile < 8; ++tile) configuration.row_bytes[tile] = 64, configuration.rows[tile] = 16;
        __asm__ volatile("" ::"r"(&configuration) : "memory");  // all of it is written before
        _tile_loadconfig(&configuration);
    }
    ~Products() { _tile_release(); }
};

// Tiles 0 to 3: the sums of two tiles of rows and two of columns; 4 and 5: rows; 6 and 7: columns.
template <bool TALL, bool FIRST>
INLINE void multiply_tiles(const bfloat16* left, int64_t apart, const bfloat16* panel, int64_t k, float* sums) {
    size_t step = static_cast<size_t>(apart) * sizeof(bfloat16);
    constexpr size_t ROW = PANEL * sizeof(float);
    float* lower = sums + 16 * PANEL;
    __asm__ volatile("" ::: "memory");  // what tiles load is written before
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < k; i += DEPTH, panel += DEPTH * PANEL) {
        if (FIRST)
#pragma GCC unroll 32
            for (int line = 0; line < 32; ++line) __builtin_prefetch(panel + AHEAD * DEPTH * PANEL + line * 32, 0, 2);
        _tile_loadd(6, panel, 128);
        _tile_loadd(7, panel + PANEL, 128);
        _tile_loadd(4, left + i, step);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (TALL) {
            _tile_loadd(5, left + 16 * apart + i, step);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, ROW);
    _tile_stored(1, sums + WIDTH, ROW);
    if (TALL) {
        _tile_stored(2, lower, ROW);
        _tile_stored(3, lower + WIDTH, ROW);
    }
    __asm__ volatile("" ::: "memory");
}

template <bool FIRST>
INLINE void multiply(const bfloat16* left, int64_t apart, const bfloat16* panel, int64_t k, int64_t rows, float* sums) {
    if (rows > 16)
        multiply_tiles<true, FIRST>(left, apart, panel, k, sums);
    else
        multiply_tiles<false, FIRST>(left, apart, panel, k, sums);
}

#include "panels.h"
#include "mlp.h"

}  // namespace
}  // namespace amx

const KernelsBfloat16 amx_kernels = {"AMX", amx::forward, amx::linear, amx::pack};

bool has_amx() {
#if defined(__linux__)
    static const bool allowed = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILE)) != (BF16 | TILE)) return false;
        constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM
        return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    }();
    return allowed;
#else
    return false;
#endif
}

}  // namespace vismoe
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
