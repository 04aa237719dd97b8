"""The experiment on Gaussian sources: its rows and verdicts are what they say, and the committed text is current."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference

import fastkl

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "experiments"
SEED = 7
ROUNDED = 5.1e-5  # the file has five significant digits
RIVALS = {"linear", "cosine", "sigmoid", "logistic betas", "EDM", "EDM to sigma_min", "flow"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A quick run as users start it, warnings being errors."""
    folder = tmp_path_factory.mktemp("gaussian")
    command = [sys.executable, "-W", "error", str(HERE / "gaussian.py"), "--quick", "--seed", str(SEED)]
    command += ["--out", str(folder / "gaussian.json"), "--figures", str(folder / "figures")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"seed {SEED}" in done.stderr
    return folder


@pytest.fixture(scope="module")
def result(run):
    return json.loads((run / "gaussian.json").read_text(encoding="utf-8"))


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import gaussian_claims

    return gaussian_claims


def values(result, spectrum, setting, schedule):
    """kl by N and power."""
    rows = [row for row in result["curves"] if row["spectrum"] == spectrum and row["setting"] == setting]
    (row,) = (row for row in rows if row["schedule"] == schedule)
    return np.array(row["kl"])


def eigenvalues(dim):
    return np.sort(10.0 ** np.random.default_rng([SEED, dim, 0]).uniform(-3.0, 1.0, dim))[::-1]


def test_the_run_says_where_it_comes_from(run, result):
    assert {"cpu", "python", "versions", "date", "commit", "seed", "plan", "formulas", "total_s"} <= set(
        result
    )
    assert result["seed"] == SEED
    assert [row["name"] for row in result["spectra"]][:2] == ["random d=2 #0", "random d=3 #0"]
    assert result["spectra"][1]["eigenvalues"] == eigenvalues(3).tolist()
    for name in ("convergence", "gamma", "power_expansion"):
        assert (run / "figures" / f"gaussian_{name}.png").read_bytes().startswith(b"\x89PNG")


def from_abar(abar):
    return math.sqrt((1.0 - abar) / abar) if abar > 0.0 else math.inf


def logistic(x):
    return 1.0 / (1.0 + math.exp(-x))


def sigmoid(t):
    return from_abar((logistic(3.0) - logistic(6.0 * t - 3.0)) / (logistic(3.0) - logistic(-3.0)))


def cosine(t):
    angle = (t + 0.008) / 1.008 * math.pi / 2
    return (
        math.inf if t == 1.0 else from_abar(math.cos(angle) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2)
    )


def logistic_betas(t):
    integral = 0.1 * t + 19.9 / 12.0 * (math.log1p(math.exp(12 * t - 6)) - math.log1p(math.exp(-6)))
    return from_abar(math.exp(-integral))


def edm(t):
    return (0.002 ** (1 / 7) + t * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7


TEXTBOOK = {
    "linear": (lambda t: from_abar(math.exp(-0.1 * t - 9.95 * t * t)), "vp"),
    "cosine": (cosine, "vp"),
    "sigmoid": (sigmoid, "vp"),
    "logistic betas": (logistic_betas, "vp"),
    "EDM": (edm, "ve"),
    "flow": (lambda t: math.inf if t == 1.0 else t / (1.0 - t), "flow"),
}


@pytest.mark.parametrize("schedule", TEXTBOOK)
def test_kl_is_that_of_the_textbook_formulas(result, schedule):
    """Own levels and prior, N = 5, power 2: another program, from the formulas as published."""
    sigma, prior = TEXTBOOK[schedule]
    levels = [sigma((1 - k / 5) ** 2) for k in range(5)] + [0.0]
    expected = reference.divergence(eigenvalues(3), levels, "kl", prior, digits=30)
    found = values(result, "random d=3 #0", "own", schedule)[1, 2]
    assert found == pytest.approx(float(expected), rel=ROUNDED)


def test_same_cuts_all_schedules_to_80(result):
    """Uniform times of flow and of the tangent law from 80 down, first variance exact; N = 10."""
    lambdas = eigenvalues(2)
    gamma = math.sqrt(lambdas.sum() / (1.0 / lambdas).sum())
    last = math.atan(80.0 / math.sqrt(gamma))
    paths = {
        "flow": [80 / 81 * (1 - k / 10) / (1 - 80 / 81 * (1 - k / 10)) for k in range(11)],
        "tangent": [math.sqrt(gamma) * math.tan(last * (1 - k / 10)) for k in range(11)],
        "EDM to sigma_min": [edm(1 - k / 9) for k in range(10)] + [0.0],
    }
    for schedule, levels in paths.items():
        expected = reference.divergence(lambdas, levels, "kl", "exact", digits=30)
        found = values(result, "random d=2 #0", "same", schedule)[2, 1]
        assert found == pytest.approx(float(expected), rel=ROUNDED), schedule


def test_the_best_gamma_of_uniform_times_is_the_known_one(result):
    rows = [row for row in result["sweeps"] if row["strategy"] == "uniform"]
    assert [row["spectrum"] for row in rows] == [row["name"] for row in result["spectra"]]
    for row, spectrum in zip(rows, result["spectra"], strict=True):
        if "eigenvalues" not in spectrum or spectrum["largest"] == spectrum["smallest"]:
            continue
        for n, ratio in zip(row["N"], row["best_over_star"], strict=True):
            best = fastkl.best_gamma(spectrum["eigenvalues"], n)
            assert ratio * spectrum["gamma_star"] == pytest.approx(best, rel=5e-4)


def test_the_counts_of_the_verdicts(result):
    """Counted again, one case at a time."""
    steps, names = result["plan"]["steps"], [row["name"] for row in result["spectra"]]
    won, helped = 0, 0
    for name in names:
        for i in range(len(steps)):
            kl = {rival: values(result, name, "own", rival)[i, 1] for rival in RIVALS}
            won += all(values(result, name, "own", "tangent")[i, 1] <= kl[rival] for rival in RIVALS)
            kl = values(result, name, "own", "linear")[i]  # of powers 0.5, 1, 2
            helped += kl[2] < kl[1]
    cases = len(steps) * len(names)
    assert 0 < won < cases
    assert result["verdicts"]["fastest"]["own"]["won"] == [won, cases]
    assert result["verdicts"]["power"]["own"]["linear"]["helps"] == [helped, cases]
    for strategy in ("uniform", "power 2"):
        rows = [row for row in result["sweeps"] if row["strategy"] == strategy]
        near = sum(excess <= 0.01 for row in rows for excess in row["excess"])
        total = sum(len(row["excess"]) for row in rows)
        assert result["verdicts"]["gamma"][strategy]["within_1_percent"] == [near, total]


def test_the_errors_of_the_expansion(result):
    row = next(r for r in result["expansions"] if r["spectrum"] == "4, 1/4" and r["schedule"] == "tangent")
    i = row["N"].index(10)
    levels = [math.tan(math.pi / 2 * (1 - k / 10)) for k in range(11)]  # gamma* is 1
    exact = float(reference.divergence([4.0, 0.25], levels, "kl", "exact", digits=30))
    for order in (2, 4, 6):
        series = sum(a / 10**k for k, a in enumerate(row["coefficients"][: order + 1]))
        assert row["error"][str(order)][i] == pytest.approx(series / exact - 1.0, abs=5e-5)
        first = row["from"][str(order)]["0.01"]
        bad = [n for n, error in zip(row["N"], row["error"][str(order)], strict=True) if abs(error) > 0.01]
        assert first == min(n for n in row["N"] if n > max(bad, default=0))


def test_committed_text_and_verdicts_are_those_of_the_committed_rows(claims, tmp_path, monkeypatch, capsys):
    for name in ("gaussian.json", "gaussian.md"):
        shutil.copy(HERE / "results" / name, tmp_path)
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["gaussian_claims.py", "--check"])
    assert claims.main() == 0
    path = tmp_path / "gaussian.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    row = next(row for row in result["curves"] if row["schedule"] == "tangent")
    row["kl"] = [[10.0 * kl for kl in line] for line in row["kl"]]
    path.write_text(json.dumps(result), encoding="utf-8")
    assert claims.main() == 1
    assert "not what" in capsys.readouterr().err
