// What the module calls: one table of functions for each instruction set.
#pragma once
#include <cstdint>

namespace vismoe {

using bfloat16 = uint16_t;  // the upper half of a float

enum Activation { GELU_TANH = 0, GELU_ERF = 1, RELU = 2, SILU = 3 };

// Stacked experts: up and gate (E, h, d), down (E, d, h), biases and norm (E, h) or (E, d); null where there is none.
// In packed form, up, gate and down hold panels and the rest is unchanged: see float32/tiles.h; in bfloat16 they are always
// packed, as bfloat16/panels.h says.
template <typename Number>
struct ExpertsOf {
    int64_t num, dim, hidden;
    const Number *up, *gate, *down;
    const float *up_bias, *gate_bias, *norm, *norm_bias, *down_bias;
    float eps;
    int32_t activation;
    bool packed;
};
using Experts = ExpertsOf<float>;

// Rows sorted by expert: row r is tokens[token[r]], or tokens[r] where token is null.
template <typename Number>
struct RowsOf {
    int64_t num;  // the live rows come first, count.sum() of them
    const Number* tokens;
    const int64_t* token;
    const int64_t* count;
};
using Rows = RowsOf<float>;

// How rows and tokens belong together: y[n] = Σ weight[r] · answer[r] over the k rows r = inverse[n·k]… of token n.
// Without weights, tokens are rows. Row r is of tokens[token[r]], and every row is of some token; rows that are not live
// answer 0.
struct Sums {
    int64_t num_tokens, k;
    const int64_t* inverse;
    const float* weight;
};

// Answers of rows, (R, d), where a pointer is given (k > 1 needs one), and of tokens, (N, d), where weights are given.
// Hidden layers before the activation, (R, h), are kept where pointers are given.
struct Forward {
    Experts experts;
    Rows rows;
    Sums sums;
    float *answers, *y;
    float *kept_up, *kept_gate;
};

// Answers of rows, or of tokens where weights are given.
struct ForwardBfloat16 {
    ExpertsOf<bfloat16> experts;
    RowsOf<bfloat16> rows;
    Sums sums;
    bfloat16* y;
};

// Gradients of everything; null for what is not wanted or is not there. work_up is needed as working memory, (R, h), and
// so is work_gate for gated experts. grad_y and grad_x are of rows, or of
// tokens where weights are given; then `answers` of rows give the weights' gradients.
struct Backward {
    Experts experts;
    Rows rows;
    Sums sums;
    const float *grad_y, *answers;
    const float *kept_up, *kept_gate;
    float *work_up, *work_gate;
    float *grad_x, *grad_weight;
    float *up, *up_bias, *gate, *gate_bias, *norm, *norm_bias, *down, *down_bias;
};

// Token choice without capacity. Logits are tokens · weightᵀ; the k experts with the largest logit + bias are chosen,
// among equals the first.
struct Route {
    int64_t num_tokens, dim, num_experts, k;
    const float* tokens;
    const bfloat16* rounded_tokens;  // instead of tokens
    const float *weight, *bias;
    int32_t gates;    // 0: softmax over experts, 1: sigmoid
    int32_t combine;  // 0: the gate, 1: divided by the sum of the token's, 2: one
    float* logits;    // (N, E)
    int64_t* token;   // (N·k,) of each row, sorted by expert
    float* row_weight;
    int64_t* count;    // (E,)
    int64_t* inverse;  // (N, k): the rows of a token
};

// y = activation(x · weightᵀ + bias), weight packed; activation -1: none.
template <typename Number>
struct LinearOf {
    int64_t rows, dim, out;
    const Number *x, *weight;
    const float* bias;
    int32_t activation;
    Number* y;
};
using Linear = LinearOf<float>;

struct Kernels {
    const char* name;
    int64_t panel;  // columns of a packed panel
    void (*forward)(const Forward&, int threads);
    void (*backward)(const Backward&, int threads);
    void (*route)(const Route&, int threads);
    void (*linear)(const Linear&, int threads);
    void (*pack)(const float* weight, int64_t num, int64_t out, int64_t in, float* packed, int threads);
};

struct KernelsBfloat16 {
    const char* name;
    void (*forward)(const ForwardBfloat16&, int threads);
    void (*linear)(const LinearOf<bfloat16>&, int threads);
    void (*pack)(const float* weight, int64_t num, int64_t out, int64_t in, bfloat16* packed, int threads);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
extern const KernelsBfloat16 avx512_bfloat16_kernels, amx_kernels;
bool has_amx();  // asks the system for it, once
#endif

}  // namespace vismoe
