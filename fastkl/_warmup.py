"""Compilation of the kernels ahead of the first call. (A module called `warmup` would hide the function.)"""

from __future__ import annotations

import time

import numpy as np

from fastkl._exhaustive import exhaustive
from fastkl._search import search
from fastkl._validation import choice
from fastkl.evaluate import METRICS, divergence, output_variance, trajectory
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["warmup"]


def warmup(*, backend: str = "cpu") -> float:
    """Compile every kernel of a backend now, or load it if it is in the cache on disk.

    Without it the first call of each kind does this. Every metric, the pair arithmetic that nearly exact schedules
    need, counts, a mean, `output_variance` and `trajectory` are evaluated once on tiny problems, for each kind of
    sampler; and there is a tiny compression, search and exhaustive evaluation.

    Parameters
    ----------
    backend : {"cpu", "gpu"}
        Whose kernels. "gpu" loads what was compiled ahead of time or has CuPy compile it, which keeps it on disk.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    RuntimeError
        If `backend` is "gpu" and the package, the driver or the device is missing.

    Notes
    -----
    Some thirty seconds the first time, some tenths of a second once the kernels are cached, next to
    nothing when repeated.

    On a GPU every kernel is loaded on the device that CuPy has current. Without it the first calls may wait for the
    whole device, because the driver loads each kernel at its first launch.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.warmup() >= 0.0
    True
    """
    began = time.perf_counter()
    choice("backend", backend, ("cpu", "gpu"))
    if backend == "gpu":
        from fastkl import _gpu_device

        with _gpu_device.current_device() as device:
            device.load_all()
    else:
        run_all_kernels()
    return time.perf_counter() - began


def run_all_kernels() -> None:
    """Evaluate tiny problems that use every CPU kernel."""
    coarse = np.array([[10.0, 1.0, 0.0], [20.0, 2.0, 0.0]])
    fine = np.geomspace(1.001, 1.0, 3)  # loses next to nothing: the divergence cancels unless pairs are used
    plain = np.array([2.0, 1.0])
    full = Spectrum(plain, counts=[1.0, 2.0], mean=[0.5, 0.0])
    for metric in METRICS:
        for prior in ("vp", "exact"):
            for spectrum in (plain, full):
                divergence(spectrum, coarse, metric, prior=prior, backend="cpu")
                divergence(spectrum, fine, metric, prior=prior, backend="cpu")
    for sampler in (
        "ddim",
        "plms",
        "euler_ancestral",
    ):  # DDIM's kernels, those without noise, those with noise
        for levels in (coarse, fine):
            divergence(plain, levels, sampler=sampler, prior="exact")
            divergence(full, levels, sampler=sampler, prior="exact")
        output_variance(plain, coarse, sampler=sampler)
        trajectory(plain, coarse, sampler=sampler)
    output_variance(np.array([1e-9]), coarse, sampler="lms")  # so small that the precise kernel is asked
    full.compress(1e-3)
    schedule = NoiseSchedule.ddpm_linear(20)
    for sampler in ("ddim", "heun"):
        search(plain, schedule, 3, sampler)
    search(plain, schedule, 3, metric="reverse_kl", prior="exact")
    search(full, schedule, 3, metric="reverse_kl")  # negative weights: the full table
    exhaustive(plain, schedule, 2)
