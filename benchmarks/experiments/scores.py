"""How far samples are from the data: Frechet distances, precision, coverage, recall, the classifier's opinion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import classifier
import data
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh, eigvalsh

Floats = NDArray[np.float64]

NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
LARGEST = 32  # side of the images whose pixels are compared
MOST = 10_000  # images of the data that precision and recall compare with


@dataclass(frozen=True)
class Normal:
    """Mean and covariance of some vectors."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, vectors: Floats) -> Normal:
        """Fit to rows."""
        return cls(vectors.mean(0), np.cov(vectors, rowvar=False))

    @cached_property
    def root(self) -> Floats:
        """Symmetric square root of the covariance, made once for a reference."""
        values, vectors = eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet(reference: Normal, other: Normal) -> float:
    """|m - m'|^2 + tr C + tr C' - 2 tr (C^1/2 C' C^1/2)^1/2, C being that of the reference."""
    between = reference.root @ other.covariance @ reference.root
    cross = np.sqrt(np.maximum(eigvalsh(between), 0.0)).sum()
    shift = np.square(reference.mean - other.mean).sum()
    return float(shift + np.trace(reference.covariance) + np.trace(other.covariance) - 2.0 * cross)


def squared_gaps(points: Floats, others: Floats) -> Iterator[tuple[slice, Floats]]:
    """Squared distances of some points at a time to all others."""
    norms = np.square(others).sum(1)
    for start in range(0, len(points), 500):
        block = points[start : start + 500]
        gaps = np.square(block).sum(1)[:, None] - 2.0 * block @ others.T + norms
        yield slice(start, start + len(block)), np.maximum(gaps, 0.0)


def radii(points: Floats) -> Floats:
    """Squared distance of every point to its NEIGHBOURS-th nearest other."""
    found = np.empty(len(points))
    for part, gaps in squared_gaps(points, points):
        found[part] = np.partition(gaps, NEIGHBOURS, axis=1)[:, NEIGHBOURS]
    return found


def covered(points: Floats, centres: Floats, radius: Floats) -> tuple[float, float]:
    """Share of the points that lie in at least one ball, and share of the balls that hold at least one point."""
    inside, hit = 0, np.zeros(len(centres), bool)
    for _, gaps in squared_gaps(points, centres):
        within = gaps <= radius
        inside += int(within.any(1).sum())
        hit |= within.any(0)
    return inside / len(points), float(hit.mean())


def small(images: NDArray[np.float32]) -> Floats:
    """Pixels as rows, averaged over squares until a side is at most LARGEST."""
    size = images.shape[-1]
    factor = next(f for f in range(-(-size // LARGEST), size + 1) if size % f == 0)
    n, channels, _, _ = images.shape
    blocks = images.reshape(n, channels, size // factor, factor, size // factor, factor)
    return blocks.mean((3, 5), dtype=np.float64).reshape(n, -1)


class Scorer:
    """Scores samples of one data set: made once, used for every set of samples. Without labels it knows pixels only."""

    def __init__(self, images: data.Images) -> None:
        scaled = data.scaled(images.training)
        pixels = small(scaled)
        self.pixels = Normal.of(pixels)
        self.model = classifier.load(images.name, images.size, images.classes) if images.classes > 1 else None
        features = pixels if self.model is None else classifier.look(self.model, scaled)[0]
        self.features = Normal.of(features)
        chosen = np.random.default_rng(0).permutation(len(features))[:MOST]
        self.real = features[chosen]
        self.real_radii = radii(self.real)
        self.shares = np.bincount(images.training_labels, minlength=images.classes) / len(features)

    def look(self, samples: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Features and class probabilities of samples clipped to [-1, 1], as an image would be."""
        clipped = np.clip(samples, -1.0, 1.0)
        if self.model is None:
            return small(clipped), np.ones((len(clipped), 1))
        return classifier.look(self.model, clipped)

    def quick(self, samples: NDArray[np.float32]) -> float:
        """Frechet distance of the features alone."""
        return frechet(self.features, self.normal(samples))

    def normal(self, samples: NDArray[np.float32]) -> Normal:
        """Mean and covariance of the features of samples."""
        return Normal.of(self.look(samples)[0])

    def scores(self, samples: NDArray[np.float32], teacher: Normal) -> dict[str, float]:
        """All scores of samples (n, C, H, W); teacher: the features of what the network makes with many levels."""
        features, probabilities = self.look(samples)
        normal = Normal.of(features)
        pixels = Normal.of(small(np.clip(samples, -1.0, 1.0)))
        precision, coverage = covered(features, self.real, self.real_radii)
        return {
            "fd_features": frechet(self.features, normal),
            "fd_pixels": frechet(self.pixels, pixels),
            "fd_teacher": frechet(teacher, normal),
            "precision": precision,
            "coverage": coverage,
            "recall": covered(self.real, features, radii(features))[0],
            "confidence": float(probabilities.max(1).mean()),
            "class_shift": float(0.5 * np.abs(probabilities.mean(0) - self.shares).sum()),
        }
