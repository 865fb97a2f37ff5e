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

const Kernels* in_use = nullptr;

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found{&baseline_kernels};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512_kernels);
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

    Experts experts() {
        Experts e;
        e.num = integer(), e.dim = integer(), e.hidden = integer();
        e.up = address<float>(), e.up_bias = address<float>(), e.gate = address<float>(), e.gate_bias = address<float>();
        e.norm = address<float>(), e.norm_bias = address<float>();
        e.down = address<float>(), e.down_bias = address<float>();
        e.eps = real(), e.activation = static_cast<int32_t>(integer()), e.packed = integer() != 0;
        return e;
    }
    Sums sums() {
        Sums s;
        s.num_tokens = integer(), s.k = integer(), s.inverse = address<int64_t>(), s.weight = address<float>();
        return s;
    }
    Rows rows() {
        Rows r;
        r.num = integer(), r.tokens = address<float>(), r.token = address<int64_t>(), r.count = address<int64_t>();
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
    f.experts = a.experts(), f.rows = a.rows(), f.sums = a.sums();
    f.answers = a.address<float>(), f.y = a.address<float>();
    f.kept_up = a.address<float>(), f.kept_gate = a.address<float>();
    return without_lock(a, [&] { in_use->forward(f, threads); });
}

// backward(threads, *experts, *rows, *sums, grad_y, answers, kept_up, kept_gate, work_up, work_gate, grad_x, grad_weight,
// and gradients of up, up_bias, gate, gate_bias, norm, norm_bias, down, down_bias)
PyObject* backward(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Backward b;
    b.experts = a.experts(), b.rows = a.rows(), b.sums = a.sums();
    b.grad_y = a.address<float>(), b.answers = a.address<float>();
    b.kept_up = a.address<float>(), b.kept_gate = a.address<float>();
    b.work_up = a.address<float>(), b.work_gate = a.address<float>();
    b.grad_x = a.address<float>(), b.grad_weight = a.address<float>();
    b.up = a.address<float>(), b.up_bias = a.address<float>();
    b.gate = a.address<float>(), b.gate_bias = a.address<float>();
    b.norm = a.address<float>(), b.norm_bias = a.address<float>();
    b.down = a.address<float>(), b.down_bias = a.address<float>();
    return without_lock(a, [&] { in_use->backward(b, threads); });
}

// layer(threads, *experts, tokens, num_tokens, router weight, router bias, k, gates, combine, y)
PyObject* layer(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Forward f;
    f.experts = a.experts(), f.kept_up = f.kept_gate = nullptr;
    Route r;
    r.dim = f.experts.dim, r.num_experts = f.experts.num, r.tokens = a.address<float>(), r.num_tokens = a.integer();
    r.weight = a.address<float>(), r.bias = a.address<float>(), r.k = a.integer();
    r.gates = static_cast<int32_t>(a.integer()), r.combine = static_cast<int32_t>(a.integer());
    auto* y = a.address<float>();
    return without_lock(a, [&] {
        auto rows = static_cast<size_t>(r.num_tokens * r.k);
        std::vector<float> logits(static_cast<size_t>(r.num_tokens * r.num_experts)), weight(rows);
        std::vector<int64_t> token(rows), inverse(rows), count(static_cast<size_t>(r.num_experts));
        r.logits = logits.data(), r.row_weight = weight.data(), r.token = token.data();
        r.inverse = inverse.data(), r.count = count.data();
        in_use->route(r, threads);
        f.rows = {static_cast<int64_t>(rows), r.tokens, r.token, r.count};
        f.sums = {r.num_tokens, r.k, r.inverse, r.row_weight};
        f.answers = r.k == 1 ? nullptr : scratch(11, static_cast<int64_t>(rows) * r.dim), f.y = y;
        in_use->forward(f, threads);
    });
}

// route(threads, tokens, num_tokens, dim, num_experts, weight, bias, k, gates, combine, logits, token, row weight, count,
// inverse)
PyObject* route(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Route r;
    r.tokens = a.address<float>(), r.num_tokens = a.integer(), r.dim = a.integer(), r.num_experts = a.integer();
    r.weight = a.address<float>(), r.bias = a.address<float>(), r.k = a.integer();
    r.gates = static_cast<int32_t>(a.integer()), r.combine = static_cast<int32_t>(a.integer());
    r.logits = a.address<float>(), r.token = a.address<int64_t>(), r.row_weight = a.address<float>();
    r.count = a.address<int64_t>(), r.inverse = a.address<int64_t>();
    return without_lock(a, [&] { in_use->route(r, threads); });
}

// linear(threads, rows, dim, out, x, weight, bias, activation, y)
PyObject* linear(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    Linear l;
    l.rows = a.integer(), l.dim = a.integer(), l.out = a.integer(), l.x = a.address<float>();
    l.weight = a.address<float>(), l.bias = a.address<float>();
    l.activation = static_cast<int32_t>(a.integer()), l.y = a.address<float>();
    return without_lock(a, [&] { in_use->linear(l, threads); });
}

// pack(threads, weight, num, out, in, packed)
PyObject* pack(PyObject*, PyObject* const* given, Py_ssize_t number) {
    Arguments a(given, number);
    int threads = static_cast<int>(a.integer());
    auto* weight = a.address<float>();
    int64_t num = a.integer(), out = a.integer(), in = a.integer();
    auto* packed = a.address<float>();
    return without_lock(a, [&] {
        prefer_large_pages(packed, num * ((out + in_use->panel - 1) / in_use->panel) * in_use->panel * in);
        in_use->pack(weight, num, out, in, packed, threads);
    });
}

// select(name): "" for the best; returns its name, or None where the processor has no such instructions.
PyObject* select(PyObject*, PyObject* given) {
    PyObject* bytes = PyUnicode_AsUTF8String(given);
    if (!bytes) return nullptr;
    const char* name = PyBytes_AsString(bytes);
    const Kernels* found = nullptr;
    for (const Kernels* each : available())
        if (!*name || !std::strcmp(each->name, name)) found = each;
    Py_DecRef(bytes);
    if (!found) Py_RETURN_NONE;
    in_use = found;
    return PyUnicode_FromString(found->name);
}

PyObject* names(PyObject*, PyObject*) {
    PyObject* list = PyList_New(0);
    for (const Kernels* each : available()) {
        PyObject* name = PyUnicode_FromString(each->name);
        PyList_Append(list, name);
        Py_DecRef(name);
    }
    return list;
}

PyObject* panel(PyObject*, PyObject*) { return PyLong_FromLongLong(in_use->panel); }
PyObject* pool(PyObject*, PyObject*) { return PyBool_FromLong(has_pool()); }

template <typename Function>
PyCFunction untyped(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

PyMethodDef methods[] = {
    {"forward", untyped(forward), METH_FASTCALL, nullptr}, {"backward", untyped(backward), METH_FASTCALL, nullptr},
    {"layer", untyped(layer), METH_FASTCALL, nullptr},     {"route", untyped(route), METH_FASTCALL, nullptr},
    {"linear", untyped(linear), METH_FASTCALL, nullptr},   {"pack", untyped(pack), METH_FASTCALL, nullptr},
    {"select", select, METH_O, nullptr},                   {"names", names, METH_NOARGS, nullptr},
    {"panel", panel, METH_NOARGS, nullptr},                {"pool", pool, METH_NOARGS, nullptr},
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
