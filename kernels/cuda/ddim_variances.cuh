#pragma once
// Output variance and trajectory of DDIM, one (candidate, eigenvalue) a thread: twins of `variances` and
// `level_variances` in fastkl.kernels.ddim_horner.
#include "ddim_horner.cuh"

// Q/P at one eigenvalue, for polynomials of any degree up to MAX_DEGREE.
DEVICE double gain_by_polynomials(double x, const double *q, const double *p, int64 stride, int degree, int64 chunks) {
    double ratio = 1.0;
    for (int64 chunk = 0; chunk < chunks; chunk++) {
        int64 at = chunk * (degree + 1) * stride;
        double u = q[at], v = p[at];
        for (int k = 1; k <= degree; k++) {
            u = fma(u, x, q[at + k * stride]);
            v = fma(v, x, p[at + k * stride]);
        }
        ratio *= quotient(u, v);
    }
    return ratio;
}

DEVICE double output_variance(double x, double first, int prior, double gain) {
    double variance = gain * gain;
    return prior == EXACT && !infinite(first) ? variance * (x + first * first) : variance;
}

// v_{k+1} = v_k ((x + s_k s_{k+1})/(x + s_k^2))^2; an infinite first level has v_0 = inf and v_1 = s_1^2.
DEVICE void level_variances(double x, const double *levels, int64 steps, int prior, int64 stride, double *out) {
    double first = levels[0], deviation = start_deviation(first, prior);
    double v = prior == EXACT || infinite(first) ? x + first * first : deviation * deviation;
    out[0] = v;
    ROLLED for (int64 k = 0; k < steps; k++) {
        double here = levels[k], there = levels[k + 1];
        if (infinite(here)) {
            v = there * there;
        } else {
            double shrink = quotient(x + here * there, x + here * here);
            v *= shrink * shrink;
        }
        out[(k + 1) * stride] = v;
    }
}
