"""Gauss rules: of every cell from its Chebyshev moments, and of a discrete measure by Lanczos' method."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["Jacobi", "cell_rules"]

Array = NDArray[np.float64]

RANK = 3e-15  # share of a cell's weight below which the norm of a polynomial is rounding
OUTSIDE = 1e-10  # how far beyond its cell a node may be for rounding
BREAKDOWN = 1e-14  # share of the support's width below which a recurrence coefficient is rounding


def cell_rules(moments: Array) -> tuple[Array, Array]:
    """Return nodes in [-1, 1] and weights, each (cells, n), of measures with the Chebyshev moments (cells, 2n).

    Measures on fewer than n points, up to rounding, have rules of fewer nodes: those left over have weight 0.
    """
    jacobi, rank = cell_jacobi(moments)
    positions = np.arange(jacobi.shape[1])
    while True:
        dropped = positions >= rank[:, None]
        jacobi[dropped] = 0.0  # rows; the solver reads the lower triangle
        nodes, vectors = np.linalg.eigh(jacobi)
        outside = np.abs(nodes).max(axis=1) > 1.0 + OUTSIDE
        if not outside.any():
            return np.clip(nodes, -1.0, 1.0), moments[:, :1] * np.square(vectors[:, 0, :])
        rank[outside] -= 1


def cell_jacobi(moments: Array) -> tuple[Array, NDArray[np.intp]]:
    """Return the Jacobi matrices (lower triangles) and how many of their rows are not rounding.

    Cholesky's factor L of the Gram matrix <T_i, T_j> orthogonalises the Chebyshev polynomials one after the other,
    which keeps the low moments to the last digit, and with c_0 = 1, c_k = 1/2 gives the matrix: on its diagonal
    c_k L_k+1,k / L_kk - c_k-1 L_k,k-1 / L_k-1,k-1, beside it c_k L_k+1,k+1 / L_kk.
    """
    n = moments.shape[1] // 2
    total = moments[:, 0]
    i, j = np.indices((n + 1, n))
    factor = 0.5 * (moments[:, i + j] + moments[:, abs(i - j)])
    jacobi, rank = np.zeros((len(moments), n, n)), np.zeros(len(moments), dtype=np.intp)
    before, ratio_before = np.sqrt(total), np.zeros(len(moments))
    for k in range(n):
        rest = factor[:, k:, k] - np.einsum("cij,cj->ci", factor[:, k:, :k], factor[:, k, :k])
        rank += (rank == k) & (rest[:, 0] > RANK * total)
        norm = np.sqrt(np.maximum(rest[:, 0], RANK * total))
        factor[:, k:, k] = rest / norm[:, None]
        ratio = (0.5 if k else 1.0) * factor[:, k + 1, k] / norm
        jacobi[:, k, k] = ratio - ratio_before
        if k > 0:
            jacobi[:, k, k - 1] = (0.5 if k > 1 else 1.0) * norm / before
        before, ratio_before = norm, ratio
    return jacobi, rank


class Jacobi:
    """The Jacobi matrix of a discrete measure with positive weights, grown as far as it is asked for.

    Lanczos' method with two rounds of orthogonalisation against all earlier vectors: the coefficients are right to
    rounding, and end where the measure has no more points to tell apart.
    """

    def __init__(self, points: Array, weights: Array) -> None:
        self.total = float(weights.sum())
        self._centre = 0.5 * float(points.min() + points.max())
        self._half_width = 0.5 * float(points.max() - points.min()) or 1.0
        self._points = (points - self._centre) / self._half_width
        self._vectors = np.sqrt(weights / self.total)[None, :]
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self.complete = False

    def grow(self, order: int) -> int:
        """Extend the matrix to `order` rows, or to as many as there are; return how many."""
        while len(self._diagonal) < order and not self.complete:
            newest = self._vectors[-1]
            image = self._points * newest
            self._diagonal.append(float(newest @ image))
            for _ in range(2):
                image -= (self._vectors @ image) @ self._vectors
            size = float(np.linalg.norm(image))
            self.complete = size < BREAKDOWN or len(self._diagonal) == len(self._points)
            if not self.complete:
                self._beside.append(size)
                self._vectors = np.vstack([self._vectors, image / size])
        return min(order, len(self._diagonal))

    def rule(self, order: int) -> tuple[Array, Array]:
        """Return the nodes and weights of the Gauss rule of `order` points (fewer if the measure has fewer)."""
        order = self.grow(order)
        nodes, vectors = scipy.linalg.eigh_tridiagonal(self._diagonal[:order], self._beside[: order - 1])
        return self._centre + self._half_width * nodes, self.total * np.square(vectors[0])
