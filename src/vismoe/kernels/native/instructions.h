// Everything once more for one instruction set, whose file defines SET (its namespace), TABLE and LABEL (the
// table of its functions, and its name), WIDTH (floats of a vector), VECTORS (vectors of a
// panel), TALL (rows of a tile), SUMS (vectors of sums that registers hold), LOW and HIGH (lanes of two vectors' halves),
// STREAM (a store past the caches, to an aligned address).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

#include "interface.h"
#include "threads.h"

namespace vismoe {
namespace SET {
namespace {

#include "vectors.h"
#include "tiles.h"
#include "mlp.h"
#include "route.h"

}  // namespace
}  // namespace SET

const Kernels TABLE = {LABEL,      SET::PANEL,  SET::forward, SET::backward,
                       SET::route, SET::linear, SET::pack};

}  // namespace vismoe
