// The Python module: functions that take addresses and sizes as integers, checked by their callers in Python.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <cstring>
#include <initializer_list>
#include <new>
#include <vector>

#include "interface.h"
#include "memory.h"
#include "threads.h"

namespace vismoe {
namespace {

// Kernels of an instruction set; those of bfloat16 are null where it has none.
struct Set {
    const char* name;
    const Kernels* kernels;
    const KernelsBfloat16* of_bfloat16;
};

Set in_use;

std::vector<Set> available() {
    std::vector<Set> found{{baseline_kernels.name, &baseline_kernels, nullptr}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.push_back({avx2_kernels.name, &avx2_kernels, nullptr});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        found.push_back({avx512_kernels.name, &avx512_kernels, nullptr});
        if (__builtin_cpu_supports("avx512bf16")) {
            found.push_back({avx512_bfloat16_kernels.name, &avx512_kernels, &avx512_bfloat16_kernels});
            if (has_amx()) found.push_back({amx_kernels.name, &avx512_kernels, &amx_kernels});
        }
    }
#endif
    return found;
}

// Arguments one after the other; the first that is no number sets Python's error.
class Arguments {
   public:
    Arguments(PyObject* const* given, Py_ssize_t number) : given(given), number(number) {}

    int64_t integer() {
        PyObject* object = next_object();
        return object ? PyLong_AsLongLong(object) : 0;
    }
    float real() {
        PyObject* object = next_object();
        return object ? static_cast<float>(PyFloat_AsDouble(object)) : 0;
    }
    template <typename T>
    T* address() {
        return reinterpret_cast<T*>(static_cast<intptr_t>(integer()));
    }
    bool complete() {
        if (!PyErr_Occurred() && next != number) PyErr_SetString(PyExc_TypeError, "too many arguments");
        return !PyErr_Occurred();
    }

    template <typename Number>
    ExpertsOf<Number> experts() {
        ExpertsOf<Number> e;
        e.num = integer(), e.dim = integer(), e.hidden = integer();
        e.up = address<Number>(), e.up_bias = address<float>();
        e.gate = address<Number>(), e.gate_bias = address<float>();
        e.norm = address<float>(), e.norm_bias = address<float>();
        e.down = address<Number>(), e.down_bias = address<float>();
        e.eps = real(), e.activation = static_cast<int32_t>(integer()), e.packed = integer() != 0;
        return e;
    }
    Sums sums() {
        Sums s;
        s.num_tokens = integer(), s.k = integer(), s.inverse = address<int64_t>(), s.weight = address<float>();
        return s;
    }
    template <typename Number>
    RowsOf<Number> rows() {
        RowsOf<Number> r;
        r.num = integer(), r.tokens = address<Number>(), r.token = address<int64_t>(), r.count = address<int64_t>();
        return r;
    }

   private:
    PyObject* next_object() {
        if (next < number) return given[next++];
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "too few arguments");
        return nullptr;
    }
    PyObject* const* given;
    Py_ssize_t number, next = 0;
};

template <typename Body>
PyObject* without_lock(Arguments& arguments, Body body) {
    if (!arguments.complete()) return nullptr;
    bool enough = true;
    Py_BEGIN_ALLOW_THREADS;
    try {
        body();
    } catch (const std::bad_alloc&) {
        enough = false;
    }
    Py_END_ALLOW_THREADS;
    if (!enough) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

// forward(threads, *experts, *rows, *sums, answers, y, kept_up, kept_gate)
PyObject* forward(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Forward f;
    f.experts = a.experts<float>(), f.rows = a.rows<float>(), f.sums = a.sums();
    f.answers = a.address<float>(), f.y = a.address<float>();
    f.kept_up = a.address<float>(), f.kept_gate = a.address<float>();
    return without_lock(a, [&] { in_use.kernels->forward(f, threads); });
}

// forward_bfloat16(threads, *experts, *rows, *sums, y)
PyObject* forward_bfloat16(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    ForwardBfloat16 f;
    f.experts = a.experts<bfloat16>(), f.rows = a.rows<bfloat16>(), f.sums = a.sums(), f.y = a.address<bfloat16>();
    return without_lock(a, [&] { in_use.of_bfloat16->forward(f, threads); });
}

// backward(threads, *experts, *rows, *sums, grad_y, answers, kept_up, kept_gate, work_up, work_gate, grad_x, grad_weight,
// and gradients of up, up_bias, gate, gate_bias, norm, norm_bias, down, down_bias)
PyObject* backward(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Backward b;
    b.experts = a.experts<float>(), b.rows = a.rows<float>(), b.sums = a.sums();
    b.grad_y = a.address<float>(), b.answers = a.address<float>();
    b.kept_up = a.address<float>(), b.kept_gate = a.address<float>();
    b.work_up = a.address<float>(), b.work_gate = a.address<float>();
    b.grad_x = a.address<float>(), b.grad_weight = a.address<float>();
    b.up = a.address<float>(), b.up_bias = a.address<float>();
    b.gate = a.address<float>(), b.gate_bias = a.address<float>();
    b.norm = a.address<float>(), b.norm_bias = a.address<float>();
    b.down = a.address<float>(), b.down_bias = a.address<float>();
    return without_lock(a, [&] { in_use.kernels->backward(b, threads); });
}

struct Routed {
    std::vector<float> logits, weight;
    std::vector<int64_t> token, inverse, count;

    explicit Routed(Route& r)
        : logits(static_cast<size_t>(r.num_tokens * r.num_experts)),
          weight(static_cast<size_t>(r.num_tokens * r.k)),
          token(weight.size()),
          inverse(weight.size()),
          count(static_cast<size_t>(r.num_experts)) {
        r.logits = logits.data(), r.row_weight = weight.data(), r.token = token.data();
        r.inverse = inverse.data(), r.count = count.data();
    }
};

void apply(Forward& f, const Route& r, int threads) {
    f.kept_up = f.kept_gate = nullptr;
    f.answers = r.k == 1 ? nullptr : scratch(11, r.num_tokens * r.k * r.dim);
    in_use.kernels->forward(f, threads);
}

void apply(ForwardBfloat16& f, const Route&, int threads) { in_use.of_bfloat16->forward(f, threads); }

// layer(threads, *experts, tokens, num_tokens, router weight, router bias, k, gates, combine, y)
template <typename Number, typename AnyForward>
PyObject* layer(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    AnyForward f;
    f.experts = a.experts<Number>();
    auto* tokens = a.address<Number>();
    Route r;
    r.dim = f.experts.dim, r.num_experts = f.experts.num, r.num_tokens = a.integer();
    r.tokens = nullptr, r.rounded_tokens = nullptr;
    if constexpr (sizeof(Number) == sizeof(float))
        r.tokens = tokens;
    else
        r.rounded_tokens = tokens;
    r.weight = a.address<float>(), r.bias = a.address<float>(), r.k = a.integer();
    r.gates = static_cast<int32_t>(a.integer()), r.combine = static_cast<int32_t>(a.integer());
    f.y = a.address<Number>();
    return without_lock(a, [&] {
        Routed routed(r);
        in_use.kernels->route(r, threads);
        f.rows = {r.num_tokens * r.k, tokens, r.token, r.count}, f.sums = {r.num_tokens, r.k, r.inverse, r.row_weight};
        apply(f, r, threads);
    });
}

// route(threads, tokens, num_tokens, dim, num_experts, weight, bias, k, gates, combine, logits, token, row weight, count,
// inverse)
PyObject* route(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Route r;
    r.tokens = a.address<float>(), r.rounded_tokens = nullptr, r.num_tokens = a.integer(), r.dim = a.integer(), r.num_experts = a.integer();
    r.weight = a.address<float>(), r.bias = a.address<float>(), r.k = a.integer();
    r.gates = static_cast<int32_t>(a.integer()), r.combine = static_cast<int32_t>(a.integer());
    r.logits = a.address<float>(), r.token = a.address<int64_t>(), r.row_weight = a.address<float>();
    r.count = a.address<int64_t>(), r.inverse = a.address<int64_t>();
    return without_lock(a, [&] { in_use.kernels->route(r, threads); });
}

// linear(threads, rows, dim, out, x, weight, bias, activation, y)
template <typename Number>
PyObject* linear(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    LinearOf<Number> l;
    l.rows = a.integer(), l.dim = a.integer(), l.out = a.integer(), l.x = a.address<Number>();
    l.weight = a.address<Number>(), l.bias = a.address<float>();
    l.activation = static_cast<int32_t>(a.integer()), l.y = a.address<Number>();
    return without_lock(a, [&] {
        if constexpr (sizeof(Number) == sizeof(float))
            in_use.kernels->linear(l, threads);
        else
            in_use.of_bfloat16->linear(l, threads);
    });
}

// pack(threads, weight, num, out, in, packed)
template <typename Number>
PyObject* pack(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    auto* weight = a.address<float>();
    int64_t num = a.integer(), out = a.integer(), in = a.integer();
    auto* packed = a.address<Number>();
    return without_lock(a, [&] {
        prefer_large_pages(packed, num * out * in * static_cast<int64_t>(sizeof(Number)));
        if constexpr (sizeof(Number) == sizeof(float))
            in_use.kernels->pack(weight, num, out, in, packed, threads);
        else
            in_use.of_bfloat16->pack(weight, num, out, in, packed, threads);
    });
}

// select(name): "" for the best; returns its name, or None where the processor has no such instructions.
PyObject* select(PyObject*, PyObject* given) {
    PyObject* bytes = PyUnicode_AsUTF8String(given);
    if (!bytes) return nullptr;
    const char* name = PyBytes_AsString(bytes);
    Set found = {nullptr, nullptr, nullptr};
    for (const Set& each : available())
        if (!*name || !std::strcmp(each.name, name)) found = each;
    Py_DecRef(bytes);
    if (!found.name) Py_RETURN_NONE;
    in_use = found;
    return PyUnicode_FromString(found.name);
}

PyObject* names(PyObject*, PyObject*) {
    PyObject* list = PyList_New(0);
    for (const Set& each : available()) {
        PyObject* name = PyUnicode_FromString(each.name);
        PyList_Append(list, name);
        Py_DecRef(name);
    }
    return list;
}

PyObject* panel(PyObject*, PyObject*) { return PyLong_FromLongLong(in_use.kernels->panel); }
PyObject* has_bfloat16(PyObject*, PyObject*) { return PyBool_FromLong(in_use.of_bfloat16 != nullptr); }
PyObject* pool(PyObject*, PyObject*) { return PyBool_FromLong(has_pool()); }

template <typename Function>
PyCFunction untyped(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef methods[] = {{"forward", untyped(forward), METH_FASTCALL, nullptr},
                         {"forward_bfloat16", untyped(forward_bfloat16), METH_FASTCALL, nullptr},
                         {"backward", untyped(backward), METH_FASTCALL, nullptr},
                         {"layer", untyped(layer<float, Forward>), METH_FASTCALL, nullptr},
                         {"layer_bfloat16", untyped(layer<bfloat16, ForwardBfloat16>), METH_FASTCALL, nullptr},
                         {"route", untyped(route), METH_FASTCALL, nullptr},
                         {"linear", untyped(linear<float>), METH_FASTCALL, nullptr},
                         {"linear_bfloat16", untyped(linear<bfloat16>), METH_FASTCALL, nullptr},
                         {"pack", untyped(pack<float>), METH_FASTCALL, nullptr},
                         {"pack_bfloat16", untyped(pack<bfloat16>), METH_FASTCALL, nullptr},
                         {"select", select, METH_O, nullptr},
                         {"names", names, METH_NOARGS, nullptr},
                         {"panel", panel, METH_NOARGS, nullptr},
                         {"has_bfloat16", has_bfloat16, METH_NOARGS, nullptr},
                         {"pool", pool, METH_NOARGS, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace vismoe

PyMODINIT_FUNC PyInit__native() {
    vismoe::in_use = vismoe::available().back();
    PyObject* module = PyModule_Create(&vismoe::definition);
    PyObject* memory = module ? vismoe::memory_type() : nullptr;
    bool added = memory && PyModule_AddObjectRef(module, "Memory", memory) == 0;
    Py_XDECREF(memory);
    if (!added) Py_CLEAR(module);
    return module;
}
