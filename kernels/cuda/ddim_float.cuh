#pragma once
// Divergence of DDIM in float32, for cards whose float64 runs at 1/64 of the rate.
//
// A step takes a reciprocal, three products, two sums and a fused multiply-add. In units of 2^-24 a step's loss e is off
// by at most 14: both rows, the sum with x and the quotient, 5 or 6, doubled by the square, x itself and two
// products; adding it costs two more. All losses are positive, so their total is within 14 + 2 N units, and a small kl,
// which is quadratic in it, within twice that: 5e-6 at N = 16 if all were at their worst at once. Roundings cancel; the
// tests see less than 1e-5 up to N = 1000 wherever kl is at least 1e-3. What is float64 is done once for all candidates
// (eigenvalues and weights) or once a batch.
// The logarithm of a ratio is small, so the steps' losses are carried, not the ratio: 1 + e = prod (1 + x t^2), t =
// |s - s'|/(x + s s'). The differences and products of levels are formed in float64 and rounded once. Sums are float64
// for each batch. Within eigenvalues [1e-12, 1e12] and levels [1e-4, 1e5] nothing over- or underflows.
#include "geometry.cuh"
#include "ddim_losses.cuh"

constexpr float LARGE_LOSS = 1.0f;

// Row 2k: s_k s_{k+1}; row 2k + 1: s_k - s_{k+1}; an infinite s_0 leaves 0 and -1/s_1, which is -1e10 where nothing is left.
DEVICE void expand_float(const double *levels, int64 steps, int64 stride, float *rows) {
    for (int64 k = 0; k < steps; k++) {
        double here = levels[k], there = levels[k + 1];
        bool limit = infinite(here);
        rows[2 * k * stride] = limit ? 0.0f : (float)(here * there);
        rows[(2 * k + 1) * stride] = limit ? (float)(there > 0.0 ? -1.0 / there : -1e10) : (float)(here - there);
    }
}

// a/b to two units in the last place, for b within [2^-126, 2^126].
DEVICE float quotient_float(float a, float b) {
#ifdef __CUDACC__
    return __fdividef(a, b);
#else
    return a * (1.0f / b);  // no better than the GPU's
#endif
}

DEVICE float excess_float(float z, float q) {
    bool near = z < 0.25f && z > -0.25f;
    int bits = as_bits_float(q), k = (bits - 0x3F3504F3) >> 23;
    float f = near ? z : from_bits_float(bits - k * (1 << 23)) - 1.0f;
    float s = quotient_float(f, 2.0f + f), y = s * s, r = 2.0f / 11.0f;
    r = fmaf(r, y, 2.0f / 9.0f);
    r = fmaf(r, y, 2.0f / 7.0f);
    r = fmaf(r, y, 2.0f / 5.0f);
    r = fmaf(r, y, 2.0f / 3.0f);
    float head = near ? z * s : fmaf(-2.0f, s, fmaf(-0.69314718f, (float)k, z));
    return fmaf(-s * y, r, head);
}

struct FloatStart {
    float missing, square, v0;  // v0 = s_0^2 + missing; v0 is 0 where there is no mismatch
};

DEVICE FloatStart float_start(double first, int prior) {
    if (prior == EXACT || infinite(first)) return {0.0f, 0.0f, 0.0f};
    double missing = missing_variance(first, prior);
    return {(float)missing, (float)(first * first), (float)(first * first + missing)};
}

// q = 1/r and z = q - 1. Where the prior takes back most of a large loss, float32 leaves too few digits of z: both are
// made again in float64. That takes a first level below 1.8 (`vp`) or 6.5 (`flow`), and an eigenvalue where they cancel.
DEVICE void float_deviation(float x, float loss, FloatStart start, const double *levels, int64 steps, int prior,
                            float &q, float &z) {
    q = 1.0f + loss;
    z = loss;
    if (start.v0 == 0.0f) return;
    float mismatch = quotient_float(x - start.missing, start.v0);
    q = (1.0f + loss) * quotient_float(x + start.square, start.v0);
    z = fmaf(loss, mismatch, loss + mismatch);
    if (q > 1.5f || q < 0.5f) {
        z = q - 1.0f;
    } else if (loss > LARGE_LOSS) {
        double exact_q, exact_z;
        deviation_by_losses((double)x, levels, steps, prior, exact_q, exact_z);
        q = (float)exact_q;
        z = (float)exact_z;
    }
}

DEVICE float float_term(float x, float q, float z, float last_square, int metric) {
    if (metric == KL) return 0.5f * excess_float(z, q);
    float inverse = quotient_float(1.0f, q);  // r
    if (metric == JEFFREYS) return 0.5f * z * (z * inverse);
    if (metric == REVERSE_KL) return 0.5f * excess_float(-z * inverse, inverse);
    float change = q > 2.0f ? 1.0f - inverse : z * inverse;  // also where q has overflown
    float gap = quotient_float(change, 1.0f + sqrt(inverse));  // 1 - sqrt(r)
    return (x + last_square) * (gap * gap);
}

DEVICE void float_losses(const float *x, const float *rows, int64 steps, int64 stride, float *loss) {
    bool limit = rows[stride] < 0.0f;
    UNROLL for (int j = 0; j < BATCH; j++) loss[j] = limit ? x[j] * rows[stride] * rows[stride] : 0.0f;
    ROLLED for (int64 k = limit ? 1 : 0; k < steps; k++) {
        float crossed = rows[2 * k * stride], gap = rows[(2 * k + 1) * stride];
        UNROLL for (int j = 0; j < BATCH; j++) {
            float t = quotient_float(gap, x[j] + crossed), e = x[j] * t * t;
            loss[j] = fmaf(loss[j], e, loss[j] + e);
        }
    }
}

DEVICE void float_slice_sum(const float *eigenvalues, const float *weights, const double *levels, const float *rows,
                            int64 size, int64 candidates, int64 steps, int64 slices, int prior,
                            int metric, double *partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    FloatStart start = float_start(mine[0], prior);
    float last_square = (float)(mine[steps] * mine[steps]);
    double total = 0.0;
    ROLLED for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        float x[BATCH], loss[BATCH], sum = 0.0f;
        UNROLL for (int j = 0; j < BATCH; j++) x[j] = eigenvalues[begin + j < at.end ? begin + j : at.end - 1];
        float_losses(x, rows + at.candidate, steps, candidates, loss);
        UNROLL for (int j = 0; j < BATCH; j++) {
            if (begin + j >= at.end) continue;
            float q, z;
            float_deviation(x[j], loss[j], start, mine, steps, prior, q, z);
            float term = float_term(x[j], q, z, last_square, metric);
            sum = weights != nullptr ? fmaf(weights[begin + j], term, sum) : sum + term;
        }
        total += (double)sum;
    }
    partial[at.row * candidates + at.candidate] = total;
}
