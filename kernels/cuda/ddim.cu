// Entry points for DDIM but the fast kernel, and for sums. Sizes are 64-bit; arrays that have a column for each candidate
// have them side by side.
#include "ddim_variances.cuh"
#include "ddim_float.cuh"
#include "sums.cuh"

// levels (M, N+1) -> q and p, (chunks, degree + 1, M).
KERNEL ddim_expand(const double *RESTRICT levels, int64 candidates, int64 steps, int prior, int64 degree, int64 chunks,
                   double *RESTRICT q, double *RESTRICT p) {
    int64 i = thread_index(), m = i % candidates, chunk = i / candidates;
    if (chunk >= chunks) return;
    int64 at = chunk * (degree + 1) * candidates + m;
    expand(levels + m * (steps + 1), steps, prior, (int)degree, chunk, candidates, q + at, p + at);
}

// What each tile's sum is at least, out (tiles, M), from its rounding error; totals (tiles, COLUMNS).
KERNEL ddim_least_sums(const double *RESTRICT sums, const double *RESTRICT totals, const double *RESTRICT levels,
                       int64 tiles, int64 candidates, int64 steps, double roundings, int metric,
                       double *RESTRICT out) {
    int64 i = thread_index(), tile = i / candidates, m = i % candidates;
    if (tile >= tiles) return;
    double scale = scale_of(totals + tile * COLUMNS, levels[m * (steps + 1) + steps], metric);
    out[i] = fmax(sums[i] - error_bound(sums[i], scale, roundings, metric), 0.0);
}

// The sums over slices, evaluated again to more digits, of tiles whose rounding error could be more than `allowed` of the tile or of its
// share of the candidate; `least` (M,) is what the candidate's divergence is at least. Of other tiles, and of a NaN, the sum.
KERNEL ddim_refine(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT levels,
                   const double *RESTRICT sums, const double *RESTRICT totals, const double *RESTRICT whole,
                   const double *RESTRICT least, int64 size, int64 candidates, int64 steps, int64 slices,
                   int prior, int metric, double roundings, double allowed, double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    const double *mine = levels + at.candidate * (steps + 1);
    Doubt doubt = {sums, totals, whole, least, allowed, metric};
    if (!doubtful(doubt, at, candidates, mine[steps], roundings)) {
        keep_sum(doubt, at, candidates, partial);
        return;
    }
    double total = 0.0;
    ROLLED for (int64 begin = at.begin; begin < at.end; begin += at.stride)
        ROLLED for (int64 k = begin; k < begin + BATCH && k < at.end; k++)
            total += (weights != nullptr ? weights[k] : 1.0) * precise_term(eigenvalues[k], mine, steps, prior, metric);
    partial[at.row * candidates + at.candidate] = total;
}

// The mean's share of kl for `exact`, weights/(2 v0), and of the other priors, square/(2 v0), is not a tile sum of ratios.
KERNEL ddim_mean_kl(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT levels,
                    int64 size, int64 candidates, int64 steps, int64 slices, double *RESTRICT partial) {
    Place at = place_of_thread(size, candidates, slices);
    if (!at.live) return;
    double first = levels[at.candidate * (steps + 1)], total = 0.0;
    ROLLED for (int64 begin = at.begin; begin < at.end; begin += at.stride)
        ROLLED for (int64 k = begin; k < begin + BATCH && k < at.end; k++)
            total += quotient(0.5 * weights[k], eigenvalues[k] + first * first);
    partial[at.row * candidates + at.candidate] = total;
}

// Add the mean's share, (M,) or null, and `square`/(2 v0); NaN for what breaks the rules, inf where no variance is left.
KERNEL ddim_finish(const double *RESTRICT sums, const double *RESTRICT share, const double *RESTRICT levels,
                   const double *RESTRICT whole, int64 candidates, int64 steps, int prior, int metric, double square,
                   double *RESTRICT out) {
    int64 m = thread_index();
    if (m >= candidates) return;
    const double *mine = levels + m * (steps + 1);
    double value = sums[m];
    if (!infinite(mine[0])) {  // an infinite first level forgets the mean
        double deviation = start_deviation(mine[0], prior);
        if (share != nullptr) value += share[m];
        if (square > 0.0) value += quotient(square, 2.0 * deviation * deviation);
    }
    if (metric != W2 && steps == 1 && infinite(mine[0]) && mine[1] == 0.0) value = infinity();
    out[m] = defined(mine, steps, whole, metric) ? value : quiet_nan();
}

// Whether each candidate keeps the rules, valid (M,): 1 or 0.
KERNEL ddim_check(const double *RESTRICT levels, const double *RESTRICT whole, int64 candidates, int64 steps,
                  double *RESTRICT valid) {
    int64 m = thread_index();
    if (m < candidates) valid[m] = defined(levels + m * (steps + 1), steps, whole, W2) ? 1.0 : 0.0;
}

// Output variances, out (M, ...), whose rows are `row` apart; NaN where `valid` is 0. It is null where the host has checked.
KERNEL ddim_variances(const double *RESTRICT eigenvalues, const double *RESTRICT levels, const double *RESTRICT q,
                      const double *RESTRICT p, const double *RESTRICT valid, int64 size, int64 candidates,
                      int64 steps, int64 degree, int64 chunks, int prior, int64 row, double *RESTRICT out) {
    int64 i = thread_index(), m = i / size, column = i - m * size;
    if (m >= candidates) return;
    const double *mine = levels + m * (steps + 1);
    double x = eigenvalues[column];
    double value = output_variance(x, mine[0], prior,
                                   gain_by_polynomials(x, q + m, p + m, candidates, (int)degree, chunks));
    out[m * row + column] = valid == nullptr || valid[m] != 0.0 ? value : quiet_nan();
}

// Variances at every level, out (M, N+1, ...), likewise.
KERNEL ddim_level_variances(const double *RESTRICT eigenvalues, const double *RESTRICT levels,
                            const double *RESTRICT valid, int64 size, int64 candidates, int64 steps, int prior,
                            int64 row, double *RESTRICT out) {
    int64 i = thread_index(), m = i / size, column = i - m * size;
    if (m >= candidates) return;
    const double *mine = levels + m * (steps + 1);
    double *mine_out = out + m * (steps + 1) * row + column;
    if (valid == nullptr || valid[m] != 0.0) {
        level_variances(eigenvalues[column], mine, steps, prior, row, mine_out);
    } else {
        for (int64 k = 0; k <= steps; k++) mine_out[k * row] = quiet_nan();
    }
}

// What float32 needs of each step, rows (2 N, M).
KERNEL ddim_expand_float(const double *RESTRICT levels, int64 candidates, int64 steps, float *RESTRICT rows) {
    int64 m = thread_index();
    if (m < candidates) expand_float(levels + m * (steps + 1), steps, candidates, rows + m);
}

// Eigenvalues or weights in float32.
KERNEL to_float(const double *RESTRICT in, int64 size, float *RESTRICT out) {
    int64 i = thread_index();
    if (i < size) out[i] = (float)in[i];
}

KERNEL ddim_float_sums(const float *RESTRICT eigenvalues, const float *RESTRICT weights,
                       const double *RESTRICT levels, const float *RESTRICT rows, int64 size, int64 candidates,
                       int64 steps, int64 slices, int prior, int metric, double *RESTRICT partial) {
    float_slice_sum(eigenvalues, weights, levels, rows, size, candidates, steps, slices, prior, metric,
                    partial);
}

KERNEL spectrum_totals(const double *RESTRICT eigenvalues, const double *RESTRICT weights, int64 size,
                       double *RESTRICT out) {
    tile_totals(eigenvalues, weights, size, out);
}

KERNEL tile_least(const double *RESTRICT eigenvalues, int64 size, double *RESTRICT out) {
    int64 tile = thread_index();
    if (tile * TILE < size) out[tile] = least_of_tile(eigenvalues, tile, size);
}

// The weights with which a mean counts: its squares times the counts, (d,) or null.
KERNEL mean_weights(const double *RESTRICT mean, const double *RESTRICT counts, int64 size, double *RESTRICT out) {
    int64 i = thread_index();
    if (i < size) out[i] = (counts != nullptr ? counts[i] : 1.0) * (mean[i] * mean[i]);
}

KERNEL group_sums(const double *RESTRICT in, int64 rows, int64 columns, int64 length, double *RESTRICT out) {
    sum_groups(in, rows, columns, length, out);
}
