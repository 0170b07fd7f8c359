// What every generated kernel stands on: storage types, wide loads, reductions in a fixed order, and exact scalar
// functions. No header is included, so NVRTC needs none; the same text compiles for a CPU behind a few definitions of
// threads and barriers, which is how the kernels are tested without a device.
//
// Sums are of a fixed order everywhere: lanes combine by exchange, blocks through an array of partial results that the
// last block adds up. No float is ever added atomically, so equal inputs give equal bits.

#define THREADS 256
#define DEVICE static __device__ __forceinline__

typedef unsigned char bool_t;

// --- half precision: 16 bits in memory, a float in every computation --------------------------------------------------

struct half_t { unsigned short bits; };
struct bfloat_t { unsigned short bits; };

DEVICE float as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
DEVICE unsigned as_bits(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }

DEVICE float loaded(bfloat_t x) { return as_float((unsigned)x.bits << 16); }

DEVICE bfloat_t to_bfloat(float x) {  // to nearest, ties to even; NaN stays NaN
    const unsigned b = as_bits(x);
    const unsigned rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    bfloat_t y = {(unsigned short)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
    return y;
}

#ifdef __CUDA_ARCH__
DEVICE float loaded(half_t x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
DEVICE half_t to_half(float x) { half_t y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
#else
DEVICE float loaded(half_t x) {
    const unsigned sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, digits = x.bits & 1023u;
    if (exponent == 31u) return as_float(sign | 0x7f800000u | (digits << 13));
    if (exponent == 0u) return as_float(sign | as_bits((float)digits * 5.9604644775390625e-8f));  // 2^-24
    return as_float(sign | ((exponent + 112u) << 23) | (digits << 13));
}
DEVICE half_t to_half(float x) {
    const unsigned b = as_bits(x), sign = (b >> 16) & 0x8000u, size = b & 0x7fffffffu;
    half_t y;
    if (size > 0x7f800000u) y.bits = (unsigned short)(sign | 0x7fffu);
    else if (size >= 0x477ff000u) y.bits = (unsigned short)(sign | 0x7c00u);  // rounds to 2^16 or beyond
    else if (size < 0x38800000u) {  // a multiple of 2^-24; adding 1/2 rounds to one, ties to even
        y.bits = (unsigned short)(sign | (as_bits(as_float(size) + 0.5f) - 0x3f000000u));
    } else y.bits = (unsigned short)(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
    return y;
}
#endif

DEVICE float loaded(float x) { return x; }
DEVICE double loaded(double x) { return x; }
DEVICE int loaded(int x) { return x; }
DEVICE long long loaded(long long x) { return x; }
DEVICE bool loaded(bool_t x) { return x != 0; }

template <class T> DEVICE void store(T *p, T x) { *p = x; }
DEVICE void store(bool_t *p, bool x) { *p = x ? 1 : 0; }
DEVICE void store(half_t *p, float x) { *p = to_half(x); }
DEVICE void store(bfloat_t *p, float x) { *p = to_bfloat(x); }

template <class T, int V> struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack { T at[V]; };
template <int V, class T> DEVICE Pack<T, V> load_pack(const T *p) { return *reinterpret_cast<const Pack<T, V> *>(p); }
template <int V, class T> DEVICE void store_pack(T *p, const Pack<T, V> &x) { *reinterpret_cast<Pack<T, V> *>(p) = x; }

// --- scalar functions -------------------------------------------------------------------------------------------------

template <class T> struct Limits;
template <> struct Limits<float> {
    DEVICE float most() { return as_float(0x7f800000u); }
    DEVICE float least() { return -as_float(0x7f800000u); }
};
template <> struct Limits<double> {
    DEVICE double most() { return (double)Limits<float>::most(); }
    DEVICE double least() { return -most(); }
};
template <> struct Limits<int> {
    DEVICE int most() { return 0x7fffffff; }
    DEVICE int least() { return -0x7fffffff - 1; }
};
template <> struct Limits<long long> {
    DEVICE long long most() { return 0x7fffffffffffffffLL; }
    DEVICE long long least() { return -0x7fffffffffffffffLL - 1; }
};
template <> struct Limits<bool> {
    DEVICE bool most() { return true; }
    DEVICE bool least() { return false; }
};

template <class T> DEVICE T larger(T a, T b) { return a != a || a > b ? a : b; }   // NaN where either is
template <class T> DEVICE T smaller(T a, T b) { return a != a || a < b ? a : b; }
template <class T> DEVICE T sign_of(T a) { return a > T(0) ? T(1) : a < T(0) ? T(-1) : a; }  // zero and NaN stay
template <class T> DEVICE T magnitude(T a) { return a < T(0) ? -a : a == T(0) ? T(0) : a; }
DEVICE bool is_finite(float a) { return (as_bits(a) & 0x7f800000u) != 0x7f800000u; }
DEVICE bool is_finite(double a) { return a - a == 0.0; }
DEVICE bool is_finite(int) { return true; }
DEVICE bool is_finite(long long) { return true; }

// --- reductions -------------------------------------------------------------------------------------------------------

template <class T> struct Best { T value; long long index; };  // of argmax

template <class T> struct Sum {
    DEVICE T empty() { return T(0); }
    DEVICE T both(T a, T b) { return a + b; }
};
template <class T> struct Max {
    DEVICE T empty() { return Limits<T>::least(); }
    DEVICE T both(T a, T b) { return larger(a, b); }
};
template <class T> struct Min {
    DEVICE T empty() { return Limits<T>::most(); }
    DEVICE T both(T a, T b) { return smaller(a, b); }
};
template <class T> struct All {
    DEVICE T empty() { return true; }
    DEVICE T both(T a, T b) { return a && b; }
};
template <class T> struct First {  // of the largest, by its index; the first NaN is larger than all
    DEVICE Best<T> empty() { Best<T> x = {Limits<T>::least(), 0x7fffffffffffffffLL}; return x; }
    DEVICE Best<T> both(Best<T> a, Best<T> b) {
        const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
        const bool tie = (nan_a && nan_b) || a.value == b.value;
        const bool first = tie ? a.index < b.index : nan_a || (!nan_b && a.value > b.value);
        return first ? a : b;
    }
};

template <class T> DEVICE T exchanged(T x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE bool exchanged(bool x, int lanes) { return __shfl_xor_sync(0xffffffffu, (int)x, lanes) != 0; }
template <class T> DEVICE Best<T> exchanged(Best<T> x, int lanes) {
    Best<T> y = {exchanged(x.value, lanes), exchanged(x.index, lanes)};
    return y;
}

DEVICE void *scratch() {
    __shared__ long long memory[2 * THREADS];
    return memory;
}

// Over SIZE neighbouring threads; everybody gets the result. A power of two of at most 32, or all threads of the block.
template <class Op, int SIZE, class T> DEVICE T along_row(T x) {
#pragma unroll
    for (int k = (SIZE < 32 ? SIZE : 32) / 2; k > 0; k /= 2) x = Op::both(x, exchanged(x, k));
    if (SIZE <= 32) return x;
    T *const parts = (T *)scratch();
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (int k = 1; k < THREADS / 32; ++k) x = Op::both(x, parts[k]);
    return x;
}

// Over the threads with the same number modulo LINES.
template <class Op, int LINES, class T> DEVICE T down_column(T x) {
    T *const parts = (T *)scratch();
    __syncthreads();
    parts[threadIdx.x] = x;
    __syncthreads();
    x = parts[threadIdx.x % LINES];
    for (int k = threadIdx.x % LINES + LINES; k < THREADS; k += LINES) x = Op::both(x, parts[k]);
    return x;
}

// Over all threads of all blocks. True in the last block to arrive, whose threads all get the result; elsewhere false.
template <class Op, class T>
DEVICE bool over_all(T &x, int block, int blocks, T *partial, unsigned *arrived) {
    x = along_row<Op, THREADS>(x);
    if (blocks == 1) return true;
    unsigned *const count = (unsigned *)scratch();
    __syncthreads();
    if (threadIdx.x == 0) {
        partial[block] = x;
        __threadfence();
        *count = atomicAdd(arrived, 1u);
    }
    __syncthreads();
    const bool last = *count == (unsigned)blocks - 1u;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    const volatile T *const parts = partial;
    x = Op::empty();
    for (int k = threadIdx.x; k < blocks; k += THREADS) x = Op::both(x, parts[k]);
    x = along_row<Op, THREADS>(x);
    if (threadIdx.x == 0) *arrived = 0u;
    return true;
}
