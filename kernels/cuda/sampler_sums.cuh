#pragma once
// Divergences of any sampler from its moments: twin of fastkl.kernels.sampler_sums.
#include "sampler_moments.cuh"

DEVICE double first_variance(double x, double first, int prior) {  // of y, or of y/s where the first level is inf
    if (infinite(first)) return 1.0;
    if (prior == VP) return 1.0 + first * first;
    if (prior == VE) return first * first;
    if (prior == FLOW) return (1.0 + first) * (1.0 + first);
    return x + first * first;
}

// What is known of an output: gain, r = output over target variance, z = r - 1.
struct Outcome {
    double gain[WIDTH], r[WIDTH], z[WIDTH];
};

DEVICE void ratios(const double *x, const double *levels, int64 steps, int prior, const double *noise, Outcome &o) {
    double first = levels[0], last = levels[steps];
    for (int j = 0; j < WIDTH; j++) {
        double variance = o.gain[j] * o.gain[j] * first_variance(x[j], first, prior) + noise[j];
        o.r[j] = quotient(variance, x[j] + last * last);
        o.z[j] = o.r[j] - 1.0;
    }
}

DEVICE double term_of(double x, double last, int metric, double r, double z) {
    if (metric == W2) {
        double target = x + last * last, gap = quotient(z, 1.0 + square_root(r));
        return target > 0.0 ? target * (gap * gap) : 0.0;
    }
    if (metric == JEFFREYS) return quotient(0.5 * (z * z), r);
    if (metric == REVERSE_KL) return 0.5 * excess(z, r);
    return 0.5 * excess(quotient(-z, r), quotient(1.0, r));
}

// What the mean adds: its error is the gain times it, because every prior has mean 0.
DEVICE double mean_term(double x, double last, int metric, double gain, double r, double mean) {
    double error = gain * mean, target = x + last * last, share = 0.0;
    if (metric == W2) return error * error;
    if (metric != REVERSE_KL) share += quotient(0.5, r * target);
    if (metric != KL) share += quotient(0.5, target);
    return error * error * share;
}

DEVICE double weighted_sum(const Lanes &lanes, const double *levels, int64 steps, int metric, bool has_mean,
                           const Outcome &o) {
    double total = 0.0, last = levels[steps];
    for (int j = 0; j < WIDTH; j++) {
        double term = term_of(lanes.x[j], last, metric, o.r[j], o.z[j]);
        if (has_mean) term += mean_term(lanes.x[j], last, metric, o.gain[j], o.r[j], lanes.mean[j]);
        if (lanes.w[j] != 0.0) total += lanes.w[j] * term;
    }
    return total;
}
