"""The auditor's findings: each looks at one thing that can be wrong with a scheduler as it ships."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastkl.integrations._path import Path, alphas
from fastkl.integrations._predict import Output, divergence_of, predict
from fastkl.spectrum import Spectrum

__all__ = ["Finding", "Situation", "findings"]

TOLD = 1e-3  # relative difference between the level told and that visited that is worth a word
SHORT = 1e-3  # by which the first level may miss the noisiest
OFF = 0.05  # relative error of a variance that is worth a word
PRIOR = 0.01  # relative error of the first variance that is worth a word


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a scheduler.

    Parameters
    ----------
    code : str
        What kind of thing.
    message : str
        It in words, with numbers.
    numbers : dict
        The numbers.
    """

    code: str
    message: str
    numbers: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain numbers and strings, for JSON.

        Returns
        -------
        dict
            Code, message and numbers.

        Examples
        --------
        >>> Finding("wasted_step", "the last evaluation changes nothing", {"step": 9.0}).as_dict()["code"]
        'wasted_step'
        """
        return {"code": self.code, "message": self.message, "numbers": dict(self.numbers)}


@dataclass(frozen=True, eq=False)
class Situation:
    """All that findings look at."""

    reading: Any
    path: Path
    sampler: Any
    spectrum: Spectrum
    output: Output
    metric: str
    value: float
    failure: str | None

    def value_of(self, path: Path, sampler: Any = None, **options: Any) -> float:
        """Return the divergence under other circumstances."""
        rule = self.sampler if sampler is None else sampler
        output = predict(path, rule, self.spectrum.eigenvalues, self.reading.prediction, **options)
        return divergence_of(self.spectrum, output, self.metric)

    def against(self, other: float) -> str:
        """Return the divergence beside another."""
        return f"{self.metric} {self.value:.4g}, {other:.4g} without that"


def findings(situation: Situation) -> Iterator[Finding]:
    """Yield all findings."""
    if situation.failure is not None:
        yield Finding("fails", situation.failure, {})
        return
    for look in (wasted_steps, told_timestep, other_level, wrong_entry, shift_twice, first_level, prior_mismatch,
                 noise_at_last, ends_above_zero, variances):  # fmt: skip
        yield from look(situation)


def wasted_steps(s: Situation) -> Iterator[Finding]:
    """Evaluations after which the state is as before."""
    for k in s.path.wasted:
        level = float(s.path.here[k])
        which = "the last" if k == s.path.steps - 1 else f"number {k + 1}"
        message = (
            f"{which} of {s.path.steps} steps goes from sigma {level:.4g} to the same level: it is wasted"
        )
        yield Finding("wasted_step", message, {"step": k, "sigma": level})


def told_timestep(s: Situation) -> Iterator[Finding]:
    """Timesteps of other levels than those that are visited."""
    finite = np.isfinite(s.path.here) & np.isfinite(s.path.told)
    gap = np.zeros(s.path.steps)
    gap[finite] = s.path.told[finite] / s.path.here[finite] - 1.0
    k = int(np.argmax(np.abs(gap)))
    if abs(gap[k]) <= TOLD:
        return
    ideal = s.value_of(s.path, as_told=False)
    message = (
        f"at step {k + 1} the network is told timestep {s.path.timesteps[k]:g}, sigma {s.path.told[k]:.4g}, where the "
        f"state has sigma {s.path.here[k]:.4g} ({100 * gap[k]:+.1f} %); {s.against(ideal)}"
    )
    yield Finding("told_timestep", message, {
        "step": k, "timestep": float(s.path.timesteps[k]), "told": float(s.path.told[k]),
        "visited": float(s.path.here[k]), "relative": float(gap[k]), "value_without": ideal,
    })  # fmt: skip


def before_table(s: Situation) -> Any:
    """Return where the timestep is -1, one before the table; EDM has negative timesteps and no table."""
    return (s.path.timesteps == -1.0) & (s.reading.schedule.num_train_timesteps is not None)


def other_level(s: Situation) -> Iterator[Finding]:
    """Steps that end at another level than the one that is evaluated next, wrong table entries apart."""
    next_level, end = s.path.here[1:], s.path.there[:-1]
    known = ~before_table(s)[1:]
    gap = np.where(known, end / next_level - 1.0, 0.0)
    k = int(np.argmax(np.abs(gap))) if len(gap) else 0
    if not len(gap) or abs(gap[k]) <= TOLD:
        return
    chain = replace(s.path, there=np.append(np.where(known, next_level, end), s.path.there[-1]))
    repaired = s.value_of(chain)
    message = (
        f"step {k + 1} ends at sigma {end[k]:.4g}, the next evaluation takes the state to have sigma "
        f"{next_level[k]:.4g}; {s.against(repaired)}"
    )
    yield Finding("inconsistent_step", message, {
        "step": k, "stepped_to": float(end[k]), "evaluated_at": float(next_level[k]), "relative": float(gap[k]),
        "value_without": repaired,
    })  # fmt: skip


def wrong_entry(s: Situation) -> Iterator[Finding]:
    """Timestep -1, which reads the noisiest entry of the table; or a last level that is not the one asked for."""
    negative = np.flatnonzero(before_table(s))
    for k in negative.tolist():
        level, noisiest = float(s.path.here[k]), s.path.here[k] >= s.path.here[0]
        read_as = (
            f"reads the noisiest entry, sigma {level:.4g}" if noisiest else f"is clamped to sigma {level:.4g}"
        )
        message = f"{s.path.steps} timesteps are made, the last one {s.path.timesteps[k]:g}, which {read_as}"
        numbers = {"step": k, "timestep": float(s.path.timesteps[k]), "sigma": level}
        if noisiest:
            shorter = replace(
                s.path, here=s.path.here[:k], told=s.path.told[:k], timesteps=s.path.timesteps[:k],
                there=np.append(s.path.here[1:k], s.path.there[-1]),
            )  # fmt: skip
            numbers["value_without"] = s.value_of(shorter)
            message += f"; {s.against(numbers['value_without'])}"
        yield Finding("wrong_table_entry", message, numbers)
    last = float(s.path.there[-1])
    if s.reading.last_step == "zero" and last > 0.0:
        message = f"the last step ends at sigma {last:.4g}, where final_sigmas_type = 'zero' says 0"
        yield Finding("wrong_table_entry", message, {"step": s.path.steps - 1, "sigma": last})


def shift_twice(s: Situation) -> Iterator[Finding]:
    """The last level of flow matching, whose sigma_min is shifted when the object is made and again for a schedule."""
    shift, config = s.reading.shift, s.path.config
    if shift is None or shift == 1.0 or not s.reading.name.startswith("FlowMatch"):
        return
    least = 1.0 / config.num_train_timesteps
    once = shift * least / (1.0 + (shift - 1.0) * least)
    twice = shift * once / (1.0 + (shift - 1.0) * once)
    last = float(s.path.here[-1] / (1.0 + s.path.here[-1]))
    if abs(last / twice - 1.0) < 1e-3:
        message = f"the last sigma is {last:.4g}: shifted twice by {shift:g}; once makes {once:.4g}"
        yield Finding("shifted_twice", message, {"sigma": last, "once": once})


def first_level(s: Situation) -> Iterator[Finding]:
    """Sampling that starts below the noisiest level of the training."""
    first, noisiest = float(s.path.here[0]), s.reading.schedule.sigma_max
    if not first < noisiest * (1.0 - SHORT):
        return
    if np.isinf(noisiest) and first > 100.0:
        return  # a flow's sigma of 0.99 and more
    message = (
        f"the first level is sigma {first:.4g}, the noisiest of the training {noisiest:.4g} is not visited"
    )
    yield Finding("first_level_short", message, {"sigma": first, "noisiest": noisiest})


def prior_mismatch(s: Situation) -> Iterator[Finding]:
    """A first state with another variance than the data with that much noise has."""
    first = s.path.here[0]
    if np.isinf(first):
        return
    true = s.spectrum.eigenvalues + first**2
    ratio = s.path.start_variance / true
    k = int(np.argmax(np.abs(np.log(ratio))))
    if abs(ratio[k] - 1.0) <= PRIOR:
        return
    exact = s.value_of(s.path, start_variance=true)
    message = (
        f"the first state has variance {s.path.start_variance:.4g} at sigma {first:.4g}, {ratio[k]:.3g} times what "
        f"eigenvalue {s.spectrum.eigenvalues[k]:.4g} should have; {s.against(exact)}"
    )
    yield Finding("prior_mismatch", message, {
        "sigma": float(first), "eigenvalue": float(s.spectrum.eigenvalues[k]), "ratio": float(ratio[k]),
        "value_without": exact,
    })  # fmt: skip


def noise_at_last(s: Situation) -> Iterator[Finding]:
    """DDPM's fixed_large noise on a last step from a timestep above 0."""
    if (
        s.reading.name != "DDPMScheduler"
        or s.path.config.variance_type != "fixed_large"
        or s.path.timesteps[-1] <= 0
    ):
        return
    here = float(s.path.here[-1])
    added = here**2 / (1.0 + here**2)
    message = (
        f"the last step, from timestep {s.path.timesteps[-1]:g}, adds noise of variance {added:.4g} to every "
        "eigenvalue of the samples"
    )
    yield Finding("noise_at_last", message, {"variance": added})


def ends_above_zero(s: Situation) -> Iterator[Finding]:
    """Samples that keep some noise."""
    last = float(s.path.there[-1])
    if last > 0.0:
        noise = (
            last**2 if s.path.coordinates == "ve" else float((last * alphas(last, s.path.coordinates)) ** 2)
        )
        message = f"the last level is sigma {last:.4g}: samples keep noise of variance {noise:.4g}"
        yield Finding("ends_above_zero", message, {"sigma": last, "variance": noise})


def variances(s: Situation) -> Iterator[Finding]:
    """Eigenvalues of which the samples have too much or too little variance."""
    values = s.spectrum.eigenvalues
    above = values > 0.0
    ratio = s.output.variance[above] / values[above]
    counts = np.ones(len(values)) if s.spectrum.counts is None else s.spectrum.counts
    total = float((counts * s.output.variance).sum() / (counts * values).sum())
    missing = (counts * (values - s.output.variance))[above]  # by the variance that is lost, not by its share
    for code, k, bad in (
        ("variance_inflated", int(np.argmax(ratio)), ratio > 1.0 + OFF),
        ("variance_lost", int(np.argmax(np.where(ratio < 1.0 - OFF, missing, -np.inf))), ratio < 1.0 - OFF),
    ):
        if not bad.any():
            continue
        share = float(counts[above][bad].sum() / counts.sum())
        message = (
            f"eigenvalue {values[above][k]:.4g} comes out with {ratio[k]:.4g} times its variance; {100 * share:.3g} % "
            f"of all directions are off by more than {100 * OFF:g} % this way; all variance together {total:.4g} times"
        )
        yield Finding(code, message, {"eigenvalue": float(values[above][k]), "ratio": float(ratio[k]),
                                      "share": share, "total_ratio": total})  # fmt: skip
