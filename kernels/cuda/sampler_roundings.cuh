#pragma once
// How many roundings of itself a sampler's output may be off by: twin of fastkl._sampler_program.Program.roundings.
#include "sampler_moments.cuh"

constexpr int TERM_SIZE = 0, BASE_F = 1, BASE_G = 2, JUMPS = 3, SIZES = 4;  // columns of sizes

// At eigenvalues x, for samplers without noise; `sizes` are the sizes of each operation's terms.
DEVICE void rounding_counts(const double *x, const Program &program, const Program &sizes, int64 until, bool noise_form,
                            double (*bank)[WIDTH], double *out) {
    double psi[WIDTH], shared[WIDTH], noise[WIDTH], total[WIDTH] = {0.0, 0.0, 0.0, 0.0}, gain[WIDTH];
    bool repeats = false;
    begin_backwards(program, until, bank, noise);
    for (int64 i = until; i >= 0; i--) {
        Row c = program.row(i), size = sizes.row(i);
        pull_operation(x, program.operation(i), c, bank, psi);
        for (int j = 0; j < WIDTH; j++) {
            gain[j] = fabs(psi[j]) * square_root(fma(c[F], x[j], c[G]));
            total[j] += gain[j];
            if (i == 0) continue;
            double m = square_root(fma(size[BASE_F], x[j], size[BASE_G]));
            double terms = quotient(size[TERM_SIZE] * (noise_form ? 1.0 : x[j]), m) + size[JUMPS] * m;
            total[j] += fabs(psi[j]) * terms;
        }
        if (i > 0) push_operation(x, program.operation(i), c, bank, psi, shared, repeats, noise);
    }
    for (int j = 0; j < WIDTH; j++) {
        double count = (double)(until + 1), ratio = quotient(total[j], gain[j]);
        out[j] = ratio > count && ratio < 1e300 ? ratio : count;  // neither a NaN nor inf
    }
}
