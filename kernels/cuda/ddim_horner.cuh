#pragma once
// Divergence and output variance of DDIM by Horner's rule: twin of fastkl.kernels.ddim_horner.
//
// Two fused multiply-adds per (eigenvalue, step). Chunks have at most MAX_DEGREE steps, so that for any eigenvalues and
// levels that are let in no polynomial overflows; between chunks the powers of two are taken out of numerator and
// denominator and counted apart, on the integer units, and the one division of a ratio is shared by a batch of BATCH.
#include "geometry.cuh"
#include "pairs.cuh"

constexpr int MAX_DEGREE = 8;
constexpr double NEAR = 0.0625;  // |q - 1| from which on logarithms of products keep their digits

DEVICE double start_deviation(double first, int prior) {
    if (infinite(first) || prior == EXACT) return 1.0;
    if (prior == VP) return square_root(fma(first, first, 1.0));
    return prior == VE ? first : 1.0 + first;
}

// Multiply a polynomial of degree `used` at most, in pairs, highest power first, by (slope*x + here*there).
DEVICE void multiply_by_factor(Pair *c, int degree, int used, double slope, double here, double there) {
    Pair constant = pair_product(here, there);
    for (int k = degree - used - 1; k < degree; k++) {
        Pair shifted = {slope * c[k + 1].high, slope * c[k + 1].low};
        c[k] = pair_add(shifted, pair_multiply(c[k], constant));
    }
    c[degree] = pair_multiply(c[degree], constant);
}

// Write the coefficients of Q and P of one chunk; q and p have the candidates side by side.
DEVICE void expand(const double *levels, int64 steps, int prior, int degree, int64 chunk, int64 stride, double *q,
                   double *p) {
    Pair upper[MAX_DEGREE + 1], lower[MAX_DEGREE + 1];
    for (int k = 0; k <= degree; k++) upper[k] = lower[k] = {0.0, 0.0};
    upper[degree].high = chunk == 0 ? start_deviation(levels[0], prior) : 1.0;
    lower[degree].high = 1.0;
    for (int used = 0; used < degree && chunk * degree + used < steps; used++) {
        double here = levels[chunk * degree + used], there = levels[chunk * degree + used + 1];
        if (infinite(here)) {
            multiply_by_factor(upper, degree, used, 0.0, 1.0, there);
        } else {
            multiply_by_factor(upper, degree, used, 1.0, here, there);
            multiply_by_factor(lower, degree, used, 1.0, here, here);
        }
    }
    for (int k = 0; k <= degree; k++) {
        q[k * stride] = upper[k].high;
        p[k * stride] = lower[k].high;
    }
}

// Multiply value[j], in [1, 2), by the polynomial at x[j] and return the powers of two in exponent, times `sign`.
template <int DEGREE>
DEVICE void multiply_by_polynomial(const double *c, int64 stride, const double *x, double *value, int *exponent,
                                   int sign) {
    double u[BATCH];
    UNROLL for (int j = 0; j < BATCH; j++) u[j] = c[0];
    UNROLL for (int k = 1; k <= DEGREE; k++) {
        double ck = c[k * stride];
        UNROLL for (int j = 0; j < BATCH; j++) u[j] = fma(u[j], x[j], ck);
    }
    UNROLL for (int j = 0; j < BATCH; j++) {
        value[j] *= u[j];
        exponent[j] += sign * split_exponent(value[j]);
    }
}

// Replace the elements by their inverses, with one division.
DEVICE void invert(double *d) {
    double before[BATCH];
    before[0] = d[0];
    UNROLL for (int j = 1; j < BATCH; j++) before[j] = before[j - 1] * d[j];
    double inverse = quotient(1.0, before[BATCH - 1]);
    UNROLL for (int j = BATCH - 1; j > 0; j--) {
        double here = inverse * before[j - 1];
        inverse *= d[j];
        d[j] = here;
    }
    d[0] = inverse;
}

// A thread's sum of (q - 1) - log(q), for ratios far from 1 with one logarithm at the end.
struct EntropySum {
    double sum, product;
    int64 exponent;
};

// `plain` tells that all weights are 1.
DEVICE void add_entropies(EntropySum &s, const double *q, const double *w, bool plain) {
    double terms[BATCH];
    UNROLL for (int j = 0; j < BATCH; j++) {
        double z = q[j] - 1.0;
        if (!plain || fabs(z) < NEAR) {
            terms[j] = w[j] * excess(z, q[j]);
        } else {
            terms[j] = z;
            s.product *= q[j];
            s.exponent += split_exponent(s.product);
        }
    }
    s.sum += ((terms[0] + terms[1]) + (terms[2] + terms[3])) + ((terms[4] + terms[5]) + (terms[6] + terms[7]));
}

DEVICE double entropy_total(const EntropySum &s) {
    return 0.5 * (s.sum - fma(LOG_2, (double)s.exponent, logarithm(s.product)));
}

// The batch's ratios q = 1/r, numerator P and denominator Q; for `exact`, start is s_0^2, else negative.
DEVICE void inverse_ratios(const double *x, double *top, double *bottom, const int *exponent, double last_square,
                           double start) {
    UNROLL for (int j = 0; j < BATCH; j++) {
        bottom[j] *= bottom[j];
        if (start >= 0.0) bottom[j] *= x[j] + start;
    }
    invert(bottom);
    UNROLL for (int j = 0; j < BATCH; j++) {
        double root = top[j] * power_of_two(exponent[j]);
        top[j] = (root * root) * ((x[j] + last_square) * bottom[j]);
    }
}

// The sum of a batch's terms of w2, or of the mean's share of w2 or reverse_kl; numerator Q, denominator P.
DEVICE double distance_terms(const double *x, const double *w, double *top, double *bottom,
                             const int *exponent, double last_square, double start, double deviation, int metric) {
    double total[BATCH];
    invert(bottom);
    UNROLL for (int j = 0; j < BATCH; j++) {
        double gain = (top[j] * bottom[j]) * power_of_two(exponent[j]);
        if (metric == W2) {
            if (start >= 0.0) gain *= square_root(x[j] + start);
            double gap = gain - square_root(x[j] + last_square);
            total[j] = w[j] * (gap * gap);
        } else {
            gain = quotient(gain, deviation);
            total[j] = w[j] * (gain * gain);
            if (metric == MEAN_REVERSE_KL) total[j] *= quotient(0.5, x[j] + last_square);
        }
    }
    return ((total[0] + total[1]) + (total[2] + total[3])) + ((total[4] + total[5]) + (total[6] + total[7]));
}

DEVICE double jeffreys_terms(const double *q, const double *w) {
    double total = 0.0;
    UNROLL for (int j = 0; j < BATCH; j++) {
        double z = q[j] - 1.0;
        total += w[j] * quotient(0.5 * (z * z), q[j]);
    }
    return total;
}

// Read a batch; beyond the end the last eigenvalue is repeated, with weight 0.
DEVICE void read_batch(const double *eigenvalues, const double *weights, int64 begin, int64 end, double *x, double *w) {
    UNROLL for (int j = 0; j < BATCH; j++) {
        int64 at = begin + j < end ? begin + j : end - 1;
        x[j] = eigenvalues[at];
        w[j] = begin + j >= end ? 0.0 : weights != nullptr ? weights[at] : 1.0;
    }
}

// One candidate's divergence over one slice of a tile. CHUNKS of DEGREE steps; with CHUNKS 0 their number is `chunks`
// and the coefficients are read anew for each batch, else they stay in registers.
template <int DEGREE, int CHUNKS>
DEVICE void slice_sum(const double *eigenvalues, const double *weights, const double *levels, const double *q,
                      const double *p, int64 size, int64 candidates, int64 steps, int64 chunks, int64 group,
                      int64 slices, int prior, int metric, double *partial) {
    Place at = place_of_thread(size, candidates, group, slices);
    if (!at.live) return;
    constexpr int KEPT = CHUNKS > 0 ? CHUNKS * (DEGREE + 1) : 1;
    double kept_top[KEPT], kept_bottom[KEPT];
    const double *mine = levels + at.candidate * (steps + 1);
    const double *top = (metric < W2 ? p : q) + at.candidate, *bottom = (metric < W2 ? q : p) + at.candidate;
    if (CHUNKS > 0) {
        UNROLL for (int k = 0; k < KEPT; k++) {
            kept_top[k] = top[k * candidates];
            kept_bottom[k] = bottom[k * candidates];
        }
    }
    double last_square = mine[steps] * mine[steps];
    double start = prior == EXACT && !infinite(mine[0]) ? mine[0] * mine[0] : -1.0;
    double deviation = start_deviation(mine[0], prior), total = 0.0;
    EntropySum entropy = {0.0, 1.0, 0};
    for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        double x[BATCH], w[BATCH], u[BATCH], v[BATCH];
        int exponent[BATCH];
        read_batch(eigenvalues, weights, begin, at.end, x, w);
        UNROLL for (int j = 0; j < BATCH; j++) {
            u[j] = v[j] = 1.0;
            exponent[j] = 0;
        }
        if (CHUNKS > 0) {
            UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
                multiply_by_polynomial<DEGREE>(kept_top + chunk * (DEGREE + 1), 1, x, u, exponent, 1);
                multiply_by_polynomial<DEGREE>(kept_bottom + chunk * (DEGREE + 1), 1, x, v, exponent, -1);
            }
        } else {
            for (int64 chunk = 0; chunk < chunks; chunk++) {
                int64 skip = chunk * (DEGREE + 1) * candidates;
                multiply_by_polynomial<DEGREE>(top + skip, candidates, x, u, exponent, 1);
                multiply_by_polynomial<DEGREE>(bottom + skip, candidates, x, v, exponent, -1);
            }
        }
        if (metric >= W2) {
            total += distance_terms(x, w, u, v, exponent, last_square, start, deviation, metric);
            continue;
        }
        inverse_ratios(x, u, v, exponent, last_square, start);
        if (metric == JEFFREYS) {
            total += jeffreys_terms(u, w);
            continue;
        }
        if (metric == REVERSE_KL) {
            UNROLL for (int j = 0; j < BATCH; j++) u[j] = quotient(1.0, u[j]);
        }
        add_entropies(entropy, u, w, weights == nullptr && begin + BATCH <= at.end);
    }
    partial[at.row * candidates + at.candidate] = metric < JEFFREYS ? entropy_total(entropy) : total;
}
