// AVX512-BF16: dot products of pairs, 16 sums in a register.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <vector>

#include "../interface.h"
#include "../threads.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,prefer-vector-width=512")
#endif

namespace vismoe {
namespace avx512_bfloat16 {
namespace {

#include "sizes.h"

struct Products {  // nothing has to be prepared
    ~Products() {}
};

// to = M rows · a panel. A pair of neighbours along k is 32 bits.
template <bool FIRST, int M>
INLINE void multiply_rows(const bfloat16* left, int64_t apart, const bfloat16* panel, int64_t k, float* to) {
    __m512 sums[M][2];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) sums[m][0] = sums[m][1] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 2, panel += 2 * PANEL) {
        __m512bh low, high;
        __builtin_memcpy(&low, panel, 64);
        __builtin_memcpy(&high, panel + PANEL, 64);
        if (FIRST)
            for (int line = 0; line < 2; ++line)
                __builtin_prefetch(panel + AHEAD * DEPTH * PANEL + line * PANEL, 0, 2);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            int32_t pair;
            __builtin_memcpy(&pair, left + m * apart + i, 4);
            __m512bh both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            sums[m][0] = _mm512_dpbf16_ps(sums[m][0], both, low);
            sums[m][1] = _mm512_dpbf16_ps(sums[m][1], both, high);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
        _mm512_storeu_ps(to + m * PANEL, sums[m][0]);
        _mm512_storeu_ps(to + m * PANEL + WIDTH, sums[m][1]);
    }
}

template <bool FIRST>
INLINE void multiply(const bfloat16* left, int64_t apart, const bfloat16* panel, int64_t k, int64_t rows, float* sums) {
    int64_t m = 0;
    auto take = [&]<int M>() {
        if (FIRST && m == 0)
            multiply_rows<true, M>(left + m * apart, apart, panel, k, sums + m * PANEL);
        else
            multiply_rows<false, M>(left + m * apart, apart, panel, k, sums + m * PANEL);
        m += M;
    };
    while (m + 12 <= rows) take.template operator()<12>();
    while (m + 4 <= rows) take.template operator()<4>();
    while (m < rows) take.template operator()<1>();
}

#include "panels.h"
#include "mlp.h"

}  // namespace
}  // namespace avx512_bfloat16

const KernelsBfloat16 avx512_bfloat16_kernels = {"AVX512-BF16", avx512_bfloat16::forward, avx512_bfloat16::linear, avx512_bfloat16::pack};

}  // namespace vismoe
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
