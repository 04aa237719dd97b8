// Entry points for any sampler. Tables have the candidates side by side: coefficients (operations, columns, M).
#include "sampler_losses.cuh"

constexpr int PAIR_SLICES = TILE / BATCH;  // threads that share a tile where single tiles are evaluated

// The divergence of each candidate over each slice of each tile, with the mean's share; partial (tiles, slices, M).
KERNEL sampler_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                    const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                    const double *RESTRICT coefficients, int64 length, int stochastic, int64 size, int64 candidates,
                    int64 steps, int64 group, int64 slices, double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, group, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
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

// Which of the listed (candidate, tile) a thread has, and which BATCH eigenvalues of it.
struct Listed {
    int64 pair, candidate, begin, end;
    bool live;
};

DEVICE Listed listed(const int64 *candidates, const int64 *tiles, int64 pairs, int64 size) {
    int64 i = thread_index();
    Listed at = {i / PAIR_SLICES, 0, 0, 0, i / PAIR_SLICES < pairs};
    if (!at.live) return at;
    int64 tile_end = (tiles[at.pair] + 1) * TILE;
    at.candidate = candidates[at.pair];
    at.begin = tiles[at.pair] * TILE + i % PAIR_SLICES * BATCH;
    at.end = at.begin + BATCH < tile_end ? at.begin + BATCH : tile_end;
    if (at.end > size) at.end = size;
    return at;
}

// The divergence of tiles[i] for candidates[i], to more digits, for samplers without noise; partial (pairs, slices).
KERNEL precise_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                    const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                    const double *RESTRICT coefficients, int64 length, int noise_form,
                    const int64 *RESTRICT candidates, const int64 *RESTRICT tiles, int64 pairs, int64 size,
                    int64 rows, int64 steps, double *RESTRICT partial) {
    Listed at = listed(candidates, tiles, pairs, size);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Program program = {operations, coefficients + at.candidate, rows, DEVIATION_ROW};
    bool has_mean = mean != nullptr && !infinite(mine[0]);
    State bank[MOST_REGISTERS];
    double total = 0.0;
    for (int64 k = at.begin; k < at.end; k += WIDTH) {
        Lanes lanes = read_lanes(eigenvalues, weights, mean, k, at.end);
        Outcome o;
        deviation(lanes.x, mine, prior, program, noise_form != 0, length - 1, bank, o);
        total += weighted_sum(lanes, mine, steps, metric, has_mean, o);
    }
    partial[thread_index()] = total;
}

// The same for samplers with noise.
KERNEL loss_sums(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT mean,
                 const double *RESTRICT levels, int prior, int metric, const int64 *RESTRICT operations,
                 const double *RESTRICT coefficients, int64 length, const int64 *RESTRICT partners,
                 const int64 *RESTRICT reads, const double *RESTRICT defects, const double *RESTRICT extras,
                 int64 width, const int64 *RESTRICT candidates, const int64 *RESTRICT tiles, int64 pairs, int64 size,
                 int64 rows, int64 steps, double *RESTRICT partial) {
    Listed at = listed(candidates, tiles, pairs, size);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Program program = {operations, coefficients + at.candidate, rows, ROW};
    LossTables tables = {partners, reads, defects + at.candidate, extras + at.candidate, width, rows};
    bool has_mean = mean != nullptr && !infinite(mine[0]);
    double bank[MOST_REGISTERS][WIDTH], total = 0.0;
    for (int64 k = at.begin; k < at.end; k += WIDTH) {
        Lanes lanes = read_lanes(eigenvalues, weights, mean, k, at.end);
        Outcome o;
        losses(lanes.x, mine, steps, prior, program, tables, length - 1, bank, o);
        total += weighted_sum(lanes, mine, steps, metric, has_mean, o);
    }
    partial[thread_index()] = total;
}

// Which candidate and which WIDTH eigenvalues a thread has where every one makes an output.
struct Cell {
    int64 candidate, begin;
};

DEVICE Cell cell_of_thread(int64 size) {
    int64 i = thread_index(), cells = (size + WIDTH - 1) / WIDTH, candidate = i / cells;
    return {candidate, (i - candidate * cells) * WIDTH};
}

// Output variances, out (M, d).
KERNEL sampler_variances(const double *RESTRICT eigenvalues, const double *RESTRICT levels, int prior,
                         const int64 *RESTRICT operations, const double *RESTRICT coefficients, int64 length,
                         int stochastic, int64 size, int64 candidates, int64 steps, double *RESTRICT out) {
    Cell at = cell_of_thread(size);
    if (at.candidate >= candidates) return;
    Program program = {operations, coefficients + at.candidate, candidates, ROW};
    double bank[MOST_REGISTERS][WIDTH], gain[WIDTH], noise[WIDTH], first = levels[at.candidate * (steps + 1)];
    Lanes lanes = read_lanes(eigenvalues, nullptr, nullptr, at.begin, size);
    moments(lanes.x, program, stochastic != 0, length - 1, bank, gain, noise);
    for (int j = 0; j < WIDTH && at.begin + j < size; j++)
        out[at.candidate * size + at.begin + j] = gain[j] * gain[j] * first_variance(lanes.x[j], first, prior) + noise[j];
}

KERNEL precise_variances(const double *RESTRICT eigenvalues, const double *RESTRICT levels, int prior,
                         const int64 *RESTRICT operations, const double *RESTRICT coefficients, int64 length,
                         int noise_form, int64 size, int64 candidates, int64 steps, double *RESTRICT out) {
    Cell at = cell_of_thread(size);
    if (at.candidate >= candidates) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Program program = {operations, coefficients + at.candidate, candidates, DEVIATION_ROW};
    State bank[MOST_REGISTERS];
    Lanes lanes = read_lanes(eigenvalues, nullptr, nullptr, at.begin, size);
    Outcome o;
    deviation(lanes.x, mine, prior, program, noise_form != 0, length - 1, bank, o);
    for (int j = 0; j < WIDTH && at.begin + j < size; j++)
        out[at.candidate * size + at.begin + j] = o.r[j] * (lanes.x[j] + mine[steps] * mine[steps]);
}

// Variances at every level, out (M, N+1, d); grid (N+1,): the operations that make the levels' states.
KERNEL sampler_levels(const double *RESTRICT eigenvalues, const double *RESTRICT levels, int prior,
                      const int64 *RESTRICT operations, const double *RESTRICT coefficients,
                      const int64 *RESTRICT grid, int stochastic, int64 size, int64 candidates, int64 steps,
                      double *RESTRICT out) {
    Cell at = cell_of_thread(size);
    if (at.candidate >= candidates) return;
    Program program = {operations, coefficients + at.candidate, candidates, ROW};
    double bank[MOST_REGISTERS][WIDTH], gain[WIDTH], noise[WIDTH] = {0.0, 0.0, 0.0, 0.0};
    double first = levels[at.candidate * (steps + 1)];
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
            double value = gain[j] * gain[j] * first_variance(lanes.x[j], first, prior) + noise[j];
            out[(at.candidate * (steps + 1) + k) * size + at.begin + j] = k == 0 && infinite(first) ? first : value;
        }
    }
}
