// CUDA's threads on one processor, for running generated kernels where there is no device: every thread of a block is a
// fiber, which runs until it waits for others. Whoever waits where others never come is reported, and the order in which
// threads run can be turned round, which shows what depends on it.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static

struct Number { unsigned x; };
static Number threadIdx, blockIdx;

namespace fibers {
enum State { READY, AT_EXCHANGE, AT_BARRIER, DONE };
const int THREADS_MOST = 1024, STACK = 64 * 1024;
static ucontext_t home, contexts[THREADS_MOST];
static State states[THREADS_MOST];
static char *stacks = nullptr;
static long long slots[THREADS_MOST];
static std::function<void()> work;
static int current;

static void enter() { work(); states[current] = DONE; swapcontext(&contexts[current], &home); }

static void wait(State state) {
    const int self = current;
    states[self] = state;
    swapcontext(&contexts[self], &home);
}

static bool all(int from, int to, State state) {  // that still run, of which there is one at least
    bool any = false;
    for (int t = from; t < to; ++t) {
        if (states[t] == DONE) continue;
        if (states[t] != state) return false;
        any = true;
    }
    return any;
}

static void block(int threads, bool backwards) {
    if (!stacks) stacks = (char *)malloc((size_t)THREADS_MOST * STACK);
    for (int t = 0; t < threads; ++t) {
        getcontext(&contexts[t]);
        contexts[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
        contexts[t].uc_stack.ss_size = STACK;
        contexts[t].uc_link = &home;
        makecontext(&contexts[t], enter, 0);
        states[t] = READY;
    }
    for (;;) {
        bool ran = false;
        for (int k = 0; k < threads; ++k) {
            const int t = backwards ? threads - 1 - k : k;
            if (states[t] != READY) continue;
            ran = true;
            current = t;
            threadIdx.x = t;
            swapcontext(&home, &contexts[t]);
        }
        if (ran) continue;
        bool freed = false;
        for (int w = 0; w < threads; w += 32) {
            if (!all(w, w + 32, AT_EXCHANGE)) continue;
            for (int t = w; t < w + 32; ++t) if (states[t] == AT_EXCHANGE) states[t] = READY;
            freed = true;
        }
        if (freed) continue;
        if (all(0, threads, AT_BARRIER)) {
            for (int t = 0; t < threads; ++t) if (states[t] == AT_BARRIER) states[t] = READY;
            continue;
        }
        for (int t = 0; t < threads; ++t) {
            if (states[t] == DONE) continue;
            fprintf(stderr, "thread %d of block %u waits for threads that never come\n", t, blockIdx.x);
            abort();
        }
        return;
    }
}

static void grid(int blocks, int threads, bool backwards, std::function<void()> kernel) {
    work = kernel;
    for (int b = 0; b < blocks; ++b) {
        blockIdx.x = backwards ? blocks - 1 - b : b;
        block(threads, backwards);
    }
}
}  // namespace fibers

static inline void __syncthreads() { fibers::wait(fibers::AT_BARRIER); }
static inline void __threadfence() {}
static inline unsigned atomicAdd(unsigned *p, unsigned x) { const unsigned old = *p; *p += x; return old; }

template <class T> static inline T __shfl_xor_sync(unsigned, T x, int lanes) {
    const int self = threadIdx.x;
    fibers::slots[self] = 0;
    memcpy(&fibers::slots[self], &x, sizeof(T));
    fibers::wait(fibers::AT_EXCHANGE);
    T y;
    memcpy(&y, &fibers::slots[self ^ lanes], sizeof(T));
    fibers::wait(fibers::AT_EXCHANGE);
    return y;
}
