"""A sweep as loops over fastkl.divergence: every candidate by itself, all in one list, slow and obvious.

Axes are lists of numbers here; the levels come from the public functions of fastkl.discretize.
"""

import itertools
from functools import cache

import numpy as np

import fastkl
from fastkl import discretize


def grid(family):
    """The parameters of a family's candidates, the last key varying fastest."""
    lists = {key: value for key, value in family.items() if isinstance(value, list)}
    for values in itertools.product(*lists.values()):
        yield {**family, **dict(zip(lists, values, strict=True))}


@cache
def geodesic(schedule, steps, spectrum):
    """Geodesic levels, which take long."""
    return discretize.geodesic(schedule, steps, spectrum)


def levels_of(schedule, steps, parameters, spectrum):
    """The levels of one candidate, moved to timesteps where there are any; None if it has none."""
    parameters = dict(parameters)
    family, snap = parameters.pop("family"), parameters.pop("snap", schedule.is_discrete)
    if family in ("power_uniform", "quadratic"):
        parameters["snap"] = snap
    try:
        if family == "geodesic":
            levels = geodesic(schedule, steps, spectrum)
        else:
            levels = getattr(discretize, family)(schedule, steps, **parameters)
        if snap:
            levels = discretize.snap(schedule, levels)
    except ValueError:
        return None
    return levels if levels[-2] >= schedule.sigma_min else None


def rows(spectra, schedules, steps, samplers, families, metrics, priors):
    """A dict for each candidate, in order of index; value is nan where there are no levels."""
    index = 0
    slow = [family for family in families if family["family"] == "geodesic"]
    for some in ([family for family in families if family not in slow], slow):
        cells = itertools.product(schedules.items(), steps, samplers, some, spectra.items(), metrics, priors)
        for (schedule_name, schedule), count, sampler, family, (name, spectrum), metric, prior in cells:
            prior = schedule.prior if prior == "schedule" else prior
            for parameters in grid(family):
                levels = levels_of(schedule, count, parameters, spectrum)
                value = np.nan
                if levels is not None:
                    value = fastkl.divergence(spectrum, levels, metric, sampler, prior)
                yield {
                    "index": index, "spectrum": name, "schedule": schedule_name, "steps": count, "sampler": sampler,
                    "family": family["family"], "metric": metric, "prior": prior, "parameters": parameters,
                    "levels": levels, "value": value,
                }  # fmt: skip
                index += 1


def best(all_rows, keep, per, distinct=True):
    """The `keep` best rows of each group, by value, then by index; of equal levels on one problem only the first."""
    groups = {}
    for row in sorted(
        (r for r in all_rows if not np.isnan(r["value"])), key=lambda r: (r["value"], r["index"])
    ):
        group, seen = groups.setdefault(tuple(row[key] for key in per), ([], set()))
        problem = (row["schedule"], row["sampler"], row["spectrum"], row["metric"], row["prior"])
        key = (problem, row["levels"].tobytes())
        if len(group) < keep and not (distinct and key in seen):
            group.append(row)
        seen.add(key)
    return {key: group for key, (group, _) in groups.items()}
