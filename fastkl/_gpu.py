"""The GPU backend for DDIM: the CPU backend's functions on arrays of the host, and evaluation of what is on a device.

Candidates are evaluated in chunks whose scratch fits the free memory; where it does not after all, the chunk is halved.
The cut changes no bit: a thread's share of a candidate depends on the numbers of all candidates and eigenvalues.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _gpu_device
from fastkl._rounding import RELATIVE_ERROR
from fastkl.kernels.ddim_horner import METRICS, PRIORS, TILE

__all__ = ["Chunk", "DeviceSpectrum", "Layout", "divergence", "in_chunks", "mean_term", "on_device",
           "output_variance", "trajectory", "with_memory"]  # fmt: skip

Array = NDArray[np.float64]

BATCH = 8  # eigenvalues that a thread has in registers
MAX_DEGREE, LEAST_DEGREE = 8, 4
WARP, BLOCK = 32, 128
STRIPES, COLUMNS = 32, 4  # of a spectrum's totals
GROUP = 64  # rows added by one thread
LARGEST_SCRATCH = 1 << 30  # bytes of a chunk's scratch
MOST_COPIES = 4  # of an array on one device, for as many streams


@dataclass(frozen=True)
class Layout:
    """How many neighbouring threads have neighbouring candidates, and how many share a tile of eigenvalues."""

    group: int
    slices: int

    @classmethod
    def of(cls, candidates: int, size: int) -> Layout:
        """Fill a block of BLOCK threads with candidates, up to WARP of them, and with slices of a tile."""
        group = min(WARP, 1 << (candidates - 1).bit_length())
        batches = math.ceil(min(size, TILE) / BATCH)
        return cls(group, min(BLOCK // group, 1 << (batches - 1).bit_length()))


class DeviceSpectrum:
    """Eigenvalues and weights on a device, with the totals of each tile."""

    def __init__(self, device: Any, eigenvalues: Any, weights: Any | None) -> None:
        self.eigenvalues, self.weights = eigenvalues, weights
        self.size = int(eigenvalues.shape[0])
        self.tiles = math.ceil(self.size / TILE)
        striped = device.empty((self.tiles * STRIPES, COLUMNS))
        device.launch(
            "spectrum_totals", self.tiles * STRIPES, eigenvalues, weights, np.int64(self.size), striped
        )
        self.totals = group_sums(device, striped, STRIPES)  # (tiles, COLUMNS)
        self.whole = column_sums(device, self.totals)
        self._device, self._least = device, None

    def least(self) -> Any:
        """Return the least eigenvalue of each tile, (tiles,)."""
        if self._least is None:
            self._least = self._device.empty(self.tiles)
            self._device.launch("tile_least", self.tiles, self.eigenvalues, np.int64(self.size), self._least)
        return self._least


@dataclass
class Kept:
    """What was made from some arrays on one device: for each stream the result and an event after its making."""

    refs: list[Any]
    made: OrderedDict[Any, tuple[Any, Any]] = field(default_factory=OrderedDict)  # the latest used last

    def of(self, arrays: list[Array]) -> bool:
        """Return whether these are the arrays: a number of id() may have been another's."""
        return all(ref() is array for ref, array in zip(self.refs, arrays, strict=True))


class Copies:
    """What was made on devices from read-only arrays of the host, kept as long as those arrays are.

    Each stream has its own: CuPy's pool gives memory back to the stream it came from, where it may be written to while
    another stream still reads it. The MOST_COPIES streams that used an array last have one.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Kept] = {}
        self._lock = threading.RLock()

    def drop(self) -> bool:
        """Forget everything; return whether there was anything."""
        with self._lock:
            found = bool(self._kept)
            self._kept.clear()
        return found

    def _find(self, key: tuple[Any, ...], arrays: list[Array], stream: Any) -> tuple[Any, Any] | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.of(arrays) or stream not in kept.made:
                return None
            kept.made.move_to_end(stream)
            return kept.made[stream]

    def _keep(self, key: tuple[Any, ...], arrays: list[Array], stream: Any, found: tuple[Any, Any]) -> None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.of(arrays):
                # the dictionary's own pop needs no lock, which a collection in any thread might have to wait for
                refs = [weakref.ref(array, lambda _: self._kept.pop(key, None)) for array in arrays]
                kept = self._kept[key] = Kept(refs)
            kept.made[stream] = found
            while len(kept.made) > MOST_COPIES:
                kept.made.popitem(last=False)

    def made(self, device: Any, arrays: list[Array], make: Callable[[], Any]) -> Any:
        """Return make(), or what it returned for these arrays on this device before."""
        key = (id(device), id(make.__code__), *(id(array) for array in arrays))
        stream = device.stream()
        found = self._find(key, arrays, stream)
        if found is not None:
            device.wait(found[1])
            return found[0]
        result = make()
        if not any(array.flags.writeable for array in arrays):
            self._keep(key, arrays, stream, (result, device.mark()))
        return result

    def spectrum(self, device: Any, eigenvalues: Array, weights: Array | None) -> DeviceSpectrum:
        """Return a spectrum on the device."""

        def make() -> DeviceSpectrum:
            on_device = None if weights is None else device.upload(weights)
            return DeviceSpectrum(device, device.upload(eigenvalues), on_device)

        arrays = [eigenvalues] if weights is None else [eigenvalues, weights]
        result: DeviceSpectrum = self.made(device, arrays, make)
        return result

    def mean_weights(self, chunk: Chunk, mean: Array, counts: Array | None) -> Any:
        """Return the squares of a mean times the counts of its spectrum, on the device of a chunk."""
        device, data = chunk.device, chunk.data

        def make() -> Any:
            out = device.empty(data.size)
            device.launch(
                "mean_weights", data.size, device.upload(mean), data.weights, np.int64(data.size), out
            )
            return out

        return self.made(device, [mean] if counts is None else [mean, counts], make)


COPIES = Copies()


def with_memory(device: Any, call: Callable[[], Any]) -> Any:
    """Return call(); where memory runs out, try once more without what is kept on devices."""
    try:
        return call()
    except device.OutOfMemory:
        if not COPIES.drop():
            raise
    return call()  # here, where the error no longer holds what the first try had


def group_sums(device: Any, array: Any, length: int) -> Any:
    """Return the sums of `length` rows at a time."""
    rows, columns = array.shape
    out = device.empty((math.ceil(rows / length), columns))
    device.launch("group_sums", out.shape[0] * columns, array, np.int64(rows), np.int64(columns),
                  np.int64(length), out)  # fmt: skip
    return out


def column_sums(device: Any, array: Any) -> Any:
    """Return the sum of all rows, (columns,), in a fixed order."""
    while array.shape[0] > 1:
        array = group_sums(device, array, GROUP)
    return array.reshape(-1)


def stacked_sum(device: Any, arrays: list[Any]) -> Any:
    """Return the sum of arrays (M,)."""
    rows = device.empty((len(arrays), int(arrays[0].shape[0])))
    for i, array in enumerate(arrays):
        device.launch(
            "group_sums", rows.shape[1], array, np.int64(1), np.int64(rows.shape[1]), np.int64(1), rows[i]
        )
    return column_sums(device, rows)


class Chunk:
    """Some candidates on a device: levels (M, N+1), and the polynomials of their steps, made when they are needed."""

    def __init__(self, device: Any, data: DeviceSpectrum, levels: Any, prior: str, layout: Layout) -> None:
        self.device, self.data, self.levels, self.layout = device, data, levels, layout
        self.prior = np.int32(PRIORS[prior])
        self.candidates, self.steps = int(levels.shape[0]), int(levels.shape[1]) - 1
        self.chunks, self.degree = polynomials(self.steps)
        self.roundings = rounding_count(self.steps)
        groups = math.ceil(self.candidates / layout.group)
        self.threads = data.tiles * layout.slices * groups * layout.group
        self.sizes = np.int64(data.size), np.int64(self.candidates), np.int64(self.steps)
        self.shares = np.int64(layout.group), np.int64(layout.slices)
        self._expanded: tuple[Any, Any] | None = None

    def expanded(self) -> tuple[Any, Any]:
        """Return the coefficients of Q and P, (chunks, degree + 1, M)."""
        if self._expanded is None:
            shape = self.chunks, self.degree + 1, self.candidates
            q, p = self.device.empty(shape), self.device.empty(shape)
            self.device.launch("ddim_expand", self.chunks * self.candidates, self.levels, *self.sizes[1:], self.prior,
                               np.int64(self.degree), np.int64(self.chunks), q, p)  # fmt: skip
            self._expanded = q, p
        return self._expanded

    def partial(self) -> Any:
        """Return an array for the sums over slices, (tiles * slices, M)."""
        return self.device.empty((self.data.tiles * self.layout.slices, self.candidates))

    def sums(self, metric: int, weights: Any | None) -> Any:
        """Return the fast kernel's sums over slices."""
        out = self.partial()
        if metric == METRICS["mean_kl"]:
            self.device.launch("ddim_mean_kl", self.threads, self.data.eigenvalues, weights, self.levels,
                               *self.sizes, *self.shares, out)  # fmt: skip
            return out
        variant = self.chunks if self.chunks <= 2 else 0
        self.device.launch(f"ddim_tile_sums_{self.degree}_{variant}", self.threads, self.data.eigenvalues, weights,
                           self.levels, *self.expanded(), *self.sizes, np.int64(self.chunks), *self.shares,
                           self.prior, np.int32(metric), out)  # fmt: skip
        return out

    def float_sums(self, metric: int) -> Any:
        """Return the sums over slices in float32."""
        rows, out = self.device.empty((2 * self.steps, self.candidates), np.float32), self.partial()
        self.device.launch("ddim_expand_float", self.candidates, self.levels, *self.sizes[1:], rows)
        self.device.launch("ddim_float_sums", self.threads, self.data.eigenvalues, self.data.weights, self.levels,
                           rows, *self.sizes, *self.shares, self.prior, np.int32(metric), out)  # fmt: skip
        return out

    def refine(self, partial: Any, metric: int) -> None:
        """Evaluate again the tiles of whose sums rounding may have taken too much."""
        data, code, roundings = self.data, np.int32(metric), np.float64(self.roundings)
        sums = group_sums(self.device, partial, self.layout.slices)
        least = self.device.empty(sums.shape)
        self.device.launch("ddim_least_sums", data.tiles * self.candidates, sums, data.totals, self.levels,
                           np.int64(data.tiles), *self.sizes[1:], roundings, code, least)  # fmt: skip
        self.device.launch("ddim_refine", self.threads, data.eigenvalues, data.weights, self.levels, sums,
                           data.totals, data.whole, column_sums(self.device, least), *self.sizes, *self.shares,
                           self.prior, code, roundings, np.float64(RELATIVE_ERROR), partial)  # fmt: skip

    def divergence(self, metric: str, precision: str) -> Any:
        """Return every candidate's divergence, (M,), without the mean's share and without looking at the input."""
        code = METRICS[metric]
        if precision == "float32":
            partial = self.float_sums(code)
        else:
            partial = self.sums(code, self.data.weights)
            self.refine(partial, code)
        return column_sums(self.device, partial)

    def mean_term(self, metric: str, weights: Any) -> Any:
        """Return what a mean adds, (M,); weights are its squares times the counts."""
        return column_sums(self.device, self.sums(METRICS[f"mean_{metric}"], weights))

    def finish(self, sums: Any, share: Any | None, metric: str, square: float, out: Any) -> None:
        """Write the divergences with the mean's share; NaN for candidates that break the rules."""
        self.device.launch("ddim_finish", self.candidates, sums, share, self.levels, self.data.whole, *self.sizes[1:],
                           self.prior, np.int32(METRICS[metric]), np.float64(square), out)  # fmt: skip

    def valid(self) -> Any:
        """Return which candidates keep the rules, (M,)."""
        out = self.device.empty(self.candidates)
        self.device.launch("ddim_check", self.candidates, self.levels, self.data.whole, *self.sizes[1:], out)
        return out

    def variances(self, out: Any, valid: Any | None = None) -> None:
        """Write output variances to out (M, d), NaN for candidates that are not valid."""
        self.device.launch("ddim_variances", self.candidates * self.data.size, self.data.eigenvalues, self.levels,
                           *self.expanded(), valid, *self.sizes, np.int64(self.degree),
                           np.int64(self.chunks), self.prior, out)  # fmt: skip

    def level_variances(self, out: Any, valid: Any | None = None) -> None:
        """Write the variances at every level to out (M, N+1, d), NaN for candidates that are not valid."""
        self.device.launch("ddim_level_variances", self.candidates * self.data.size, self.data.eigenvalues,
                           self.levels, valid, *self.sizes, self.prior, out)  # fmt: skip


def polynomials(steps: int) -> tuple[int, int]:
    """Return how many chunks of a schedule there are, and their length; short schedules share a kernel."""
    chunks = math.ceil(steps / MAX_DEGREE)
    return chunks, max(math.ceil(steps / chunks), LEAST_DEGREE)


def rounding_count(steps: int) -> int:
    """Return the roundings of a ratio of variances, as fastkl._rounding counts them.

    A division shared by eight ratios adds 14 products to each of them, squares and the target some more.
    """
    return 4 * steps + 8 * polynomials(steps)[0] + 32


def scratch_bytes(data: DeviceSpectrum, steps: int, layout: Layout) -> int:
    """Return the scratch that a candidate needs: its polynomials, and sums over slices and tiles."""
    chunks, degree = polynomials(steps)
    return 8 * (2 * chunks * (degree + 1) + 2 * data.tiles * (layout.slices + 2) + 2 * steps + 16)


def in_chunks(device: Any, total: int, bytes_each: int, run: Callable[[int, int], None]) -> None:
    """Call run(begin, end) for chunks of `total` candidates that fit the free memory; halve them where they do not."""
    budget = min(device.free_bytes() // 2, LARGEST_SCRATCH)
    length = max(1, min(total, budget // bytes_each))
    begin = 0
    while begin < total:
        end = min(begin + length, total)
        try:
            run(begin, end)
        except device.OutOfMemory:
            if length == 1:
                raise
            length = length // 2
            continue
        begin = end


def divergence(
    eigenvalues: Array,
    counts: Array | None,
    levels: Array,
    metric: str,
    prior: str,
    threads: int,
    precision: str = "float64",
) -> Array:
    """Return the divergence of every candidate, without the mean's share."""
    del threads
    return from_host(
        eigenvalues,
        counts,
        levels,
        prior,
        lambda chunk: chunk.divergence(metric, precision),
        np.shape(levels)[:1],
    )


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

    def evaluate(chunk: Chunk) -> Any:
        return chunk.mean_term(metric, COPIES.mean_weights(chunk, mean, counts))

    return from_host(eigenvalues, counts, levels, prior, evaluate, np.shape(levels)[:1])


def from_host(
    eigenvalues: Array,
    weights: Array | None,
    levels: Array,
    prior: str,
    evaluate: Callable[[Chunk], Any],
    shape: tuple[int, ...],
) -> Array:
    """Evaluate candidates on the host, chunk by chunk; what evaluate(chunk) returns are the rows of the result."""
    out = np.empty(shape)
    bytes_each = 8 * math.prod(shape[1:])

    def whole(device: Any) -> None:
        data = COPIES.spectrum(device, eigenvalues, weights)
        layout = Layout.of(levels.shape[0], data.size)

        def run(begin: int, end: int) -> None:
            part = Chunk(device, data, device.upload(levels[begin:end]), prior, layout)
            out[begin:end] = device.download(evaluate(part))

        scratch = scratch_bytes(data, levels.shape[1] - 1, layout) + bytes_each
        in_chunks(device, levels.shape[0], scratch, run)

    with _gpu_device.current_device() as device:
        with_memory(device, lambda: whole(device))
    return out


def output_variance(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    del threads

    def evaluate(chunk: Chunk) -> Any:
        out = chunk.device.empty((chunk.candidates, chunk.data.size))
        chunk.variances(out)
        return out

    return from_host(eigenvalues, None, levels, prior, evaluate, (levels.shape[0], eigenvalues.size))


def trajectory(eigenvalues: Array, levels: Array, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    del threads

    def evaluate(chunk: Chunk) -> Any:
        out = chunk.device.empty((*chunk.levels.shape, chunk.data.size))
        chunk.level_variances(out)
        return out

    return from_host(eigenvalues, None, levels, prior, evaluate, (*levels.shape, eigenvalues.size))


def on_device(
    device: Any, data: DeviceSpectrum, levels: Any, prior: str, write: Callable[[Chunk, Any], None], out: Any
) -> Any:
    """Evaluate candidates on the device, chunk by chunk; write(chunk, rows of out) does it. Nothing is waited for."""
    layout = Layout.of(int(levels.shape[0]), data.size)

    def run(begin: int, end: int) -> None:
        write(Chunk(device, data, levels[begin:end], prior, layout), out[begin:end])

    in_chunks(device, int(levels.shape[0]), scratch_bytes(data, int(levels.shape[1]) - 1, layout), run)
    return out
