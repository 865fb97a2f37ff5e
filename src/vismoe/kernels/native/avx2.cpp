// AVX2 with FMA: 16 registers of 8 floats.
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
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define SET avx2
#define TABLE avx2_kernels
#define LABEL "AVX2"
#define WIDTH 8
#define VECTORS 2
#define TALL 6
#define SUMS 12
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define STREAM(to, value) _mm256_stream_ps(to, reinterpret_cast<__m256>(value))
#include "instructions.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
