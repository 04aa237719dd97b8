"""Rules between keys: whether every family fits every schedule, number of steps and sampler, before any work."""

from __future__ import annotations

import math
from typing import Any

from fastkl._dispatch import backend_for
from fastkl.schedule import NoiseSchedule
from fastkl.sweeps.axes import Listed
from fastkl.sweeps.config import Geodesic, Uniform
from fastkl.sweeps.plan import Plan

__all__ = ["check"]


def check(plan: Plan) -> None:
    """Raise a ValueError with the key's path about the first combination that cannot be evaluated."""
    if plan.config.backend == "gpu":
        try:
            backend_for("gpu")
        except RuntimeError as error:
            raise ValueError(f"backend: must not be gpu here: {error}") from None
    for s, schedule in enumerate(plan.schedules):
        for f, family in enumerate(plan.config.families):
            check_family(f"families[{f}]", family, f"schedules[{s}]", schedule)
    check_budgets(plan)
    check_samplers(plan)
    check_searches(plan)
    check_finite(plan)


def check_family(path: str, family: Any, where: str, schedule: NoiseSchedule) -> None:
    """Raise if a family cannot make levels of a schedule."""
    count = schedule.num_train_timesteps
    if family.snap and count is None:
        raise ValueError(f"{path}.snap: must not be true for a continuous schedule, which {where} is")
    if isinstance(family, Uniform) and count is None and family.spacing != ["linspace"]:
        raise ValueError(
            f"{path}.spacing: must be linspace alone for a continuous schedule, which {where} is"
        )
    infinite = math.isinf(schedule.sigma_max)
    if family.family in ("power_uniform", "quadratic") and family.snap is False and infinite and count:
        raise ValueError(
            f"{path}.snap: must not be false where a discrete schedule starts at inf, as {where} does"
        )
    if family.family in ("karras", "exponential", "random", "tangent"):
        check_ends(path, family, where, schedule)


def check_ends(path: str, family: Any, where: str, schedule: NoiseSchedule) -> None:
    """Raise if the ends of a law are not within a schedule, or missing where the schedule's own do not do."""
    first, last = schedule.sigma_max, schedule.sigma_min
    if family.sigma_max is None and math.isinf(first) and family.family != "tangent":
        raise ValueError(f"{path}.sigma_max: must be given, because {where} starts at inf")
    if family.sigma_min is None and last == 0.0 and family.family in ("exponential", "random"):
        raise ValueError(f"{path}.sigma_min: must be given, because {where} ends at 0")
    if family.sigma_max is not None and family.sigma_max.bounds()[1] > first:
        value = family.sigma_max.bounds()[1]
        raise ValueError(f"{path}.sigma_max: must be at most {first!r}, where {where} starts (got {value!r})")
    if family.sigma_min is None:
        return
    low, high = family.sigma_min.bounds()
    if isinstance(family.sigma_min, Listed):
        inside = [x for x in family.sigma_min.numbers if x > 0.0]
        low, high = min(inside, default=last), max(inside, default=last)
    elif low == 0.0:
        raise ValueError(f"{path}.sigma_min: a range must not contain 0; write a family of its own for it")
    if low < last:
        raise ValueError(
            f"{path}.sigma_min: must be 0 or at least {last!r}, where {where} ends (got {low!r})"
        )
    top = first if family.sigma_max is None else family.sigma_max.bounds()[1]
    if high > top:
        raise ValueError(f"{path}.sigma_min: must not be above {top!r}, the largest sigma_max (got {high!r})")


def check_budgets(plan: Plan) -> None:
    """Raise if a sampler cannot do a number of steps or evaluations, or a schedule has too few timesteps."""
    key = "steps" if plan.config.nfe is None else "nfe"
    for b, budget in enumerate(plan.budgets):
        for name, sampler in zip(plan.sampler_names, plan.samplers, strict=True):
            try:
                steps = budget if key == "steps" else sampler.steps_for(budget)
            except ValueError:
                fewest = sampler.nfe(sampler.least_steps)
                raise ValueError(f"nfe[{b}]: must be at least {fewest} for {name} (got {budget})") from None
            if steps < sampler.least_steps:
                raise ValueError(
                    f"steps[{b}]: must be at least {sampler.least_steps} for {name} (got {budget})"
                )
            if plan.config.families:
                check_steps(plan, f"{key}[{b}]", budget, name, steps)


def check_steps(plan: Plan, where: str, budget: int, name: str, steps: int) -> None:
    """Raise if a schedule has fewer timesteps than steps, or if one step is to lead from inf to 0."""
    for s, schedule in enumerate(plan.schedules):
        count = schedule.num_train_timesteps
        if count is not None and steps > count:
            made = "" if steps == budget else f"; {name} does {steps} steps"
            raise ValueError(
                f"{where}: must be at most {count}, the timesteps of schedules[{s}] (got {budget}{made})"
            )
        if steps > 1 or math.isfinite(schedule.sigma_max) or plan.metrics == ["w2"]:
            continue
        for f, family in enumerate(plan.config.families):
            if getattr(family, "sigma_max", None) is None:
                raise ValueError(
                    f"{where}: must be more than one step for families[{f}] on schedules[{s}], which starts at inf: "
                    f"only w2 is finite then (got {budget})"
                )


def check_samplers(plan: Plan) -> None:
    """Raise if a sampler cannot run on candidates that start where they do and end at 0."""
    for i, (name, sampler) in enumerate(zip(plan.sampler_names, plan.samplers, strict=True)):
        if sampler.above_zero:
            raise ValueError(
                f"samplers[{i}]: {name} needs a last level above 0, and every candidate ends at 0"
            )
        if sampler.check is not None and dict(sampler.options).get("middles") is not None:
            raise ValueError(
                f"samplers[{i}]: {name} has middles, which go with the levels of one candidate only"
            )
        if not sampler.finite_start:
            continue
        for s, schedule in enumerate(plan.schedules):
            for f, family in enumerate(plan.config.families):
                if math.isinf(schedule.sigma_max) and getattr(family, "sigma_max", None) is None:
                    raise ValueError(
                        f"samplers[{i}]: {name} needs a finite first level; families[{f}] on schedules[{s}] "
                        "starts at inf"
                    )


def check_searches(plan: Plan) -> None:
    """Raise if a schedule's levels are too few for a search, or a step from inf to 0 is all that there would be."""
    key = "steps" if plan.config.nfe is None else "nfe"  # DDIM evaluates once a step
    for i, options in enumerate(plan.config.searches):
        for name, spectrum in zip(plan.spectrum_names, plan.spectra, strict=True):
            if not spectrum.eigenvalues.any():
                raise ValueError(
                    f"searches[{i}]: needs an eigenvalue above 0, which the spectrum {name!r} has not"
                )
        for s, schedule in enumerate(plan.schedules):
            count = schedule.num_train_timesteps or options.grid
            fewest = 2 if math.isinf(schedule.sigma_max) and not options.free_start else 1
            most = (count - 1) // options.min_spacing + 1
            for b, budget in enumerate(plan.budgets):
                if not fewest <= budget <= most:
                    raise ValueError(
                        f"{key}[{b}]: must be within {fewest} and {most} for searches[{i}] on schedules[{s}] "
                        f"(got {budget})"
                    )


def check_finite(plan: Plan) -> None:
    """Raise if a divergence is not finite because a spectrum has an eigenvalue of 0."""
    for m, metric in enumerate(plan.metrics):
        for name, spectrum in zip(plan.spectrum_names, plan.spectra, strict=True):
            if metric != "w2" and spectrum.eigenvalues.min() == 0.0:
                raise ValueError(
                    f"metrics[{m}]: {metric} is not finite for an eigenvalue of 0, which the spectrum {name!r} has; "
                    "give it a floor or use w2"
                )
    for f, family in enumerate(plan.config.families):
        for name, spectrum in zip(plan.spectrum_names, plan.spectra, strict=True):
            if isinstance(family, Geodesic) and spectrum.eigenvalues.min() == 0.0:
                raise ValueError(
                    f"families[{f}]: geodesic needs eigenvalues above 0, which the spectrum {name!r} has not"
                )
