// Rows of experts in pieces, whatever their numbers are. Included once in each instruction set's namespace.

INLINE int64_t up_to(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple; }

struct Task {
    int64_t expert, begin, end;  // rows, or columns
};

// Every expert's rows, in pieces of at most `most`; all as even as can be.
template <typename Number>
inline std::vector<Task> pieces_of_rows(const ExpertsOf<Number>& experts, const RowsOf<Number>& rows, int64_t most) {
    std::vector<Task> tasks;
    for (int64_t expert = 0, begin = 0; expert < experts.num; ++expert) {
        int64_t number = rows.count[expert], pieces = up_to(number, most);
        for (int64_t piece = 0; piece < pieces; ++piece)
            tasks.push_back({expert, begin + number * piece / pieces, begin + number * (piece + 1) / pieces});
        begin += number;
    }
    return tasks;
}

template <typename Number>
inline int64_t live_rows(const ExpertsOf<Number>& experts, const RowsOf<Number>& rows) {
    int64_t live = 0;
    for (int64_t expert = 0; expert < experts.num; ++expert) live += rows.count[expert];
    return live;
}

// Whether every token has exactly one row: its answer is the row's, and no sum is needed.
INLINE bool is_alone(const Sums& sums) { return sums.weight && sums.k == 1; }

constexpr int64_t TOKENS_OF_TASK = 64;

template <typename Number>
INLINE const Number* row_of(const RowsOf<Number>& rows, int64_t row, int64_t dim) {
    return rows.tokens + (rows.token ? rows.token[row] : row) * dim;
}

template <typename Number>
INLINE Number* offset(Number* from, int64_t elements) {
    return from ? from + elements : nullptr;
}

// Mean and 1 / standard deviation of a hidden row; at(column) is where a vector of it is.
template <typename At>
INLINE void statistics(int64_t h, float eps, At at, float& mean, float& scale) {
    auto value = [&](int64_t column) { return column + WIDTH <= h ? load(at(column)) : load_some(at(column), h - column); };
    vec total = {}, squares = {};
    for (int64_t column = 0; column < h; column += WIDTH) total += value(column);
    mean = sum(total) / static_cast<float>(h);
    for (int64_t column = 0; column < h; column += WIDTH) {
        vec off = value(column) - mean;
        for (int64_t i = h - column; i < WIDTH; ++i) off[i] = 0.0f;
        squares += off * off;
    }
    scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(h) + eps);
}

// A hidden row, normalised in place.
template <typename Number, typename At>
INLINE void normalise(const ExpertsOf<Number>& experts, int64_t expert, At at) {
    int64_t h = experts.hidden;
    const float *weight = experts.norm + expert * h, *bias = experts.norm_bias + expert * h;
    float mean, scale;
    statistics(h, experts.eps, at, mean, scale);
    for (int64_t column = 0; column < h; column += WIDTH) {
        vec value = (load(at(column)) - mean) * scale * vector_at(weight, column, h) + vector_at(bias, column, h);
        store(at(column), value);  // there is room behind the last column
    }
}

// Zeros for rows that are not live, or for their tokens.
template <typename Number, typename To>
void clear_dead(const ExpertsOf<Number>& experts, const RowsOf<Number>& rows, bool of_tokens, To* to) {
    for (int64_t row = live_rows(experts, rows); row < rows.num; ++row)
        std::memset(to + (of_tokens ? rows.token[row] : row) * experts.dim, 0,
                    static_cast<size_t>(experts.dim) * sizeof(To));
}
