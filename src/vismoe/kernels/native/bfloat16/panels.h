// Products in bfloat16, summed in float32. Included once in each instruction set's namespace, after its
// multiply<FIRST>(left, apart, panel, k, rows, sums), FIRST where a panel is read for the first time, and its Products,
// which lives while a thread multiplies.
//
// The right side is packed: panels of PANEL columns, each (k / 2, PANEL, 2), so that two neighbours along k lie together;
// k is a multiple of DEPTH, and missing columns and rows are zeros. The left side is rows of k numbers, zeros behind the
// last, `apart` numbers apart, in blocks of ROWS.

INLINE bfloat16 rounded(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<bfloat16>(bits >> 16 | 0x40);  // NaN stays NaN
    return static_cast<bfloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE void put_rounded(bfloat16* to, int64_t column, int64_t columns, vec value) {
    __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
    int64_t number = columns - column < WIDTH ? columns - column : WIDTH;
    if (number > 0) __builtin_memcpy(to + column, &half, static_cast<size_t>(number) * sizeof(bfloat16));
}

// Rows of numbers as the left side of products.
struct Left {
    int64_t apart;
    bfloat16* data;

    Left(int slot, int64_t rows, int64_t columns)
        : apart(up_to(columns, DEPTH) * DEPTH + DEPTH),  // rows do not fall into the same sets of the cache
          data(reinterpret_cast<bfloat16*>(scratch(slot, up_to(rows, ROWS) * ROWS * apart / 2))) {}

    bfloat16* row(int64_t number) const { return data + number * apart; }

    void fill(int64_t number, const bfloat16* from, int64_t columns) const {
        bfloat16* to = row(number);
        __builtin_memcpy(to, from, static_cast<size_t>(columns) * sizeof(bfloat16));
        for (int64_t column = columns; column < up_to(columns, DEPTH) * DEPTH; ++column) to[column] = 0;
    }
};

struct PackedMatrix {
    const bfloat16* data;
    int64_t in;

    // Matrix number `expert` of a stack (E, out, in).
    PackedMatrix(const bfloat16* stacked, int64_t expert, int64_t out, int64_t in)
        : data(stacked + expert * up_to(out, PANEL) * PANEL * up_to(in, DEPTH) * DEPTH), in(up_to(in, DEPTH) * DEPTH) {}

    const bfloat16* panel(int64_t number) const { return data + number * PANEL * in; }
};

// Sums of all blocks of a number of rows and some panels of a matrix, or of two (TWO = 2) at once. finish(panel, first
// row, rows, sums of the one, of the other) takes those of a block, (ROWS, PANEL). It is called when the next block's
// products are under way: the processor does both at once, the ones with tiles, the other with vectors.
template <int TWO, typename Finish>
INLINE void multiply_all(const Left& left, int64_t rows, const PackedMatrix& one, const PackedMatrix& other,
                         int64_t first_panel, int64_t last_panel, Finish finish) {
    constexpr int64_t SUMS = ROWS * PANEL;
    int64_t blocks = up_to(rows, ROWS), numbers = (last_panel - first_panel) * blocks;
    float* sums = scratch(2, 2 * TWO * SUMS);
    auto height = [&](int64_t row) { return rows - row < ROWS ? rows - row : ROWS; };
    auto multiply_block = [&](int64_t number) {
        int64_t panel = first_panel + number / blocks, row = number % blocks * ROWS;
        float* to = sums + number % 2 * TWO * SUMS;
        auto product = [&](const PackedMatrix& right, float* to) {
            if (row == 0)
                multiply<true>(left.row(row), left.apart, right.panel(panel), right.in, height(row), to);
            else
                multiply<false>(left.row(row), left.apart, right.panel(panel), right.in, height(row), to);
        };
        product(one, to);
        if (TWO == 2) product(other, to + SUMS);
    };
    auto finish_block = [&](int64_t number) {
        int64_t panel = first_panel + number / blocks, row = number % blocks * ROWS;
        const float* from = sums + number % 2 * TWO * SUMS;
        finish(panel, row, height(row), from, from + (TWO - 1) * SUMS);
    };
    for (int64_t number = 0; number < numbers; ++number) {
        multiply_block(number);
        if (number) finish_block(number - 1);
    }
    if (numbers > 0) finish_block(numbers - 1);
}

// Stacked weights (num, out, in) -> panels.
void pack(const float* weight, int64_t num, int64_t out, int64_t in, bfloat16* packed, int threads) {
    int64_t panels = up_to(out, PANEL), deep = up_to(in, DEPTH) * DEPTH;
    parallel_for(num * panels, threads, [&](int64_t task) {
        int64_t number = task / panels, column = task % panels * PANEL;
        bfloat16* to = packed + task * PANEL * deep;
        for (int64_t pair = 0; pair < deep / 2; ++pair)
            for (int64_t j = 0; j < PANEL; ++j)
                for (int64_t side = 0; side < 2; ++side, ++to) {
                    int64_t i = 2 * pair + side;
                    bool there = column + j < out && i < in;
                    *to = there ? rounded(weight[(number * out + column + j) * in + i]) : bfloat16(0);
                }
    });
}
