// Vectors of WIDTH floats, and the functions of a hidden layer on them. Included once in each instruction set's
// namespace; every function is internal, so that no linker mixes instruction sets.

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t ivec __attribute__((vector_size(WIDTH * 4)));
typedef float vec_in_memory __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#if !defined(RECIPROCAL)
#define RECIPROCAL(x) (1.0f / (x))
#endif

INLINE vec load(const float* from) { return *reinterpret_cast<const vec_in_memory*>(from); }
INLINE void store(float* to, vec value) { *reinterpret_cast<vec_in_memory*>(to) = value; }
INLINE vec splat(float value) { return value - (vec){}; }

INLINE vec load_some(const float* from, int64_t number) {
    vec value = {};
    __builtin_memcpy(&value, from, static_cast<size_t>(number) * 4);
    return value;
}

INLINE void store_some(float* to, vec value, int64_t number) {
    __builtin_memcpy(to, &value, static_cast<size_t>(number) * 4);
}

// The vector at `column` of `columns`, zeros behind the last.
INLINE vec vector_at(const float* from, int64_t column, int64_t columns) {
    if (from == nullptr || column >= columns) return (vec){};
    return column + WIDTH <= columns ? load(from + column) : load_some(from + column, columns - column);
}

INLINE void put_vector(float* to, int64_t column, int64_t columns, vec value) {
    if (column + WIDTH <= columns)
        store(to + column, value);
    else if (column < columns)
        store_some(to + column, value, columns - column);
}

INLINE float sum(vec value) {
    float total = 0;
    for (int i = 0; i < WIDTH; ++i) total += value[i];
    return total;
}

INLINE vec minimum(vec a, vec b) { return a < b ? a : b; }
INLINE vec maximum(vec a, vec b) { return a > b ? a : b; }

#if defined(SCALE)
// e^x to 5e-5, for results that are rounded to bfloat16: 2^n · 2^r with |r| ≤ 1/2 and five terms for 2^r.
INLINE vec exponential(vec x) {
    vec power = maximum(splat(-200.0f), minimum(splat(200.0f), x * 1.44269504f)), n = NEAREST(power), r = power - n;
    vec p = splat(9.61812911e-3f);
    p = p * r + 5.55041087e-2f;
    p = p * r + 2.40226507e-1f;
    p = p * r + 6.93147181e-1f;
    return SCALE(p * r + 1.0f, n);
}
#else
// e^x to 2 ulp: 2^n · e^r with |r| ≤ ln 2 / 2 and a polynomial for e^r (Cephes). NaN stays NaN.
INLINE vec exponential(vec x) {
    vec clamped = minimum(maximum(x, splat(-87.3f)), splat(88.3f));
    vec n = clamped * 1.44269504f + 12582912.0f;  // rounds to a whole number
    n -= 12582912.0f;
    vec r = clamped - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    vec result = p * reinterpret_cast<vec>(power);
    return x == x ? result : x;
}
#endif

INLINE vec sigmoid(vec x) { return RECIPROCAL(1.0f + exponential(-x)); }

// The share of a normal distribution below x, and its density (Abramowitz and Stegun 7.1.26, 1.5e-7).
INLINE vec normal_share(vec x, vec& density) {
    vec z = (x < 0.0f ? -x : x) * 0.70710678f;
    vec t = 1.0f / (1.0f + 0.3275911f * z);
    vec bell = exponential(-z * z);
    vec p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vec tail = 0.5f * p * t * bell;
    density = 0.39894228f * bell;
    return x < 0.0f ? tail : 1.0f - tail;
}

template <int KIND>
INLINE vec activate(vec x) {
    if (KIND == GELU_TANH) return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    if (KIND == GELU_ERF) {
        vec density;
        return x * normal_share(x, density);
    }
    if (KIND == RELU) return x < 0.0f ? (vec){} : x;
    return x * sigmoid(x);
}

// The activation and its derivative.
template <int KIND>
INLINE vec activate(vec x, vec& slope) {
    if (KIND == GELU_TANH) {
        vec s = sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
        slope = s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644470f * x * x);
        return x * s;
    }
    if (KIND == GELU_ERF) {
        vec density, share = normal_share(x, density);
        slope = share + x * density;
        return x * share;
    }
    if (KIND == RELU) {
        slope = x > 0.0f ? splat(1.0f) : (vec){};
        return x < 0.0f ? (vec){} : x;
    }
    vec s = sigmoid(x);
    slope = s + x * s * (1.0f - s);
    return x * s;
}

// Calls body.template operator()<KIND>() for an activation.
template <typename Body>
INLINE void with_kind(int32_t activation, Body body) {
    switch (activation) {
        case GELU_TANH: return body.template operator()<GELU_TANH>();
        case GELU_ERF: return body.template operator()<GELU_ERF>();
        case RELU: return body.template operator()<RELU>();
        default: return body.template operator()<SILU>();
    }
}
