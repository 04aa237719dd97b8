#pragma once
// Which candidate and which eigenvalues a thread has.
//
// A thread owns one candidate and walks one slice of a tile of eigenvalues; neighbouring threads have neighbouring
// candidates, whose coefficients lie side by side, and beyond the last candidate the next slice. So every thread of every
// number of candidates has work, and a warp reads eigenvalues by broadcast, or from as many places as it has slices. The
// slices of a tile are interleaved, BATCH eigenvalues at a time. No thread waits for another: each writes its own sum, to
// row (tile, slice) and column m of an array that has the candidates side by side.
#include "arithmetic.cuh"

constexpr int BATCH = 8;
// Totals of a tile: weight; weight times eigenvalue; eigenvalues that break the rules; zeros; eigenvalues that are not tame.
constexpr int COLUMNS = 5;
// A number within [1/TAME, TAME]: products of 16 such eigenvalues plus squares of levels neither over- nor underflow.
constexpr double TAME = 1152921504606846976.0;  // 2^60

DEVICE bool tame(double x) { return x >= 1.0 / TAME && x <= TAME; }

struct Place {
    int64 candidate, tile, slice, begin, end, stride, row;
    bool live;
};

// a / b for a, b >= 0: by 32 bits where they are enough, which takes a third of the instructions.
DEVICE int64 divided(int64 a, int64 b) {
    return ((a | b) >> 32) == 0 ? (int64)((unsigned)a / (unsigned)b) : a / b;
}

DEVICE Place place_of_thread(int64 size, int64 candidates, int64 slices) {
    int64 i = thread_index();
    Place p;
    p.row = divided(i, candidates);
    p.candidate = i - p.row * candidates;
    p.tile = divided(p.row, slices);
    p.slice = p.row - p.tile * slices;
    p.live = p.tile * TILE < size;
    p.begin = p.tile * TILE + p.slice * BATCH;
    p.end = p.tile * TILE + TILE < size ? p.tile * TILE + TILE : size;
    p.stride = slices * BATCH;
    return p;
}
