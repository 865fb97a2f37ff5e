// Token choice, and products of one packed weight. Included once in each instruction set's namespace.

inline void route_token(const Route& r, const float* logits, int32_t* chosen, float* weights) {
    for (int64_t j = 0; j < r.k; ++j) {
        int64_t best = -1;
        float largest = 0;
        for (int64_t e = 0; e < r.num_experts; ++e) {
            bool taken = false;
            for (int64_t i = 0; i < j; ++i) taken |= chosen[i] == e;
            float score = logits[e] + (r.bias ? r.bias[e] : 0.0f);
            if (!taken && (best < 0 || score > largest || (score != score && largest == largest)))
                best = e, largest = score;
        }
        chosen[j] = static_cast<int32_t>(best);
    }
    float peak = logits[0], total = 0, of_chosen = 0;
    for (int64_t e = 1; e < r.num_experts; ++e) peak = logits[e] > peak ? logits[e] : peak;
    if (r.combine == 2) {
        for (int64_t j = 0; j < r.k; ++j) weights[j] = 1.0f;
        return;
    }
    if (r.gates == 0) {
        vec sums = {};
        for (int64_t e = 0; e < r.num_experts; e += WIDTH) {
            vec value = exponential(vector_at(logits, e, r.num_experts) - peak);
            for (int64_t i = r.num_experts - e; i < WIDTH; ++i) value[i] = 0.0f;
            sums += value;
        }
        total = sum(sums);
    }
    for (int64_t j = 0; j < r.k; ++j) {
        float logit = logits[chosen[j]];
        weights[j] = r.gates == 0 ? exponential(splat(logit - peak))[0] / total : sigmoid(splat(logit))[0];
        of_chosen += weights[j];
    }
    if (r.combine == 1)
        for (int64_t j = 0; j < r.k; ++j) weights[j] /= of_chosen > 1e-20f ? of_chosen : 1e-20f;
}

void route(const Route& r, int threads) {
    int64_t tasks = up_to(r.num_tokens, TOKENS_OF_TASK);
    std::vector<int32_t> chosen(static_cast<size_t>(r.num_tokens * r.k));
    std::vector<float> weights(chosen.size());
    parallel_for(tasks, threads, [&](int64_t task) {
        int64_t begin = task * TOKENS_OF_TASK, end = begin + TOKENS_OF_TASK;
        if (end > r.num_tokens) end = r.num_tokens;
        for (int64_t from = begin; from < end; from += FEW - 1) {
            const float* rows[FEW];
            float* out[FEW];
            int64_t number = end - from < FEW - 1 ? end - from : FEW - 1;
            for (int64_t i = 0; i < number; ++i)
                rows[i] = r.tokens + (from + i) * r.dim, out[i] = r.logits + (from + i) * r.num_experts;
            dot_rows(number, rows, r.dim, r.weight, r.num_experts, out);
        }
        for (int64_t token = begin; token < end; ++token)
            route_token(r, r.logits + token * r.num_experts, chosen.data() + token * r.k, weights.data() + token * r.k);
    });
    std::memset(r.count, 0, static_cast<size_t>(r.num_experts) * sizeof(int64_t));
    for (int32_t expert : chosen) ++r.count[expert];
    std::vector<int64_t> next(static_cast<size_t>(r.num_experts));
    for (size_t expert = 1; expert < next.size(); ++expert) next[expert] = next[expert - 1] + r.count[expert - 1];
    for (int64_t choice = 0; choice < r.num_tokens * r.k; ++choice) {
        auto at = static_cast<size_t>(choice);
        int64_t row = next[static_cast<size_t>(chosen[at])]++;
        r.token[row] = choice / r.k, r.row_weight[row] = weights[at], r.inverse[choice] = row;
    }
}

template <int KIND>
INLINE void activate_columns(float* row, int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column += WIDTH)
        put_vector(row, column, end, activate<KIND>(vector_at(row, column, end)));
}

inline void finish_row(const Linear& l, float* row, int64_t begin, int64_t end) {
    if (l.bias)
        for (int64_t column = begin; column < end; column += WIDTH)
            put_vector(row, column, end, vector_at(row, column, end) + vector_at(l.bias, column, end));
    if (l.activation >= 0)
        with_kind(l.activation, [&]<int KIND>() { activate_columns<KIND>(row, begin, end); });
}

void linear(const Linear& l, int threads) {
    int64_t panels = up_to(l.out, PANEL);
    // Pieces of rows, or of panels where rows are few.
    int64_t rows = (1 << 17) / (l.dim + CHUNK), shared = up_to(l.rows, threads);
    rows = rows < shared ? rows : shared;
    rows = rows < TALL ? TALL : rows / TALL * TALL;
    int64_t row_tasks = up_to(l.rows, rows), panel_tasks = row_tasks < threads ? threads : 1;
    if (panel_tasks > panels) panel_tasks = panels;
    parallel_for(row_tasks * panel_tasks, threads, [&](int64_t task) {
        int64_t piece = task / panel_tasks, part = task % panel_tasks;
        int64_t begin = l.rows * piece / row_tasks, end = l.rows * (piece + 1) / row_tasks;
        int64_t first = panels * part / panel_tasks, last = panels * (part + 1) / panel_tasks;
        Blocks left(0, end - begin, l.dim);
        left.fill([&](int64_t row) { return l.x + (begin + row) * l.dim; });
        int64_t step = left.number == 1 ? last - first : 1;
        for (int64_t panel = first; panel < last; panel += step)
            for (int64_t b = 0; b < left.number; ++b) {
                float* to = l.y + (begin + left.first(b)) * l.out;
                multiply_block_of<false>(left.height(b), {l.dim, left.block(b), l.weight + panel * l.dim * PANEL,
                                                          l.dim * PANEL, PANEL, step, to + panel * PANEL, l.out,
                                                          l.out - panel * PANEL, false, false});
                int64_t columns = (panel + step) * PANEL < l.out ? (panel + step) * PANEL : l.out;
                for (int64_t m = 0; m < left.height(b); ++m, to += l.out) finish_row(l, to, panel * PANEL, columns);
            }
    });
}

// Stacked weights (num, out, in) -> panels (num, ⌈out / PANEL⌉, in, PANEL).
void pack(const float* weight, int64_t num, int64_t out, int64_t in, float* packed, int threads) {
    int64_t panels = up_to(out, PANEL);
    parallel_for(num * panels, threads, [&](int64_t task) {
        int64_t number = task / panels, column = task % panels * PANEL;
        int64_t width = out - column < PANEL ? out - column : PANEL;
        pack_columns(weight + (number * out + column) * in, in, in, width, packed + task * in * PANEL);
    });
}
