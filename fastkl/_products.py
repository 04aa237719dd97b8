"""Spectra of samples too wide for a matrix: Lanczos quadrature on products with the centred samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm

from fastkl._batches import ArraySamples, BatchSamples
from fastkl._lanczos import Options, Rule, quadrature
from fastkl._progress import Advance, ProgressOption, reporting

__all__ = ["from_products"]

_ROWS = 64  # at least, in a block of samples: products with fewer wait for memory
_SAME = 1e-9  # relative difference of the samples' total variance from pass to pass that is rounding

_Array = NDArray[np.float64]


def from_products(
    samples: ArraySamples | BatchSamples,
    floor: float,
    shrinkage: float,
    options: Options,
    progress: ProgressOption,
) -> tuple[_Array, _Array, _Array, float]:
    """Nodes (largest first), counts, means, and estimated error of samples; see `Spectrum.from_samples`.

    The nodes are as they are without the floor and the shrinkage, the error is as it is with them.
    """
    with reporting(progress, "samples", samples.n) as advance:
        moments = _Moments(samples, advance)
    rank = int(np.count_nonzero(moments.variance))
    if rank == 0:
        return *_entries(Rule(np.empty(0), np.empty((1, 0)), np.empty(0), np.empty(0)), moments), 0.0
    # (1 - a) lambda + a mean(lambda) + floor is (1 - a) times lambda + floor, with this for the floor:
    added = floor + shrinkage * float(moments.variance.mean())
    added = added / (1.0 - shrinkage) if shrinkage < 1.0 else math.inf
    if moments.count > rank:
        with reporting(progress, "samples, all steps", moments.count * options.steps) as advance:
            rule, error = quadrature(_Covariance(samples, moments, advance), options, added)
    else:
        with reporting(progress, "samples, all steps", moments.count * (2 * options.steps + 1)) as advance:
            rule, error = quadrature(_Gram(samples, moments, advance), options, added)
    return *_entries(rule, moments), error


class _Moments:
    """Mean and variance of every feature, in one pass; features that never change have a variance of exactly 0."""

    def __init__(self, samples: ArraySamples | BatchSamples, advance: Advance) -> None:
        self.count = 0
        origin, shift, squares = np.zeros(samples.d), np.zeros(samples.d), np.zeros(samples.d)
        for block in samples.blocks(advance, _ROWS):
            if self.count == 0:
                origin = block[0].copy()
            block -= origin
            change = block.mean(axis=0)
            block -= change
            squares += np.einsum("ki,ki->i", block, block)
            change -= shift
            before, self.count = self.count, self.count + len(block)
            squares += np.square(change) * (before * (len(block) / self.count))
            shift += change * (len(block) / self.count)
        self.mean = origin + shift
        self.variance = squares / self.count


class _Centred:
    """Samples less their mean, read once for each product."""

    def __init__(self, samples: ArraySamples | BatchSamples, moments: _Moments, advance: Advance) -> None:
        self._samples, self._advance = samples, advance
        self._mean, self._count = moments.mean, moments.count
        self._squares = float(moments.variance.sum()) * moments.count

    def blocks(self) -> Iterator[tuple[slice, _Array]]:
        """Yield which samples a block holds, and the block (k, d); raise if they are not those of the first pass."""
        start, squares = 0, 0.0
        for block in self._samples.blocks(self._advance, _ROWS):
            block -= self._mean
            squares += float(np.vdot(block, block))
            yield slice(start, start + len(block)), block
            start += len(block)
        if abs(squares - self._squares) > _SAME * self._squares:
            raise ValueError(
                f"{self._samples.name}: must give the same samples each time, but their total variance was "
                f"{self._squares / self._count:.10g} and then {squares / self._count:.10g}"
            )


class _Covariance(_Centred):
    """Products with the covariance, shape (d, d), on the features that vary."""

    def __init__(self, samples: ArraySamples | BatchSamples, moments: _Moments, advance: Advance) -> None:
        super().__init__(samples, moments, advance)
        self._varying = moments.variance > 0.0
        self.rank = int(np.count_nonzero(self._varying))
        self.extra = np.where(self._varying, moments.mean, 0.0)

    def __call__(self, vectors: _Array) -> _Array:
        """Multiply vectors, shape (d, b), in one pass."""
        total = np.zeros(vectors.shape, order="F")
        for _, block in self.blocks():
            total = dgemm(1.0, block.T, block @ vectors, beta=1.0, c=total, overwrite_c=1)
        return np.asarray(total / self._count)

    def probes(self, rng: np.random.Generator, number: int) -> _Array:
        """Random directions among the features that vary."""
        vectors = np.zeros((len(self._varying), number))
        vectors[self._varying] = rng.standard_normal((self.rank, number))
        return vectors

    def energy(self, nodes: _Array, squares: _Array) -> _Array:
        """The mean's own."""
        return squares


class _Gram(_Centred):
    """Products with the centred samples' inner products divided by n, shape (n, n)."""

    def __init__(self, samples: ArraySamples | BatchSamples, moments: _Moments, advance: Advance) -> None:
        super().__init__(samples, moments, advance)
        if not isinstance(samples, ArraySamples):
            raise ValueError(
                f"{samples.name}: {moments.count} samples, which is no more than the {samples.d} features, must "
                f"come in the same order each time for method 'lanczos': pass an array or a memory map"
            )
        self.rank = moments.count - 1  # centring takes one dimension away
        self.extra = self._overlap(moments.mean)

    def __call__(self, vectors: _Array) -> _Array:
        """Multiply vectors, shape (n, b), in two passes."""
        features = np.zeros((self._samples.d, vectors.shape[1]), order="F")
        for rows, block in self.blocks():
            features = dgemm(1.0, block.T, vectors[rows], beta=1.0, c=features, overwrite_c=1)
        return self._overlap(features) / self._count

    def _overlap(self, features: _Array) -> _Array:
        """Inner products of the centred samples with vectors of features, shape (d,) or (d, b)."""
        result = np.empty((self._count, *features.shape[1:]))
        for rows, block in self.blocks():
            result[rows] = block @ features
        return result

    def probes(self, rng: np.random.Generator, number: int) -> _Array:
        """Random directions without the mean over samples, to which centred samples are blind."""
        vectors = rng.standard_normal((self._count, number))
        return np.asarray(vectors - vectors.mean(axis=0))

    def energy(self, nodes: _Array, squares: _Array) -> _Array:
        """The mean's, of which its overlap with the samples has n times the node on each node."""
        return np.asarray(squares / (self._count * np.where(nodes > 0.0, nodes, np.inf)))


def _entries(rule: Rule, moments: _Moments) -> tuple[_Array, _Array, _Array]:
    """Return eigenvalues (largest first), counts that sum to d, and the mean along each direction of an entry."""
    d = len(moments.mean)
    counts = _exact_counts(rule.counts.mean(axis=0), d)
    positive = np.flatnonzero(rule.nodes > 0.0)[::-1]
    values, counts, energy = rule.nodes[positive], counts[positive], rule.energy[positive]
    zeros = d - float(counts.sum())
    rest = max(0.0, float(moments.mean @ moments.mean) - float(energy.sum()))
    first = min(1.0, zeros)  # as many directions as carry the mean that lies among those of eigenvalue 0
    sizes = np.array([size for size in (first, zeros - first) if size > 0.0])
    energies = np.array([rest, 0.0])[: len(sizes)]
    counts = np.concatenate([counts, sizes])
    mean = np.sqrt(np.concatenate([energy, energies]) / counts)
    return np.concatenate([values, np.zeros(len(sizes))]), counts, mean


def _exact_counts(counts: _Array, d: int) -> _Array:
    """Round counts to multiples of a power of 2, at least one each, so that sums of theirs up to d are exact."""
    quantum = 2.0 ** (math.frexp(d)[1] - 53)
    total = round(float(counts.sum()))
    counts = np.maximum(np.rint(counts / quantum), 1.0) * quantum
    if len(counts):
        counts[np.argmax(counts)] += total - counts.sum()
    return counts
