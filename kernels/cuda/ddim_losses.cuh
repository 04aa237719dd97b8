#pragma once
// Divergence of DDIM where Horner's rule loses digits: twin of fastkl.kernels.ddim_losses and ddim_compensated.
//
// What the steps lose, 1 + e = prod (x + s^2)(x + s'^2)/(x + s s')^2, needs no cancellation: e = x D/B^2, where a step
// turns D into D (x + s^2)(x + s'^2) + (s - s')^2 B^2 and B into B (x + s s'). Here D and B are carried as values, not as
// polynomials: seven operations a step where those take four, but nothing to prepare for tiles that are few. Where the
// prior's mismatch cancels the losses, 1/r is formed in pairs.
#include "ddim_horner.cuh"

constexpr double CANCELLED = 0.02;  // of the losses, what the prior must leave, or pairs are needed
constexpr int LOSS_STEPS = 4, PAIR_STEPS = 8;  // between divisions: no product overflows

DEVICE double total_loss(double x, const double *levels, int64 steps) {
    double total = 0.0, d = 0.0, b = 1.0;
    ROLLED for (int64 k = 0; k < steps; k++) {
        double here = levels[k], there = levels[k + 1];
        if (infinite(here)) {  // both divided by s_0^2: (x + s_1^2) - s_1^2 = x
            d = 1.0;
            b = there * there;
        } else {
            double gap = here - there, crossed = x + here * there;
            d = fma(d * fma(here, here, x), fma(there, there, x), gap * gap * b);
            b *= crossed * crossed;
        }
        if (k % LOSS_STEPS == LOSS_STEPS - 1 || k == steps - 1) {
            double e = quotient(x * d, b);
            total = fma(total, e, total + e);
            d = 0.0;
            b = 1.0;
        }
    }
    return total;
}

DEVICE double missing_variance(double first, int prior) {  // v0 - s_0^2
    return prior == VE ? 0.0 : prior == FLOW ? 1.0 + 2.0 * first : 1.0;
}

// q = 1/r and z = q - 1; returns whether the prior cancels the losses too far for float64.
DEVICE bool deviation_by_losses(double x, const double *levels, int64 steps, int prior, double &q, double &z) {
    double loss = total_loss(x, levels, steps), first = levels[0];
    if (prior == EXACT || infinite(first)) {
        q = 1.0 + loss;
        z = loss;
        return false;
    }
    double square = first * first, missing = missing_variance(first, prior), v0 = square + missing;
    double inverse = quotient(1.0, v0), mismatch = (x - missing) * inverse;
    q = (1.0 + loss) * ((x + square) * inverse);
    z = fma(loss, mismatch, loss + mismatch);
    if (fabs(q - 1.0) > 0.5) {  // q has all its digits; far from 1 the difference keeps them
        z = q - 1.0;
        return false;
    }
    return fabs(z) < CANCELLED * (loss + (x + missing) * inverse);
}

DEVICE Pair start_variance(double first, int prior) {
    if (infinite(first)) return {1.0, 0.0};
    Pair sum = pair_add({1.0, 0.0}, {first, 0.0});
    if (prior == FLOW) return pair_multiply(sum, sum);
    Pair square = pair_product(first, first);
    return prior == VE ? square : pair_add({1.0, 0.0}, square);
}

DEVICE void deviation_by_pairs(double x, const double *levels, int64 steps, int prior, double &q, double &z) {
    Pair one = {1.0, 0.0}, here_x = {x, 0.0}, top = one, bottom = one, ratio = one;
    ROLLED for (int64 k = 0; k < steps; k++) {
        double here = levels[k], there = levels[k + 1];
        if (infinite(here)) {
            bottom = {there, 0.0};
        } else {
            top = pair_multiply(top, pair_add(here_x, pair_product(here, here)));
            bottom = pair_multiply(bottom, pair_add(here_x, pair_product(here, there)));
        }
        if (k % PAIR_STEPS == PAIR_STEPS - 1 || k == steps - 1) {
            ratio = pair_multiply(ratio, pair_divide(top, bottom));
            top = bottom = one;
        }
    }
    double first = levels[0], last = levels[steps];
    Pair v0 = prior == EXACT && !infinite(first) ? pair_add(here_x, pair_product(first, first))
                                                 : start_variance(first, prior);
    Pair target = pair_add(here_x, pair_product(last, last));
    Pair result = pair_divide(pair_multiply(pair_multiply(ratio, ratio), target), v0);
    q = result.high;
    z = (result.high - 1.0) + result.low;
}

// A divergence's term from z = 1/r - 1, to nearly full relative precision.
DEVICE double divergence_term(double x, double last, int metric, double q, double z) {
    if (metric == KL) return 0.5 * excess(z, q);
    double inverse = quotient(1.0, q);  // r
    if (metric == JEFFREYS) return 0.5 * (z * z) * inverse;
    if (metric == REVERSE_KL) return 0.5 * excess(-z * inverse, inverse);
    double target = x + last * last, root = square_root(inverse), gap = quotient(z * inverse, 1.0 + root);  // 1 - square_root(r)
    return target > 0.0 ? target * (gap * gap) : 0.0;
}

DEVICE double precise_term(double x, const double *levels, int64 steps, int prior, int metric) {
    double q, z;
    if (deviation_by_losses(x, levels, steps, prior, q, z)) deviation_by_pairs(x, levels, steps, prior, q, z);
    return divergence_term(x, levels[steps], metric, q, z);
}

// Twin of fastkl._rounding.error_bounds, for one tile.
DEVICE double error_bound(double sum, double scale, double roundings, int metric) {
    double delta = 1.1102230246251565e-16 * roundings, first = metric == W2 ? 2.0 : 1.4142135623730951;
    double positive = fmax(sum, 0.0);
    return delta * (first * square_root(scale * positive) + 2.0 * positive) + delta * delta * scale;
}

// That bound's scale, from a row of the tiles' totals: the weight, for w2 the target's variance.
DEVICE double scale_of(const double *totals, double last, int metric) {
    return metric == W2 ? totals[1] + last * last * totals[0] : totals[0];
}

// What decides which tiles are evaluated again: sums (tiles, M), totals of each tile and of all, what the candidate's
// divergence is at least (M,), and the relative error that is allowed.
struct Doubt {
    const double *sums, *totals, *whole, *least;
    double allowed;
    int metric;
};

// Whether the rounding error could be more than is allowed of the tile or of its share of the candidate.
DEVICE bool doubtful(const Doubt &doubt, const Place &at, int64 candidates, double last, double roundings) {
    const double *totals = doubt.totals + at.tile * COLUMNS;
    double sum = doubt.sums[at.tile * candidates + at.candidate];
    double bound = error_bound(sum, scale_of(totals, last, doubt.metric), roundings, doubt.metric);
    double needed = fmax(sum - bound, doubt.least[at.candidate] * quotient(totals[0], doubt.whole[0]));
    return bound > doubt.allowed * needed;
}

// Leave a tile's sum as it is: its first slice has all of it.
DEVICE void keep_sum(const Doubt &doubt, const Place &at, int64 candidates, double *partial) {
    double sum = doubt.sums[at.tile * candidates + at.candidate];
    partial[at.row * candidates + at.candidate] = at.slice == 0 ? sum : 0.0;
}
