// What every processor of the platform has: SSE2, or NEON.
#define SET baseline
#define TABLE baseline_kernels
#if defined(__aarch64__)
#define LABEL "NEON"
#else
#define LABEL "baseline"
#endif
#define WIDTH 4
#define VECTORS 2
#define TALL 6
#define SUMS 12
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#define STREAM(to, value) store(to, value)
#include "instructions.h"
