// AVX-512: 32 registers of 16 floats.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

#include "interface.h"
#include "threads.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define SET avx512
#define TABLE avx512_kernels
#define LABEL "AVX-512"
#define WIDTH 16
#define VECTORS 2
#define TALL 12
#define SUMS 24
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define STREAM(to, value) _mm512_stream_ps(to, reinterpret_cast<__m512>(value))
#include "instructions.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
