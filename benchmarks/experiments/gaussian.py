"""Gaussian sources: do the tangent law, gamma*, power-uniform steps and the expansion in 1/N keep their promises?

Run as `python benchmarks/experiments/gaussian.py [--seed S] [--out FILE] [--figures DIR] [--quick]`, about a minute on
two cores. It evaluates `kl` of DDIM on spectra of low and high dimension, writes results/gaussian.json, and beside it
gaussian.md with the verdicts on the claims of Sun, Poor and Zhang (arXiv 2601.13602), which gaussian_claims.py computes
from the rows. `--figures` draws too.

Two settings. "same": every schedule is cut to the levels from 80 to 0 and starts with the right variance, so that only
the discretization differs. "own": each schedule's own first level and prior, and the data's mean, as a user meets
them. All curves are the continuous forms of `curves`; what tables of 1000 timesteps change is measured apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gaussian_claims
import gaussian_text
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

import fastkl
from fastkl import NoiseSchedule, Spectrum, discretize

HERE = Path(__file__).resolve().parent
Floats = NDArray[np.float64]

SEED = 20260113
START = 80.0  # first level of the setting "same": EDM's, which all schedules reach
COMPRESSED = 1e-10  # relative error allowed in the sweeps of gamma
ORDERS = (2, 4, 6)
EDM, FLOW = NoiseSchedule.edm(), NoiseSchedule.flow()


@dataclass(frozen=True)
class Plan:
    """What is evaluated."""

    dims: tuple[int, ...] = tuple(range(2, 11))
    draws: int = 3  # random spectra for each dimension
    high: int = 3072  # dimension of the power laws
    presets: tuple[str, ...] = ("photographs", "mnist")
    steps: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 10, 20, 30, 50, 100, 200)
    powers: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)
    sweep_steps: tuple[int, ...] = (2, 3, 5, 10, 20, 50, 100, 200, 1000)
    sweep_powers: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
    sweep_points: int = 201  # of gamma, from gamma*/30 to 30 gamma*
    expansion_steps: tuple[int, ...] = (*range(2, 201), 250, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 5000)


QUICK = Plan(
    (2, 3),
    1,
    300,
    ("mnist",),
    (2, 5, 10),
    (0.5, 1.0, 2.0),
    (2, 10),
    (0.5, 1.0, 2.0),
    31,
    (2, 5, 10, 200, 300),
)


@dataclass(frozen=True)
class Curve:
    """A noise schedule sigma(t), t in [0, 1], and its prior; `parts` is how many intervals N steps have less than N."""

    sigmas: Callable[[Floats], Floats]
    prior: str
    formula: str
    parts: int = 0


def linear(t: Floats) -> Floats:
    """Return levels of the DDPM linear schedule for infinitely many timesteps (the VP process of Song et al. 2021)."""
    return np.sqrt(np.expm1(0.1 * t + 9.95 * t * t))


def cosine(t: Floats) -> Floats:
    """Return levels of Nichol and Dhariwal's cosine schedule, whose 1 - abar is formed without cancellation."""
    unit = np.pi / 2 / 1.008
    return np.sqrt(np.sin(unit * t) * np.sin(unit * (t + 0.016))) / np.sin(unit * (1.0 - t))


def sigmoid(t: Floats) -> Floats:
    """Return levels of Jabri et al.'s sigmoid schedule: the differences of logistic functions as products."""
    return np.sqrt(np.sinh(3.0 * t) / np.sinh(3.0 * (1.0 - t)))


def logistic_betas(t: Floats) -> Floats:
    """Return levels of GeoDiff's schedule, the integral of a logistic beta(t), for infinitely many timesteps."""
    return np.sqrt(np.expm1(0.1 * t + 19.9 / 12.0 * np.log1p(np.expm1(12.0 * t) / (1.0 + np.exp(6.0)))))


def curves(gamma: float) -> dict[str, Curve]:
    """Return the schedules by name; only the tangent law depends on the data, by gamma."""
    edm = "sigma = (0.002^(1/7) + t (80^(1/7) - 0.002^(1/7)))^7"
    return {
        "linear": Curve(linear, "vp", "-log abar = 0.1 t + 9.95 t^2 (betas 1e-4 to 0.02, T to infinity)"),
        "cosine": Curve(cosine, "vp", "abar = f(t)/f(0), f = cos^2((t + 0.008)/1.008 pi/2)"),
        "sigmoid": Curve(sigmoid, "vp", "abar = (s(3) - s(6t - 3))/(s(3) - s(-3)), s logistic (start -3, end 3, tau 1, "
                         "Jabri et al., arXiv 2212.11972; no clipping), so sigma^2 = sinh(3t)/sinh(3(1 - t))"),
        "logistic betas": Curve(logistic_betas, "vp", "-log abar = integral of 0.1 + 19.9/(1 + exp(6 - 12t)) "
                                "(betas on a logistic curve, arXiv 2203.02923, T to infinity)"),
        "EDM": Curve(EDM.sigmas, "ve", f"{edm}; its last level 0.002 is replaced by 0"),
        "EDM to sigma_min": Curve(EDM.sigmas, "ve", f"{edm}; N - 1 steps to 0.002, then one to 0, as shipped", 1),
        "flow": Curve(FLOW.sigmas, "flow", "sigma = t/(1 - t)"),
        "tangent": Curve(NoiseSchedule.tangent(gamma).sigmas, "vp", "sigma = sqrt(gamma*) tan(pi t/2)"),
    }  # fmt: skip


def first_time(curve: Curve, start: float | None) -> float:
    """Return t of a curve's first level: 1, or where it reaches `start`."""
    if start is None:
        return 1.0
    with np.errstate(divide="ignore"):  # infinite at t = 1
        if curve.sigmas(np.array(1.0)) <= start:
            return 1.0
        return float(
            brentq(lambda t: np.log(curve.sigmas(np.array(t)) / start), 1e-3, 1.0 - 1e-9, xtol=1e-15)
        )


def levels(curve: Curve, steps: int, powers: tuple[float, ...], start: float | None = None) -> Floats:
    """Return power-uniform levels, one row a power: sigma(t_0 (1 - k/N)^power), the last one 0."""
    parts = max(steps - curve.parts, 1)
    fractions = np.maximum(parts - np.arange(steps + 1), 0) / parts
    t = first_time(curve, start) * fractions ** np.array(powers)[:, None]
    with np.errstate(divide="ignore"):  # infinite levels at t = 1
        sigmas = curve.sigmas(t)
    sigmas[:, -1] = 0.0
    if start is not None:
        sigmas[:, 0] = start  # found to 1e-15 in t
    return sigmas


def spectra(plan: Plan, seed: int) -> Iterator[tuple[str, str, Spectrum]]:
    """Yield name, kind and spectrum; the random ones are log-uniform between 0.001 and 10."""
    for dim in plan.dims:
        for draw in range(plan.draws):
            values = 10.0 ** np.random.default_rng([seed, dim, draw]).uniform(-3.0, 1.0, dim)
            yield f"random d={dim} #{draw}", "low", Spectrum(np.sort(values)[::-1])
    fixed = {
        "1, 1": [1.0, 1.0],
        "4, 1/4": [4.0, 0.25],
        "10, 0.001": [10.0, 0.001],
        "0.02, 0.01, 0.005": [0.02, 0.01, 0.005],
        "10 and nine of 0.01": [10.0] + [0.01] * 9,
        "1/i^2, d=10": Spectrum.power_law(10, 2.0).eigenvalues,
    }
    for name, values in fixed.items():
        yield name, "low", Spectrum(values)
    for law, exponent in (("1/i", 1.0), ("1/i^1.5", 1.5), ("1/i^2", 2.0)):
        yield f"{law}, d={plan.high}", "high", Spectrum.power_law(plan.high, exponent)
    for name in plan.presets:
        yield name, "high", Spectrum.preset(name)


def digits(values: Any) -> Any:
    """Round to five significant digits, for the file."""
    return [float(f"{value:.5g}") for value in np.ravel(values)]


def settings(curve: Curve | None, setting: str, spectrum: Spectrum) -> tuple[float | None, str, Spectrum]:
    """Return the first level (None for the curve's own), prior and spectrum of a setting; "exact" has its own ends."""
    if setting == "own":
        return None, "vp" if curve is None else curve.prior, spectrum
    return START if setting == "same" else None, "exact", Spectrum(spectrum.eigenvalues, spectrum.counts)


def convergence(name: str, spectrum: Spectrum, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield kl of each schedule: a list over N of lists over powers, of power 1 alone for "exact" and the geodesic."""
    for setting in ("same", "own", "exact"):
        powers = (1.0,) if setting == "exact" else plan.powers
        for schedule, curve in curves(fastkl.tangent_gamma(spectrum)).items():
            start, prior, data = settings(curve, setting, spectrum)
            kl = [fastkl.divergence(data, levels(curve, n, powers, start), prior=prior) for n in plan.steps]
            yield {
                "spectrum": name,
                "setting": setting,
                "schedule": schedule,
                "kl": [digits(row) for row in kl],
            }
        if setting != "exact":
            start, prior, data = settings(None, setting, spectrum)
            rows = [discretize.geodesic(FLOW, n, spectrum, sigma_max=start) for n in plan.steps]
            kl = [fastkl.divergence(data, row, prior=prior) for row in rows]
            yield {
                "spectrum": name,
                "setting": setting,
                "schedule": "geodesic",
                "kl": [digits(x) for x in kl],
            }


def tables(name: str, spectrum: Spectrum, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield kl of the tables of 1000 timesteps, at whole timesteps nearest to those of "own", power 1."""
    shipped = {"linear": NoiseSchedule.ddpm_linear(), "cosine": NoiseSchedule.cosine(),
               "logistic betas": NoiseSchedule.sigmoid()}  # fmt: skip
    for schedule, table in shipped.items():
        kl = [fastkl.divergence(spectrum, discretize.power_uniform(table, n, 1.0)) for n in plan.steps]
        yield {"spectrum": name, "schedule": schedule, "kl": digits(kl)}


def strategies(plan: Plan) -> dict[str, tuple[str, Callable[[int, Floats], Floats]]]:
    """Return ways to visit tangent laws, each with its prior: levels of N steps, one row for each gamma."""
    table, unit = NoiseSchedule.ddpm_linear(), Curve(NoiseSchedule.tangent(1.0).sigmas, "exact", "")

    def scaled(power: float) -> Callable[[int, Floats], Floats]:
        return lambda steps, gammas: np.sqrt(gammas)[:, None] * levels(unit, steps, (power,))

    def snapped(steps: int, gammas: Floats) -> Floats:
        return discretize.snap(table, discretize.tangent(table, steps, gammas, sigma_min=0.0))

    ways: dict[str, tuple[str, Callable[[int, Floats], Floats]]] = {
        "uniform" if power == 1.0 else f"power {power:g}": ("exact", scaled(power))
        for power in plan.sweep_powers
    }
    ways["uniform from 80"] = ("exact", lambda n, gammas: discretize.tangent(EDM, n, gammas, 0.0, START))
    ways["on the linear table"] = ("vp", snapped)
    return ways


def sweeps(name: str, spectrum: Spectrum, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the best gamma of every strategy, lists over N, and kl against gamma at N = 10; without the data's mean."""
    data, star = Spectrum(spectrum.eigenvalues), fastkl.tangent_gamma(spectrum)
    grid = np.geomspace(1.0 / 30.0, 30.0, plan.sweep_points)
    for strategy, (prior, make) in strategies(plan).items():
        # the table is too coarse for more than 200 steps; levels of power 5 would fall below 1e-15
        most = 200 if strategy in ("on the linear table", "power 5") else 10**6
        row: dict[str, Any] = {
            "spectrum": name,
            "strategy": strategy,
            "N": [n for n in plan.sweep_steps if n <= most],
        }
        row |= {"best_over_star": [], "excess": []}
        for steps in row["N"]:

            def kl(ratios: Floats, make: Any = make, steps: int = steps, prior: str = prior) -> Floats:
                return fastkl.divergence(data, make(steps, star * ratios), prior=prior, rtol=COMPRESSED)

            curve, at_star = kl(grid), float(kl(np.ones(1))[0])
            best, value = finest(kl, grid, curve)
            row["best_over_star"] += digits(best)
            row["excess"] += digits(at_star / min(value, at_star) - 1.0)
            if steps == 10:
                row["kl_over_star"] = digits(curve[::5] / at_star)
        yield row


def finest(kl: Callable[[Floats], Floats], grid: Floats, values: Floats) -> tuple[float, float]:
    """Return where the least value is and what it is, from grids that close in on the least of `values`."""
    best, least = float(grid[values.argmin()]), float(values.min())
    reach = float(grid[1] / grid[0])
    for _ in range(3):
        near = np.geomspace(max(best / reach, grid[0]), min(best * reach, grid[-1]), 41)
        found = kl(near)
        if found.min() <= least:
            best, least = float(near[found.argmin()]), float(found.min())
        reach **= 0.05
    return best, least


def expansions(name: str, spectrum: Spectrum, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the relative error of the expansion in 1/N, and the N from which on it stays below 10 and 1 percent."""
    data, numbers = Spectrum(spectrum.eigenvalues), np.array(plan.expansion_steps, dtype=float)
    small = data.compress(COMPRESSED)
    smooth = {"tangent": NoiseSchedule.tangent(fastkl.tangent_gamma(data)), "flow": FLOW, "EDM": EDM}
    for schedule, curve in smooth.items():
        coefficients = fastkl.expansion(small, curve, order=max(ORDERS))
        row: dict[str, Any] = {"spectrum": name, "schedule": schedule, "coefficients": digits(coefficients)}
        exact = np.array([float(fastkl.divergence(data, curve.sigmas(1.0 - np.arange(n + 1) / n), prior="exact"))
                          for n in plan.expansion_steps])  # fmt: skip
        kept = [i for i, n in enumerate(plan.expansion_steps) if n in plan.steps or n >= 200]
        row["N"], row["error"], row["from"] = [plan.expansion_steps[i] for i in kept], {}, {}
        for order in ORDERS:
            series = np.polynomial.polynomial.polyval(1.0 / numbers, coefficients[: order + 1])
            error = series / exact - 1.0
            row["error"][order] = digits(error[kept])
            row["from"][order] = {
                str(limit): since(plan.expansion_steps, error, limit) for limit in (0.1, 0.01)
            }
        yield row


def since(numbers: tuple[int, ...], errors: Floats, limit: float) -> int | None:
    """Return the first N from which on all errors are within the limit, None if the last is not."""
    bad = np.flatnonzero(~(np.abs(errors) <= limit))
    first = 0 if bad.size == 0 else int(bad[-1]) + 1
    return numbers[first] if first < len(numbers) else None


def described(name: str, kind: str, spectrum: Spectrum) -> dict[str, Any]:
    """Return what identifies a spectrum; small ones in full."""
    values = spectrum.eigenvalues
    row = {"name": name, "kind": kind, "dim": spectrum.dim, "gamma_star": fastkl.tangent_gamma(spectrum)}
    row |= {"largest": float(values.max()), "smallest": float(values.min())}
    row["mean_squared"] = 0.0 if spectrum.mean is None else float((spectrum.mean**2).sum())
    return row | ({"eigenvalues": values.tolist()} if kind == "low" else {})


def measured(plan: Plan, seed: int) -> dict[str, Any]:
    """Evaluate everything."""
    result: dict[str, Any] = {"seed": seed, "plan": asdict(plan), "start_of_same": START}
    result["formulas"] = {name: curve.formula for name, curve in curves(1.0).items()}
    parts = {"curves": convergence, "tables": tables, "sweeps": sweeps, "expansions": expansions}
    result |= {"spectra": []} | {part: [] for part in parts}
    for name, kind, spectrum in spectra(plan, seed):
        began = time.perf_counter()
        result["spectra"].append(described(name, kind, spectrum))
        for part, rows in parts.items():
            result[part] += list(rows(name, spectrum, plan))
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return result


def provenance() -> dict[str, Any]:
    """Return machine, versions, date and commit; the module that knows lies one directory up."""
    sys.path.append(str(HERE.parent))
    import machine

    return machine.description()


def compact(result: dict[str, Any]) -> str:
    """Return JSON with one line for each row of a list of rows."""
    lines = []
    for key, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Measure, decide, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the random spectra")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / "gaussian.json", help="the result file"
    )
    parser.add_argument("--figures", type=Path, help="a directory for the figures; default: none are drawn")
    parser.add_argument("--quick", action="store_true", help="a few spectra and steps only")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    began = time.perf_counter()
    result = provenance() | measured(QUICK if arguments.quick else Plan(), arguments.seed)
    result["total_s"] = round(time.perf_counter() - began, 1)
    result = json.loads(json.dumps(result))  # verdicts see what a reader of the file sees
    result["verdicts"] = gaussian_claims.verdicts(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(compact(result), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(gaussian_text.report(result), encoding="utf-8")
    if arguments.figures is not None:
        import gaussian_figures

        gaussian_figures.draw(result, arguments.figures)


if __name__ == "__main__":
    main()
