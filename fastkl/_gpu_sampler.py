"""Any sampler on the GPU: coefficients, sums and the choice of what needs more digits are all made on the device.

Nothing waits for the device but copies to the host, where the arrays came from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _gpu_device
from fastkl._gpu_copies import COPIES, with_memory
from fastkl._gpu_layout import Layout, Need, in_chunks
from fastkl._gpu_program import DeviceProgram, program_of
from fastkl._gpu_spectrum import DeviceSpectrum, Piece, column_sums
from fastkl._rounding import RELATIVE_ERROR
from fastkl._sampler_base import Sampler
from fastkl.kernels.ddim_horner import METRICS, PRIORS, TILE
from fastkl.spectrum import Spectrum

__all__ = ["SamplerChunk", "divergence", "on_device", "output_variance", "trajectory"]

Array = NDArray[np.float64]

WIDTH = 4  # eigenvalues that a thread has at a time
BOTH = (True, False)  # endings: at level 0, above


class Ending:
    """A sampler's program for the candidates that end at 0, or for those that end above, with its tables."""

    def __init__(self, chunk: SamplerChunk, program: DeviceProgram, to_zero: bool) -> None:
        self.chunk, self.program, self.to_zero = chunk, program, np.int32(to_zero)
        self.length, self.noise_form = np.int64(program.length), np.int32(program.noise_form)
        self.integers = {
            name: COPIES.uploaded(chunk.device, array) for name, array in program.integers.items()
        }
        self.tables = self._evaluated()

    def _evaluated(self) -> dict[str, Any]:
        chunk, made = self.chunk, self.program.instructions
        rows = chunk.device.empty((self.program.outputs, chunk.candidates))
        scratch = chunk.device.empty((max(made.registers, 1), chunk.candidates))
        code, constants = (COPIES.uploaded(chunk.device, array) for array in (made.code, made.constants))
        chunk.launch("sampler_tables", chunk.candidates, chunk.levels, code, constants,
                     np.int64(made.code.shape[0]), *chunk.shape, self.to_zero, scratch, rows)  # fmt: skip
        tables, begin = {}, 0
        for name, shape in self.program.sections.items():
            tables[name] = rows[begin : begin + math.prod(shape)]
            begin += math.prod(shape)
        return tables

    def problem(self, metric: int, piece: Piece) -> tuple[Any, ...]:
        """Return the arguments that the kernels of divergences begin with."""
        return (piece.eigenvalues, piece.weights, piece.mean, self.chunk.levels, self.chunk.prior,
                np.int32(metric), self.integers["operations"])  # fmt: skip

    def sums(self, metric: int, piece: Piece, partial: Any) -> None:
        """Write the fast kernel's sums over slices."""
        chunk = self.chunk
        chunk.launch("sampler_sums", chunk.threads(piece), *self.problem(metric, piece), self.tables["coefficients"],
                     self.length, chunk.stochastic, self.to_zero, np.int64(piece.size), *chunk.shape,
                     np.int64(chunk.slices), partial)  # fmt: skip

    def roundings(self, out: Any) -> None:
        """Write how many roundings the output may be off by in each tile."""
        chunk = self.chunk
        threads = math.ceil(chunk.data.tiles / WIDTH) * chunk.candidates
        chunk.launch("sampler_roundings", threads, chunk.data.least(), chunk.levels, self.integers["operations"],
                     self.tables["coefficients"], self.tables["sizes"], self.length, chunk.stochastic,
                     self.noise_form, self.to_zero, np.int64(chunk.data.tiles), *chunk.shape, out)  # fmt: skip

    def refine(self, metric: int, doubt: tuple[Any, ...], piece: Piece, partial: Any) -> None:
        """Write the sums over slices of tiles that are doubtful; of others the tile's sum, and zeros."""
        chunk = self.chunk
        last = (self.to_zero, *doubt, np.float64(RELATIVE_ERROR), np.int64(piece.size), *chunk.shape,
                np.int64(chunk.slices), partial)  # fmt: skip
        problem = self.problem(metric, piece)
        if chunk.stochastic:
            partners = self.integers["partners"]
            chunk.launch("loss_sums", chunk.threads(piece), *problem, self.tables["coefficients"], self.length,
                         partners, self.integers["reads"], self.tables["defects"], self.tables["extras"],
                         np.int64(partners.shape[1]), *last)  # fmt: skip
        else:
            chunk.launch("precise_sums", chunk.threads(piece), *problem, self.tables["deviations"], self.length,
                         self.noise_form, *last)  # fmt: skip

    def variances(self, roundings: Any | None, piece: Piece, row: int, out: Any) -> None:
        """Write output variances to out, whose candidates are `row` numbers apart."""
        chunk = self.chunk
        of_piece = None if roundings is None else roundings[piece.rows]
        chunk.launch("sampler_variances", chunk.cells(piece), piece.eigenvalues, chunk.levels, chunk.prior,
                     self.integers["operations"], self.tables["coefficients"], self.tables.get("deviations"),
                     of_piece, self.length, chunk.stochastic, self.noise_form, self.to_zero, np.int64(piece.size),
                     *chunk.shape, np.int64(row), out)  # fmt: skip

    def levels(self, piece: Piece, row: int, out: Any) -> None:
        """Write the variances at every level to out, whose levels are `row` apart, by the fast kernel."""
        chunk = self.chunk
        chunk.launch("sampler_levels", chunk.cells(piece), piece.eigenvalues, chunk.levels, chunk.prior,
                     self.integers["operations"], self.tables["coefficients"], self.integers["grid"],
                     chunk.stochastic, self.to_zero, np.int64(piece.size), *chunk.shape, np.int64(row),
                     out)  # fmt: skip


def possible_of(sampler: Sampler, endings: tuple[bool, ...]) -> list[bool]:
    """Return which of these endings (at level 0 or not) a sampler takes."""
    return [ending for ending in endings if not (ending and sampler.above_zero)]


class SamplerChunk:
    """Some candidates on a device, levels (M, N+1), and a sampler; `endings` are those that candidates may have.

    The spectrum is walked in pieces of `length` tiles.
    """

    def __init__(
        self, device: Any, data: DeviceSpectrum, levels: Any, sampler: Sampler, prior: str, layout: Layout,
        endings: tuple[bool, ...], length: int,
    ) -> None:  # fmt: skip
        self.device, self.launch = device, device.launch
        self.data, self.levels, self.slices, self.length = data, levels, layout.slices, length
        self.prior, self.stochastic = np.int32(PRIORS[prior]), np.int32(sampler.stochastic)
        self.finite_start = np.int32(sampler.finite_start)
        self.candidates, self.steps = int(levels.shape[0]), int(levels.shape[1]) - 1
        self.shape = np.int64(self.candidates), np.int64(self.steps)
        self._roundings: Any = None
        possible = possible_of(sampler, endings)
        self.impossible = [ending for ending in endings if ending not in possible]
        self.endings = [Ending(self, program_of(sampler, self.steps, ending), ending) for ending in possible]

    def threads(self, piece: Piece) -> int:
        """Return how many threads walk a piece for sums."""
        return piece.tiles * self.slices * self.candidates

    def cells(self, piece: Piece) -> int:
        """Return how many threads walk a piece for variances."""
        return self.candidates * math.ceil(piece.size / WIDTH)

    def valid(self, metric: int) -> Any:
        """Return which candidates keep the rules and the sampler's own, (M,)."""
        out = self.device.empty(self.candidates)
        tables = [(ending.to_zero, ending.tables["allowed"]) for ending in self.endings]
        for to_zero, allowed in [*tables, *((np.int32(ending), None) for ending in self.impossible)]:
            self.launch("sampler_check", self.candidates, self.levels, self.data.whole, allowed, self.finite_start,
                        to_zero, np.int32(metric), *self.shape, out)  # fmt: skip
        return out

    def roundings(self) -> Any:
        """Return how many roundings the outputs may be off by, (tiles, M): made once, for all pieces."""
        if self._roundings is None:
            out = self.device.empty((self.data.tiles, self.candidates))
            for ending in self.endings:
                ending.roundings(out)
            self._roundings = out
        return self._roundings

    def tile_sums(self, evaluate: Callable[[Ending, Piece, Any], None]) -> Any:
        """Return sums (tiles, M) of what evaluate(ending, piece, partial) writes for each slice."""

        def each(piece: Piece, partial: Any) -> None:
            for ending in self.endings:
                evaluate(ending, piece, partial)

        return self.data.tile_sums(self.candidates, self.slices, self.length, each)

    def divergence(self, metric: str, out: Any) -> None:
        """Write every candidate's divergence, with the mean's share, to out (M,)."""
        code, data = METRICS[metric], self.data
        sums = self.tile_sums(lambda ending, piece, partial: ending.sums(code, piece, partial))
        roundings, least = self.roundings(), self.device.empty(sums.shape)
        self.launch("sampler_least_sums", data.tiles * self.candidates, sums, data.totals, self.levels, roundings,
                    np.int64(data.tiles), *self.shape, np.int32(code), least)  # fmt: skip
        whole = data.whole, column_sums(self.device, least)

        def refine(ending: Ending, piece: Piece, partial: Any) -> None:
            doubt = sums[piece.rows], data.totals[piece.rows], *whole, roundings[piece.rows]
            ending.refine(code, doubt, piece, partial)

        self.launch("sampler_finish", self.candidates, column_sums(self.device, self.tile_sums(refine)), self.levels,
                    self.valid(code), np.int32(code), *self.shape, out)  # fmt: skip

    def output_variance(self, piece: Piece, row: int, out: Any) -> None:
        """Write a piece's variances of y at the last level to out, whose candidates are `row` apart."""
        roundings = None if self.stochastic else self.roundings()
        for ending in self.endings:
            ending.variances(roundings, piece, row, out)

    def trajectory(self, piece: Piece, row: int, out: Any) -> None:
        """Write a piece's variances of y at every level to out, whose levels are `row` apart."""
        for ending in self.endings:
            ending.levels(piece, row, out)
        if not self.stochastic:  # the last step to level 0 is where digits can be lost
            self.output_variance(piece, (self.steps + 1) * row, out.reshape(-1)[self.steps * row :])

    def refuse(self, out: Any) -> None:
        """Write NaN to out (M, ...) for candidates that break the rules."""
        each = math.prod(out.shape[1:])
        self.launch("refuse_rows", self.candidates * each, self.valid(METRICS["w2"]), np.int64(each),
                    np.int64(self.candidates), out)  # fmt: skip


Write = Callable[[SamplerChunk, Any], None]


def need_of(
    data: DeviceSpectrum,
    sampler: Sampler,
    steps: int,
    slices: int,
    endings: tuple[bool, ...],
    values: int = 0,
) -> Need:
    """Return what chunks need: tables, sums over tiles and slices, and `values` results for each eigenvalue."""
    programs = [program_of(sampler, steps, ending) for ending in possible_of(sampler, endings)]
    tables = sum(program.outputs + program.instructions.registers for program in programs)
    return Need(
        8 * (tables + 5 * data.tiles + 8), 8 * (slices + TILE * values), data.streamed_bytes, data.tiles
    )


def on_device(
    device: Any, data: DeviceSpectrum, levels: Any, sampler: Sampler, prior: str, write: Write, out: Any
) -> Any:
    """Evaluate candidates on the device, chunk by chunk; write(chunk, rows of out) does it. Nothing is waited for."""
    count, steps = int(levels.shape[0]), int(levels.shape[1]) - 1
    layout = Layout.of(count, data.size)

    def part(begin: int, end: int, length: int) -> None:
        chunk = SamplerChunk(device, data, levels[begin:end], sampler, prior, layout, BOTH, length)
        write(chunk, out[begin:end])

    in_chunks(device, count, need_of(data, sampler, steps, layout.slices, BOTH), part)
    return out


def from_host(
    data: Spectrum, levels: Array, sampler: Sampler, prior: str, values: int, write: Write, out: Array
) -> Array:
    """Evaluate candidates on the host, chunk by chunk: write(chunk, rows of out)."""
    endings = tuple(ending for ending in BOTH if ((levels[:, -1] == 0.0) == ending).any())

    def whole(device: Any) -> None:
        there = COPIES.spectrum(device, data.eigenvalues, data.counts, data.mean)
        layout = Layout.of(levels.shape[0], there.size)

        def part(begin: int, end: int, length: int) -> None:
            some = device.upload(levels[begin:end])
            write(SamplerChunk(device, there, some, sampler, prior, layout, endings, length), out[begin:end])

        need = need_of(there, sampler, levels.shape[1] - 1, layout.slices, endings, values)
        in_chunks(device, levels.shape[0], need, part)

    with _gpu_device.current_device() as device:
        with_memory(device, lambda: whole(device))
    return out


def divergence(
    data: Spectrum, levels: Array, metric: str, sampler: Sampler, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, with the mean's share."""
    del threads

    def write(chunk: SamplerChunk, out: Array) -> None:
        values = chunk.device.empty(chunk.candidates)
        chunk.divergence(metric, values)
        out[:] = chunk.device.download(values)

    return from_host(data, levels, sampler, prior, 0, write, np.empty(levels.shape[0]))


def output_variance(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    del threads

    def write(chunk: SamplerChunk, out: Array) -> None:
        for piece in chunk.data.pieces(chunk.length):
            values = chunk.device.empty((chunk.candidates, piece.size))
            chunk.output_variance(piece, piece.size, values)
            out[:, piece.begin : piece.begin + piece.size] = chunk.device.download(values)

    return from_host(data, levels, sampler, prior, 1, write, np.empty((levels.shape[0], len(data))))


def trajectory(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    del threads
    count = levels.shape[1]

    def write(chunk: SamplerChunk, out: Array) -> None:
        for piece in chunk.data.pieces(chunk.length):
            values = chunk.device.empty((chunk.candidates, count, piece.size))
            chunk.trajectory(piece, piece.size, values)
            out[:, :, piece.begin : piece.begin + piece.size] = chunk.device.download(values)

    return from_host(data, levels, sampler, prior, count, write, np.empty((*levels.shape, len(data))))
