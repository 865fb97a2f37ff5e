// Vectors, and sizes of blocks, of every instruction set for bfloat16. Included once in each one's namespace.

#define WIDTH 16
// Approximations finer than bfloat16: 1 / x, x to the nearest whole number, and x · 2^n.
#define AS_512(x) reinterpret_cast<__m512>(x)
#define RECIPROCAL(x) reinterpret_cast<vec>(_mm512_maskz_rcp14_ps(0xffff, AS_512(x)))
#define NEAREST(x) reinterpret_cast<vec>(_mm512_maskz_roundscale_ps(0xffff, AS_512(x), 0))
#define SCALE(x, n) reinterpret_cast<vec>(_mm512_maskz_scalef_ps(0xffff, AS_512(x), AS_512(n)))

#include "../vectors.h"
#include "../rows.h"

constexpr int PANEL = 32;  // columns of a panel
constexpr int ROWS = 32;   // rows of a block
constexpr int DEPTH = 32;  // the left side's columns, and the panel's rows, come in as many
constexpr int AHEAD = 16;  // as often is a panel asked for before it is needed, into the second cache
