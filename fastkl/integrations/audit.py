"""What a diffusers scheduler does to the data as it ships: exact variances, and findings with numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._validation import choice
from fastkl.evaluate import METRICS, refuse_zero_eigenvalue
from fastkl.integrations._classes import custom_argument
from fastkl.integrations._findings import Finding, Situation, findings
from fastkl.integrations._levels import best_levels, with_variance
from fastkl.integrations._path import Path
from fastkl.integrations._predict import Output, divergence_of, predict
from fastkl.integrations.diffusers import Reading, optimize, read
from fastkl.spectrum import Spectrum

__all__ = ["Audit", "Better", "Finding", "audit"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Better:
    """The best schedule for as many evaluations of the network.

    Parameters
    ----------
    sigmas : ndarray, shape (N+1,)
        Its levels.
    value : float
        Divergence that the same sampler has on it.
    variance : ndarray, shape (d,)
        Of the samples along each eigenvalue.
    arguments : dict or None
        What ``pipe(...)`` takes; None where the class takes no schedule.
    reason : str or None
        Why it takes none.
    """

    sigmas: Array
    value: float
    variance: Array
    arguments: dict[str, Any] | None
    reason: str | None


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found out.

    Parameters
    ----------
    reading : Reading
        The scheduler in fastkl's terms.
    path : Path
        The levels that it visits, and the timesteps that it tells the network.
    sampler : Sampler or None
        Its update rule.
    evaluations : int
        How often it evaluates the network.
    eigenvalues : ndarray, shape (d,)
        Those of the data.
    variance : ndarray, shape (d,)
        Variance of the samples along each of them; nan where the scheduler fails.
    metric : str
        Which divergence.
    value : float
        Divergence between data and samples.
    findings : list of Finding
        What is wrong, with numbers.
    best : Better or None
        What the best schedule of the same cost would give; None where no schedule could be searched.
    """

    reading: Reading
    path: Path
    sampler: Any
    evaluations: int
    eigenvalues: Array
    variance: Array
    metric: str
    value: float
    findings: list[Finding]
    best: Better | None

    @property
    def ratio(self) -> Array:
        """Variance of the samples over that of the data, shape (d,); nan where that is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.eigenvalues > 0.0, self.variance / self.eigenvalues, np.nan)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings and lists, for JSON.

        Returns
        -------
        dict
            The scheduler, its levels, variances, findings and the best schedule.

        Examples
        --------
        >>> from diffusers import EulerDiscreteScheduler
        >>> audit(EulerDiscreteScheduler(), 5).as_dict()["evaluations"]
        5
        """
        reading, best = self.reading, self.best
        return {
            "scheduler": reading.name, "schedule": repr(reading.schedule), "sampler": repr(self.sampler),
            "prediction": reading.prediction, "prior": reading.prior, "spacing": reading.spacing,
            "last_step": reading.last_step, "evaluations": self.evaluations,
            "timesteps": self.path.timesteps.tolist(), "sigmas": self.path.levels.tolist(),
            "eigenvalues": self.eigenvalues.tolist(), "variance": self.variance.tolist(),
            "metric": self.metric, "value": self.value,
            "findings": [finding.as_dict() for finding in self.findings],
            "best": None if best is None else {
                "sigmas": best.sigmas.tolist(), "value": best.value, "variance": best.variance.tolist(),
                "arguments": plain(best.arguments), "call": called(best.arguments), "reason": best.reason,
            },
        }  # fmt: skip


def plain(arguments: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return arguments with lists in place of arrays and tensors."""
    if arguments is None:
        return None
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in arguments.items()}


def called(arguments: dict[str, Any] | None) -> str | None:
    """Return arguments as one writes them in a call, with the arrays and tensors that the class wants."""
    if arguments is None:
        return None
    return ", ".join(f"{name}={written(value)}" for name, value in arguments.items())


def written(value: Any) -> str:
    """Return a list, array or tensor as Python text (after import numpy as np, torch)."""
    if isinstance(value, np.ndarray):
        return f"np.array({value.tolist()})"
    return f"torch.tensor({value.tolist()}, dtype=torch.float64)" if hasattr(value, "tolist") else repr(value)


def audit(
    scheduler: Any,
    steps: int,
    spectrum: Spectrum | ArrayLike | None = None,
    metric: str = "w2",
    *,
    mu: float | None = None,
    eta: float = 0.0,
) -> Audit:
    """Predict what a scheduler makes of each eigenvalue as it ships, and list what is wrong with it.

    The network is the exact one of Gaussian data, at the timestep that the scheduler tells it.

    Parameters
    ----------
    scheduler : scheduler, pipeline, mapping, str or path
        As in `fastkl.integrations.diffusers.read`.
    steps : int
        Its ``num_inference_steps``.
    spectrum : Spectrum or array_like, shape (d,), optional
        Covariance spectrum of what the model generates. Default: that of MNIST.
    metric : {"w2", "kl", "reverse_kl", "jeffreys"}
        Which divergence.
    mu, eta : float
        As in `fastkl.integrations.diffusers.read`.

    Returns
    -------
    Audit
        Variances, findings, and what the best schedule of the same cost would give.

    Raises
    ------
    TypeError, ValueError
        As `fastkl.integrations.diffusers.read`; or for PNDM at levels that do not form a chain.
    ImportError
        If diffusers is not installed.

    Notes
    -----
    Errors are those of float32 in the scheduler: the variances agree with runs of the real classes to 1e-5.

    Examples
    --------
    >>> from diffusers import EulerDiscreteScheduler
    >>> report = audit(EulerDiscreteScheduler(final_sigmas_type="sigma_min"), 10)
    >>> [finding.code for finding in report.findings]
    ['wasted_step', 'ends_above_zero', 'variance_inflated', 'variance_lost']
    """
    reading = read(scheduler, mu=mu, eta=eta)
    data = with_variance(Spectrum.preset("mnist") if spectrum is None else spectrum)
    choice("metric", metric, METRICS)
    if metric != "w2":
        refuse_zero_eigenvalue(data, np.zeros((1, 2)), metric, isinstance(spectrum, Spectrum))
    path, evaluations, failure = reading.run(steps)
    sampler = None if failure else reading.sampler(path)
    nothing = np.full(len(data), np.nan)
    output = Output(nothing, nothing, 1.0)
    if sampler is not None:
        output = predict(path, sampler, data.eigenvalues, reading.prediction)
    value = divergence_of(data, output, metric)
    situation = Situation(reading, path, sampler, data, output, metric, value, failure)
    return Audit(
        reading, path, sampler, evaluations, data.eigenvalues, output.variance, metric, value,
        list(findings(situation)), better(situation, output),
    )  # fmt: skip


def better(s: Situation, output: Output) -> Better | None:
    """Return the best schedule of as many steps, through the class itself if it takes one; `output` as shipped."""
    reading, path = s.reading, s.path
    if s.sampler is None or (path.steps == 1 and np.isinf(reading.schedule.sigma_max)):
        return None  # from pure noise one step returns nothing, whatever it is
    try:
        custom_argument(reading.scheduler)
    except ValueError as error:
        found = without_class(s, str(error))
        if found is not None and not found.value <= s.value:
            return Better(path.levels, s.value, output.variance, None, str(error))
        return found
    best = optimize(reading.scheduler, s.spectrum, path.steps, s.metric, mu=reading.mu)
    made = predict(reading.path_of(best.arguments), best.sampler, s.spectrum.eigenvalues, reading.prediction)
    return Better(best.sigmas, best.value, made.variance, best.arguments, None)


def without_class(s: Situation, reason: str) -> Better | None:
    """Return what the sampler would make of the best levels if its class took them."""
    reading, path, sampler = s.reading, s.path, without_middles(s.sampler)
    found = best_levels(
        reading.schedule, s.spectrum, path.steps, s.metric, sampler, reading.prior, prove=False
    )
    levels = found.levels
    if sampler.finite_start and np.isinf(levels[0]):
        return None
    timesteps = np.zeros(path.steps)  # of which only DDPM's noise depends, and DDPM takes schedules
    std = path.start_std
    if path.coordinates == "ve":  # init_noise_sigma belongs to the first level
        std = float(levels[0] if reading.prior == "ve" else np.hypot(1.0, levels[0]))
    ideal = Path(levels[:-1], levels[1:], levels[:-1], timesteps, path.coordinates, std, path.config)
    output = predict(ideal, sampler, s.spectrum.eigenvalues, reading.prediction)
    return Better(levels, divergence_of(s.spectrum, output, s.metric), output.variance, None, reason)


def without_middles(sampler: Any) -> Any:
    """Return PNDM's Runge-Kutta sampler for other levels than those that its middles belong to."""
    from fastkl.samplers import prk

    return prk() if sampler.name == "prk" else sampler
