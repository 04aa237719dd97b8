#pragma once
// What every kernel stands on: qualifiers, the index of a thread, bits, and z - log(1 + z).
//
// The same text is compiled by NVRTC or nvcc for the GPU and by a C++ compiler for the tests, with contraction off in
// both: a fused multiply-add is one where it is written. NVRTC has no standard headers, so none is used on its side.
#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(128, 1)
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
typedef long long int64;
DEVICE int64 thread_index() { return (int64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int64 as_bits(double x) { return __double_as_longlong(x); }
DEVICE double from_bits(int64 x) { return __longlong_as_double(x); }
DEVICE double load(const double *x) { return __ldg(x); }  // of what no kernel writes
DEVICE int high_word(double x) { return __double2hiint(x); }
DEVICE double with_high_word(double x, int high) { return __hiloint2double(high, __double2loint(x)); }
DEVICE int as_bits_float(float x) { return __float_as_int(x); }
DEVICE float from_bits_float(int x) { return __int_as_float(x); }
#else
#include <cmath>
#include <cstring>
#define DEVICE inline
#define KERNEL extern "C" void
#define RESTRICT __restrict__
#define UNROLL
#define ROLLED
typedef long long int64;
using std::fabs;
using std::exp;
using std::expm1;
using std::fma;
using std::fmaf;
using std::fmax;
using std::fmin;
using std::hypot;
using std::log;
using std::log1p;
using std::pow;
using std::sqrt;
extern thread_local int64 walked_thread;
DEVICE int64 thread_index() { return walked_thread; }
template <class To, class From>
DEVICE To cast_bits(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
DEVICE int64 as_bits(double x) { return cast_bits<int64>(x); }
DEVICE double from_bits(int64 x) { return cast_bits<double>(x); }
DEVICE double load(const double *x) { return *x; }
DEVICE int high_word(double x) { return (int)(as_bits(x) >> 32); }
DEVICE double with_high_word(double x, int high) {
    return from_bits((int64)(((unsigned long long)(unsigned)high << 32) | (as_bits(x) & 0xFFFFFFFFLL)));
}
DEVICE int as_bits_float(float x) { return cast_bits<int>(x); }
DEVICE float from_bits_float(int x) { return cast_bits<float>(x); }
#endif

// The numbers of fastkl.kernels.ddim_horner; 4 to 6 are the mean's shares of kl, reverse_kl and w2.
constexpr int KL = 0, REVERSE_KL = 1, JEFFREYS = 2, W2 = 3, MEAN_REVERSE_KL = 5;
constexpr int VP = 0, VE = 1, FLOW = 2, EXACT = 3;
constexpr int TILE = 1024;
constexpr double LOG_2 = 0.69314718055994530942;
constexpr int64 SQRT_HALF_BITS = 0x3FE6A09E667F3BCDLL, MANTISSA = (1LL << 52) - 1, ONE_BITS = 0x3FFLL << 52;

DEVICE bool infinite(double level) { return level > 1e300; }

// Take the power of two out of a positive x: x becomes a number in [1, 2).
DEVICE int split_exponent(double &x) {
    int64 bits = as_bits(x);
    x = from_bits((bits & MANTISSA) | ONE_BITS);
    return (int)(bits >> 52) - 1023;
}

// Divide both by the power of two of a positive bottom, which is then in [1, 2); for a top that is not 0 and stays normal.
DEVICE void take_power_of_two(double &top, double &bottom) {
    unsigned high = (unsigned)high_word(bottom), mantissa = (high & 0xFFFFFu) | 0x3FF00000u;
    top = with_high_word(top, (int)((unsigned)high_word(top) - high + mantissa));
    bottom = with_high_word(bottom, (int)mantissa);
}

// 1/b and 1/sqrt(x) to some 20 bits: an instruction of the GPU, which leaves the lower half of the number 0.
#ifdef __CUDACC__
DEVICE double rough_inverse(double b) {
    double r;
    asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));
    return r;
}
DEVICE double rough_inverse_root(double x) {
    double r;
    asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(x));
    return r;
}
#else
DEVICE double rough_inverse(double b) { return from_bits(as_bits(1.0 / b) & ~0xFFFFFFFFLL); }
DEVICE double rough_inverse_root(double x) { return from_bits(as_bits(1.0 / sqrt(x)) & ~0xFFFFFFFFLL); }
#endif

// a/b for finite b within [2^-1021, 2^1021]: to the nearest number but for rare last bits. The compiler's own division has
// a second, slow path for the rest, a call around which registers are saved.
DEVICE double quotient(double a, double b) {
    double r = rough_inverse(b);
    r = fma(r, fma(-b, r, 1.0), r);
    r = fma(r, fma(-b, r, 1.0), r);
    double q = a * r;
    return fma(r, fma(-b, q, a), q);
}

// The square root of 0 or of a normal number, likewise.
DEVICE double square_root(double x) {
    double y = rough_inverse_root(x);
    double root = x * y, half = 0.5 * y, rest = fma(-half, root, 0.5);
    root = fma(root, rest, root);
    half = fma(half, rest, half);
    rest = fma(-half, root, 0.5);
    root = fma(root, rest, root);
    half = fma(half, rest, half);
    return x == 0.0 ? 0.0 : fma(fma(-root, root, x), half, root);
}

// s y r(y) = 2 atanh(s) - 2 s, y = s^2, for |s| <= 0.172.
DEVICE double atanh_tail(double s) {
    double y = s * s, r = 2.0 / 23.0;
    r = fma(r, y, 2.0 / 21.0);
    r = fma(r, y, 2.0 / 19.0);
    r = fma(r, y, 2.0 / 17.0);
    r = fma(r, y, 2.0 / 15.0);
    r = fma(r, y, 2.0 / 13.0);
    r = fma(r, y, 2.0 / 11.0);
    r = fma(r, y, 2.0 / 9.0);
    r = fma(r, y, 2.0 / 7.0);
    r = fma(r, y, 2.0 / 5.0);
    r = fma(r, y, 2.0 / 3.0);
    return s * y * r;
}

// z - log(q) for q = 1 + z: log(q) = k log 2 + 2 atanh(s), s = f/(2 + f), q = 2^k (1 + f). For k = 0 the first term of
// the series cancels against z exactly: z - 2 s = z s.
DEVICE double excess(double z, double q) {
    bool near = fabs(z) < 0.25;
    int64 bits = as_bits(q), k = (bits - SQRT_HALF_BITS) >> 52;
    double f = near ? z : from_bits(bits - k * (1LL << 52)) - 1.0;
    double s = quotient(f, 2.0 + f);
    double head = near ? z * s : fma(-LOG_2, (double)k, z) - 2.0 * s;
    return head - atanh_tail(s);
}

// log(x) of a positive, normal x.
DEVICE double logarithm(double x) {
    int64 bits = as_bits(x), k = (bits - SQRT_HALF_BITS) >> 52;
    double f = from_bits(bits - k * (1LL << 52)) - 1.0;
    double s = quotient(f, 2.0 + f);
    return fma(LOG_2, (double)k, 2.0 * s + atanh_tail(s));
}
