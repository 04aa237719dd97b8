"""What a scheduler makes of each eigenvalue: its steps as fastkl knows them, with the network that it really asks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler, write_tape
from fastkl._sampler_dispatch import checked_sampler
from fastkl._sampler_program import last_uses
from fastkl._sampler_tape import Step
from fastkl.integrations._path import SAME, Path, alphas
from fastkl.spectrum import Spectrum

__all__ = ["Output", "divergence_of", "predict"]

Array = NDArray[np.float64]
# level -> factors of D and of e on the state at that level
Network = Callable[[float], tuple[Array, Array]]


class Output:
    """The last x along each eigenvalue: `variance` of it, and `gain` of the first y (of which the mean is missing)."""

    def __init__(self, variance: Array, gain: Array, alpha: float) -> None:
        self.variance, self.gain, self.alpha = variance, gain, alpha


def predict(
    path: Path,
    sampler: Sampler,
    eigenvalues: Array,
    prediction: str = "epsilon",
    *,
    as_told: bool = True,
    start_variance: Array | None = None,
) -> Output:
    """Return the output of a path.

    The network is the exact one of Gaussian data: at the level of the timestep that it is told, or, without `as_told`,
    at the level that is visited. `start_variance` (d,) takes the place of the scheduler's own.
    """
    start = np.full(len(eigenvalues), path.start_variance) if start_variance is None else start_variance
    network = network_of(path, eigenvalues, prediction, as_told)
    gain, noises = along(path, sampler, network, eigenvalues)
    alpha = 1.0 if path.coordinates == "ve" else float(alphas(path.there[-1], path.coordinates))
    variance = np.asarray(gain * gain * start + np.square(noises).sum(axis=0))
    lost = np.isinf(path.here[0])  # of the mean nothing is left in pure noise
    return Output(alpha * alpha * variance, np.zeros_like(gain) if lost else gain, alpha)


def network_of(path: Path, eigenvalues: Array, prediction: str, as_told: bool) -> Network:
    """Return the exact network as the scheduler reads its answer; at inf the state is the noise itself."""
    told = dict(zip(path.here.tolist(), path.told.tolist(), strict=True)) if as_told else {}

    def network(level: float) -> tuple[Array, Array]:
        if np.isinf(level):
            return np.zeros_like(eigenvalues), np.ones_like(eigenvalues)
        asked = told.get(level, level)
        if abs(asked - level) <= 1e-12 * level:
            return eigenvalues / (eigenvalues + level**2), level / (eigenvalues + level**2)
        return read_answer(prediction, eigenvalues, level, asked, path.coordinates)

    return network


def read_answer(
    prediction: str, eigenvalues: Array, level: float, asked: float, coordinates: str
) -> tuple[Array, Array]:
    """Return D/y and e/y where the network is asked about another level than that of the state."""
    alpha = alphas(level, coordinates)
    other = alphas(asked, coordinates)
    # of the input x = alpha y, taken to have the level `asked`
    noise = asked * other * alpha / (other**2 * (eigenvalues + asked**2))
    data = eigenvalues * other * alpha / (other**2 * (eigenvalues + asked**2))
    if prediction == "epsilon":
        return 1.0 - level * noise, noise
    if prediction == "sample":
        denoised = data
    elif prediction == "flow":
        denoised = alpha - level * alpha * (noise - data)
    else:
        denoised = alpha * alpha - level * alpha * (other * noise - asked * other * data)
    return denoised, (1.0 - denoised) / level


def along(path: Path, sampler: Sampler, network: Network, eigenvalues: Array) -> tuple[Array, Array]:
    """Return gain and noises (k, d) of the last y."""
    if path.is_chain:
        return through(sampler, falling(path.levels), network)
    if sampler.name not in ("ddim", "ddpm"):
        raise ValueError(
            f"sampler {sampler.name}: steps to other levels than it evaluates next, which can be predicted for "
            "one-step samplers only; use a number of steps that divides the training timesteps and leading spacing"
        )
    gain, noises = np.ones_like(eigenvalues), np.zeros((0, len(eigenvalues)))
    for k, (here, there) in enumerate(zip(path.here, path.there, strict=True)):
        if k > 0:  # x stays; y = x/alpha is taken with the alpha of the next evaluation
            scale = alphas(path.there[k - 1], path.coordinates) / alphas(here, path.coordinates)
            gain, noises = gain * scale, noises * scale
        if there != here:
            rule = last_noise(sampler, path.timesteps[k] > 0.0)
            factor, fresh = through(rule, np.array([here, there]), network)
            gain, noises = gain * factor, np.concatenate([noises * factor, fresh])
    return gain, noises


def last_noise(sampler: Sampler, noisy: bool) -> Sampler:
    """Return DDPM's step with noise, also to level 0, if its timestep is above 0."""
    from fastkl.samplers import ddpm

    return ddpm(dict(sampler.options)["variance"], bool(noisy)) if sampler.name == "ddpm" else sampler


def falling(levels: Array) -> Array:
    """Return levels of which the last, if it repeats the one before to float32, is moved just below."""
    levels = levels.copy()
    if len(levels) > 1 and levels[-2] <= levels[-1] <= levels[-2] * (1.0 + SAME):
        levels[-1] = np.nextafter(levels[-2], 0.0)
    valid = levels[1:] < levels[:-1]
    if not valid.all():
        k = int(np.argmin(valid))
        raise ValueError(
            f"levels[{k + 1}] = {levels[k + 1]!r}: must be below the level before it, {levels[k]!r}"
        )
    return levels


def through(sampler: Sampler, levels: Array, network: Network) -> tuple[Array, Array]:
    """Return gain and noises (k, d) of the last state of a sampler, step by step in float64."""
    checked_sampler(sampler, levels[None, :])
    tape, points = write_tape(sampler, levels[None, :])
    values = {0: network(float(levels[0]))}
    rows = 1 + sum(step.noise is not None for step in tape.steps)
    start = np.zeros((rows, len(values[0][0])))
    start[0] = 1.0  # of the first y; the other rows are of fresh noises
    states, drawn = {0: start}, 0
    final = points[-1].index
    kept_until, asked_until = last_uses(tape.steps, len(tape.steps) + 1)
    for step in tape.steps:
        new = stepped(step, states, values, tape.kind)
        if step.shared is not None:
            new[drawn] += float(step.shared[0])
        if step.noise is not None:
            drawn += 1
            new[drawn] += float(step.noise[0])
        index = step.point.index
        states[index] = new
        if asked_until[index] > 0:
            values[index] = network(float(step.point.level[0]))
        for old in [i for i in states if i != final and max(kept_until[i], asked_until[i]) <= index]:
            del states[old]
    return states[final][0], states[final][1:]


def stepped(step: Step, states: dict[int, Array], values: dict[int, tuple[Array, Array]], kind: str) -> Array:
    """Return the state after a step, but for its fresh noise."""
    which = 0 if kind == "data" else 1

    def f(index: int, which: int) -> Array:
        return np.asarray(states[index] * values[index][which])

    here, function = float(step.base.level[0]), step.function.index
    kept = float(step.keep[0]) / (1.0 if np.isinf(here) else here)
    if step.function is not step.base and kind == "noise":
        new = states[step.base.index] + (kept - 1.0) * states[function]
    else:
        new = kept * states[step.base.index]
    new = new + float(step.rest[0]) * f(function, 0)
    for point, weight in step.terms:
        new += float(weight[0]) * (f(point.index, which) - f(function, which))
    return new


def divergence_of(spectrum: Spectrum, output: Output, metric: str) -> float:
    """Return the divergence between the data and an output, the mean's share included."""
    target, variance = spectrum.eigenvalues, output.variance
    counts = 1.0 if spectrum.counts is None else spectrum.counts
    mean = np.zeros_like(target) if spectrum.mean is None else spectrum.mean
    error = np.square(mean * (1.0 - output.alpha * (1.0 - output.gain)))
    if metric == "w2":
        return float((counts * (np.square(np.sqrt(variance) - np.sqrt(target)) + error)).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.log(variance) - np.log(target)
        terms = {
            "kl": half_gap(-u) + error / (2.0 * variance),
            "reverse_kl": half_gap(u) + error / (2.0 * target),
        }
    chosen = sum(terms.values()) if metric == "jeffreys" else terms[metric]
    return float((counts * chosen).sum())


def half_gap(u: Array) -> Array:
    """Return (exp(u) - 1 - u)/2, by its series where that would cancel."""
    small = np.abs(u) < 1e-2
    x = np.where(small, u, 0.0)
    series = x * x * (1.0 / 2 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x / 720))))
    return np.where(small, series, np.expm1(u) - u) / 2.0
