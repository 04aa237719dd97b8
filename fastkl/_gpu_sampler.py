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
from fastkl._gpu import COPIES, DeviceSpectrum, Layout, column_sums, group_sums, in_chunks, with_memory
from fastkl._gpu_program import DeviceProgram, device_program
from fastkl._rounding import RELATIVE_ERROR
from fastkl._sampler_base import Sampler
from fastkl.kernels.ddim_horner import METRICS, PRIORS
from fastkl.spectrum import Spectrum

__all__ = ["SamplerChunk", "divergence", "mean_on", "on_device", "output_variance", "trajectory"]

Array = NDArray[np.float64]

WIDTH = 4  # eigenvalues that a thread has at a time
BOTH = (True, False)  # endings: at level 0, above


class Ending:
    """A sampler's program for the candidates that end at 0, or for those that end above, with its tables."""

    def __init__(self, chunk: SamplerChunk, program: DeviceProgram, to_zero: bool) -> None:
        self.chunk, self.program, self.to_zero = chunk, program, np.int32(to_zero)
        self.length, self.noise_form = np.int64(program.length), np.int32(program.noise_form)
        self.integers = {name: chunk.copied(array) for name, array in program.integers.items()}
        self.tables = self._evaluated()

    def _evaluated(self) -> dict[str, Any]:
        chunk, made = self.chunk, self.program.instructions
        rows = chunk.device.empty((self.program.outputs, chunk.candidates))
        scratch = chunk.device.empty((max(made.registers, 1), chunk.candidates))
        chunk.launch("sampler_tables", chunk.candidates, chunk.levels, chunk.copied(made.code),
                     chunk.copied(made.constants), np.int64(made.code.shape[0]), *chunk.sizes[1:], self.to_zero,
                     scratch, rows)  # fmt: skip
        tables, begin = {}, 0
        for name, shape in self.program.sections.items():
            tables[name] = rows[begin : begin + math.prod(shape)]
            begin += math.prod(shape)
        return tables

    def problem(self, metric: int) -> tuple[Any, ...]:
        """Return the arguments that the kernels of divergences begin with."""
        chunk = self.chunk
        return (chunk.data.eigenvalues, chunk.data.weights, chunk.mean, chunk.levels, chunk.prior,
                np.int32(metric), self.integers["operations"])  # fmt: skip

    def sums(self, metric: int, partial: Any) -> None:
        """Write the fast kernel's sums over slices."""
        chunk = self.chunk
        chunk.launch("sampler_sums", chunk.threads, *self.problem(metric), self.tables["coefficients"], self.length,
                     chunk.stochastic, self.to_zero, *chunk.sizes, *chunk.shares, partial)  # fmt: skip

    def roundings(self, out: Any) -> None:
        """Write how many roundings the output may be off by in each tile."""
        chunk = self.chunk
        threads = math.ceil(chunk.data.tiles / WIDTH) * chunk.candidates
        chunk.launch("sampler_roundings", threads, chunk.data.least(), chunk.levels, self.integers["operations"],
                     self.tables["coefficients"], self.tables["sizes"], self.length, chunk.stochastic,
                     self.noise_form, self.to_zero, np.int64(chunk.data.tiles), *chunk.sizes[1:], out)  # fmt: skip

    def refine(self, metric: int, doubt: tuple[Any, ...], partial: Any) -> None:
        """Evaluate the doubtful tiles again."""
        chunk = self.chunk
        last = (self.to_zero, *doubt, np.float64(RELATIVE_ERROR), *chunk.sizes, *chunk.shares, partial)
        if chunk.stochastic:
            partners = self.integers["partners"]
            chunk.launch("loss_sums", chunk.threads, *self.problem(metric), self.tables["coefficients"], self.length,
                         partners, self.integers["reads"], self.tables["defects"], self.tables["extras"],
                         np.int64(partners.shape[1]), *last)  # fmt: skip
        else:
            chunk.launch("precise_sums", chunk.threads, *self.problem(metric), self.tables["deviations"], self.length,
                         self.noise_form, *last)  # fmt: skip

    def variances(self, roundings: Any | None, row: int, out: Any) -> None:
        """Write output variances to out, whose candidates are `row` numbers apart."""
        chunk = self.chunk
        chunk.launch("sampler_variances", chunk.cells, chunk.data.eigenvalues, chunk.levels, chunk.prior,
                     self.integers["operations"], self.tables["coefficients"], self.tables.get("deviations"),
                     roundings, self.length, chunk.stochastic, self.noise_form, self.to_zero, *chunk.sizes,
                     np.int64(row), out)  # fmt: skip

    def levels(self, out: Any) -> None:
        """Write the variances at every level, by the fast kernel."""
        chunk = self.chunk
        chunk.launch("sampler_levels", chunk.cells, chunk.data.eigenvalues, chunk.levels, chunk.prior,
                     self.integers["operations"], self.tables["coefficients"], self.integers["grid"],
                     chunk.stochastic, self.to_zero, *chunk.sizes, out)  # fmt: skip


class SamplerChunk:
    """Some candidates on a device, levels (M, N+1), and a sampler; `endings` are those that candidates may have."""

    def __init__(
        self, device: Any, data: DeviceSpectrum, mean: Any | None, levels: Any, sampler: Sampler, prior: str,
        layout: Layout, endings: tuple[bool, ...],
    ) -> None:  # fmt: skip
        self.device, self.launch = device, device.launch
        self.data, self.mean, self.levels, self.layout = data, mean, levels, layout
        self.prior, self.stochastic = np.int32(PRIORS[prior]), np.int32(sampler.stochastic)
        self.finite_start = np.int32(sampler.finite_start)
        self.candidates, self.steps = int(levels.shape[0]), int(levels.shape[1]) - 1
        self.sizes = np.int64(data.size), np.int64(self.candidates), np.int64(self.steps)
        self.shares = np.int64(layout.group), np.int64(layout.slices)
        self.threads = data.tiles * layout.slices * math.ceil(self.candidates / layout.group) * layout.group
        self.cells = self.candidates * math.ceil(data.size / WIDTH)
        self.impossible = [ending for ending in endings if ending and sampler.above_zero]
        self.endings = [
            Ending(self, device_program(sampler, self.steps, ending), ending)
            for ending in endings
            if ending not in self.impossible
        ]

    def copied(self, array: NDArray[Any]) -> Any:
        """Return a table of the host on the device; it is copied once."""
        return COPIES.made(self.device, [array], lambda: self.device.upload(array))

    def valid(self, metric: int) -> Any:
        """Return which candidates keep the rules and the sampler's own, (M,)."""
        out = self.device.empty(self.candidates)
        last = (np.int32(metric), *self.sizes[1:], out)
        for ending in self.endings:
            self.launch("sampler_check", self.candidates, self.levels, self.data.whole, ending.tables["allowed"],
                        self.finite_start, ending.to_zero, *last)  # fmt: skip
        for to_zero in self.impossible:
            self.launch("sampler_check", self.candidates, self.levels, self.data.whole, None, self.finite_start,
                        np.int32(to_zero), *last)  # fmt: skip
        return out

    def roundings(self) -> Any:
        """Return how many roundings the outputs may be off by, (tiles, M)."""
        out = self.device.empty((self.data.tiles, self.candidates))
        for ending in self.endings:
            ending.roundings(out)
        return out

    def divergence(self, metric: str, out: Any) -> None:
        """Write every candidate's divergence, with the mean's share, to out (M,)."""
        code, data = METRICS[metric], self.data
        partial = self.device.empty((data.tiles * self.layout.slices, self.candidates))
        for ending in self.endings:
            ending.sums(code, partial)
        sums, roundings = group_sums(self.device, partial, self.layout.slices), self.roundings()
        least = self.device.empty(sums.shape)
        self.launch("sampler_least_sums", data.tiles * self.candidates, sums, data.totals, self.levels, roundings,
                    np.int64(data.tiles), *self.sizes[1:], np.int32(code), least)  # fmt: skip
        doubt = sums, data.totals, data.whole, column_sums(self.device, least), roundings
        for ending in self.endings:
            ending.refine(code, doubt, partial)
        self.launch("sampler_finish", self.candidates, column_sums(self.device, partial), self.levels,
                    self.valid(code), np.int32(code), *self.sizes[1:], out)  # fmt: skip

    def output_variance(self, out: Any) -> None:
        """Write the variance of y at the last level to out (M, d)."""
        self._last_variances(self.data.size, out)

    def trajectory(self, out: Any) -> None:
        """Write the variance of y at every level to out (M, N+1, d)."""
        for ending in self.endings:
            ending.levels(out)
        if not self.stochastic:  # the last step to level 0 is where digits can be lost
            last = self.steps * self.data.size
            self._last_variances(last + self.data.size, out.reshape(-1)[last:])

    def _last_variances(self, row: int, out: Any) -> None:
        roundings = None if self.stochastic else self.roundings()
        for ending in self.endings:
            ending.variances(roundings, row, out)

    def refuse(self, out: Any) -> None:
        """Write NaN to out (M, ...) for candidates that break the rules."""
        each = math.prod(out.shape[1:])
        self.launch("refuse_rows", self.candidates * each, self.valid(METRICS["w2"]), np.int64(each),
                    np.int64(self.candidates), out)  # fmt: skip


Write = Callable[[SamplerChunk, Any], None]


def scratch_bytes(
    data: DeviceSpectrum, sampler: Sampler, steps: int, layout: Layout, endings: tuple[bool, ...]
) -> int:
    """Return the scratch that a candidate needs: its tables, and sums over slices and tiles."""
    programs = [
        device_program(sampler, steps, ending) for ending in endings if not (ending and sampler.above_zero)
    ]
    tables = sum(program.outputs + program.instructions.registers for program in programs)
    return 8 * (tables + data.tiles * (layout.slices + 4) + 4)


def on_device(
    device: Any, spectrum: tuple[DeviceSpectrum, Any | None], levels: Any, sampler: Sampler, prior: str,
    write: Write, out: Any,
) -> Any:  # fmt: skip
    """Evaluate candidates on the device, chunk by chunk; write(chunk, rows of out) does it. Nothing is waited for."""
    data, mean = spectrum
    count, steps = int(levels.shape[0]), int(levels.shape[1]) - 1
    layout = Layout.of(count, data.size)

    def part(begin: int, end: int) -> None:
        chunk = SamplerChunk(device, data, mean, levels[begin:end], sampler, prior, layout, BOTH)
        write(chunk, out[begin:end])

    in_chunks(device, count, scratch_bytes(data, sampler, steps, layout, BOTH), part)
    return out


def mean_on(device: Any, data: Spectrum) -> Any | None:
    """Return a spectrum's mean on the device, which has one copy of it."""
    if data.mean is None:
        return None
    return COPIES.made(device, [data.mean], lambda: device.upload(data.mean))


def from_host(
    data: Spectrum, levels: Array, sampler: Sampler, prior: str, shape: tuple[int, ...], write: Write
) -> Array:
    """Evaluate candidates on the host, chunk by chunk, into rows of the given shape."""
    out = np.empty((levels.shape[0], *shape))
    endings = tuple(ending for ending in BOTH if ((levels[:, -1] == 0.0) == ending).any())

    def whole(device: Any) -> None:
        there, mean = COPIES.spectrum(device, data.eigenvalues, data.counts), mean_on(device, data)
        layout = Layout.of(levels.shape[0], there.size)

        def part(begin: int, end: int) -> None:
            some = device.upload(levels[begin:end])
            values = device.empty((end - begin, *shape))
            write(SamplerChunk(device, there, mean, some, sampler, prior, layout, endings), values)
            out[begin:end] = device.download(values)

        scratch = scratch_bytes(there, sampler, levels.shape[1] - 1, layout, endings)
        in_chunks(device, levels.shape[0], scratch + 8 * math.prod(shape), part)

    with _gpu_device.current_device() as device:
        with_memory(device, lambda: whole(device))
    return out


def divergence(
    data: Spectrum, levels: Array, metric: str, sampler: Sampler, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, with the mean's share."""
    del threads
    return from_host(data, levels, sampler, prior, (), lambda chunk, out: chunk.divergence(metric, out))


def output_variance(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    del threads
    return from_host(data, levels, sampler, prior, (len(data),), SamplerChunk.output_variance)


def trajectory(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    del threads
    return from_host(data, levels, sampler, prior, (levels.shape[1], len(data)), SamplerChunk.trajectory)
