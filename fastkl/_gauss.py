"""Gauss rules: of every cell from its Chebyshev moments, and of a discrete measure by Lanczos' method."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["Jacobi", "cell_rules"]

Array = NDArray[np.float64]

RANK = 3e-15  # share of a cell's weight below which the norm of a polynomial is rounding
BREAKDOWN = 1e-14  # share of the support's width below which a recurrence coefficient is rounding


def cell_rules(moments: Array) -> tuple[Array, Array]:
    """Return nodes in [-1, 1] and weights, each (cells, n), of measures with the Chebyshev moments (cells, 2n).

    Cholesky's factor L of the Gram matrix <T_i, T_j> orthogonalises the Chebyshev polynomials one after the other,
    which keeps the low moments to the last digit, and with c_0 = 1, c_k = 1/2 gives the Jacobi matrix: beside the
    diagonal c_k L_k+1,k+1 / L_kk, on it c_k L_k+1,k / L_kk - c_k-1 L_k,k-1 / L_k-1,k-1. Where a polynomial's norm is
    rounding, as for measures on fewer than n points, the rule ends: the nodes left over have weight 0.
    """
    n = moments.shape[1] // 2
    total = moments[:, 0]
    i, j = np.indices((n + 1, n))
    factor = 0.5 * (moments[:, i + j] + moments[:, abs(i - j)])
    rising = np.where(np.arange(n) == 0, 1.0, 0.5)
    jacobi = np.zeros((len(moments), n, n))
    alive = np.ones(len(moments), dtype=np.bool_)
    before, ratio_before = np.sqrt(total), np.zeros(len(moments))
    for k in range(n):
        rest = factor[:, k:, k] - np.einsum("cij,cj->ci", factor[:, k:, :k], factor[:, k, :k])
        norm = np.sqrt(np.maximum(rest[:, 0], RANK * total))
        factor[:, k:, k] = rest / norm[:, None]
        ratio = rising[k] * factor[:, k + 1, k] / norm
        diagonal = ratio - ratio_before
        alive &= (rest[:, 0] > RANK * total) & (abs(diagonal) <= 1.0)
        jacobi[:, k, k] = np.where(alive, diagonal, 0.0)
        if k > 0:
            jacobi[:, k, k - 1] = np.where(alive, rising[k - 1] * norm / before, 0.0)
        before, ratio_before = norm, ratio
    nodes, vectors = np.linalg.eigh(jacobi)  # reads the lower triangle
    return np.clip(nodes, -1.0, 1.0), total[:, None] * np.square(vectors[:, 0, :])


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
