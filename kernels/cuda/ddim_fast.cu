// Entry points of DDIM's fast kernel: one for each number and length of chunks and each family of metrics.
#include "ddim_horner.cuh"

// The divergence of each candidate over each slice of each tile, partial (tiles, slices, M); weights (d,) or null.
#define TILE_SUMS(NAME, DEGREE, CHUNKS, ENTROPY)                                                                      \
    KERNEL NAME(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT levels,    \
                const double *RESTRICT q, const double *RESTRICT p, const double *RESTRICT narrow_q,                  \
                const double *RESTRICT narrow_p, const double *RESTRICT totals, int64 size, int64 candidates,         \
                int64 steps, int64 chunks, int64 slices, int prior, int metric, double *RESTRICT partial) {           \
        slice_sum<DEGREE, CHUNKS, ENTROPY>(eigenvalues, weights, levels, q, p, narrow_q, narrow_p, totals, size,      \
                                           candidates, steps, chunks, slices, prior, metric, partial);                \
    }
TILE_SUMS(ddim_entropies_4_1, 4, 1, true)
TILE_SUMS(ddim_entropies_5_1, 5, 1, true)
TILE_SUMS(ddim_entropies_6_1, 6, 1, true)
TILE_SUMS(ddim_entropies_7_1, 7, 1, true)
TILE_SUMS(ddim_entropies_8_1, 8, 1, true)
TILE_SUMS(ddim_entropies_10_1, 10, 1, true)
TILE_SUMS(ddim_entropies_12_1, 12, 1, true)
TILE_SUMS(ddim_entropies_14_1, 14, 1, true)
TILE_SUMS(ddim_entropies_16_1, 16, 1, true)
TILE_SUMS(ddim_entropies_6_0, 6, 0, true)
TILE_SUMS(ddim_entropies_7_0, 7, 0, true)
TILE_SUMS(ddim_entropies_8_0, 8, 0, true)
TILE_SUMS(ddim_distances_4_1, 4, 1, false)
TILE_SUMS(ddim_distances_5_1, 5, 1, false)
TILE_SUMS(ddim_distances_6_1, 6, 1, false)
TILE_SUMS(ddim_distances_7_1, 7, 1, false)
TILE_SUMS(ddim_distances_8_1, 8, 1, false)
TILE_SUMS(ddim_distances_10_1, 10, 1, false)
TILE_SUMS(ddim_distances_12_1, 12, 1, false)
TILE_SUMS(ddim_distances_14_1, 14, 1, false)
TILE_SUMS(ddim_distances_16_1, 16, 1, false)
TILE_SUMS(ddim_distances_6_0, 6, 0, false)
TILE_SUMS(ddim_distances_7_0, 7, 0, false)
TILE_SUMS(ddim_distances_8_0, 8, 0, false)
