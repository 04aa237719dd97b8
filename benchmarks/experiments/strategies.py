"""The ways to choose levels that the comparison runs, by name: a function of the number of evaluations each.

For DDPM models all levels are moved to timesteps of the table, as pipelines take them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

import fastkl
from fastkl import NoiseSchedule, Spectrum, discretize

Floats = NDArray[np.float64]
Choose = Callable[[int], Floats]

FLOORS = (1e-4, 1e-3, 1e-2, 1e-1)
GAMMAS = (0.25, 0.5, 1.0, 2.0)
METRICS = ("kl", "reverse_kl", "jeffreys", "w2")
STARTS = (5.0, 10.0, 20.0, 40.0)  # first levels that a user could try without a spectrum


@dataclass(frozen=True)
class Situation:
    """What a choice of levels may depend on."""

    schedule: NoiseSchedule
    sampler: str
    covariance: Spectrum
    effective: Spectrum | None  # None: no Gaussian has the model's errors
    sigma_data: float
    useful_max: float  # greatest level at which the model beats the mean of the data

    @property
    def spectra(self) -> tuple[str, ...]:
        """Names of the spectra that there are."""
        return ("cov",) if self.effective is None else ("cov", "eff")

    def spectrum(self, name: str, floor: float) -> Spectrum:
        """The covariance spectrum or the effective one, with a floor."""
        found = self.covariance if name == "cov" else self.effective
        if found is None:
            raise ValueError("the model has no effective spectrum")
        return found.floored(floor) if floor else found


def tangent_by(situation: Situation, spectrum: Spectrum, metric: str, steps: int) -> Floats:
    """Tangent law carried to 0 with the gamma that has the least divergence of 400 tried."""
    gammas = np.geomspace(1e-4, 1e2, 400)
    levels = discretize.tangent(situation.schedule, steps, gamma=gammas, sigma_min=0.0)
    values = fastkl.divergence(spectrum, levels, metric, situation.sampler, situation.schedule.prior)
    return np.asarray(levels[int(np.argmin(values))])


def beta_levels(schedule: NoiseSchedule, steps: int) -> Floats:
    """Quantiles of a Beta(0.6, 0.6) distribution of the time, then 0 (Lee et al. 2024).

    The time of an EDM schedule is here that of its own law (Karras with rho = 7).
    """
    times = beta.ppf(1.0 - np.arange(steps) / steps, 0.6, 0.6)
    last = schedule.num_train_timesteps
    levels = schedule.sigmas(times if last is None else np.rint(times * (last - 1)))
    return np.append(levels, 0.0)


def searched(situation: Situation, spectrum: Spectrum, metric: str, steps: int) -> Floats:
    """fastkl's optimum."""
    best = fastkl.search(spectrum, situation.schedule, steps, situation.sampler, metric, time_limit=60.0)
    return np.asarray(best.sigmas)


@functools.cache  # the strategies that start where it does ask for it again
def searched_start(
    situation: Situation, name: str, most: float, steps: int, metric: str = "w2", floor: float = 0.0
) -> Floats:
    """fastkl's optimum, the first level chosen too; what the first noise then lacks of the data is counted."""
    schedule = situation.schedule
    if schedule.num_train_timesteps is None:
        lower = NoiseSchedule.edm(schedule.sigma_min, most)
    else:
        table = schedule.sigmas(np.arange(schedule.num_train_timesteps))
        lower = NoiseSchedule.from_alphas_cumprod(1.0 / (1.0 + np.square(table[table <= most])))
    best = fastkl.search(
        situation.spectrum(name, floor), lower, steps, situation.sampler, metric, schedule.prior,
        free_start=True, time_limit=60.0,
    )  # fmt: skip
    return np.asarray(best.sigmas)


def tangent_start(situation: Situation, name: str, most: float, steps: int) -> Floats:
    """Tangent law carried to 0, gamma and first level of the least w2."""
    schedule = situation.schedule
    gammas, starts = np.meshgrid(np.geomspace(1e-3, 1e2, 160), np.geomspace(0.01, 1.0, 60), indexing="ij")
    starts = starts.ravel() * most
    levels = discretize.tangent(schedule, steps, gammas.ravel(), sigma_min=0.0, sigma_max=starts)
    values = fastkl.divergence(
        situation.spectrum(name, 0.0), levels, "w2", situation.sampler, schedule.prior, rtol=1e-6
    )
    return np.asarray(levels[int(np.argmin(values))])


def from_start(situation: Situation, law: Callable[..., Floats], steps: int) -> Floats:
    """A law without a spectrum from the first level that fastkl's optimum has: what the first level alone is worth."""
    first = float(searched_start(situation, "eff", situation.schedule.sigma_max, steps)[0])
    return law(situation.schedule, steps, sigma_max=first)


def fixed(s: Situation) -> dict[str, Choose]:
    """Laws without a spectrum, and the tangent law with gammas from tools and papers."""
    schedule = s.schedule
    low = schedule.sigma_min
    found: dict[str, Choose] = {"beta": partial(beta_levels, schedule)}
    if schedule.num_train_timesteps is not None:
        found |= {
            f"uniform-{spacing}": partial(discretize.uniform, schedule, spacing=spacing)
            for spacing in ("linspace", "leading", "trailing")
        }
        found["quadratic"] = partial(discretize.quadratic, schedule)
        found |= {
            f"power-uniform-{power:g}": partial(discretize.power_uniform, schedule, power=power)
            for power in (1.5, 3.0, 4.0)
        }
    for rho in (1.0, 2.0, 3.0, 5.0, 7.0, 10.0):
        found[f"karras-{rho:g}"] = partial(discretize.karras, schedule, rho=rho)
    for least in (0.02, 0.1):
        found |= {
            f"karras-{rho:g}-min{least:g}": partial(discretize.karras, schedule, rho=rho, sigma_min=least)
            for rho in (3.0, 7.0)
        }
        found[f"exponential-min{least:g}"] = partial(discretize.exponential, schedule, sigma_min=least)
    found["exponential"] = partial(discretize.exponential, schedule)
    gammas = {f"{gamma:g}": gamma for gamma in GAMMAS} | {"data": s.sigma_data**2}
    for name, gamma in gammas.items():
        found[f"tan-{name}-to0"] = partial(discretize.tangent, schedule, gamma=gamma, sigma_min=0.0)
        found[f"tan-{name}-min"] = partial(discretize.tangent, schedule, gamma=gamma, sigma_min=low)
    return found


def by_covariance(s: Situation) -> dict[str, Choose]:
    """Laws and optima that the covariance spectrum chooses."""
    found: dict[str, Choose] = {}
    for floor in FLOORS:
        spectrum = s.spectrum("cov", floor)
        gamma = fastkl.tangent_gamma(spectrum)
        found[f"tangent-star-{floor:g}"] = partial(discretize.tangent, s.schedule, gamma=gamma, sigma_min=0.0)
        found[f"geodesic-{floor:g}"] = partial(discretize.geodesic, s.schedule, spectrum=spectrum)
        for metric in METRICS:
            found[f"search-{metric}-cov-{floor:g}"] = partial(searched, s, spectrum, metric)
    found["search-w2-cov-0"] = partial(searched, s, s.covariance, "w2")
    found["search-kl-cov-0.01-free"] = partial(
        searched_start, s, "cov", s.schedule.sigma_max, metric="kl", floor=1e-2
    )
    return found | laws_by_metric(s, "cov")


def laws_by_metric(s: Situation, name: str) -> dict[str, Choose]:
    """Tangent laws whose gamma a divergence chooses."""
    spectra = {metric: s.spectrum(name, 0.0 if metric == "w2" else 1e-2) for metric in METRICS}
    found: dict[str, Choose] = {
        f"tangent-{metric}-{name}": partial(tangent_by, s, spectra[metric], metric) for metric in METRICS
    }
    for suffix, most in (("free", s.schedule.sigma_max), ("free-useful", s.useful_max)):
        found[f"tangent-w2-{name}-{suffix}"] = partial(tangent_start, s, name, most)
        found[f"search-w2-{name}-{suffix}"] = partial(searched_start, s, name, most)
    return found


def then_least(schedule: NoiseSchedule, choose: Choose, steps: int) -> Floats:
    """One level fewer, and the least level of the schedule in the end.

    A solver with a memory takes its last step, to 0, with order 1: from the least level that step has nothing to do.
    """
    return np.append(choose(steps - 1)[:-1], [schedule.sigma_min, 0.0])


def for_memory(s: Situation) -> dict[str, Choose]:
    """Levels for DPM-Solver++ 2M that its own w2 does not choose."""
    found: dict[str, Choose] = {}
    most, ddim = s.schedule.sigma_max, replace(s, sampler="ddim")
    for name in s.spectra:
        search, tangent = partial(searched_start, ddim, name, most), partial(tangent_start, ddim, name, most)
        found[f"search-w2-{name}-free-ddim"] = search
        found[f"search-w2-{name}-free-ddim-low"] = partial(then_least, s.schedule, search)
        found[f"tangent-w2-{name}-free-ddim-low"] = partial(then_least, s.schedule, tangent)
    return found


def from_levels(s: Situation) -> dict[str, Choose]:
    """Laws without a spectrum from lower first levels than the model's."""
    laws: dict[str, Callable[..., Floats]] = {
        "karras-3": partial(discretize.karras, s.schedule, rho=3.0),
        "karras-7": partial(discretize.karras, s.schedule, rho=7.0),
        "exponential-min0.1": partial(discretize.exponential, s.schedule, sigma_min=0.1),
        "tan-1-to0": partial(discretize.tangent, s.schedule, gamma=1.0, sigma_min=0.0),
        "tan-2-to0": partial(discretize.tangent, s.schedule, gamma=2.0, sigma_min=0.0),
    }
    return {
        f"{name}-from{first:g}": partial(law, sigma_max=first)
        for first in STARTS
        for name, law in laws.items()
    }


def by_errors(s: Situation) -> dict[str, Choose]:
    """Laws and optima that the effective spectrum chooses."""
    found: dict[str, Choose] = {"search-w2-eff-0": partial(searched, s, s.spectrum("eff", 0.0), "w2")}
    for metric in METRICS:
        for floor in FLOORS:
            found[f"search-{metric}-eff-{floor:g}"] = partial(searched, s, s.spectrum("eff", floor), metric)
    found["search-kl-eff-0.1-free-useful"] = partial(
        searched_start, s, "eff", s.useful_max, metric="kl", floor=0.1
    )
    found["karras-7-start"] = partial(from_start, s, partial(discretize.karras, rho=7.0))
    found["tan-1-to0-start"] = partial(from_start, s, partial(discretize.tangent, gamma=1.0, sigma_min=0.0))
    return found | laws_by_metric(s, "eff")


def all_of(s: Situation) -> dict[str, Choose]:
    """Every strategy that chooses levels without drawing samples."""
    found = fixed(s) | from_levels(s) | by_covariance(s)
    if s.sampler != "ddim":
        found |= for_memory(s)
    return found if s.effective is None else found | by_errors(s)


def on_table(schedule: NoiseSchedule, levels: Floats) -> Floats:
    """Levels moved to the timesteps of a discrete schedule."""
    return levels if schedule.num_train_timesteps is None else np.asarray(discretize.snap(schedule, levels))


def levels(s: Situation, choose: Choose, steps: int) -> Floats:
    """Levels of one strategy, on the table for a discrete schedule."""
    return on_table(s.schedule, np.asarray(choose(steps)))
