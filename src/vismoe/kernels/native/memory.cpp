// Large pieces of memory that are used again: the system clears new memory, and to do so takes a fifth of a training
// step where gradients are large.
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <mutex>
#include <vector>

#include "memory.h"

namespace vismoe {
namespace {

constexpr size_t LARGE_PAGE = 1 << 21;

struct Piece {
    void* data;
    size_t bytes;
};

#if defined(__linux__)
// New pieces of several large pages begin at one, so that the system can clear them two megabytes at a time.
Piece obtain(size_t bytes) {
    bool large = bytes >= 2 * LARGE_PAGE;
    size_t unit = large ? LARGE_PAGE : 4096, size = (bytes + unit - 1) / unit * unit, extra = large ? LARGE_PAGE : 0;
    void* found = mmap(nullptr, size + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return {nullptr, 0};
    auto* begin = static_cast<char*>(found);
    size_t before = (unit - reinterpret_cast<uintptr_t>(begin) % unit) % unit;
    if (before) munmap(begin, before);
    if (extra > before) munmap(begin + before + size, extra - before);
    if (large) madvise(begin + before, size, MADV_HUGEPAGE);
    return {begin + before, size};
}
void release(Piece piece) { munmap(piece.data, piece.bytes); }
// The system may take the pages if memory runs short, and only then clears them.
void lend(Piece piece) {
#if defined(MADV_FREE)
    madvise(piece.data, piece.bytes, MADV_FREE);
#endif
}
#else
Piece obtain(size_t bytes) {
    void* data = nullptr;
    return posix_memalign(&data, 64, bytes) ? Piece{nullptr, 0} : Piece{data, bytes};
}
void release(Piece piece) { std::free(piece.data); }
void lend(Piece) {}
#endif

// Pieces that nobody uses. Never destroyed: tensors may outlive this module's own end.
std::mutex& lock = *new std::mutex;
std::vector<Piece>& left = *new std::vector<Piece>;

// A piece that is left and at most a quarter too large, else a new one. What is left then is of other sizes than those
// in use now, and goes back to the system: never more is left than was in use.
Piece take(size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    size_t best = left.size();
    for (size_t i = 0; i < left.size(); ++i)
        if (left[i].bytes >= bytes && left[i].bytes - bytes <= bytes / 4 + 4096 + (bytes >= 2 * LARGE_PAGE ? LARGE_PAGE : 0) &&
            (best == left.size() || left[i].bytes < left[best].bytes))
            best = i;
    if (best < left.size()) {
        Piece piece = left[best];
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(best));
        return piece;
    }
    for (Piece piece : left) release(piece);
    left.clear();
    return obtain(bytes);
}

void give_back(Piece piece) {
    lend(piece);
    std::lock_guard<std::mutex> guard(lock);
    left.push_back(piece);
}

struct Memory {
    PyObject_HEAD;
    Piece piece;
    Py_ssize_t bytes;
};

PyObject* make(PyTypeObject* type, PyObject* given, PyObject*) {
    Py_ssize_t bytes = 0;
    if (!PyArg_ParseTuple(given, "n", &bytes)) return nullptr;
    if (bytes <= 0) {
        PyErr_Format(PyExc_ValueError, "bytes=%zd: must be at least 1", bytes);
        return nullptr;
    }
    auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
    auto* memory = reinterpret_cast<Memory*>(allocate(type, 0));
    if (!memory) return nullptr;
    memory->bytes = bytes, memory->piece = take(static_cast<size_t>(bytes));
    if (memory->piece.data) return reinterpret_cast<PyObject*>(memory);
    Py_DecRef(reinterpret_cast<PyObject*>(memory));
    return PyErr_NoMemory();
}

void destroy(PyObject* self) {
    auto* memory = reinterpret_cast<Memory*>(self);
    if (memory->piece.data) give_back(memory->piece);
    PyTypeObject* type = Py_TYPE(self);
    reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
    Py_DecRef(reinterpret_cast<PyObject*>(type));
}

int buffer(PyObject* self, Py_buffer* view, int flags) {
    auto* memory = reinterpret_cast<Memory*>(self);
    return PyBuffer_FillInfo(view, self, memory->piece.data, memory->bytes, 0, flags);
}

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(make)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                       {Py_bf_getbuffer, reinterpret_cast<void*>(buffer)},
                       {0, nullptr}};
PyType_Spec spec = {"vismoe.kernels._native.Memory", sizeof(Memory), 0, Py_TPFLAGS_DEFAULT, slots};

}  // namespace

PyObject* memory_type() { return PyType_FromSpec(&spec); }

}  // namespace vismoe
