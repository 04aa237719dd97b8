"""Random spectra and schedules for tests of search, and every path through a few levels."""

import itertools

import numpy as np

from fastkl import NoiseSchedule, Spectrum

METRICS = ("kl", "reverse_kl", "jeffreys")
SAME = 1e-11  # of two evaluations of one divergence
KINDS = ("log_normal", "wide", "clusters", "near_one", "below_one", "two_atoms", "one", "power_law")


def random_spectrum(rng, kind=None, full=None):
    kind = kind or KINDS[rng.integers(len(KINDS))]
    size = int(rng.integers(1, 12))
    values = {
        "log_normal": lambda: np.exp(2 * rng.normal(size=size)),
        "wide": lambda: 10 ** rng.uniform(-12, 12, size),
        "clusters": lambda: np.concatenate(
            [c * (1 + 1e-3 * rng.random(4)) for c in 10 ** rng.uniform(-4, 4, 3)]
        ),
        "near_one": lambda: 1 + rng.uniform(-0.2, 0.2, size),
        "below_one": lambda: rng.uniform(0.3, 0.99, 12),
        "two_atoms": lambda: np.array([1e-6, 1e6]) * 10 ** rng.uniform(-2, 2),
        "one": lambda: 10 ** rng.uniform(-6, 6, 1),
        "power_law": lambda: np.arange(1, 41) ** -rng.uniform(0.5, 3),
    }[kind]()
    counted, moved = rng.random(2) < 0.4 if full is None else (full, full)
    counts = np.exp(rng.normal(size=len(values))) if counted else None
    mean = rng.normal(0, 10 ** rng.uniform(-2, 1), len(values)) if moved else np.zeros(len(values))
    return Spectrum(values, counts, mean)


def random_schedule(rng, size, kind=None):
    """A schedule that has `size` levels, on a grid of this size where it is continuous."""
    kind = int(rng.integers(10)) if kind is None else kind  # few continuous ones: refining takes its time
    if kind == 0:
        return NoiseSchedule.edm(10 ** rng.uniform(-3, -1), 10 ** rng.uniform(0.5, 3))
    if kind == 1:
        return NoiseSchedule.flow(rng.uniform(0.3, 5))
    steps = rng.exponential(size=size) * rng.uniform(1, 14) / size
    sigmas = np.exp(np.cumsum(steps)) * 10 ** rng.uniform(-4, 0)
    alphas = 1 / (1 + np.square(sigmas))
    if kind == 2:
        alphas[-1] = 0.0
    return NoiseSchedule.from_alphas_cumprod(alphas)


def grid_of(schedule, grid=None, data=None):
    """Levels, noisiest first: of continuous schedules evenly spaced in log sigma, as far as the spectrum matters."""
    if schedule.is_discrete:
        return schedule.sigmas(np.arange(schedule.num_train_timesteps))[::-1]
    if schedule.name == "edm":
        return np.geomspace(schedule.sigma_max, schedule.sigma_min, grid)
    low = 10.0 ** (np.floor(np.log10(data.eigenvalues.min()) / 2) - 3)
    high = 10.0 ** (np.ceil(np.log10(data.eigenvalues.max()) / 2) + 3)
    finite = np.geomspace(high, low, grid - 1) if grid > 2 else [np.sqrt(high) * np.sqrt(low)]
    return np.append(np.inf, finite)


def all_paths(size, steps, free):
    rest = itertools.combinations(range(0 if free else 1, size), steps if free else steps - 1)
    return np.array([path if free else (0, *path) for path in rest], dtype=np.int64).reshape(-1, steps)


def with_zero(levels, paths):
    return np.concatenate([levels[paths], np.zeros((len(paths), 1))], axis=1)
