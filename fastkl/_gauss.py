"""Gauss rules: of every cell from its Chebyshev moments, and of a discrete measure by Lanczos' method."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

__all__ = ["Jacobi", "cell_rules"]

Array = NDArray[np.float64]

RANK = 1e-13  # share of a Gram matrix below which a direction is rounding
OUTSIDE = 4.0  # where the nodes of such directions go, away from [-1, 1]
BREAKDOWN = 1e-14  # share of the support's width below which a recurrence coefficient is rounding


def cell_rules(moments: Array) -> tuple[Array, Array]:
    """Return nodes in [-1, 1] and weights, each (cells, n), of measures with the Chebyshev moments (cells, 2n).

    With G = <T_i, T_j> and J = <t T_i, T_j>, i, j < n, the nodes are the eigenvalues of J relative to G. A measure on
    fewer than n points has a singular G: the directions without mass are left out, and their nodes have weight 0.
    """
    n = moments.shape[1] // 2
    i, j = np.indices((n, n))
    gram = 0.5 * (moments[:, i + j] + moments[:, abs(i - j)])
    up, down = moments[:, np.minimum(i + 1 + j, 2 * n - 1)], moments[:, abs(i + 1 - j)]
    across, back = moments[:, abs(i - 1) + j], moments[:, abs(abs(i - 1) - j)]
    shifted = 0.25 * (
        up + down + across + back
    )  # t T_i = (T_(i+1) + T_|i-1|)/2, the product with T_j likewise
    share, basis = np.linalg.eigh(gram)
    kept = share > RANK * share[:, -1:]
    scale = np.where(kept, 1.0 / np.sqrt(np.where(kept, share, 1.0)), 0.0)
    basis_t = np.swapaxes(basis, 1, 2)
    jacobi = scale[:, :, None] * (basis_t @ shifted @ basis) * scale[:, None, :]
    jacobi += np.where(kept, 0.0, OUTSIDE)[:, :, None] * np.eye(n)
    nodes, vectors = np.linalg.eigh(jacobi)
    first = np.where(kept, np.sqrt(np.maximum(share, 0.0)) * basis[:, 0, :], 0.0)
    weights = np.square((np.swapaxes(vectors, 1, 2) @ first[:, :, None])[:, :, 0])
    return np.clip(nodes, -1.0, 1.0), weights


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
