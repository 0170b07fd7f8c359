// CUDA's threads on one processor, for running generated kernels where there is no device: every thread of a block is a
// fiber, which runs until it waits for others. Whoever waits where others never come is reported, and the order in which
// threads run can be turned round, which shows what depends on it.
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
typedef void Work(const long long *values);  // a kernel, with its arguments
enum State { READY, AT_EXCHANGE, AT_BARRIER, DONE };
const int MOST = 1024, STACK = 64 * 1024;
static ucontext_t beginnings[MOST];
static jmp_buf home, places[MOST];  // where the one who runs them goes on, and where each fiber does
static State states[MOST];
static int made = 0, current;
static bool begun[MOST];
static long long slots[MOST];
static Work *work;
static const long long *arguments;

static void leave() {
    if (!_setjmp(places[current])) _longjmp(home, 1);
}

static void live() {  // through all blocks of all launches
    for (;;) {
        work(arguments);
        states[current] = DONE;
        leave();
    }
}

static void make(int threads) {
    for (; made < threads; ++made) {
        getcontext(&beginnings[made]);
        beginnings[made].uc_stack.ss_sp = malloc(STACK);
        beginnings[made].uc_stack.ss_size = STACK;
        beginnings[made].uc_link = nullptr;
        makecontext(&beginnings[made], live, 0);
    }
}

static __attribute__((noinline)) void go_on(int t) {
    current = t;
    threadIdx.x = t;
    if (_setjmp(home)) return;
    if (begun[t]) _longjmp(places[t], 1);
    begun[t] = true;
    setcontext(&beginnings[t]);
}

static void wait(State state) {
    states[current] = state;
    leave();
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
    for (int t = 0; t < threads; ++t) states[t] = READY;
    for (;;) {
        bool ran = false;
        for (int k = 0; k < threads; ++k) {
            const int t = backwards ? threads - 1 - k : k;
            if (states[t] != READY) continue;
            ran = true;
            go_on(t);
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

static void grid(int blocks, int threads, bool backwards, Work *kernel, const long long *values) {
    make(threads);
    work = kernel;
    arguments = values;
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
