"""The GPU backend for DDIM: the CPU backend's functions on arrays of the host, and evaluation of those on a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _gpu_device
from fastkl._gpu_copies import COPIES, with_memory
from fastkl._gpu_layout import Layout, Need, in_chunks
from fastkl._gpu_spectrum import DeviceSpectrum, Piece, column_sums
from fastkl._rounding import RELATIVE_ERROR
from fastkl.kernels.ddim_horner import METRICS, PRIORS, TILE

__all__ = ["Chunk", "divergence", "mean_term", "on_device", "output_variance", "trajectory"]

Array = NDArray[np.float64]

MAX_DEGREE, LEAST_DEGREE, WIDEST = 8, 4, 16


class Chunk:
    """Some candidates on a device: levels (M, N+1), and the polynomials of their steps, made when they are needed.

    The spectrum is walked in pieces of `length` tiles.
    """

    def __init__(
        self, device: Any, data: DeviceSpectrum, levels: Any, prior: str, layout: Layout, length: int
    ) -> None:
        self.device, self.data, self.levels, self.length = device, data, levels, length
        self.slices = layout.slices
        self.prior = np.int32(PRIORS[prior])
        self.candidates, self.steps = int(levels.shape[0]), int(levels.shape[1]) - 1
        self.chunks, self.degree = polynomials(self.steps)
        self.narrow = narrow_polynomials(self.steps)
        self.roundings = rounding_count(self.steps, prior)
        self.shape = np.int64(self.candidates), np.int64(self.steps)
        self._expanded: dict[tuple[int, int], tuple[Any, Any]] = {}

    def expanded(self, chunks: int, degree: int) -> tuple[Any, Any]:
        """Return the coefficients of Q and P, (chunks, degree + 1, M)."""
        if (chunks, degree) not in self._expanded:
            shape = chunks, degree + 1, self.candidates
            q, p = self.device.empty(shape), self.device.empty(shape)
            self.device.launch("ddim_expand", chunks * self.candidates, self.levels, *self.shape, self.prior,
                               np.int64(degree), np.int64(chunks), q, p)  # fmt: skip
            self._expanded[chunks, degree] = q, p
        return self._expanded[chunks, degree]

    def tile_sums(self, evaluate: Callable[[Piece, Any], None]) -> Any:
        """Return sums (tiles, M) of what evaluate(piece, partial) writes for each slice."""
        return self.data.tile_sums(self.candidates, self.slices, self.length, evaluate)

    def threads(self, piece: Piece) -> int:
        """Return how many threads walk a piece."""
        return piece.tiles * self.slices * self.candidates

    def sums(self, metric: int, weights: Callable[[Piece], Any | None]) -> Any:
        """Return the fast kernel's sums over tiles."""
        family = "entropies" if metric in (METRICS["kl"], METRICS["reverse_kl"]) else "distances"
        name = f"ddim_{family}_{self.degree}_{self.chunks if self.chunks == 1 else 0}"

        def evaluate(piece: Piece, partial: Any) -> None:
            self.device.launch(name, self.threads(piece), piece.eigenvalues, weights(piece), self.levels,
                               *self.expanded(self.chunks, self.degree), *self.expanded(*self.narrow),
                               self.data.totals[piece.rows], np.int64(piece.size), *self.shape,
                               np.int64(self.narrow[0]), np.int64(self.slices), self.prior, np.int32(metric),
                               partial)  # fmt: skip

        def evaluate_mean_kl(piece: Piece, partial: Any) -> None:
            self.device.launch("ddim_mean_kl", self.threads(piece), piece.eigenvalues, weights(piece), self.levels,
                               np.int64(piece.size), *self.shape, np.int64(self.slices), partial)  # fmt: skip

        return self.tile_sums(evaluate_mean_kl if metric == METRICS["mean_kl"] else evaluate)

    def float_sums(self, metric: int) -> Any:
        """Return the sums over tiles in float32."""
        rows = self.device.empty((2 * self.steps, self.candidates), np.float32)
        self.device.launch("ddim_expand_float", self.candidates, self.levels, *self.shape, rows)

        def evaluate(piece: Piece, partial: Any) -> None:
            arrays = (self.in_float32(array, piece) for array in (piece.eigenvalues, piece.weights))
            self.device.launch("ddim_float_sums", self.threads(piece), *arrays, self.levels, rows,
                               np.int64(piece.size), *self.shape, np.int64(self.slices), self.prior,
                               np.int32(metric), partial)  # fmt: skip

        return self.tile_sums(evaluate)

    def in_float32(self, array: Any | None, piece: Piece) -> Any | None:
        """Return an array of a piece in float32, which takes float64's units once and not for each candidate."""
        if array is None:
            return None
        out = self.device.empty(piece.size, np.float32)
        self.device.launch("to_float", piece.size, array, np.int64(piece.size), out)
        return out

    def refined(self, sums: Any, metric: int) -> Any:
        """Return the sums over tiles, evaluated again where rounding may have taken too much."""
        data, code, roundings = self.data, np.int32(metric), np.float64(self.roundings)
        least = self.device.empty(sums.shape)
        self.device.launch("ddim_least_sums", data.tiles * self.candidates, sums, data.totals, self.levels,
                           np.int64(data.tiles), *self.shape, roundings, code, least)  # fmt: skip
        whole = data.whole, column_sums(self.device, least)

        def evaluate(piece: Piece, partial: Any) -> None:
            self.device.launch("ddim_refine", self.threads(piece), piece.eigenvalues, piece.weights, self.levels,
                               sums[piece.rows], data.totals[piece.rows], *whole, np.int64(piece.size), *self.shape,
                               np.int64(self.slices), self.prior, code, roundings, np.float64(RELATIVE_ERROR),
                               partial)  # fmt: skip

        return self.tile_sums(evaluate)

    def divergence(self, metric: str, precision: str) -> Any:
        """Return every candidate's divergence, (M,), without the mean's share and without looking at the input."""
        code = METRICS[metric]
        if precision == "float32":
            return column_sums(self.device, self.float_sums(code))
        sums = self.sums(code, lambda piece: piece.weights)
        return column_sums(self.device, self.refined(sums, code))

    def mean_term(self, metric: str) -> Any:
        """Return what the spectrum's mean adds, (M,)."""
        return column_sums(self.device, self.sums(METRICS[f"mean_{metric}"], self._mean_weights))

    def _mean_weights(self, piece: Piece) -> Any:
        """Return the squares of the mean times the counts."""
        out = self.device.empty(piece.size)
        self.device.launch("mean_weights", piece.size, piece.mean, piece.weights, np.int64(piece.size), out)
        return out

    def finish(self, sums: Any, share: Any | None, metric: str, square: float, out: Any) -> None:
        """Write the divergences with the mean's share; NaN for candidates that break the rules."""
        self.device.launch("ddim_finish", self.candidates, sums, share, self.levels, self.data.whole, *self.shape,
                           self.prior, np.int32(METRICS[metric]), np.float64(square), out)  # fmt: skip

    def valid(self) -> Any:
        """Return which candidates keep the rules, (M,)."""
        out = self.device.empty(self.candidates)
        self.device.launch("ddim_check", self.candidates, self.levels, self.data.whole, *self.shape, out)
        return out

    def variances(self, piece: Piece, out: Any, row: int, valid: Any | None = None) -> None:
        """Write a piece's output variances to out, rows of length `row`; NaN for candidates that are not valid."""
        self.device.launch("ddim_variances", self.candidates * piece.size, piece.eigenvalues, self.levels,
                           *self.expanded(*self.narrow), valid, np.int64(piece.size), *self.shape,
                           np.int64(self.narrow[1]), np.int64(self.narrow[0]), self.prior, np.int64(row),
                           out)  # fmt: skip

    def level_variances(self, piece: Piece, out: Any, row: int, valid: Any | None = None) -> None:
        """Write a piece's variances at every level to out, likewise."""
        self.device.launch("ddim_level_variances", self.candidates * piece.size, piece.eigenvalues, self.levels,
                           valid, np.int64(piece.size), *self.shape, self.prior, np.int64(row), out)  # fmt: skip


def polynomials(steps: int) -> tuple[int, int]:
    """Return how many chunks of a schedule there are, and their length; short schedules share a kernel.

    Up to WIDEST steps are one chunk for eigenvalues and levels whose products neither over- nor underflow; what the
    kernel takes for others is as `narrow_polynomials` has it.
    """
    if MAX_DEGREE < steps <= WIDEST:
        return 1, 2 * math.ceil(steps / 2)
    return narrow_polynomials(steps)


def narrow_polynomials(steps: int) -> tuple[int, int]:
    """Return number and length of chunks that suit all eigenvalues and levels."""
    chunks = math.ceil(steps / MAX_DEGREE)
    if MAX_DEGREE < steps <= WIDEST:
        return chunks, MAX_DEGREE  # one length for all, for the kernel takes them seldom
    return chunks, max(math.ceil(steps / chunks), LEAST_DEGREE)


def rounding_count(steps: int, prior: str) -> int:
    """Return the roundings of a ratio of variances, as fastkl._rounding counts them.

    The division that eight ratios share leaves 15 roundings in the inverse of each denominator: seven products for that
    of all eight, the quotient, and seven to take the others out again. With the product that makes the gain they are
    doubled by the square, which adds one, the target and its product two: 35. For `exact` another shared division, its
    sum and product add 17.
    """
    return 4 * steps + 8 * narrow_polynomials(steps)[0] + (64 if prior == "exact" else 48)


def need_of(data: DeviceSpectrum, steps: int, slices: int, values: int = 0) -> Need:
    """Return what chunks need: polynomials, sums over tiles and slices, and `values` results for each eigenvalue."""
    coefficients = sum(
        chunks * (degree + 1) for chunks, degree in (polynomials(steps), narrow_polynomials(steps))
    )
    candidate = 8 * (2 * coefficients + 4 * data.tiles + 2 * steps + 16)
    return Need(candidate, 8 * (slices + TILE * values), data.streamed_bytes + 8 * TILE, data.tiles)


def from_host(
    arrays: tuple[Array | None, ...], levels: Array, prior: str, values: int, write: Callable[[Chunk, Array], None],
    out: Array,
) -> Array:  # fmt: skip
    """Evaluate candidates on the host, chunk by chunk: write(chunk, rows of out); arrays make the spectrum."""

    def whole(device: Any) -> None:
        data = COPIES.spectrum(device, *arrays)
        layout = Layout.of(levels.shape[0], data.size)

        def run(begin: int, end: int, length: int) -> None:
            some = device.upload(levels[begin:end])
            write(Chunk(device, data, some, prior, layout, length), out[begin:end])

        in_chunks(device, levels.shape[0], need_of(data, levels.shape[1] - 1, layout.slices, values), run)

    with _gpu_device.current_device() as device:
        with_memory(device, lambda: whole(device))
    return out


def divergence(
    eigenvalues: Array, counts: Array | None, levels: Array, metric: str, prior: str, threads: int,
    precision: str = "float64",
) -> Array:  # fmt: skip
    """Return the divergence of every candidate, without the mean's share."""
    del threads

    def write(chunk: Chunk, out: Array) -> None:
        out[:] = chunk.device.download(chunk.divergence(metric, precision))

    return from_host((eigenvalues, counts), levels, prior, 0, write, np.empty(levels.shape[0]))


def mean_term(
    eigenvalues: Array,
    counts: Array | None,
    mean: Array,
    levels: Array,
    metric: str,
    prior: str,
    threads: int,
) -> Array:
    """Return what a mean adds to reverse_kl, w2, or `exact` kl; undefined where the first level is inf."""
    del threads

    def write(chunk: Chunk, out: Array) -> None:
        out[:] = chunk.device.download(chunk.mean_term(metric))

    return from_host((eigenvalues, counts, mean), levels, prior, 0, write, np.empty(levels.shape[0]))


def output_variance(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    del threads

    def write(chunk: Chunk, out: Array) -> None:
        for piece in chunk.data.pieces(chunk.length):
            values = chunk.device.empty((chunk.candidates, piece.size))
            chunk.variances(piece, values, piece.size)
            out[:, piece.begin : piece.begin + piece.size] = chunk.device.download(values)

    return from_host(
        (eigenvalues, None), levels, prior, 1, write, np.empty((levels.shape[0], eigenvalues.size))
    )


def trajectory(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    del threads
    count = levels.shape[1]

    def write(chunk: Chunk, out: Array) -> None:
        for piece in chunk.data.pieces(chunk.length):
            values = chunk.device.empty((chunk.candidates, count, piece.size))
            chunk.level_variances(piece, values, piece.size)
            out[:, :, piece.begin : piece.begin + piece.size] = chunk.device.download(values)

    return from_host(
        (eigenvalues, None), levels, prior, count, write, np.empty((*levels.shape, eigenvalues.size))
    )


def on_device(
    device: Any, data: DeviceSpectrum, levels: Any, prior: str, write: Callable[[Chunk, Any], None], out: Any
) -> Any:
    """Evaluate candidates on the device, chunk by chunk; write(chunk, rows of out) does it. Nothing is waited for."""
    layout = Layout.of(int(levels.shape[0]), data.size)

    def run(begin: int, end: int, length: int) -> None:
        write(Chunk(device, data, levels[begin:end], prior, layout, length), out[begin:end])

    in_chunks(device, int(levels.shape[0]), need_of(data, int(levels.shape[1]) - 1, layout.slices), run)
    return out
