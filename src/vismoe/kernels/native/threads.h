// Threads of the pool that PyTorch uses, and memory that each of them keeps.
#pragma once
#include <cstdint>

namespace vismoe {

// Runs run(context, task) for each task in 0…tasks-1, each once, on up to `threads` threads.
void parallel(int64_t tasks, int threads, void (*run)(void* context, int64_t task), void* context);

template <typename Body>
void parallel_for(int64_t tasks, int threads, Body body) {
    parallel(tasks, threads, [](void* context, int64_t task) { (*static_cast<Body*>(context))(task); }, &body);
}

// Whether there is a pool; without one everything runs on the calling thread.
bool has_pool();

// Asks for large pages for memory that is about to be written for the first time: the system then clears it two
// megabytes at a time, not four kilobytes.
void prefer_large_pages(const void* begin, int64_t floats);

// Memory of this thread, aligned to 64 bytes and uninitialised, until the next call with the same slot.
float* scratch(int slot, int64_t floats);

}  // namespace vismoe
