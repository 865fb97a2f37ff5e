#include "threads.h"

#include <dlfcn.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <new>

namespace vismoe {
namespace {

// PyTorch has loaded an OpenMP runtime with global symbols. Linking one here would bring a second pool of threads.
using Pool = void (*)(void (*)(void*), void*, unsigned, unsigned);

Pool pool() {
    static const Pool found = reinterpret_cast<Pool>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

struct Job {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    int64_t tasks;
    void (*run)(void*, int64_t);
    void* context;
};

void work(void* given) {
    Job& job = *static_cast<Job*>(given);
    try {
        for (int64_t task; (task = job.next.fetch_add(1, std::memory_order_relaxed)) < job.tasks;)
            job.run(job.context, task);
    } catch (const std::bad_alloc&) {  // must not leave a thread of the pool
        job.failed = true;
    }
}

struct Memory {
    float* data = nullptr;
    int64_t floats = 0;
    ~Memory() { std::free(data); }
};

}  // namespace

bool has_pool() { return pool() != nullptr; }

void parallel(int64_t tasks, int threads, void (*run)(void*, int64_t), void* context) {
    if (threads > tasks) threads = static_cast<int>(tasks);
    if (threads < 2 || !has_pool()) {
        for (int64_t task = 0; task < tasks; ++task) run(context, task);
        return;
    }
    Job job;
    job.tasks = tasks, job.run = run, job.context = context;
    pool()(work, &job, static_cast<unsigned>(threads), 0);
    if (job.failed) throw std::bad_alloc();
}

void prefer_large_pages(const void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 1 << 21;
    uintptr_t from = (reinterpret_cast<uintptr_t>(begin) + PAGE - 1) / PAGE * PAGE;
    uintptr_t to = (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(bytes)) / PAGE * PAGE;
    if (begin && from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
    (void)begin, (void)bytes;
#endif
}

float* scratch(int slot, int64_t floats) {
    static thread_local Memory memory[12];
    Memory& own = memory[slot];
    if (own.floats < floats) {
        std::free(own.data);
        own.data = nullptr, own.floats = 0;
        int64_t bytes = (floats * 4 + 4095) / 4096 * 4096;
        void* data = nullptr;
        if (posix_memalign(&data, 64, static_cast<size_t>(bytes))) throw std::bad_alloc();
        own.data = static_cast<float*>(data);
        own.floats = floats;
    }
    return own.data;
}

}  // namespace vismoe
