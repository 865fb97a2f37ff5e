// Experts' MLPs on rows sorted by expert, forward and backward. Included once in each instruction set's namespace.

// Rows of a piece: what it keeps fits into 0.8 megabytes, or into 1.3 where a piece has to pack all weights; several
// pieces for each thread; whole tiles.
inline int64_t rows_of_piece(const Experts& experts, const Rows& rows, int threads) {
    int64_t floats = (experts.packed ? 3 : 5) << 16, fitting = floats / (2 * experts.dim + CHUNK);
    int64_t shared = up_to(rows.num, threads == 1 ? 1 : 2 * threads);
    int64_t most = fitting < shared ? fitting : shared;
    return most < 2 * TALL ? 2 * TALL : most / TALL * TALL;
}

// The panels of columns begin… of a stacked weight (E, out, in), packed now if they are not.
struct Panels {
    const float* weight;
    int64_t in, out;
    bool packed;
    float* buffer;

    Panels(const float* stacked, int64_t expert, int64_t out, int64_t in, bool packed, float* buffer)
        : weight(stacked + expert * (packed ? up_to(out, PANEL) * PANEL : out) * in),
          in(in),
          out(out),
          packed(packed),
          buffer(buffer) {}

    // Rows begin…begin+k-1 of panel number `panel`.
    const float* operator()(int64_t panel, int64_t begin, int64_t k) const {
        if (packed) return weight + (panel * in + begin) * PANEL;
        int64_t column = panel * PANEL, width = out - column < PANEL ? out - column : PANEL;
        const float* from = weight + column * in + begin;
        pack_columns(from, k, in, width, buffer);
        return buffer;
    }
};

// Answers of a piece's rows to where they belong.
template <typename At>
INLINE void deliver(const Forward& f, const Task& task, At at) {
    int64_t d = f.experts.dim;
    const float* bias = offset(f.experts.down_bias, task.expert * d);
    for (int64_t row = task.begin; row < task.end; ++row) {
        float *answers = offset(f.answers, row * d), *y = is_alone(f.sums) ? f.y + f.rows.token[row] * d : nullptr;
        vec weight = splat(y ? f.sums.weight[row] : 1.0f);
        for (int64_t column = 0; column < d; column += WIDTH) {
            vec answer = load(at(row - task.begin, column)) + vector_at(bias, column, d);
            if (answers) put_vector(answers, column, d, answer);
            if (y) put_vector(y, column, d, weight * answer);
        }
    }
}

// y[token] = the sum of the token's rows, weighted where there are weights.
void sum_rows(const Sums& sums, const float* weight, const float* rows, int64_t dim, float* y, int threads) {
    parallel_for(up_to(sums.num_tokens, TOKENS_OF_TASK), threads, [&](int64_t task) {
        int64_t begin = task * TOKENS_OF_TASK, end = begin + TOKENS_OF_TASK;
        if (end > sums.num_tokens) end = sums.num_tokens;
        for (int64_t token = begin; token < end; ++token)
            for (int64_t column = 0; column < dim; column += WIDTH) {
                vec total = {};
                for (int64_t j = 0; j < sums.k; ++j) {
                    int64_t row = sums.inverse[token * sums.k + j];
                    vec value = vector_at(rows + row * dim, column, dim);
                    total += weight ? value * weight[row] : value;
                }
                put_vector(y + token * dim, column, dim, total);
            }
    });
}

// Columns begin…end-1 of a hidden row from its products: kept with their biases, activated, and put in place of `up`.
template <int KIND>
INLINE void activate_row(const Forward& f, int64_t expert, int64_t row, int64_t begin, int64_t end, float* up,
                         const float* gate) {
    int64_t h = f.experts.hidden;
    const float *up_bias = f.experts.up_bias, *gate_bias = f.experts.gate_bias;
    for (int64_t column = begin; column < end; column += WIDTH, up += WIDTH) {
        vec value = load(up) + vector_at(offset(up_bias, expert * h), column, h);
        if (f.kept_up) put_vector(f.kept_up + row * h, column, h, value);
        if (gate) {
            vec other = load(gate) + vector_at(offset(gate_bias, expert * h), column, h);
            if (f.kept_gate) put_vector(f.kept_gate + row * h, column, h, other);
            store(up, activate<KIND>(other) * value);
            gate += WIDTH;
        } else
            store(up, activate<KIND>(value));
    }
}

void forward_by_panels(const Forward& f, const Task& task) {
    const Experts& experts = f.experts;
    int64_t d = experts.dim, h = experts.hidden, rows = task.end - task.begin;
    int64_t expert = task.expert, out_panels = up_to(d, PANEL), width = out_panels * PANEL;
    Blocks tokens(0, rows, d), hidden(1, rows, experts.norm ? h : (h < CHUNK ? h : CHUNK));
    Blocks gates(4, experts.gate ? rows : 0, hidden.columns);
    tokens.fill([&](int64_t row) { return row_of(f.rows, task.begin + row, d); });
    float* answers = scratch(2, rows * width);
    float* buffer = experts.packed ? nullptr : scratch(3, PANEL * (d > CHUNK ? d : CHUNK));
    Panels up(experts.up, expert, h, d, experts.packed, buffer);
    Panels gate(experts.gate, expert, h, d, experts.packed, buffer);
    Panels down(experts.down, expert, d, h, experts.packed, buffer);
    bool whole = tokens.number == 1 && experts.packed;  // one block takes all panels, many take one after the other

    // Of columns begin…end-1, a multiple of panels, which stand at column `at` of the blocks.
    auto add_hidden = [&](const Panels& weight, const Blocks& to, int64_t begin, int64_t end, int64_t at) {
        int64_t first = begin / PANEL, number = up_to(end, PANEL) - first, step = whole ? number : 1;
        for (int64_t panel = 0; panel < number; panel += step) {
            const float* right = weight(first + panel, 0, d);
            for (int64_t b = 0; b < tokens.number; ++b)
                multiply_block_of<false>(tokens.height(b), {d, tokens.block(b), right, d * PANEL, PANEL, step,
                                                            to.at(b, 0, at + panel * PANEL), STRIDE, CHUNK, false, false});
        }
    };
    auto add_answers = [&](int64_t begin, int64_t end, int64_t at) {
        int64_t step = whole ? out_panels : 1, k = end - begin;
        for (int64_t panel = 0; panel < out_panels; panel += step) {
            const float* right = down(panel, begin, k);
            for (int64_t b = 0; b < hidden.number; ++b)
                multiply_block_of<false>(hidden.height(b), {k, hidden.at(b, 0, at), right, h * PANEL, PANEL, step,
                                                            answers + hidden.first(b) * width + panel * PANEL, width,
                                                            width, begin > 0, false});
        }
    };
    for (int64_t begin = 0; begin < h; begin += CHUNK) {
        int64_t end = h - begin < CHUNK ? h : begin + CHUNK, at = experts.norm ? begin : 0;
        if (experts.gate) add_hidden(gate, gates, begin, end, at);
        add_hidden(up, hidden, begin, end, at);
        with_kind(experts.activation, [&]<int KIND>() {
            for (int64_t b = 0; b < hidden.number; ++b)
                for (int64_t m = 0; m < hidden.height(b); ++m)
                    activate_row<KIND>(f, expert, task.begin + hidden.first(b) + m, begin, end, hidden.at(b, m, at),
                                       experts.gate ? gates.at(b, m, at) : nullptr);
        });
        if (!experts.norm) add_answers(begin, end, 0);
    }
    if (experts.norm) {
        for (int64_t b = 0; b < hidden.number; ++b)
            for (int64_t m = 0; m < hidden.height(b); ++m)
                normalise(experts, expert, [&](int64_t column) { return hidden.at(b, m, column); });
        for (int64_t begin = 0; begin < h; begin += CHUNK)
            add_answers(begin, h - begin < CHUNK ? h : begin + CHUNK, begin);
    }
    deliver(f, task, [&](int64_t row, int64_t column) { return answers + row * width + column; });
}

// Fewer rows than FEW, weights as they are.
void forward_by_rows(const Forward& f, const Task& task) {
    const Experts& experts = f.experts;
    int64_t d = experts.dim, h = experts.hidden, rows = task.end - task.begin, expert = task.expert;
    int64_t width = up_to(h, WIDTH) * WIDTH, out_width = up_to(d, WIDTH) * WIDTH;
    float *ups = scratch(0, rows * width), *gates = experts.gate ? scratch(1, rows * width) : nullptr;
    float* answers = scratch(2, rows * out_width);
    const float* tokens[FEW];
    float *up[FEW], *gate[FEW], *answer[FEW];
    for (int64_t row = 0; row < rows; ++row) {
        tokens[row] = row_of(f.rows, task.begin + row, d);
        up[row] = ups + row * width, gate[row] = offset(gates, row * width), answer[row] = answers + row * out_width;
    }
    dot_rows(rows, tokens, d, experts.up + expert * h * d, h, up);
    if (gates) dot_rows(rows, tokens, d, experts.gate + expert * h * d, h, gate);
    with_kind(experts.activation, [&]<int KIND>() {
        for (int64_t row = 0; row < rows; ++row)
            activate_row<KIND>(f, expert, task.begin + row, 0, h, up[row], gate[row]);
    });
    for (int64_t row = 0; experts.norm && row < rows; ++row)
        normalise(experts, expert, [&](int64_t column) { return up[row] + column; });
    dot_rows(rows, up, h, experts.down + expert * d * h, d, answer);
    deliver(f, task, [&](int64_t row, int64_t column) { return answer[row] + column; });
}

void forward(const Forward& f, int threads) {
    auto tasks = pieces_of_rows(f.experts, f.rows, rows_of_piece(f.experts, f.rows, threads));
    parallel_for(static_cast<int64_t>(tasks.size()), threads, [&](int64_t number) {
        const Task& task = tasks[static_cast<size_t>(number)];
        if (f.experts.packed || task.end - task.begin >= FEW)
            forward_by_panels(f, task);
        else
            forward_by_rows(f, task);
    });
    if (f.answers) clear_dead(f.experts, f.rows, false, f.answers);
    if (is_alone(f.sums))
        clear_dead(f.experts, f.rows, true, f.y);
    else if (f.sums.weight)
        sum_rows(f.sums, f.sums.weight, f.answers, f.experts.dim, f.y, threads);
}

// to[row] (+)= rows · weight for a piece's rows; weight (k, columns), as it is. `at` gives each row's k values.
template <typename RowAt>
void rows_times(int64_t rows, RowAt at, int64_t k, const float* weight, int64_t columns, float* to, bool add) {
    Blocks left(0, rows, k);
    left.fill(at);
    float* buffer = scratch(3, k * PANEL);
    for (int64_t begin = 0; begin < columns; begin += PANEL) {
        int64_t width = columns - begin < PANEL ? columns - begin : PANEL;
        bool packs = rows > TALL || width < PANEL;  // else the weight is read once, from where it is
        if (packs) pack_rows(weight + begin, k, columns, width, buffer);
        for (int64_t b = 0; b < left.number; ++b)
            multiply_block_of<false>(
                left.height(b), {k, left.block(b), packs ? buffer : weight + begin, 0, packs ? PANEL : columns, 1,
                                 to + left.first(b) * columns + begin, columns, width, add, false});
    }
}

// The gradient of a row's answer, but for the row's weight.
INLINE const float* gradient_of(const Backward& b, int64_t row) {
    return b.grad_y + (b.sums.weight ? b.rows.token[row] : row) * b.experts.dim;
}

INLINE float weight_of(const Backward& b, int64_t row) { return b.sums.weight ? b.sums.weight[row] : 1.0f; }

// The gradient of a row's weight: how much its answer has of its token's gradient.
INLINE float gradient_of_weight(const Backward& b, int64_t row) {
    int64_t d = b.experts.dim;
    const float *gradient = gradient_of(b, row), *answer = b.answers + row * d;
    vec total = {};
    for (int64_t column = 0; column < d; column += WIDTH)
        total += vector_at(gradient, column, d) * vector_at(answer, column, d);
    return sum(total);
}

// What the backward of a norm needs of each row.
struct RowStatistics {
    float mean, scale, of_gradient, of_product;
};

// The hidden layer of one row before the norm, at one vector, with slopes of what it is made of.
template <int KIND>
INLINE vec hidden_at(const Backward& b, int64_t row, int64_t column, vec& up_slope, vec& gate_slope) {
    int64_t h = b.experts.hidden;
    vec up = vector_at(b.kept_up + row * h, column, h);
    if (!b.kept_gate) return activate<KIND>(up, up_slope);
    vec slope, active = activate<KIND>(vector_at(b.kept_gate + row * h, column, h), slope);
    up_slope = active, gate_slope = up * slope;
    return up * active;
}

// Gradients of the hidden layer behind the norm, but for the row's weight, in work_up, and the norm's statistics.
template <int KIND>
void backward_of_down(const Backward& b, const Task& task, RowStatistics* statistics_of) {
    int64_t d = b.experts.dim, h = b.experts.hidden;
    rows_times(
        task.end - task.begin, [&](int64_t row) { return gradient_of(b, task.begin + row); }, d,
        b.experts.down + task.expert * d * h, h, b.work_up + task.begin * h, false);
    for (int64_t row = task.begin; b.grad_weight && row < task.end; ++row) b.grad_weight[row] = gradient_of_weight(b, row);
    if (!b.experts.norm) return;
    const float* weight = b.experts.norm + task.expert * h;
    float* hidden = scratch(4, h + WIDTH);
    for (int64_t row = task.begin; row < task.end; ++row) {
        vec slope, other;
        for (int64_t column = 0; column < h; column += WIDTH)
            store(hidden + column, hidden_at<KIND>(b, row, column, slope, other));
        RowStatistics& own = statistics_of[row];
        float weight_of_row = weight_of(b, row);
        statistics(h, b.experts.eps, [&](int64_t column) { return hidden + column; }, own.mean, own.scale);
        vec gradients = {}, products = {};
        for (int64_t column = 0; column < h; column += WIDTH) {
            vec gradient = vector_at(b.work_up + row * h, column, h) * weight_of_row * vector_at(weight, column, h);
            gradients += gradient;
            products += gradient * (load(hidden + column) - own.mean) * own.scale;
        }
        own.of_gradient = sum(gradients) / static_cast<float>(h);
        own.of_product = sum(products) / static_cast<float>(h);
    }
}

// One row as columns of the two sides of a product along rows: pieces of WIDE columns, which lie `apart` floats apart.
template <int WIDE>
INLINE void scatter_row(const float* row, int64_t columns, float* to, int64_t apart) {
    int64_t begin = 0;
    for (; begin + WIDE <= columns; begin += WIDE, to += apart) __builtin_memcpy(to, row + begin, WIDE * sizeof(float));
    if (begin < columns)
        for (int64_t i = 0; i < WIDE; ++i) to[i] = begin + i < columns ? row[begin + i] : 0.0f;
}

// Floats between two pieces of `rows` rows: not a multiple of a page, at which caches keep few lines.
INLINE int64_t apart_of(int64_t rows, int64_t wide) { return rows * wide + 2 * WIDTH; }

// to (left_columns, right_columns), `row` floats apart, (+)= leftᵀ · right along `rows` rows.
inline void add_outer(int64_t rows, const float* left, int64_t left_columns, const float* right, int64_t right_columns,
                      float* to, int64_t row, bool add, bool stream) {
    stream = stream && row % WIDTH == 0 && reinterpret_cast<uintptr_t>(to) % (WIDTH * sizeof(float)) == 0;
    for (int64_t panel = 0; panel < right_columns; panel += PANEL, right += apart_of(rows, PANEL)) {
        const float* block = left;
        for (int64_t begin = 0; begin < left_columns; begin += TALL, block += apart_of(rows, TALL))
            multiply_block_of<true>(left_columns - begin < TALL ? left_columns - begin : TALL,
                                    {rows, block, right, 0, PANEL, 1, to + begin * row + panel, row,
                                     right_columns - panel, add, stream});
    }
}

INLINE void add_vector(float* to, int64_t column, int64_t columns, vec value) {
    if (to) put_vector(to, column, columns, vector_at(to, column, columns) + value);
}

constexpr int64_t LARGE = 1 << 21;  // floats that no cache holds
constexpr int64_t UNITS = 512;  // most hidden units of a task
constexpr int64_t ROWS = 384;   // most rows that it takes at once

// Gradients of the weights of an expert's hidden units begin…end-1; the gradients of the hidden layer before its
// activation replace those behind it in work_up and work_gate.
template <int KIND>
void backward_of_weights(const Backward& b, const Task& task, int64_t first, int64_t count,
                         const RowStatistics* statistics_of) {
    const Experts& experts = b.experts;
    int64_t d = experts.dim, h = experts.hidden, expert = task.expert, begin = task.begin, end = task.end;
    int64_t units = end - begin, unit_panels = up_to(units, PANEL), out_blocks = up_to(d, TALL);
    float *up = offset(b.up, (expert * h + begin) * d), *gate = offset(b.gate, (expert * h + begin) * d);
    float* down = offset(b.down, expert * d * h + begin);
    float *up_bias = offset(b.up_bias, expert * h), *gate_bias = offset(b.gate_bias, expert * h);
    float *norm = offset(b.norm, expert * h), *norm_bias = offset(b.norm_bias, expert * h);
    float* down_bias = begin ? nullptr : offset(b.down_bias, expert * d);
    for (float* vector : {up_bias, gate_bias, norm, norm_bias})
        if (vector) std::memset(vector + begin, 0, static_cast<size_t>(units) * sizeof(float));
    if (down_bias) std::memset(down_bias, 0, static_cast<size_t>(d) * sizeof(float));
    if (!count) {
        for (float* matrix : {up, gate})
            if (matrix) std::memset(matrix, 0, static_cast<size_t>(units * d) * sizeof(float));
        for (int64_t row = 0; down && row < d; ++row)
            std::memset(down + row * h, 0, static_cast<size_t>(units) * sizeof(float));
        return;
    }
    bool stream = count <= ROWS && experts.num * h * d > LARGE;
    for (int64_t piece = 0, pieces = up_to(count, ROWS); piece < pieces; ++piece) {
        int64_t from = count * piece / pieces, rows = count * (piece + 1) / pieces - from, row0 = first + from;
        int64_t panel_apart = apart_of(rows, PANEL), block_apart = apart_of(rows, TALL);
        float* hidden = scratch(0, unit_panels * panel_apart);
        float* up_blocks = scratch(1, up_to(units, TALL) * block_apart);
        float* gate_blocks = gate ? scratch(2, up_to(units, TALL) * block_apart) : nullptr;
        float* sums = scratch(3, 4 * UNITS);
        float* line = scratch(4, UNITS);
        std::memset(sums, 0, 4 * UNITS * sizeof(float));
        for (int64_t row = 0; row < rows; ++row) {
            float *work_up = b.work_up + (row0 + row) * h, *work_gate = offset(b.work_gate, (row0 + row) * h);
            float weight = weight_of(b, row0 + row);
            for (int64_t column = begin; column < end; column += WIDTH) {
                int64_t at = column - begin;
                vec up_slope = {}, gate_slope = {};
                vec value = hidden_at<KIND>(b, row0 + row, column, up_slope, gate_slope);
                vec gradient = vector_at(work_up, column, end) * weight;
                if (experts.norm) {
                    const RowStatistics& own = statistics_of[row0 + row];
                    vec factor = vector_at(experts.norm + expert * h, column, end);
                    value = (value - own.mean) * own.scale;
                    store(sums + 2 * UNITS + at, load(sums + 2 * UNITS + at) + gradient * value);
                    store(sums + 3 * UNITS + at, load(sums + 3 * UNITS + at) + gradient);
                    gradient = (gradient * factor - own.of_gradient - value * own.of_product) * own.scale;
                    value = value * factor + vector_at(experts.norm_bias + expert * h, column, end);
                }
                store(line + at, value * weight);  // its other side, the gradient of the answer, has no weight
                vec through = gradient * up_slope;
                store(sums + at, load(sums + at) + through);
                put_vector(work_up, column, end, through);
                if (b.kept_gate) {
                    through = gradient * gate_slope;
                    store(sums + UNITS + at, load(sums + UNITS + at) + through);
                    put_vector(work_gate, column, end, through);
                }
            }
            scatter_row<PANEL>(line, units, hidden + row * PANEL, panel_apart);
            scatter_row<TALL>(work_up + begin, units, up_blocks + row * TALL, block_apart);
            if (gate) scatter_row<TALL>(work_gate + begin, units, gate_blocks + row * TALL, block_apart);
        }
        for (int64_t column = begin; column < end; column += WIDTH) {
            int64_t at = column - begin;
            add_vector(up_bias, column, end, load(sums + at));
            add_vector(gate_bias, column, end, load(sums + UNITS + at));
            add_vector(norm, column, end, load(sums + 2 * UNITS + at));
            add_vector(norm_bias, column, end, load(sums + 3 * UNITS + at));
        }
        if (up || gate) {
            float* tokens = scratch(5, up_to(d, PANEL) * panel_apart);
            for (int64_t row = 0; row < rows; ++row)
                scatter_row<PANEL>(row_of(b.rows, row0 + row, d), d, tokens + row * PANEL, panel_apart);
            if (up) add_outer(rows, up_blocks, units, tokens, d, up, d, from > 0, stream);
            if (gate) add_outer(rows, gate_blocks, units, tokens, d, gate, d, from > 0, stream);
        }
        if (down) {
            float* gradients = scratch(5, out_blocks * block_apart);
            for (int64_t row = 0; row < rows; ++row)
                scatter_row<TALL>(gradient_of(b, row0 + row), d, gradients + row * TALL, block_apart);
            add_outer(rows, gradients, d, hidden, units, down, h, from > 0, stream);
        }
        for (int64_t row = row0; down_bias && row < row0 + rows; ++row)
            for (int64_t column = 0; column < d; column += WIDTH)
                add_vector(down_bias, column, d, vector_at(gradient_of(b, row), column, d) * weight_of(b, row));
    }
}

// Gradients of a piece's rows.
inline void backward_of_rows(const Backward& b, const Task& task, float* row_gradients) {
    int64_t d = b.experts.dim, h = b.experts.hidden, rows = task.end - task.begin, at = task.expert * h * d;
    float* to = row_gradients + task.begin * d;
    rows_times(rows, [&](int64_t row) { return b.work_up + (task.begin + row) * h; }, h, b.experts.up + at, d, to, false);
    if (b.experts.gate)
        rows_times(rows, [&](int64_t row) { return b.work_gate + (task.begin + row) * h; }, h, b.experts.gate + at, d, to,
                   true);
}

void backward(const Backward& b, int threads) {
    auto pieces = pieces_of_rows(b.experts, b.rows, rows_of_piece(b.experts, b.rows, threads));
    auto size = static_cast<int64_t>(pieces.size());
    std::vector<RowStatistics> statistics_of(b.experts.norm ? static_cast<size_t>(b.rows.num) : 0);
    parallel_for(size, threads, [&](int64_t number) {
        with_kind(b.experts.activation, [&]<int KIND>() {
            backward_of_down<KIND>(b, pieces[static_cast<size_t>(number)], statistics_of.data());
        });
    });
    std::vector<int64_t> first(static_cast<size_t>(b.experts.num) + 1, 0);
    for (int64_t expert = 0; expert < b.experts.num; ++expert)
        first[static_cast<size_t>(expert) + 1] = first[static_cast<size_t>(expert)] + b.rows.count[expert];
    // Experts with many rows first, so that no thread begins with one when others are done.
    std::vector<int64_t> experts(static_cast<size_t>(b.experts.num));
    for (size_t i = 0; i < experts.size(); ++i) experts[i] = static_cast<int64_t>(i);
    std::stable_sort(experts.begin(), experts.end(),
                     [&](int64_t left, int64_t right) { return b.rows.count[left] > b.rows.count[right]; });
    int64_t units = b.experts.num * up_to(b.experts.hidden, UNITS) < 4 * threads ? UNITS / 2 : UNITS;
    int64_t chunks = up_to(b.experts.hidden, units);
    parallel_for(b.experts.num * chunks, threads, [&](int64_t number) {
        int64_t expert = experts[static_cast<size_t>(number / chunks)], begin = number % chunks * units;
        int64_t end = begin + units < b.experts.hidden ? begin + units : b.experts.hidden;
        with_kind(b.experts.activation, [&]<int KIND>() {
            backward_of_weights<KIND>(b, {expert, begin, end}, first[static_cast<size_t>(expert)],
                                      b.rows.count[expert], statistics_of.data());
        });
    });
    for (int64_t row = first.back(); b.grad_weight && row < b.rows.num; ++row) b.grad_weight[row] = 0.0f;
    if (!b.grad_x) return;
    float* row_gradients = b.sums.weight ? scratch(10, b.rows.num * b.experts.dim) : b.grad_x;
    parallel_for(size, threads, [&](int64_t number) {
        backward_of_rows(b, pieces[static_cast<size_t>(number)], row_gradients);
    });
    clear_dead(b.experts, b.rows, false, row_gradients);
    if (b.sums.weight) sum_rows(b.sums, nullptr, row_gradients, b.experts.dim, b.grad_x, threads);
}
