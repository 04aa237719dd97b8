// Entry points for any sampler. Tables have the candidates side by side: coefficients (operations, columns, M).
//
// How a sampler steps to level 0 differs from how it steps above, so each ending has its own program: a kernel that runs
// one leaves the candidates of the other ending alone.
#include "ddim_losses.cuh"
#include "expressions.cuh"
#include "sampler_losses.cuh"
#include "sampler_roundings.cuh"
#include "sums.cuh"

constexpr double OPERATION_ROUNDINGS = 8.0, MORE_ROUNDINGS = 8.0;  // of error_bound: of each counted one, and of the sum
constexpr double LOST_DIGITS = 100.0;  // roundings for each operation from which on variances are made to more digits

DEVICE bool ends_so(const double *levels, int64 steps, int to_zero) { return (levels[steps] == 0.0) == (to_zero != 0); }

// Evaluate instructions on levels (M, N+1): registers (count, M) are scratch, out (outputs, M).
KERNEL sampler_tables(const double *RESTRICT levels, const int64 *RESTRICT code, const double *RESTRICT constants,
                      int64 count, int64 candidates, int64 steps, int to_zero, double *registers,
                      double *RESTRICT out) {
    int64 m = thread_index();
    if (m >= candidates || !ends_so(levels + m * (steps + 1), steps, to_zero)) return;
    run_instructions(levels + m * (steps + 1), code, constants, count, candidates, registers + m, out + m);
}

// The divergence of each candidate over each slice of each tile, with the mean's share; partial (tiles, slices, M).
KERNEL sampler_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                    const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                    const double *RESTRICT coefficients, int64 length, int stochastic, int to_zero, int64 size,
                    int64 candidates, int64 steps, int64 slices, double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    if (!ends_so(mine, steps, to_zero)) return;
    Program program = {operations, coefficients + at.candidate, candidates, ROW};
    bool has_mean = mean != nullptr && !infinite(mine[0]);
    double bank[MOST_REGISTERS][WIDTH], noise[WIDTH], total = 0.0;
    for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        for (int64 k = begin; k < begin + BATCH && k < at.end; k += WIDTH) {
            Lanes lanes = read_lanes(eigenvalues, weights, mean, k, at.end);
            Outcome o;
            moments(lanes.x, program, stochastic != 0, length - 1, bank, o.gain, noise);
            ratios(lanes.x, mine, steps, prior, noise, o);
            total += weighted_sum(lanes, mine, steps, metric, has_mean, o);
        }
    }
    partial[at.row * candidates + at.candidate] = total;
}

// How many roundings the output may be off by at each tile's least eigenvalue (tiles,), out (tiles, M). With noise one
// number holds for all, the first of `sizes`.
KERNEL sampler_roundings(const double *RESTRICT least, const double *RESTRICT levels,
                         const int64 *RESTRICT operations, const double *RESTRICT coefficients,
                         const double *RESTRICT sizes, int64 length, int stochastic, int noise_form, int to_zero,
                         int64 tiles, int64 candidates, int64 steps, double *RESTRICT out) {
    int64 i = thread_index(), m = i % candidates, begin = i / candidates * WIDTH;
    if (begin >= tiles || !ends_so(levels + m * (steps + 1), steps, to_zero)) return;
    Program program = {operations, coefficients + m, candidates, ROW}, terms = {operations, sizes + m, candidates, SIZES};
    double bank[MOST_REGISTERS][WIDTH], counts[WIDTH];
    Lanes lanes = read_lanes(least, nullptr, nullptr, begin, tiles);
    if (stochastic == 0) rounding_counts(lanes.x, program, terms, length - 1, noise_form != 0, bank, counts);
    for (int j = 0; j < WIDTH && begin + j < tiles; j++)
        out[(begin + j) * candidates + m] = stochastic != 0 ? (double)length * sizes[m] : counts[j];
}

// What each tile's sum is at least, out (tiles, M), from its rounding error; totals (tiles, COLUMNS).
KERNEL sampler_least_sums(const double *RESTRICT sums, const double *RESTRICT totals, const double *RESTRICT levels,
                          const double *RESTRICT roundings, int64 tiles, int64 candidates, int64 steps, int metric,
                          double *RESTRICT out) {
    int64 i = thread_index(), tile = i / candidates, m = i % candidates;
    if (tile >= tiles) return;
    double scale = scale_of(totals + tile * COLUMNS, levels[m * (steps + 1) + steps], metric);
    double count = fma(OPERATION_ROUNDINGS, roundings[i], MORE_ROUNDINGS);
    out[i] = fmax(sums[i] - error_bound(sums[i], scale, count, metric), 0.0);
}

// Whether a tile's sum is to be made to more digits: its rounding error may be too large, or it is no number.
DEVICE bool sampler_doubtful(const Doubt &doubt, const Place &at, double last, const double *roundings,
                             int64 candidates) {
    double sum = doubt.sums[at.tile * candidates + at.candidate];
    double count = fma(OPERATION_ROUNDINGS, roundings[at.tile * candidates + at.candidate], MORE_ROUNDINGS);
    return sum != sum || doubtful(doubt, at, candidates, last, count);
}

// The sums over slices of doubtful tiles, evaluated again, and of the others the sum, for samplers without noise.
KERNEL precise_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                    const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                    const double *RESTRICT deviations, int64 length, int noise_form, int to_zero,
                    const double *RESTRICT sums, const double *RESTRICT totals, const double *RESTRICT whole,
                    const double *RESTRICT least, const double *RESTRICT roundings, double allowed, int64 size,
                    int64 candidates, int64 steps, int64 slices, double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Doubt doubt = {sums, totals, whole, least, allowed, metric};
    if (!ends_so(mine, steps, to_zero)) return;
    if (!sampler_doubtful(doubt, at, mine[steps], roundings, candidates)) {
        keep_sum(doubt, at, candidates, partial);
        return;
    }
    Program program = {operations, deviations + at.candidate, candidates, DEVIATION_ROW};
    bool has_mean = mean != nullptr && !infinite(mine[0]);
    State bank[MOST_REGISTERS];
    double total = 0.0;
    for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        for (int64 k = begin; k < begin + BATCH && k < at.end; k += WIDTH) {
            Lanes lanes = read_lanes(eigenvalues, weights, mean, k, at.end);
            Outcome o;
            deviation(lanes.x, mine, prior, program, noise_form != 0, length - 1, bank, o);
            total += weighted_sum(lanes, mine, steps, metric, has_mean, o);
        }
    }
    partial[at.row * candidates + at.candidate] = total;
}

// The same for samplers with noise.
KERNEL loss_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                 const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                 const double *RESTRICT coefficients, int64 length, const int64 *RESTRICT partners,
                 const int64 *RESTRICT reads, const double *RESTRICT defects, const double *RESTRICT extras,
                 int64 width, int to_zero, const double *RESTRICT sums, const double *RESTRICT totals,
                 const double *RESTRICT whole, const double *RESTRICT least, const double *RESTRICT roundings,
                 double allowed, int64 size, int64 candidates, int64 steps, int64 slices,
                 double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Doubt doubt = {sums, totals, whole, least, allowed, metric};
    if (!ends_so(mine, steps, to_zero)) return;
    if (!sampler_doubtful(doubt, at, mine[steps], roundings, candidates)) {
        keep_sum(doubt, at, candidates, partial);
        return;
    }
    Program program = {operations, coefficients + at.candidate, candidates, ROW};
    LossTables tables = {partners, reads, defects + at.candidate, extras + at.candidate, width, candidates};
    bool has_mean = mean != nullptr && !infinite(mine[0]);
    double bank[MOST_REGISTERS][WIDTH], total = 0.0;
    for (int64 begin = at.begin; begin < at.end; begin += at.stride) {
        for (int64 k = begin; k < begin + BATCH && k < at.end; k += WIDTH) {
            Lanes lanes = read_lanes(eigenvalues, weights, mean, k, at.end);
            Outcome o;
            losses(lanes.x, mine, steps, prior, program, tables, length - 1, bank, o);
            total += weighted_sum(lanes, mine, steps, metric, has_mean, o);
        }
    }
    partial[at.row * candidates + at.candidate] = total;
}

// Whether each candidate keeps the rules and the sampler's own, valid (M,): 1 or 0. `allowed` (M,) is null where the
// sampler cannot end so.
KERNEL sampler_check(const double *RESTRICT levels, const double *RESTRICT whole, const double *RESTRICT allowed,
                     int finite_start, int to_zero, int metric, int64 candidates, int64 steps,
                     double *RESTRICT valid) {
    int64 m = thread_index();
    const double *mine = levels + m * (steps + 1);
    if (m >= candidates || !ends_so(mine, steps, to_zero)) return;
    bool own = allowed != nullptr && allowed[m] != 0.0 && !(finite_start != 0 && infinite(mine[0]));
    valid[m] = own && defined(mine, steps, whole, metric) ? 1.0 : 0.0;
}

// Divergences (M,) from their sums: NaN where not valid, inf where no variance is left.
KERNEL sampler_finish(const double *RESTRICT sums, const double *RESTRICT levels, const double *RESTRICT valid,
                      int metric, int64 candidates, int64 steps, double *RESTRICT out) {
    int64 m = thread_index();
    if (m >= candidates) return;
    const double *mine = levels + m * (steps + 1);
    bool nothing_left = metric != W2 && steps == 1 && infinite(mine[0]) && mine[1] == 0.0;
    out[m] = valid[m] == 0.0 ? quiet_nan() : nothing_left ? infinity() : sums[m];
}

// Which candidate and which WIDTH eigenvalues a thread has where every one makes an output.
struct Cell {
    int64 candidate, begin;
};

DEVICE Cell cell_of_thread(int64 size) {
    int64 i = thread_index(), cells = (size + WIDTH - 1) / WIDTH, candidate = i / cells;
    return {candidate, (i - candidate * cells) * WIDTH};
}

// Output variances, out (M, ...), `row` apart. With `deviations`, which samplers with noise do not
// have, from the kernel that keeps more digits where the roundings (tiles, M) could take too many.
KERNEL sampler_variances(const double *RESTRICT eigenvalues, const double *RESTRICT levels,
                         int prior, const int64 *RESTRICT operations, const double *RESTRICT coefficients,
                         const double *RESTRICT deviations, const double *RESTRICT roundings, int64 length,
                         int stochastic, int noise_form, int to_zero, int64 size, int64 candidates, int64 steps,
                         int64 row, double *RESTRICT out) {
    Cell at = cell_of_thread(size);
    if (at.candidate >= candidates) return;
    const double *mine = levels + at.candidate * (steps + 1);
    if (!ends_so(mine, steps, to_zero)) return;
    Lanes lanes = read_lanes(eigenvalues, nullptr, nullptr, at.begin, size);
    double values[WIDTH];
    if (deviations != nullptr && roundings[at.begin / TILE * candidates + at.candidate] > LOST_DIGITS * (double)length) {
        Program program = {operations, deviations + at.candidate, candidates, DEVIATION_ROW};
        State bank[MOST_REGISTERS];
        Outcome o;
        deviation(lanes.x, mine, prior, program, noise_form != 0, length - 1, bank, o);
        for (int j = 0; j < WIDTH; j++) values[j] = o.r[j] * (lanes.x[j] + mine[steps] * mine[steps]);
    } else {
        Program program = {operations, coefficients + at.candidate, candidates, ROW};
        double bank[MOST_REGISTERS][WIDTH], gain[WIDTH], noise[WIDTH];
        moments(lanes.x, program, stochastic != 0, length - 1, bank, gain, noise);
        for (int j = 0; j < WIDTH; j++)
            values[j] = gain[j] * gain[j] * first_variance(lanes.x[j], mine[0], prior) + noise[j];
    }
    for (int j = 0; j < WIDTH && at.begin + j < size; j++) out[at.candidate * row + at.begin + j] = values[j];
}

// Variances at every level, out (M, N+1, ...), whose rows are `row` apart; grid (N+1,): the operations that make the levels' states.
KERNEL sampler_levels(const double *RESTRICT eigenvalues, const double *RESTRICT levels, int prior,
                      const int64 *RESTRICT operations, const double *RESTRICT coefficients,
                      const int64 *RESTRICT grid, int stochastic, int to_zero, int64 size, int64 candidates,
                      int64 steps, int64 row, double *RESTRICT out) {
    Cell at = cell_of_thread(size);
    if (at.candidate >= candidates) return;
    const double *mine = levels + at.candidate * (steps + 1);
    if (!ends_so(mine, steps, to_zero)) return;
    Program program = {operations, coefficients + at.candidate, candidates, ROW};
    double bank[MOST_REGISTERS][WIDTH], gain[WIDTH], noise[WIDTH] = {0.0, 0.0, 0.0, 0.0};
    Lanes lanes = read_lanes(eigenvalues, nullptr, nullptr, at.begin, size);
    int64 done = 0;
    for (int64 k = 0; k <= steps; k++) {
        if (stochastic != 0) {
            moments(lanes.x, program, true, grid[k], bank, gain, noise);
        } else {
            for (; done <= grid[k]; done++) forwards(lanes.x, program, done, bank);
            for (int j = 0; j < WIDTH; j++) gain[j] = bank[program.operation(grid[k])[STATE]][j];
        }
        for (int j = 0; j < WIDTH && at.begin + j < size; j++) {
            double value = gain[j] * gain[j] * first_variance(lanes.x[j], mine[0], prior) + noise[j];
            out[(at.candidate * (steps + 1) + k) * row + at.begin + j] = k == 0 && infinite(mine[0]) ? mine[0] : value;
        }
    }
}

// NaN for candidates that are not valid; out (M, each).
KERNEL refuse_rows(const double *RESTRICT valid, int64 each, int64 candidates, double *RESTRICT out) {
    int64 i = thread_index(), m = i / each;
    if (m < candidates && valid[m] == 0.0) out[i] = quiet_nan();
}
