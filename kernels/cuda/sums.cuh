#pragma once
// Sums in a fixed order, totals of a spectrum, and checks of what the host does not look at.
#include "geometry.cuh"

constexpr int STRIPES = 32;  // partial sums of a tile's totals
constexpr double SMALLEST_VARIANCE = 1e-30, LARGEST_VARIANCE = 1e30, SMALLEST_LEVEL = 1e-15, LARGEST_LEVEL = 1e15;

// Add `length` rows at a time: row r of out is the sum of rows r*length and following of in, (rows, columns).
DEVICE void sum_groups(const double *in, int64 rows, int64 columns, int64 length, double *out) {
    int64 i = thread_index(), row = i / columns, column = i % columns;
    if (row >= (rows + length - 1) / length) return;
    int64 end = (row + 1) * length < rows ? (row + 1) * length : rows;
    double total = 0.0;
    for (int64 k = row * length; k < end; k++) total += in[k * columns + column];
    out[i] = total;
}

DEVICE void tile_totals(const double *eigenvalues, const double *weights, int64 size, double *out) {
    int64 i = thread_index(), begin = i / STRIPES * TILE;
    if (begin >= size) return;
    int64 end = begin + TILE < size ? begin + TILE : size;
    double weight = 0.0, variance = 0.0, bad = 0.0, zeros = 0.0, wild = 0.0;
    for (int64 k = begin + i % STRIPES; k < end; k += STRIPES) {
        double x = eigenvalues[k], w = weights != nullptr ? weights[k] : 1.0;
        weight += w;
        variance += w * x;
        zeros += x == 0.0 ? 1.0 : 0.0;
        wild += tame(x) ? 0.0 : 1.0;
        bad += x == 0.0 || (x >= SMALLEST_VARIANCE && x <= LARGEST_VARIANCE) ? 0.0 : 1.0;
    }
    double *row = out + i * COLUMNS;
    row[0] = weight;
    row[1] = variance;
    row[2] = bad;
    row[3] = zeros;
    row[4] = wild;
}

// The least eigenvalue of a tile.
DEVICE double least_of_tile(const double *eigenvalues, int64 tile, int64 size) {
    double least = eigenvalues[tile * TILE];
    for (int64 k = tile * TILE + 1; k < (tile + 1) * TILE && k < size; k++) least = fmin(least, eigenvalues[k]);
    return least;
}

// Whether a candidate keeps the rules of fastkl._candidates: strictly falling, in range, inf only first, 0 only last.
DEVICE bool valid_levels(const double *levels, int64 steps) {
    bool valid = true;
    for (int64 k = 0; k <= steps; k++) {
        double level = levels[k];
        bool inside = level >= SMALLEST_LEVEL && level <= LARGEST_LEVEL;
        bool end = (k == 0 && level > 0.0 && level - level != 0.0) || (k == steps && level == 0.0);
        valid = valid && (inside || end) && (k == 0 || level < levels[k - 1]);
    }
    return valid;
}

DEVICE double quiet_nan() { return from_bits(0x7FF8000000000000LL); }
DEVICE double infinity() { return from_bits(0x7FF0000000000000LL); }

// Whether the divergence of a candidate is defined: valid levels and eigenvalues, and none 0 where that is not finite.
DEVICE bool defined(const double *levels, int64 steps, const double *totals, int metric) {
    bool zero = metric != W2 && totals[3] > 0.0 && levels[steps] == 0.0;
    return valid_levels(levels, steps) && totals[2] == 0.0 && !zero;
}
