#pragma once
// Samplers with noise where the fast kernel loses digits: twin of fastkl.kernels.sampler_losses.
#include "sampler_deviation.cuh"

constexpr int POINT = 0, LIVE_STATE = 1, LIVE_VALUE = 2, PLACE = 3, PARTNER = 4;  // columns of the partners
constexpr int READS = 3, DEFECTS = 7, EXTRAS = 2;

// Tables of all operations: partners (operations, K, 4), reads (operations, 3); defects (operations, K, 7, M) and
// extras (operations, 2, M) from the own candidate on.
struct LossTables {
    const int64 *partners, *reads;
    const double *defects, *extras;
    int64 width, candidates;
};

// X_ti for one partner; `row` are its coefficients.
DEVICE double defect(double x, const Program &program, const int64 *reads, Row row) {
    Row b = program.row(reads[0]);
    double scale = fma(b[F], x, b[G]), out = quotient(row[0] * x, b[F] * x + b[G]);
    for (int k = 1; k < READS && reads[k] >= 0; k++) {
        Row p = program.row(reads[k]);
        double top = (row[3 * k - 2] * x + row[3 * k - 1]) * x + row[3 * k];
        out += quotient(top, (p[F] * x + p[G]) * scale);
    }
    return out;
}

DEVICE double value_weight(double x, Row own, Row point, int64 k) {
    return quotient(own[BETA + k] * x + own[GAMMA + k], point[F] * x + point[G]);
}

// One operation's share of the loss for one eigenvalue.
DEVICE double operation_loss(double x, const Program &program, const LossTables &tables, int64 t,
                             const double (*bank)[WIDTH], double psi, int j) {
    const int64 *reads = tables.reads + t * READS;
    Row own = program.row(t), extras = {tables.extras + t * EXTRAS * tables.candidates, tables.candidates};
    double loss = 0.0;
    for (int64 i = 0; i < tables.width; i++) {
        const int64 *partner = tables.partners + (t * tables.width + i) * PARTNER;
        if (partner[POINT] < 0) break;
        Row row = {tables.defects + (t * tables.width + i) * DEFECTS * tables.candidates, tables.candidates};
        Row point = program.row(partner[POINT]);
        double out = defect(x, program, reads, row), share = i == 0 ? psi : 0.0;
        if (i == 0) {
            out += extras[0];
            // the repeated noise is in the state whose value is read second
            if (extras[1] != 0.0) out += value_weight(x, own, program.row(reads[1]), 1) * extras[1];
        }
        if (partner[PLACE] >= 0)
            share += psi * (value_weight(x, own, point, partner[PLACE]) + (partner[PLACE] == 0 ? own[A] : 0.0));
        if (partner[LIVE_STATE] >= 0) share += 2.0 * bank[partner[LIVE_STATE]][j];
        if (partner[LIVE_VALUE] >= 0)
            share += quotient(2.0 * bank[partner[LIVE_VALUE]][j], point[F] * x + point[G]);
        loss += psi * share * out;
    }
    return loss;
}

// Gain, r and z of the output; the fast kernel's where what is lost is not small.
DEVICE void losses(const double *x, const double *levels, int64 steps, int prior, const Program &program,
                   const LossTables &tables, int64 until, double (*bank)[WIDTH], Outcome &o) {
    double psi[WIDTH], shared[WIDTH] = {0.0, 0.0, 0.0, 0.0}, noise[WIDTH], loss[WIDTH] = {0.0, 0.0, 0.0, 0.0};
    bool repeats = false;
    begin_backwards(program, until, bank, noise);
    for (int64 i = until; i > 0; i--) {
        pull_operation(x, program.operation(i), program.row(i), bank, psi);
        for (int j = 0; j < WIDTH; j++) loss[j] += operation_loss(x[j], program, tables, i, bank, psi[j], j);
        push_operation(x, program.operation(i), program.row(i), bank, psi, shared, repeats, noise);
    }
    pull_operation(x, program.operation(0), program.row(0), bank, o.gain);
    ratios(x, levels, steps, prior, noise, o);
    double first = levels[0], last = levels[steps];
    for (int j = 0; j < WIDTH; j++) {
        double start = infinite(first) ? 1.0 : x[j] + first * first, target = x[j] + last * last;
        double added = o.gain[j] * o.gain[j] * mismatch(x[j], first, prior) * start;
        double precise = quotient(loss[j] + added, target);
        if (fabs(precise) < 0.5) {
            o.z[j] = precise;
            o.r[j] = 1.0 + precise;
        }
    }
}
