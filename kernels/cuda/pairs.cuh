#pragma once
// Arithmetic on pairs: unevaluated sums of two float64 that carry about 32 digits; twin of fastkl.kernels.pairs.
#include "arithmetic.cuh"

struct Pair {
    double high, low;
};

DEVICE Pair pair_product(double a, double b) {
    double high = a * b;
    return {high, fma(a, b, -high)};
}

DEVICE Pair pair_add(Pair a, Pair b) {
    double s = a.high + b.high, t = s - a.high;
    double low = ((a.high - (s - t)) + (b.high - t)) + (a.low + b.low);
    double high = s + low;
    return {high, low - (high - s)};
}

DEVICE Pair pair_multiply(Pair a, Pair b) {
    double s = a.high * b.high;
    double low = fma(a.high, b.high, -s) + (a.high * b.low + a.low * b.high);
    double high = s + low;
    return {high, low - (high - s)};
}

DEVICE Pair pair_divide(Pair a, Pair b) {
    double inverse = quotient(1.0, b.high), s = a.high * inverse;
    double rest = fma(-s, b.high, a.high) + (a.low - s * b.low);
    double low = rest * inverse, high = s + low;
    return {high, low - (high - s)};
}
