#pragma once
// What any sampler does to a Gaussian along one direction: twin of fastkl.kernels.sampler_moments.
//
// A thread interprets the program of its candidate for WIDTH eigenvalues at a time. Its registers lie in local memory,
// which a warp reads in whole lines because its threads are at the same operation; coefficients have the candidates
// side by side.
#include "geometry.cuh"

constexpr int WIDTH = 4, MOST_REGISTERS = 12;
constexpr int A = 0, F = 1, G = 2, NOISE = 3, SHARED = 4, BETA = 5, GAMMA = 9, ROW = 13;  // columns of coefficients
constexpr int BASE = 0, STATE = 1, VALUE = 2, TERMS = 3, READ = 4, OPERATION = 8;         // columns of operations

// A table's row of one operation and one candidate.
struct Row {
    const double *first;
    int64 stride;
    DEVICE double operator[](int64 column) const { return first[column * stride]; }
};

struct Program {
    const int64 *operations;
    const double *coefficients;  // (operations, columns, candidates), from the own candidate on
    int64 candidates, columns;
    DEVICE const int64 *operation(int64 i) const { return operations + i * OPERATION; }
    DEVICE Row row(int64 i) const { return {coefficients + i * columns * candidates, candidates}; }
};

// Eigenvalues from `begin` on; beyond `end` the last one is repeated, with weight 0.
struct Lanes {
    double x[WIDTH], w[WIDTH], mean[WIDTH];
};

DEVICE Lanes read_lanes(const double *eigenvalues, const double *weights, const double *mean, int64 begin, int64 end) {
    Lanes lanes;
    for (int j = 0; j < WIDTH; j++) {
        int64 at = begin + j < end ? begin + j : end - 1;
        lanes.x[j] = eigenvalues[at];
        lanes.w[j] = begin + j >= end ? 0.0 : weights != nullptr ? weights[at] : 1.0;
        lanes.mean[j] = mean != nullptr ? mean[at] : 0.0;
    }
    return lanes;
}

// Make the state of an operation but the first from a base and up to four values.
DEVICE void run_operation(const double *x, const int64 *operation, Row c, double (*bank)[WIDTH]) {
    double *out = bank[operation[STATE]];
    const double *y = bank[operation[BASE]];
    int64 terms = operation[TERMS], inner = terms < 3 ? terms : 3;
    for (int64 k = inner - 1; k >= 0; k--) {
        double beta = c[BETA + k], gamma = c[GAMMA + k];
        const double *h = bank[operation[READ + k]];
        for (int j = 0; j < WIDTH; j++) {
            double weight = fma(beta, x[j], gamma);
            out[j] = k == inner - 1 ? weight * h[j] : fma(weight, h[j], out[j]);
        }
    }
    double a = c[A];
    for (int j = 0; j < WIDTH; j++) out[j] = fma(a, y[j], out[j]);
    if (terms == 4) {
        double beta = c[BETA + 3], gamma = c[GAMMA + 3];
        const double *h = bank[operation[READ + 3]];
        for (int j = 0; j < WIDTH; j++) out[j] = fma(fma(beta, x[j], gamma), h[j], out[j]);
    }
}

DEVICE void forwards(const double *x, const Program &program, int64 i, double (*bank)[WIDTH]) {
    const int64 *operation = program.operation(i);
    Row c = program.row(i);
    double *out = bank[operation[STATE]];
    if (i == 0) {
        for (int j = 0; j < WIDTH; j++) out[j] = 1.0;
    } else {
        run_operation(x, operation, c, bank);
    }
    if (operation[VALUE] >= 0) {
        double *h = bank[operation[VALUE]], f = c[F], g = c[G];
        for (int j = 0; j < WIDTH; j++) h[j] = quotient(out[j], fma(f, x[j], g));
    }
}

// Move the derivatives with respect to an operation's point to psi.
DEVICE void pull_operation(const double *x, const int64 *operation, Row c, double (*bank)[WIDTH], double *psi) {
    double *state = bank[operation[STATE]];
    for (int j = 0; j < WIDTH; j++) {
        psi[j] = state[j];
        state[j] = 0.0;
    }
    if (operation[VALUE] < 0) return;
    double *value = bank[operation[VALUE]], f = c[F], g = c[G];
    for (int j = 0; j < WIDTH; j++) {
        psi[j] += quotient(value[j], fma(f, x[j], g));
        value[j] = 0.0;
    }
}

// Pass psi on to what the point was made from; part of the noise may repeat in the operation after (`repeats`).
DEVICE void push_operation(const double *x, const int64 *operation, Row c, double (*bank)[WIDTH], const double *psi,
                           double *shared, bool &repeats, double *noise) {
    double weight = c[NOISE], repeated = c[SHARED], a = c[A];
    if (weight != 0.0 || repeats) {
        for (int j = 0; j < WIDTH; j++) {
            double part = weight * psi[j] + (repeats ? shared[j] : 0.0);
            noise[j] = fma(part, part, noise[j]);
        }
    }
    for (int j = 0; j < WIDTH; j++) {
        shared[j] = repeated * psi[j];
        bank[operation[BASE]][j] = fma(a, psi[j], bank[operation[BASE]][j]);
    }
    for (int64 k = 0; k < operation[TERMS]; k++) {
        double beta = c[BETA + k], gamma = c[GAMMA + k], *derivative = bank[operation[READ + k]];
        for (int j = 0; j < WIDTH; j++) derivative[j] = fma(fma(beta, x[j], gamma), psi[j], derivative[j]);
    }
    repeats = repeated != 0.0;
}

DEVICE void begin_backwards(const Program &program, int64 until, double (*bank)[WIDTH], double *noise) {
    for (int r = 0; r < MOST_REGISTERS; r++)
        for (int j = 0; j < WIDTH; j++) bank[r][j] = 0.0;
    for (int j = 0; j < WIDTH; j++) {
        bank[program.operation(until)[STATE]][j] = 1.0;
        noise[j] = 0.0;
    }
}

// The gain from y_0 to the state of operation `until`, and the variance of the noises there.
DEVICE void moments(const double *x, const Program &program, bool stochastic, int64 until, double (*bank)[WIDTH],
                    double *gain, double *noise) {
    if (!stochastic) {
        for (int64 i = 0; i <= until; i++) forwards(x, program, i, bank);
        for (int j = 0; j < WIDTH; j++) {
            gain[j] = bank[program.operation(until)[STATE]][j];
            noise[j] = 0.0;
        }
        return;
    }
    double psi[WIDTH], shared[WIDTH] = {0.0, 0.0, 0.0, 0.0};
    bool repeats = false;
    begin_backwards(program, until, bank, noise);
    for (int64 i = until; i > 0; i--) {
        pull_operation(x, program.operation(i), program.row(i), bank, psi);
        push_operation(x, program.operation(i), program.row(i), bank, psi, shared, repeats, noise);
    }
    pull_operation(x, program.operation(0), program.row(0), bank, gain);
}
