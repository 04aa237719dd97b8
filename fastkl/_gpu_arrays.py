"""Evaluation of arrays that are on a CUDA device already: shapes and types are checked, values are not waited for.

Every sampler runs on the caller's current stream and returns a CuPy array without synchronising. Values cannot raise
then: a candidate that breaks the rules, or a spectrum that does, makes NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastkl import _gpu, _gpu_device, _gpu_sampler
from fastkl._dispatch import is_device_array
from fastkl._gpu import Chunk
from fastkl._gpu_copies import COPIES, with_memory
from fastkl._gpu_sampler import SamplerChunk
from fastkl._gpu_spectrum import DeviceSpectrum, Piece, stacked_sum
from fastkl._sampler_base import Sampler
from fastkl._sampler_dispatch import refuse_few_steps
from fastkl.evaluate import squared_norm
from fastkl.samplers import get
from fastkl.spectrum import Spectrum

__all__ = ["DeviceCall", "checked_array", "refuse_mixed"]


def refuse_mixed(spectrum: Any, sigmas: Any, backend: str) -> None:
    """Raise if one argument is on a device and the other is not, or the CPU is asked for; a Spectrum goes along."""
    places = is_device_array(spectrum, "spectrum"), is_device_array(sigmas, "sigmas")
    if not all(places) and not (places[1] and isinstance(spectrum, Spectrum)):
        raise TypeError(
            f"spectrum and sigmas: must both be on the host or both on a GPU, got {full_name(spectrum)} and "
            f"{full_name(sigmas)}; move one of them (cupy.asarray, cupy.asnumpy)"
        )
    if backend == "cpu":
        raise TypeError(
            f"sigmas: backend 'cpu' takes arrays on the host, got {full_name(sigmas)}; copy it (cupy.asnumpy) or use "
            f"backend 'auto'"
        )


def full_name(value: Any) -> str:
    """Return a type's name with its module's."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def checked_array(device: Any, name: str, value: Any, ranks: tuple[int, ...]) -> Any:
    """Return a float64 array on `device`, or raise as the host's check does, but for the values."""
    array = device.as_array(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(
            f"{name}: must be an array of real numbers, got dtype {array.dtype} ({full_name(value)})"
        )
    if array.ndim not in ranks:
        allowed = " or ".join(f"{rank}-D" for rank in ranks)
        raise ValueError(f"{name}: must be {allowed}, got shape {tuple(array.shape)}")
    if array.size < 1:
        raise ValueError(f"{name}: must have at least 1 element(s), got shape {tuple(array.shape)}")
    if device.number_of(array) != device.number:
        raise ValueError(f"{name}: is on device {device.number_of(array)}, sigmas on device {device.number}")
    return device.as_float64(array)


def every_piece(
    write: Callable[[SamplerChunk, Piece, int, Any], None], dim: int
) -> Callable[[SamplerChunk, Any], None]:
    """Return a function that writes a chunk's variances for all pieces and then refuses what breaks the rules."""

    def all_pieces(chunk: SamplerChunk, out: Any) -> None:
        for piece in chunk.data.pieces(chunk.length):
            write(chunk, piece, dim, out.reshape(-1)[piece.begin :])
        chunk.refuse(out)

    return all_pieces


class DeviceCall:
    """The checked arguments of a call: a spectrum and candidates (M, N+1) on one device."""

    def __init__(self, spectrum: Any, sigmas: Any) -> None:
        self.device = _gpu_device.device_of(sigmas)
        self.spectrum = spectrum if isinstance(spectrum, Spectrum) else None
        with self.device:
            levels = checked_array(self.device, "sigmas", sigmas, (1, 2))
            if levels.shape[-1] < 2:
                raise ValueError(
                    f"sigmas: must hold at least two levels a candidate (N+1 for N steps), got shape {levels.shape}"
                )
            self.single = levels.ndim == 1
            self.levels = levels.reshape(1, -1) if self.single else levels
            if self.spectrum is None:
                self.eigenvalues = checked_array(self.device, "spectrum", spectrum, (1,))

    def data(self) -> DeviceSpectrum:
        """Return the spectrum on the device; a Spectrum's copy is made in the first call and kept with it."""
        if self.spectrum is None:
            return DeviceSpectrum(self.device, self.eigenvalues, None)
        data = self.spectrum
        return COPIES.spectrum(self.device, data.eigenvalues, data.counts, data.mean)

    def run(self, prior: str, shape: tuple[int, ...], write: Callable[[Chunk, Any], None]) -> Any:
        """Return an array (M, *shape) that write(chunk, rows) fills, (*shape,) for a single candidate."""

        def filled() -> Any:
            out = self.device.empty((int(self.levels.shape[0]), *shape))
            _gpu.on_device(self.device, self.data(), self.levels, prior, write, out)
            return out.reshape(shape) if self.single else out

        with self.device:
            return with_memory(self.device, filled)

    def by_sampler(self, sampler: str | Sampler, prior: str, shape: tuple[int, ...], write: Any) -> Any:
        """Return an array as `run` does, for any sampler; write(its chunk, rows) fills it."""
        refuse_few_steps(sampler, int(self.levels.shape[1]) - 1)
        rule = get(sampler)
        if rule.check is not None and rule.allowed is None:
            raise ValueError(
                f"sampler = {sampler!r}: its check needs the values of sigmas, which a GPU is not asked for; it must "
                f"say what is `allowed`, or take arrays of the host"
            )

        def filled() -> Any:
            out = self.device.empty((int(self.levels.shape[0]), *shape))
            _gpu_sampler.on_device(self.device, self.data(), self.levels, rule, prior, write, out)
            return out.reshape(shape) if self.single else out

        with self.device:
            return with_memory(self.device, filled)

    def divergence(self, metric: str, sampler: Any, prior: str, precision: str) -> Any:
        """Return the divergence of every candidate."""
        if not get(sampler).is_ddim:
            return self.by_sampler(sampler, prior, (), lambda chunk, out: chunk.divergence(metric, out))
        terms, square = self.mean_terms(metric, prior)

        def write(chunk: Chunk, out: Any) -> None:
            sums, share = chunk.divergence(metric, precision), None
            if terms:
                share = stacked_sum(self.device, [chunk.mean_term(term) for term in terms])
            chunk.finish(sums, share, metric, square, out)

        return self.run(prior, (), write)

    def mean_terms(self, metric: str, prior: str) -> tuple[tuple[str, ...], float]:
        """Return the metrics whose shares of the mean are sums over ratios, and the squared norm if kl's is not."""
        data = self.spectrum
        if data is None or data.mean is None or not data.mean.any():
            return (), 0.0
        terms = ("kl", "reverse_kl") if metric == "jeffreys" else (metric,)
        if "kl" in terms and prior != "exact":
            return tuple(term for term in terms if term != "kl"), squared_norm(data)
        return terms, 0.0

    def output_variance(self, sampler: Any, prior: str) -> Any:
        """Return the variance of y at the last level."""
        if not get(sampler).is_ddim:
            return self.by_sampler(
                sampler, prior, (self.dim,), every_piece(SamplerChunk.output_variance, self.dim)
            )

        def write(chunk: Chunk, out: Any) -> None:
            valid = chunk.valid()
            for piece in chunk.data.pieces(chunk.length):
                chunk.variances(piece, out.reshape(-1)[piece.begin :], self.dim, valid)

        return self.run(prior, (self.dim,), write)

    def trajectory(self, sampler: Any, prior: str) -> Any:
        """Return the variance of y at every level."""
        shape = int(self.levels.shape[1]), self.dim
        if not get(sampler).is_ddim:
            return self.by_sampler(sampler, prior, shape, every_piece(SamplerChunk.trajectory, self.dim))

        def write(chunk: Chunk, out: Any) -> None:
            valid = chunk.valid()
            for piece in chunk.data.pieces(chunk.length):
                chunk.level_variances(piece, out.reshape(-1)[piece.begin :], self.dim, valid)

        return self.run(prior, shape, write)

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""
        return len(self.spectrum) if self.spectrum is not None else int(self.eigenvalues.shape[0])
