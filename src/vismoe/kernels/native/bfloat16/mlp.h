// Experts' MLPs and linear layers in bfloat16. Included once in each instruction set's namespace.

constexpr int64_t ROWS_OF_PIECE = 256;  // whose hidden layer of 1,536 units fits into most of two megabytes
constexpr int64_t ROWS_OF_NORM = 64;    // whose hidden layer is kept in float32 too

// Activated hidden units of a block: columns begin… of rows row… of a piece, from the sums of up and gate.
template <int KIND>
INLINE void activate_block(const ExpertsOf<bfloat16>& experts, int64_t expert, int64_t rows, int64_t begin,
                           const float* up, const float* gate, bfloat16* to, int64_t apart, float* wide) {
    int64_t h = experts.hidden;
    const float *up_bias = offset(experts.up_bias, expert * h), *gate_bias = offset(experts.gate_bias, expert * h);
    for (int64_t column = begin; column < begin + PANEL && column < up_to(h, DEPTH) * DEPTH; column += WIDTH) {
        vec bias = vector_at(up_bias, column, h), other_bias = vector_at(gate_bias, column, h);
        for (int64_t m = 0; m < rows; ++m) {
            int64_t at = m * PANEL + column - begin;
            vec value = load(up + at) + bias;
            value = gate ? activate<KIND>(load(gate + at) + other_bias) * value : activate<KIND>(value);
            if (wide)
                store(wide + m * up_to(h, PANEL) * PANEL + column, value);
            else
                put_rounded(to + m * apart, column, column + WIDTH, value);
        }
    }
}

// Answers of a block of rows, first + m for m < rows, at columns begin….
INLINE void deliver_block(const ForwardBfloat16& f, int64_t expert, int64_t first, int64_t rows, int64_t begin,
                          const float* sums, float* answers) {
    int64_t d = f.experts.dim;
    const float* bias = offset(f.experts.down_bias, expert * d);
    for (int64_t m = 0; m < rows; ++m) {
        int64_t row = first + m;
        vec weight = splat(is_alone(f.sums) ? f.sums.weight[row] : 1.0f);
        bfloat16* y = f.y + (is_alone(f.sums) ? f.rows.token[row] : row) * d;
        for (int64_t column = begin; column < begin + PANEL && column < d; column += WIDTH) {
            vec answer = load(sums + m * PANEL + column - begin) + vector_at(bias, column, d);
            if (answers)
                put_vector(answers + row * d, column, d, answer);
            else
                put_rounded(y, column, d, weight * answer);
        }
    }
}

void forward_piece(const ForwardBfloat16& f, const Task& task, float* answers) {
    const ExpertsOf<bfloat16>& experts = f.experts;
    int64_t d = experts.dim, h = experts.hidden, rows = task.end - task.begin, wide_apart = up_to(h, PANEL) * PANEL;
    Products products;
    Left tokens(0, rows, d), hidden(1, rows, h);
    float* wide = experts.norm ? scratch(4, rows * wide_apart + WIDTH) : nullptr;
    for (int64_t row = 0; row < rows; ++row) tokens.fill(row, row_of(f.rows, task.begin + row, d), d);
    PackedMatrix up(experts.up, task.expert, h, d), gate(experts.gate, task.expert, h, d);
    PackedMatrix down(experts.down, task.expert, d, h);
    with_kind(experts.activation, [&]<int KIND>() {
        auto activate = [&](int64_t panel, int64_t row, int64_t number, const float* ups, const float* gates) {
            activate_block<KIND>(experts, task.expert, number, panel * PANEL, ups, experts.gate ? gates : nullptr,
                                 hidden.row(row), hidden.apart, offset(wide, row * wide_apart));
        };
        if (experts.gate)
            multiply_all<2>(tokens, rows, up, gate, 0, up_to(h, PANEL), activate);
        else
            multiply_all<1>(tokens, rows, up, up, 0, up_to(h, PANEL), activate);
    });
    for (int64_t row = 0; wide && row < rows; ++row) {
        float* own = wide + row * wide_apart;
        normalise(experts, task.expert, [&](int64_t column) { return own + column; });
        for (int64_t column = 0; column < up_to(h, DEPTH) * DEPTH; column += WIDTH)
            put_rounded(hidden.row(row), column, column + WIDTH, vector_at(own, column, h));
    }
    multiply_all<1>(hidden, rows, down, down, 0, up_to(d, PANEL),
                    [&](int64_t panel, int64_t row, int64_t number, const float* sums, const float*) {
                        deliver_block(f, task.expert, task.begin + row, number, panel * PANEL, sums, answers);
                    });
}

void forward(const ForwardBfloat16& f, int threads) {
    int64_t d = f.experts.dim, most = f.experts.norm ? ROWS_OF_NORM : ROWS_OF_PIECE, fair = up_to(f.rows.num, 2 * threads);
    if (threads > 1 && fair < most) most = fair < ROWS ? ROWS : fair;
    bool sums = f.sums.weight && f.sums.k > 1;
    float* answers = sums ? scratch(10, f.rows.num * d) : nullptr;
    auto tasks = pieces_of_rows(f.experts, f.rows, most);
    parallel_for(static_cast<int64_t>(tasks.size()), threads,
                 [&](int64_t number) { forward_piece(f, tasks[static_cast<size_t>(number)], answers); });
    if (!sums) return clear_dead(f.experts, f.rows, is_alone(f.sums), f.y);
    clear_dead(f.experts, f.rows, false, answers);
    parallel_for(up_to(f.sums.num_tokens, TOKENS_OF_TASK), threads, [&](int64_t task) {
        int64_t begin = task * TOKENS_OF_TASK, end = begin + TOKENS_OF_TASK;
        for (int64_t token = begin; token < end && token < f.sums.num_tokens; ++token)
            for (int64_t column = 0; column < d; column += WIDTH) {
                vec total = {};
                for (int64_t j = 0; j < f.sums.k; ++j) {
                    int64_t row = f.sums.inverse[token * f.sums.k + j];
                    total += vector_at(answers + row * d, column, d) * f.sums.weight[row];
                }
                put_rounded(f.y + token * d, column, d, total);
            }
    });
}

template <int KIND>
INLINE vec maybe_activate(bool activates, vec value) {
    return activates ? activate<KIND>(value) : value;
}

void linear(const LinearOf<bfloat16>& l, int threads) {
    int64_t panels = up_to(l.out, PANEL), fair = up_to(l.rows, threads);
    int64_t most = fair < ROWS ? ROWS : fair < ROWS_OF_PIECE ? up_to(fair, ROWS) * ROWS : ROWS_OF_PIECE;
    int64_t row_tasks = up_to(l.rows, most), panel_tasks = row_tasks < threads ? threads : 1;
    if (panel_tasks > panels) panel_tasks = panels;
    parallel_for(row_tasks * panel_tasks, threads, [&](int64_t task) {
        int64_t begin = l.rows * (task / panel_tasks) / row_tasks, end = l.rows * (task / panel_tasks + 1) / row_tasks;
        int64_t part = task % panel_tasks, rows = end - begin;
        Products products;
        Left left(0, rows, l.dim);
        for (int64_t row = 0; row < rows; ++row) left.fill(row, l.x + (begin + row) * l.dim, l.dim);
        PackedMatrix right(l.weight, 0, l.out, l.dim);
        with_kind(l.activation, [&]<int KIND>() {
            auto finish = [&](int64_t panel, int64_t row, int64_t number, const float* sums, const float*) {
                for (int64_t m = 0; m < number; ++m)
                    for (int64_t at = 0; at < PANEL && panel * PANEL + at < l.out; at += WIDTH) {
                        int64_t column = panel * PANEL + at;
                        vec value = load(sums + m * PANEL + at) + vector_at(l.bias, column, l.out);
                        put_rounded(l.y + (begin + row + m) * l.out, column, l.out,
                                    maybe_activate<KIND>(l.activation >= 0, value));
                    }
            };
            int64_t first = panels * part / panel_tasks, last = panels * (part + 1) / panel_tasks;
            multiply_all<1>(left, rows, right, right, first, last, finish);
        });
    });
}
