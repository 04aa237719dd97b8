#pragma once
// Samplers without noise where the fast kernel loses digits: twin of fastkl.kernels.sampler_deviation.
//
// A register holds the state relative to the true solution as an unevaluated sum, and the true solution's size.
#include "sampler_sums.cuh"

constexpr int ALPHA = 0, SIGMA = 1, ALPHA_B = 2, SIGMA_B = 3, AREA = 4, CARRY = 5, WEIGHT = 6, DEVIATION_ROW = 18;
constexpr double SHARP = 0.5;  // loss of a step from which on g is formed anew

struct State {
    double high[WIDTH], low[WIDTH], mu[WIDTH];
};

DEVICE double gap_of(const State &p, const State &b, int j) { return (p.high[j] - b.high[j]) + (p.low[j] - b.low[j]); }

// The terms beyond DDIM's step, for one eigenvalue.
DEVICE double rest_of(double x, double mu, const int64 *operation, Row c, bool noise_form, const State *bank, int j) {
    const State &b = bank[operation[READ]];
    double rest = 0.0;
    if (c[CARRY] != 0.0) rest = quotient(c[CARRY] * gap_of(bank[operation[BASE]], b, j) * b.mu[j], mu);
    for (int64 k = 0; k < operation[TERMS] - 1; k++) {
        const State &p = bank[operation[READ + 1 + k]];
        double weight = c[WEIGHT + k], product = c[WEIGHT + 9 + k], gap = gap_of(p, b, j);
        double own = noise_form ? c[WEIGHT + 6 + k] : c[WEIGHT + 3 + k], base = noise_form ? c[SIGMA_B] : c[ALPHA_B];
        double slope = quotient(noise_form ? x * product : -product, b.mu[j] * (own * b.mu[j] + base * p.mu[j]));
        double term = weight * (noise_form ? 1.0 : x) * (slope * b.high[j] + own * gap);
        rest += quotient(term, p.mu[j] * mu);
    }
    return rest;
}

DEVICE void advance(const State &b, double loss, double cosine, double rest, State &out, int j) {
    double gain = b.high[j], low = b.low[j], change = rest - loss * gain;
    double total = gain + change, part = total - gain;
    double error = (gain - (total - part)) + (change - part);
    bool sharp = loss > SHARP;
    out.high[j] = sharp ? cosine * (gain + low) + rest : total;
    out.low[j] = sharp ? 0.0 : error + low * (1.0 - loss);
}

DEVICE void run_precise(const double *x, const int64 *operation, Row c, bool noise_form, State *bank) {
    State out;
    for (int j = 0; j < WIDTH; j++) {
        double mu = square_root(x[j] * c[ALPHA] * c[ALPHA] + c[SIGMA] * c[SIGMA]);
        if (operation[BASE] < 0) {
            out.high[j] = 1.0;
            out.low[j] = 0.0;
        } else {
            const State &b = bank[operation[READ]];
            double product = b.mu[j] * mu, dot = x[j] * c[ALPHA_B] * c[ALPHA] + c[SIGMA_B] * c[SIGMA];
            double loss = quotient(x[j] * (c[AREA] * c[AREA]), product * (product + dot));
            double rest = rest_of(x[j], mu, operation, c, noise_form, bank, j);
            advance(b, loss, quotient(dot, product), rest, out, j);
        }
        out.mu[j] = mu;
    }
    bank[operation[STATE]] = out;
    if (operation[VALUE] >= 0) bank[operation[VALUE]] = out;
}

DEVICE double mismatch(double x, double first, int prior) {  // v0/(x + s_0^2) - 1
    if (infinite(first) || prior == EXACT) return 0.0;
    double missing = prior == VE ? 0.0 : prior == FLOW ? 1.0 + 2.0 * first : 1.0;
    return quotient(missing - x, x + first * first);
}

// v0/(x + s_0^2), where 1 plus the mismatch would cancel if v0 is much less.
DEVICE double start_ratio(double x, double first, int prior) {
    if (infinite(first) || prior == EXACT) return 1.0;
    return quotient(first_variance(x, first, prior), x + first * first);
}

// Gain, r and z of the state of operation `until`; where the true variance is 0: 0, 1, 0.
DEVICE void deviation(const double *x, const double *levels, int prior, const Program &program, bool noise_form,
                      int64 until, State *bank, Outcome &o) {
    for (int64 i = 0; i <= until; i++) run_precise(x, program.operation(i), program.row(i), noise_form, bank);
    const State &out = bank[program.operation(until)[STATE]];
    double alpha = program.row(until)[ALPHA], alpha_0 = program.row(0)[ALPHA], sigma_0 = program.row(0)[SIGMA];
    for (int j = 0; j < WIDTH; j++) {
        if (out.mu[j] == 0.0) {
            o.gain[j] = 0.0;
            o.r[j] = 1.0;
            o.z[j] = 0.0;
            continue;
        }
        double g = out.high[j] + out.low[j], u = (out.high[j] - 1.0) + out.low[j];
        double start = mismatch(x[j], levels[0], prior), square = u * (2.0 + u);
        o.r[j] = start_ratio(x[j], levels[0], prior) * (g * g);
        o.z[j] = start + (square + start * square);
        if (fabs(o.z[j]) > 0.5) o.z[j] = o.r[j] - 1.0;
        double mu_0 = square_root(x[j] * alpha_0 * alpha_0 + sigma_0 * sigma_0);
        o.gain[j] = g * quotient(out.mu[j], mu_0) * quotient(alpha_0, alpha);
    }
}
