#pragma once
// Divergence and output variance of DDIM by Horner's rule: twin of fastkl.kernels.ddim_horner.
//
// Two fused multiply-adds per (eigenvalue, step). Chunks have at most MAX_DEGREE steps, so that for any eigenvalues and
// levels that are let in no polynomial overflows; one chunk of up to WIDEST does for those that are tame. Between chunks numerator and denominator are divided by the same power
// of two, on the integer units: what is above 0 of their ratio at any level is within [2^-200, 2^200], so neither leaves
// the range of float64. The one division of a ratio is shared by a batch of BATCH.
#include "geometry.cuh"
#include "pairs.cuh"

constexpr int MAX_DEGREE = 8, WIDEST = 16;
constexpr int BELOW_1 = 0x3FEE0000, ABOVE_1 = 0x3FF10000;  // high words of 15/16 and 17/16

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
    Pair upper[WIDEST + 1], lower[WIDEST + 1];
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

// Multiply value[j] by the polynomial at x[j].
template <int DEGREE>
DEVICE void multiply_by_polynomial(const double *c, int64 stride, const double *x, double *value) {
    double u[BATCH];
    UNROLL for (int j = 0; j < BATCH; j++) u[j] = c[0];
    UNROLL for (int k = 1; k <= DEGREE; k++) {
        double ck = c[k * stride];
        UNROLL for (int j = 0; j < BATCH; j++) u[j] = fma(u[j], x[j], ck);
    }
    UNROLL for (int j = 0; j < BATCH; j++) value[j] *= u[j];
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

// The weight of eigenvalue k; those beyond the end, which repeat the last, have none.
DEVICE double weight_of(const double *weights, int64 k, int64 end) {
    return k >= end ? 0.0 : weights != nullptr ? weights[k] : 1.0;
}

DEVICE double batch_sum(const double *terms) {
    return ((terms[0] + terms[1]) + (terms[2] + terms[3])) + ((terms[4] + terms[5]) + (terms[6] + terms[7]));
}

// Whether |q - 1| >= 1/16 for q > 0, from where on logarithms of products keep their digits.
DEVICE bool far_from_1(double q) { return (unsigned)(high_word(q) - BELOW_1) >= (unsigned)(ABOVE_1 - BELOW_1); }

// A thread's sum of (q - 1) - log(q), for ratios far from 1 with one logarithm at the end.
struct EntropySum {
    double sum, product;
    int64 exponent;
};

// Weights of 1. Four ratios are multiplied before the power of two is taken out: each is within [2^-200, 2^200]. The sum
// of q - 1 is formed from that of q: it is off by three roundings of each q, which is 3e-13 of a term at |q - 1| = 1/16.
DEVICE void add_far_entropies(EntropySum &s, const double *q) {
    UNROLL for (int j = 0; j < BATCH; j += 4) {
        s.product *= (q[j] * q[j + 1]) * (q[j + 2] * q[j + 3]);
        s.exponent += split_exponent(s.product);
    }
    s.sum += batch_sum(q) - (double)BATCH;
}

DEVICE void add_entropies(EntropySum &s, const double *q, const double *weights, int64 begin, int64 end) {
    bool plain = weights == nullptr && begin + BATCH <= end, far = plain;
    UNROLL for (int j = 0; j < BATCH; j++) far = far && far_from_1(q[j]);
    if (far) {
        add_far_entropies(s, q);
        return;
    }
    double z[BATCH];
    UNROLL for (int j = 0; j < BATCH; j++) {
        z[j] = q[j] - 1.0;
        if (!plain || !far_from_1(q[j])) {
            z[j] = weight_of(weights, begin + j, end) * excess(z[j], q[j]);
        } else {
            s.product *= q[j];
            s.exponent += split_exponent(s.product);
        }
    }
    s.sum += batch_sum(z);
}

DEVICE double entropy_total(const EntropySum &s) {
    return 0.5 * (s.sum - fma(LOG_2, (double)s.exponent, logarithm(s.product)));
}

// The batch's ratios q = 1/r = (P/Q)^2 (x + s_N^2), numerator P and denominator Q; for `exact`, start is s_0^2, else
// negative. Inverting Q and not Q^2 saves a product each. What is not needed is branched around: most last levels are 0.
DEVICE void inverse_ratios(const double *x, double *top, double *bottom, double last_square, double start) {
    UNROLL for (int j = 0; j < BATCH; j++) take_power_of_two(top[j], bottom[j]);
    invert(bottom);
    UNROLL for (int j = 0; j < BATCH; j++) bottom[j] *= top[j];
    if (last_square > 0.0) {
        UNROLL for (int j = 0; j < BATCH; j++) top[j] = bottom[j] * bottom[j] * (x[j] + last_square);
    } else {
        UNROLL for (int j = 0; j < BATCH; j++) top[j] = bottom[j] * bottom[j] * x[j];
    }
    if (start >= 0.0) {
        UNROLL for (int j = 0; j < BATCH; j++) bottom[j] = x[j] + start;
        invert(bottom);
        UNROLL for (int j = 0; j < BATCH; j++) top[j] *= bottom[j];
    }
}

// A batch's terms of w2, or of the mean's share of w2 or reverse_kl; numerator Q, which may be 0, denominator P.
DEVICE void distance_terms(const double *x, double *top, double *bottom, double last_square, double start,
                           double deviation, int metric) {
    UNROLL for (int j = 0; j < BATCH; j++) {
        bool nothing = top[j] == 0.0;
        take_power_of_two(top[j], bottom[j]);
        if (nothing) top[j] = 0.0;
    }
    invert(bottom);
    UNROLL for (int j = 0; j < BATCH; j++) {
        double gain = top[j] * bottom[j];
        if (metric == W2) {
            if (start >= 0.0) gain *= square_root(x[j] + start);
            gain -= square_root(x[j] + last_square);
            top[j] = gain * gain;
        } else {
            gain = quotient(gain, deviation);
            top[j] = gain * gain;
            if (metric == MEAN_REVERSE_KL) top[j] *= quotient(0.5, x[j] + last_square);
        }
    }
}

// The batch's terms of jeffreys in place of its ratios.
DEVICE void jeffreys_terms(double *q) {
    UNROLL for (int j = 0; j < BATCH; j++) {
        double z = q[j] - 1.0;
        q[j] = quotient(0.5 * (z * z), q[j]);
    }
}

DEVICE double weighted_sum(double *terms, const double *weights, int64 begin, int64 end) {
    UNROLL for (int j = 0; j < BATCH; j++) terms[j] *= weight_of(weights, begin + j, end);
    return batch_sum(terms);
}

// Read a batch; beyond the end the last eigenvalue is repeated. The two ways look different to the compiler, or it would
// have them share their loads and work out eight addresses for each batch.
DEVICE void read_batch(const double *eigenvalues, int64 begin, int64 end, double *x) {
    if (begin + BATCH <= end) {
        UNROLL for (int j = 0; j < BATCH; j++) x[j] = load(eigenvalues + begin + j);
    } else {
        UNROLL for (int j = 0; j < BATCH; j++) x[j] = eigenvalues[begin + j < end ? begin + j : end - 1];
    }
}

// Numerators u and denominators v of a batch, with the last chunk's power of two still in them. With CHUNKS 0 the
// coefficients of `chunks` chunks are read for each batch, the candidates side by side, else they are in registers.
template <int DEGREE, int CHUNKS>
DEVICE void polynomials(const double *top, const double *bottom, int64 stride, int64 chunks, const double *x, double *u,
                        double *v) {
    UNROLL for (int j = 0; j < BATCH; j++) u[j] = v[j] = 1.0;
    if (CHUNKS > 0) {
        UNROLL for (int chunk = 0; chunk < CHUNKS; chunk++) {
            if (chunk > 0) {
                UNROLL for (int j = 0; j < BATCH; j++) take_power_of_two(u[j], v[j]);
            }
            multiply_by_polynomial<DEGREE>(top + chunk * (DEGREE + 1), 1, x, u);
            multiply_by_polynomial<DEGREE>(bottom + chunk * (DEGREE + 1), 1, x, v);
        }
    } else {
        for (int64 chunk = 0; chunk < chunks; chunk++) {
            int64 skip = chunk * (DEGREE + 1) * stride;
            UNROLL for (int j = 0; j < BATCH; j++) take_power_of_two(u[j], v[j]);  // nothing before the first
            multiply_by_polynomial<DEGREE>(top + skip, stride, x, u);
            multiply_by_polynomial<DEGREE>(bottom + skip, stride, x, v);
        }
    }
}

// Whether a candidate's levels, but for inf and 0, have tame squares.
DEVICE bool tame_levels(const double *levels, int64 steps) {
    double first = infinite(levels[0]) ? levels[1] : levels[0], last = levels[steps] > 0.0 ? levels[steps] : levels[steps - 1];
    return tame(first * first) && (infinite(last) || tame(last * last));
}

// One candidate's divergence over one slice of a tile. CHUNKS of DEGREE steps; with CHUNKS 0 their number is `chunks`
// and the coefficients are read anew for each batch, else they stay in registers. Of a chunk of more than MAX_DEGREE
// steps `narrow_q` and `narrow_p` have the same in `chunks` of MAX_DEGREE, for what is not tame. ENTROPY is for kl and reverse_kl, whose
// kernel so needs no registers for what the other metrics do.
template <int DEGREE, int CHUNKS, bool ENTROPY>
DEVICE void slice_sum(const double *eigenvalues, const double *weights, const double *levels, const double *q,
                      const double *p, const double *narrow_q, const double *narrow_p, const double *totals, int64 size,
                      int64 candidates, int64 steps, int64 chunks, int64 slices, int prior, int metric,
                      double *partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    constexpr int KEPT = CHUNKS > 0 ? CHUNKS * (DEGREE + 1) : 1;
    double kept_top[KEPT], kept_bottom[KEPT];
    const double *mine = levels + at.candidate * (steps + 1);
    bool inverse = ENTROPY || metric == JEFFREYS;  // 1/r is wanted
    const double *top = (inverse ? p : q) + at.candidate, *bottom = (inverse ? q : p) + at.candidate;
    if (CHUNKS > 0) {
        UNROLL for (int k = 0; k < KEPT; k++) {
            kept_top[k] = top[k * candidates];
            kept_bottom[k] = bottom[k * candidates];
        }
    }
    const double *narrow_top = (inverse ? narrow_p : narrow_q) + at.candidate;
    const double *narrow_bottom = (inverse ? narrow_q : narrow_p) + at.candidate;
    bool wild = DEGREE > MAX_DEGREE && !(tame_levels(mine, steps) && totals[at.tile * COLUMNS + 4] == 0.0);
    double last_square = mine[steps] * mine[steps];
    double start = prior == EXACT && !infinite(mine[0]) ? mine[0] * mine[0] : -1.0;
    double deviation = start_deviation(mine[0], prior), total = 0.0;
    EntropySum entropy = {0.0, 1.0, 0};
    for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        double x[BATCH], u[BATCH], v[BATCH];
        read_batch(eigenvalues, begin, at.end, x);
        if (wild) {
            polynomials<MAX_DEGREE, 0>(narrow_top, narrow_bottom, candidates, chunks, x, u, v);
        } else {
            polynomials<DEGREE, CHUNKS>(CHUNKS > 0 ? kept_top : top, CHUNKS > 0 ? kept_bottom : bottom, candidates,
                                        chunks, x, u, v);
        }
        if (inverse) inverse_ratios(x, u, v, last_square, start);
        if (ENTROPY) {
            if (metric == REVERSE_KL) {
                UNROLL for (int j = 0; j < BATCH; j++) u[j] = quotient(1.0, u[j]);
            }
            add_entropies(entropy, u, weights, begin, at.end);
        } else {
            if (inverse) {
                jeffreys_terms(u);
            } else {
                distance_terms(x, u, v, last_square, start, deviation, metric);
            }
            total += weighted_sum(u, weights, begin, at.end);
        }
    }
    partial[at.row * candidates + at.candidate] = ENTROPY ? entropy_total(entropy) : total;
}
