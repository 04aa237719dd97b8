#pragma once
// Which candidate and which eigenvalues a thread has.
//
// A thread owns one candidate and walks one slice of a tile of eigenvalues: `group` neighbouring threads have
// neighbouring candidates and the same eigenvalues, which they read by broadcast; the tile's `slices` are interleaved,
// BATCH eigenvalues at a time. No thread waits for another: each writes its own sum, to row (tile, slice) and column m
// of an array that has the candidates side by side. With one candidate the threads share a tile, with many they do not.
#include "arithmetic.cuh"

constexpr int BATCH = 8;
constexpr int COLUMNS = 4;  // totals of a tile: weight; weight times eigenvalue; eigenvalues that break the rules; zeros

struct Place {
    int64 candidate, tile, begin, end, stride, row;
    bool live;
};

DEVICE Place place_of_thread(int64 size, int64 candidates, int64 group, int64 slices) {
    int64 i = thread_index(), tiles = (size + TILE - 1) / TILE, groups = (candidates + group - 1) / group;
    int64 own = i & (group * slices - 1), rest = i / (group * slices), slice = own / group;
    Place p;
    p.tile = rest / groups;
    p.candidate = (rest - p.tile * groups) * group + (own & (group - 1));
    p.live = p.tile < tiles && p.candidate < candidates;
    p.begin = p.tile * TILE + slice * BATCH;
    p.end = p.tile * TILE + TILE < size ? p.tile * TILE + TILE : size;
    p.stride = slices * BATCH;
    p.row = p.tile * slices + slice;
    return p;
}
