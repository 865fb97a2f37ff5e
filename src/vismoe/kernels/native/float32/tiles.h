// Products of small tiles that stay in registers. Included once in each instruction set's namespace, after vectors.h.
//
// The right side is packed: panels of PANEL columns, each (k, PANEL), the last one filled up with zeros. The left side is
// blocks of at most TALL rows in chunks of CHUNK columns, each chunk (TALL, STRIDE); or "columns", (k, TALL), where it is a
// transposed matrix. Every sum runs over k in order, whatever the tile: a row's result does not depend on its neighbours.

constexpr int PANEL = WIDTH * VECTORS;
constexpr int CHUNK = 256;
constexpr int STRIDE = CHUNK + 16;  // not a power of two, which would put all rows into the same sets of the cache
constexpr int AHEAD = 24;  // rows of a panel that are asked for before they are needed
constexpr int64_t BLOCK = int64_t(TALL) * STRIDE;

// sums += left (M rows) · P panels, which lie `apart` floats apart; a panel's rows lie `step` floats apart.
template <int M, int N, bool COLUMNS>
INLINE void multiply(int64_t k, const float* left, const float* right, int64_t apart, int64_t step, vec (&sums)[M][N]) {
    for (int64_t begin = 0; begin < k; begin += CHUNK) {
        int64_t here = COLUMNS ? k : (k - begin < CHUNK ? k - begin : CHUNK);
        for (int64_t i = 0; i < here; ++i) {
            vec columns[N];
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) {
                const float* from = right + n / VECTORS * apart + n % VECTORS * WIDTH;
                columns[n] = load(from);
                if (!COLUMNS) __builtin_prefetch(from + AHEAD * PANEL);
            }
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                vec value = splat(COLUMNS ? left[m] : left[m * STRIDE]);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) sums[m][n] += value * columns[n];
            }
            right += step;
            left += COLUMNS ? TALL : 1;
        }
        if (COLUMNS) return;
        left += BLOCK - here;
    }
}

// A tile of M rows takes so many panels at once that there are enough sums to hide the latency of an addition.
constexpr int panels_at_once(int m) { return m * VECTORS * 4 <= SUMS ? 4 : m * VECTORS * 2 <= SUMS ? 2 : 1; }

// A block of rows times some panels, into a matrix of `columns` columns whose rows lie `row` floats apart.
struct Product {
    int64_t k;
    const float *left, *right;
    int64_t apart, step, panels;
    float* to;
    int64_t row, columns;
    bool add;     // to what is there
    bool stream;  // past the caches: a large matrix, every element of which is written once
};

template <int M, int P, bool COLUMNS>
INLINE void multiply_panels(const Product& p, int64_t panel) {
    constexpr int N = P * VECTORS;
    vec sums[M][N];
    float* to = p.to + panel * PANEL;
    int64_t columns = p.columns - panel * PANEL;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sums[m][n] = (vec){};
    multiply<M, N, COLUMNS>(p.k, p.left, p.right + panel * p.apart, p.apart, p.step, sums);
    if (COLUMNS && p.stream && columns >= N * WIDTH) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) STREAM(to + m * p.row + n * WIDTH, sums[m][n]);
    } else if (columns >= N * WIDTH && !p.add) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) store(to + m * p.row + n * WIDTH, sums[m][n]);
    } else if (columns >= N * WIDTH) {
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n)
                store(to + m * p.row + n * WIDTH, load(to + m * p.row + n * WIDTH) + sums[m][n]);
    } else {
        float rest[M][N * WIDTH];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 16
            for (int n = 0; n < N; ++n) store(&rest[m][n * WIDTH], sums[m][n]);
        for (int m = 0; m < M; ++m)
            for (int64_t i = 0; i < columns; ++i)
                to[m * p.row + i] = p.add ? to[m * p.row + i] + rest[m][i] : rest[m][i];
    }
}

template <int M, bool COLUMNS>
__attribute__((noinline)) void multiply_block(const Product& p) {
    constexpr int P = COLUMNS ? 1 : panels_at_once(M);
    int64_t panel = 0;
    for (; panel + P <= p.panels; panel += P) multiply_panels<M, P, COLUMNS>(p, panel);
    if constexpr (P > 1)
        for (; panel < p.panels; ++panel) multiply_panels<M, 1, COLUMNS>(p, panel);
}

template <bool COLUMNS, int M = TALL>
inline void multiply_block_of(int64_t rows, const Product& p) {
    if (rows == M)
        multiply_block<M, COLUMNS>(p);
    else if constexpr (M > 1)
        multiply_block_of<COLUMNS, M - 1>(rows, p);
}

// Rows in blocks, as the left side of products: block b has rows first_row(b)…first_row(b + 1) - 1.
struct Blocks {
    int64_t rows, number, columns;
    float* data;

    Blocks(int slot, int64_t rows, int64_t columns)
        : rows(rows), number(up_to(rows, TALL)), columns(columns), data(scratch(slot, number * size())) {}

    int64_t size() const { return up_to(columns, CHUNK) * BLOCK; }
    int64_t first(int64_t block) const { return rows * block / number; }
    int64_t height(int64_t block) const { return first(block + 1) - first(block); }
    float* block(int64_t number) const { return data + number * size(); }

    // Where column `column` of row m of a block is.
    float* at(int64_t block_number, int64_t m, int64_t column) const {
        return block(block_number) + column / CHUNK * BLOCK + m * STRIDE + column % CHUNK;
    }

    // Takes every row from where row_at(row) says.
    template <typename RowAt>
    void fill(RowAt row_at) const {
        for (int64_t b = 0; b < number; ++b)
            for (int64_t m = 0; m < height(b); ++m) {
                const float* row = row_at(first(b) + m);
                for (int64_t begin = 0; begin < columns; begin += CHUNK) {
                    int64_t here = columns - begin < CHUNK ? columns - begin : CHUNK;
                    __builtin_memcpy(at(b, m, begin), row + begin, static_cast<size_t>(here) * 4);
                }
            }
    }
};

// k rows of a matrix, `apart` floats apart, `width` columns, as a panel filled up with zeros.
INLINE void pack_rows(const float* matrix, int64_t k, int64_t apart, int64_t width, float* panel) {
    if (width >= PANEL) {
        for (int64_t i = 0; i < k; ++i, matrix += apart, panel += PANEL)
            for (int v = 0; v < VECTORS; ++v) store(panel + v * WIDTH, load(matrix + v * WIDTH));
        return;
    }
    for (int64_t i = 0; i < k; ++i, matrix += apart, panel += PANEL)
        for (int64_t j = 0; j < PANEL; ++j) panel[j] = j < width ? matrix[j] : 0.0f;
}

INLINE vec interleave_low(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, LOW);
#else
    return __builtin_shuffle(a, b, (ivec){LOW});
#endif
}

INLINE vec interleave_high(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, HIGH);
#else
    return __builtin_shuffle(a, b, (ivec){HIGH});
#endif
}

// WIDTH vectors, transposed: as many rounds of interleaving the halves as WIDTH has bits.
INLINE void transpose(vec (&rows)[WIDTH]) {
    vec other[WIDTH];
#pragma GCC unroll 4
    for (int round = 1; round < WIDTH; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH / 2; ++i) {
            other[2 * i] = interleave_low(rows[i], rows[i + WIDTH / 2]);
            other[2 * i + 1] = interleave_high(rows[i], rows[i + WIDTH / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; ++i) rows[i] = other[i];
    }
}

// `width` rows of a matrix, `apart` floats apart, k columns, as a panel: transposed, and filled up with zeros.
INLINE void pack_columns(const float* matrix, int64_t k, int64_t apart, int64_t width, float* panel) {
    int64_t whole = width >= PANEL ? k / WIDTH * WIDTH : 0;
    for (int64_t begin = 0; begin < whole; begin += WIDTH)
        for (int v = 0; v < VECTORS; ++v) {
            vec square[WIDTH];
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i) square[i] = load(matrix + (v * WIDTH + i) * apart + begin);
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < WIDTH; ++i) store(panel + (begin + i) * PANEL + v * WIDTH, square[i]);
        }
    for (int64_t i = whole; i < k; ++i)
        for (int64_t j = 0; j < PANEL; ++j) panel[i * PANEL + j] = j < width ? matrix[j * apart + i] : 0.0f;
}

// Sums of WIDTH vectors, as one vector. Each round adds the halves of pairs; lane i is vector i's where `vectors` are in
// the order of their numbers' bits reversed.
INLINE vec sums_of(vec (&vectors)[WIDTH]) {
#pragma GCC unroll 4
    for (int left = WIDTH / 2; left >= 1; left /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < left; ++i)
            vectors[i] = interleave_low(vectors[2 * i], vectors[2 * i + 1]) +
                         interleave_high(vectors[2 * i], vectors[2 * i + 1]);
    return vectors[0];
}

struct Order {
    int of[WIDTH];
};

constexpr Order reversed_bits() {
    Order order = {};
    for (int i = 0; i < WIDTH; ++i)
        for (int bit = 1; bit < WIDTH; bit *= 2) order.of[i] = 2 * order.of[i] + i / bit % 2;
    return order;
}

constexpr int DOTS = WIDTH / 4;  // rows of a tile of DOTS × 4 sums along k

// out[i][j] = rows[i] · weight[j], for few rows and a weight that is not packed: both are read along k. What follows the
// weight is asked for 16 kilobytes ahead if it is read for the first time.
INLINE void dot_tile(const float* const (&rows)[DOTS], int64_t k, const float* const (&weight)[4], float* const (&out)[DOTS],
                     bool first) {
    constexpr Order order = reversed_bits();
    vec sums[WIDTH];
#pragma GCC unroll 16
    for (int i = 0; i < WIDTH; ++i) sums[i] = (vec){};
    for (int64_t i = 0; i < k; i += WIDTH) {
        bool whole = i + WIDTH <= k;
        vec left[DOTS];
#pragma GCC unroll 4
        for (int m = 0; m < DOTS; ++m) left[m] = whole ? load(rows[m] + i) : load_some(rows[m] + i, k - i);
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
            vec right = whole ? load(weight[n] + i) : load_some(weight[n] + i, k - i);
            if (first) __builtin_prefetch(weight[n] + i + 4096);
#pragma GCC unroll 4
            for (int m = 0; m < DOTS; ++m) sums[order.of[m * 4 + n]] += left[m] * right;
        }
    }
    vec total = sums_of(sums);
#pragma GCC unroll 4
    for (int m = 0; m < DOTS; ++m) __builtin_memcpy(out[m], reinterpret_cast<const float*>(&total) + m * 4, 16);
}

constexpr int FEW = 16;  // fewer rows than this do not repay the packing of a weight

// out[i] = rows[i] · weightᵀ for `number` < FEW rows; four rows of the weight at a time stay in the cache.
INLINE void dot_rows(int64_t number, const float* const* rows, int64_t k, const float* weight, int64_t columns,
                     float* const* out) {
    for (int64_t column = 0; column < columns; column += 4) {
        int64_t here = columns - column < 4 ? columns - column : 4;
        const float* right[4];
        for (int n = 0; n < 4; ++n) right[n] = weight + (column + (n < here ? n : 0)) * k;
        for (int64_t i = 0; i < number; i += DOTS) {
            const float* left[DOTS];
            float results[DOTS][4];
            float* to[DOTS];
            for (int m = 0; m < DOTS; ++m) {
                left[m] = rows[i + m < number ? i + m : i];
                to[m] = i + m < number && here == 4 ? out[i + m] + column : results[m];
            }
            dot_tile(left, k, right, to, i == 0);
            for (int m = 0; here < 4 && m < DOTS && i + m < number; ++m)
                for (int64_t n = 0; n < here; ++n) out[i + m][column + n] = results[m][n];
        }
    }
}
