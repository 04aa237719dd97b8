// Entry points of DDIM's fast kernel: one for each number and length of chunks and each family of metrics.
#include "ddim_horner.cuh"

// The divergence of each candidate over each slice of each tile, partial (tiles, slices, M); weights (d,) or null.
#define TILE_SUMS(NAME, DEGREE, CHUNKS, ENTROPY)                                                                      \
    KERNEL NAME(const double *RESTRICT eigenvalues, const double *RESTRICT weights, const double *RESTRICT levels,    \
                const double *RESTRICT q, const double *RESTRICT p, int64 size, int64 candidates, int64 steps,        \
                int64 chunks, int64 slices, int prior, int metric, double *RESTRICT partial) {                        \
        slice_sum<DEGREE, CHUNKS, ENTROPY>(eigenvalues, weights, levels, q, p, size, candidates, steps, chunks, slices,\
                                           prior, metric, partial);                                                   \
    }
TILE_SUMS(ddim_entropies_4_1, 4, 1, true)
TILE_SUMS(ddim_entropies_5_1, 5, 1, true)
TILE_SUMS(ddim_entropies_6_1, 6, 1, true)
TILE_SUMS(ddim_entropies_7_1, 7, 1, true)
TILE_SUMS(ddim_entropies_8_1, 8, 1, true)
TILE_SUMS(ddim_entropies_5_2, 5, 2, true)
TILE_SUMS(ddim_entropies_6_2, 6, 2, true)
TILE_SUMS(ddim_entropies_7_2, 7, 2, true)
TILE_SUMS(ddim_entropies_8_2, 8, 2, true)
TILE_SUMS(ddim_entropies_6_0, 6, 0, true)
TILE_SUMS(ddim_entropies_7_0, 7, 0, true)
TILE_SUMS(ddim_entropies_8_0, 8, 0, true)
TILE_SUMS(ddim_distances_4_1, 4, 1, false)
TILE_SUMS(ddim_distances_5_1, 5, 1, false)
TILE_SUMS(ddim_distances_6_1, 6, 1, false)
TILE_SUMS(ddim_distances_7_1, 7, 1, false)
TILE_SUMS(ddim_distances_8_1, 8, 1, false)
TILE_SUMS(ddim_distances_5_2, 5, 2, false)
TILE_SUMS(ddim_distances_6_2, 6, 2, false)
TILE_SUMS(ddim_distances_7_2, 7, 2, false)
TILE_SUMS(ddim_distances_8_2, 8, 2, false)
TILE_SUMS(ddim_distances_6_0, 6, 0, false)
TILE_SUMS(ddim_distances_7_0, 7, 0, false)
TILE_SUMS(ddim_distances_8_0, 8, 0, false)
