"""What benchmarks/gpu.py checks: the GPU against the CPU over the tests' case table, and problems for sanitizers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import machine
import numpy as np

import fastkl
from fastkl import samplers

sys.path.append(str(machine.ROOT / "tests"))
import cases

__all__ = ["AGREEMENT", "agreement", "small_problems"]

AGREEMENT = 1e-12  # largest relative difference that passes


def difference(got: Any, expected: Any) -> float:
    """Return the largest relative difference; equal infinities differ by 0, a NaN by inf."""
    got, expected = np.asarray(got), np.asarray(expected)
    with np.errstate(all="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got / expected - 1.0))
    return float(np.where(np.isnan(error), np.inf, error).max())


def on_both(function: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Return how much a call's results on the GPU and on the CPU differ."""
    return difference(*(function(*arguments, backend=backend, **options) for backend in ("gpu", "cpu")))


def agreement() -> dict[str, float]:
    """Return the largest difference from the CPU for each metric, function and sampler over the case table."""
    worst: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        worst[name] = max(worst.get(name, 0.0), value)

    for shape, make, prior in itertools.product(
        cases.SMALL_SHAPES.values(), cases.SPECTRA.values(), cases.PRIORS
    ):
        spectrum = fastkl.Spectrum(**make(shape[0]))
        for schedule in cases.SCHEDULES.values():
            levels = schedule(*shape[1:])
            for metric in cases.METRICS:
                note(metric, on_both(fastkl.divergence, spectrum, levels, metric, prior=prior))
            for function in (fastkl.output_variance, fastkl.trajectory):
                note(function.__name__, on_both(function, spectrum, levels, prior=prior))
    for name in samplers.names():
        for schedule, steps, size in (("karras", 6, 1030), ("fine", 6, 7)):
            levels = cases.SCHEDULES[schedule](3, steps)
            if samplers.get(name).above_zero and levels[0, -1] == 0.0:
                levels = levels[:, :-1]
            spectrum = fastkl.Spectrum(**cases.with_mean(size))
            for function in (fastkl.divergence, fastkl.output_variance):
                note(name, on_both(function, spectrum, levels, sampler=name))
            gpu, cpu = (fastkl.trajectory(spectrum, levels, name, backend=b) for b in ("gpu", "cpu"))
            note(name, difference(gpu[:, -1], cpu[:, -1]))
            note(name, cases.variance_difference(gpu, cpu, spectrum.eigenvalues, levels))
    return worst


def small_problems() -> None:
    """Run every kernel on problems with tails: what compute-sanitizer looks at."""
    for (size, count), steps in itertools.product(((1, 1), (9, 33), (1033, 2)), (1, 4, 9, 17)):
        spectrum = fastkl.Spectrum(**cases.with_mean(size))
        for schedule, metric in itertools.product(("karras", "fine"), cases.METRICS):
            levels = cases.SCHEDULES[schedule](count, steps)
            fastkl.divergence(spectrum, levels, metric, prior="exact", backend="gpu")
            fastkl.divergence(spectrum, levels, metric, backend="gpu", precision="float32")
        for function, sampler in itertools.product(
            (fastkl.output_variance, fastkl.trajectory), ("ddim", "heun", "euler_ancestral")
        ):
            function(spectrum, cases.karras(count, 5), sampler=sampler, backend="gpu")
        for sampler, schedule in itertools.product(("heun", "unipc_3", "sde_dpmpp_2m"), ("karras", "fine")):
            fastkl.divergence(spectrum, cases.SCHEDULES[schedule](count, 5), sampler=sampler, backend="gpu")
