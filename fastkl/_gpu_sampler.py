"""Any sampler on the GPU: the CPU backend's blocks of candidates, with the kernels' twins on a device.

Programs are made on the host, which also decides which tiles need more digits: sums are copied back for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl import _gpu_device, _sampler_cpu
from fastkl._gpu import COPIES, Layout, group_sums, in_chunks, with_memory
from fastkl._sampler_base import Sampler
from fastkl._sampler_losses import LossTable
from fastkl.kernels.ddim_horner import METRICS, TILE
from fastkl.spectrum import Spectrum

__all__ = ["MOST_REGISTERS", "divergence", "output_variance", "trajectory"]

Array = NDArray[np.float64]
Integers = NDArray[np.intp]

MOST_REGISTERS = 12  # of a program, in the kernels' local memory
PAIR_SLICES = TILE // 8
WIDTH = 4
TABLE_BYTES = 1 << 24  # coefficients of one block of candidates, on the host
PARTIAL_SUMS = 1 << 22  # tile sums held at a time


def beside(table: Array) -> Array:
    """Return a table (M, ...) with the candidates side by side, (..., M)."""
    return np.ascontiguousarray(np.moveaxis(table, 0, -1))


class DeviceBlock(_sampler_cpu.Block):
    """A block whose sums and variances come from a device."""

    def __init__(
        self, device: Any, data: Spectrum, levels: Array, sampler: Sampler, prior: str, total: int
    ) -> None:
        super().__init__(data, levels, sampler, prior, 1)
        if self.program.registers > MOST_REGISTERS:
            raise RuntimeError(
                f"{sampler!r} needs {self.program.registers} registers, the GPU kernels have {MOST_REGISTERS}; "
                f"use backend 'cpu'"
            )
        self.device = device
        self.on_device = COPIES.spectrum(device, data.eigenvalues, data.counts)
        self.device_mean = None if data.mean is None else device.upload(data.mean)
        self.device_levels = device.upload(self.levels)
        self.device_operations = device.upload(self.operations)
        self.layout = Layout.of(total, self.on_device.size)
        self.sizes = np.int64(self.on_device.size), np.int64(self.candidates), np.int64(levels.shape[1] - 1)
        self._tables: dict[str, tuple[Any, ...]] = {}

    def uploaded(self, name: str) -> tuple[Any, ...]:
        """Return tables on the device: the coefficients, the deviations or the losses."""
        if name not in self._tables:
            if name == "coefficients":
                tables = [beside(self.table)]
            elif name == "deviations":
                tables = [beside(self.program.deviations())]
            else:
                losses = LossTable(self.program)
                tables = [losses.partners, losses.reads, beside(losses.defects), beside(losses.extras)]
            self._tables[name] = tuple(self.device.upload(table) for table in tables)
        return self._tables[name]

    def problem(self, metric: str) -> tuple[Any, ...]:
        """Return the arguments that the kernels of divergences begin with."""
        return (
            self.on_device.eigenvalues,
            self.on_device.weights,
            self.device_mean,
            self.device_levels,
            np.int32(self.prior),
            np.int32(METRICS[metric]),
            self.device_operations,
        )

    def sums(self, metric: str) -> Array:
        """Return the fast kernel's tile sums, (M, tiles)."""
        group, slices = self.layout.group, self.layout.slices
        partial = self.device.empty((self.tiles * slices, self.candidates))
        threads = self.tiles * slices * -(-self.candidates // group) * group
        self.device.launch("sampler_sums", threads, *self.problem(metric), *self.uploaded("coefficients"),
                           np.int64(self.length), np.int32(self.stochastic), *self.sizes, np.int64(group),
                           np.int64(slices), partial)  # fmt: skip
        return np.ascontiguousarray(self.device.download(group_sums(self.device, partial, slices)).T)

    def precise_tables(self) -> tuple[NDArray[Any], ...]:
        """Return nothing: `precise` has its tables on the device."""
        return ()

    def precise(
        self, metric: str, candidates: Integers, tiles: Integers, tables: tuple[NDArray[Any], ...]
    ) -> Array:
        """Return the sums of tiles[i] for candidates[i] from the kernel that keeps more digits."""
        pairs = candidates.size
        lists = (self.device.upload(candidates.astype(np.int64)), self.device.upload(tiles.astype(np.int64)))
        partial = self.device.empty((pairs * PAIR_SLICES, 1))
        last = (*lists, np.int64(pairs), *self.sizes, partial)
        if self.stochastic:
            losses = self.uploaded("losses")
            width = np.int64(losses[0].shape[1])
            self.device.launch("loss_sums", pairs * PAIR_SLICES, *self.problem(metric),
                               *self.uploaded("coefficients"), np.int64(self.length), *losses, width,
                               *last)  # fmt: skip
        else:
            self.device.launch("precise_sums", pairs * PAIR_SLICES, *self.problem(metric),
                               *self.uploaded("deviations"), np.int64(self.length), np.int32(self.noise_form),
                               *last)  # fmt: skip
        result: Array = self.device.download(group_sums(self.device, partial, PAIR_SLICES)).reshape(-1)
        return result

    def output_variance(self, out: Array, rows: Integers) -> None:
        """Write the variance of y at the last level to out[rows], (M, d)."""
        precise = self.variances_need_digits()
        name, table = (
            ("precise_variances", "deviations") if precise else ("sampler_variances", "coefficients")
        )
        values = self.device.empty((self.candidates, self.on_device.size))
        cells = self.candidates * -(-self.on_device.size // WIDTH)
        self.device.launch(name, cells, self.on_device.eigenvalues, self.device_levels, np.int32(self.prior),
                           self.device_operations, *self.uploaded(table), np.int64(self.length),
                           np.int32(self.noise_form if precise else self.stochastic), *self.sizes, values)  # fmt: skip
        out[rows] = self.device.download(values)

    def level_variances(self, out: Array, rows: Integers) -> None:
        """Write the variance of y at every level to out[rows], (M, N+1, d), by the fast kernel."""
        values = self.device.empty((*self.levels.shape, self.on_device.size))
        cells = self.candidates * -(-self.on_device.size // WIDTH)
        self.device.launch("sampler_levels", cells, self.on_device.eigenvalues, self.device_levels,
                           np.int32(self.prior), self.device_operations, *self.uploaded("coefficients"),
                           self.device.upload(self.program.grid), np.int32(self.stochastic), *self.sizes,
                           values)  # fmt: skip
        out[rows] = self.device.download(values)


def run(
    data: Spectrum,
    levels: Array,
    sampler: Sampler,
    prior: str,
    bytes_each: int,
    evaluate: Callable[[DeviceBlock, Integers], None],
) -> None:
    """Call evaluate(block, rows) for blocks that cover the candidates and fit the free memory."""
    tiles = -(-len(data) // TILE)

    def whole(device: Any) -> None:
        for rows in _sampler_cpu.row_groups(levels, len(data), TABLE_BYTES, PARTIAL_SUMS):
            slices = Layout.of(rows.size, len(data)).slices
            tables = 8 * 64 * 2 * (2 * levels.shape[1] + 9)

            def part(begin: int, end: int, rows: Integers = rows) -> None:
                some = rows[begin:end]
                evaluate(DeviceBlock(device, data, levels[some], sampler, prior, rows.size), some)

            in_chunks(device, rows.size, tables + 8 * tiles * (slices + 1) + bytes_each, part)

    with _gpu_device.current_device() as device:
        with_memory(device, lambda: whole(device))


def divergence(
    data: Spectrum, levels: Array, metric: str, sampler: Sampler, prior: str, threads: int
) -> Array:
    """Return the divergence of every candidate, with the mean's share."""
    del threads
    out = np.empty(levels.shape[0])

    def evaluate(block: DeviceBlock, rows: Integers) -> None:
        out[rows] = block.divergence(metric)

    run(data, levels, sampler, prior, 0, evaluate)
    return out


def output_variance(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at the last level, (M, d)."""
    del threads
    out = np.empty((levels.shape[0], len(data)))
    run(data, levels, sampler, prior, 8 * len(data), lambda block, rows: block.output_variance(out, rows))
    return out


def trajectory(data: Spectrum, levels: Array, sampler: Sampler, prior: str, threads: int) -> Array:
    """Return the variance of y at every level, (M, N+1, d)."""
    del threads
    out = np.empty((*levels.shape, len(data)))
    each = 8 * len(data) * (levels.shape[1] + 1)
    run(data, levels, sampler, prior, each, lambda block, rows: block.trajectory(out, rows))
    return out
