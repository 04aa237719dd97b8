"""What `fastkl rank` scores: for each sampler, the candidates of as many steps as its evaluations allow."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastkl import samplers
from fastkl.cli.candidates import Candidates, all_candidates
from fastkl.cli.errors import InputError
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["Entry", "entries", "sampler_names"]

Array = NDArray[np.float64]
STEPS = 10  # unless the command line says otherwise


@dataclass
class Entry:
    """One sampler, its number of steps, its candidates and, once scored, their divergences."""

    sampler: str
    steps: int
    candidates: Candidates
    values: Array


def sampler_names(text: str) -> list[str]:
    """Return the samplers of a list with commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in samplers.names():
            known = ", ".join(samplers.names())
            raise argparse.ArgumentTypeError(f"no sampler is called {name!r}; there are {known}")
    return names


def entries(arguments: argparse.Namespace, schedule: NoiseSchedule, spectrum: Spectrum) -> list[Entry]:
    """Return an entry for each sampler asked for; those of equal steps share their candidates."""
    result, made = [], {}
    for name in arguments.samplers:
        steps = arguments.steps or STEPS
        if arguments.nfe is not None:
            steps = samplers.steps_for(name, arguments.nfe)
        if steps not in made:
            made[steps] = all_candidates(
                schedule, spectrum, steps, arguments.candidates_per_family, arguments.snap
            )
        candidates = possible(name, steps, made[steps])
        result.append(Entry(name, steps, candidates, np.empty(len(candidates.levels))))
    return result


def possible(name: str, steps: int, candidates: Candidates) -> Candidates:
    """Return the candidates that a sampler can run, or raise if there are none."""
    sampler = samplers.get(name)
    if sampler.above_zero:
        raise InputError(f"--samplers {name}: needs a last level above 0, and every candidate here ends at 0")
    if steps < sampler.least_steps:
        raise InputError(f"--samplers {name}: needs at least {sampler.least_steps} steps")
    if not sampler.finite_start:
        return candidates
    finite = np.isfinite(candidates.levels[:, 0])
    if not finite.any():
        raise InputError(
            f"--samplers {name}: needs a finite first level, and every candidate here starts at inf"
        )
    return candidates.where(finite)
