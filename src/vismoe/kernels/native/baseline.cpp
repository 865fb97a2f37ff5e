// What every processor of the platform has: SSE2, or NEON.
#define SET baseline
#define WIDTH 4
#define VECTORS 2
#define TALL 6
#define SUMS 12
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#define STREAM(to, value) store(to, value)
#include "instructions.h"

namespace vismoe {
#if defined(__aarch64__)
#define NAME "NEON"
#else
#define NAME "baseline"
#endif
const Kernels baseline_kernels = {NAME,           baseline::PANEL,   baseline::forward, baseline::backward,
                                  baseline::route, baseline::combine, baseline::linear,  baseline::pack};
}  // namespace vismoe
