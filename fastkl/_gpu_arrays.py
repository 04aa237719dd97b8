"""Evaluation of arrays that are on a CUDA device already: shapes and types are checked, values are not waited for.

DDIM runs on the caller's current stream and returns a CuPy array without synchronising. Values cannot raise then: a
candidate that breaks the rules, or a spectrum that does, makes NaN. The coefficients of other samplers are functions of
the levels that the host evaluates, so those copy their arguments to the host first.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fastkl import _gpu, _gpu_device
from fastkl._dispatch import is_device_array
from fastkl._gpu import Chunk, DeviceSpectrum
from fastkl.spectrum import Spectrum

__all__ = ["DeviceCall", "checked_array", "refuse_mixed"]


def refuse_mixed(spectrum: Any, sigmas: Any, backend: str) -> None:
    """Raise if one argument is on a device and the other is not, or the CPU is asked for; a Spectrum goes along."""
    places = [is_device_array(value) for value in (spectrum, sigmas)]
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
        return _gpu.COPIES.spectrum(self.device, self.spectrum.eigenvalues, self.spectrum.counts)

    def on_host(self) -> tuple[Spectrum, Any]:
        """Return the spectrum, checked, and the levels as arrays of the host: this waits for the stream."""
        with self.device:
            levels = self.device.download(self.levels)
            spectrum = self.spectrum or Spectrum(self.device.download(self.eigenvalues))
        return spectrum, levels

    def returned(self, values: Any) -> Any:
        """Return what the host computed as an array on the device, without the first axis for a single candidate."""
        with self.device:
            return self.device.upload(np.asarray(values[0] if self.single else values))

    def run(self, prior: str, shape: tuple[int, ...], write: Callable[[Chunk, Any], None]) -> Any:
        """Return an array (M, *shape) that write(chunk, rows) fills, (*shape,) for a single candidate."""
        with self.device:
            out = self.device.empty((int(self.levels.shape[0]), *shape))
            _gpu.on_device(self.device, self.data(), self.levels, prior, write, out)
            return out.reshape(shape) if self.single else out

    def divergence(self, metric: str, prior: str, precision: str) -> Any:
        """Return the divergence of every candidate by DDIM."""
        mean, square = None, 0.0
        terms = ("kl", "reverse_kl") if metric == "jeffreys" else (metric,)
        if self.spectrum is not None and self.spectrum.mean is not None and self.spectrum.mean.any():
            with self.device:
                mean, norm = mean_weights(self.device, self.spectrum)
            if "kl" in terms and prior != "exact":
                square = norm
                terms = tuple(term for term in terms if term != "kl")

        def write(chunk: Chunk, out: Any) -> None:
            sums = chunk.divergence(metric, precision)
            share = None
            if mean is not None and terms:
                parts = [chunk.mean_term(term, mean) for term in terms]
                share = parts[0] if len(parts) == 1 else _gpu.stacked_sum(self.device, parts)
            chunk.finish(sums, share, metric, square, out)

        return self.run(prior, (), write)

    def output_variance(self, prior: str) -> Any:
        """Return the variance of y at the last level."""
        return self.run(prior, (self.dim,), lambda chunk, out: chunk.variances(out))

    def trajectory(self, prior: str) -> Any:
        """Return the variance of y at every level."""
        shape = int(self.levels.shape[1]), self.dim
        return self.run(prior, shape, lambda chunk, out: chunk.level_variances(out))

    @property
    def dim(self) -> int:
        """Number of eigenvalues."""
        return len(self.spectrum) if self.spectrum is not None else int(self.eigenvalues.shape[0])


_means: dict[tuple[int, int], tuple[Any, Any, float]] = {}


def mean_weights(device: Any, spectrum: Spectrum) -> tuple[Any, float]:
    """Return the squares of the mean times the counts on the device, and their sum; kept as long as the mean is."""
    mean, counts = spectrum.mean, spectrum.counts
    assert mean is not None
    key = id(device), id(mean)
    found = _means.get(key)
    if found is None or found[0]() is not mean:
        squares = np.square(mean) if counts is None else counts * np.square(mean)
        found = (
            weakref.ref(mean, lambda _: _means.pop(key, None)),
            device.upload(squares),
            float(squares.sum()),
        )
        _means[key] = found
    return found[1:]
