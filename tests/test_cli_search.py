"""`fastkl search`: values against the library and exhaustive enumeration, what is printed, files, errors."""

import json
import math
import os
import re
import sys
from itertools import combinations

import numpy as np
import pytest
from cli_calls import document, python, run

import fastkl
from fastkl import NoiseSchedule, Spectrum, discretize
from fastkl.cli.schedules import NAMES

DIGITS = Spectrum.preset("digits")
SMALL = ("--spectrum", "digits", "--schedule-option", "num_train_timesteps=30")
SCHEDULE = NoiseSchedule.ddpm_linear(30)
EDM = ("--spectrum", "digits", "--schedule", "edm", "--grid", "50")


def numbers(out, name):
    """The list that is printed as `name = [...]`, read as Python reads what is pasted."""
    (text,) = re.findall(rf"^{name} = (\[.*\])$", out, flags=re.MULTILINE)
    return eval(text, {"float": float})


@pytest.mark.parametrize("metric", ["kl", "reverse_kl", "w2"])
def test_result_is_the_best_of_all_choices(capsys, metric):
    report = document(capsys, "search", *SMALL, "--steps", "3", "--metric", metric, "--no-free-start")
    (best,) = report["results"]
    choices = np.array([(29, *sorted(rest, reverse=True)) for rest in combinations(range(29), 2)])
    levels = np.concatenate([SCHEDULE.sigmas(choices), np.zeros((len(choices), 1))], axis=1)
    values = fastkl.divergence(DIGITS, levels, metric)
    assert best["value"] == pytest.approx(values.min(), rel=1e-13)
    assert best["timesteps"] == choices[values.argmin()].tolist()
    assert best["sigmas"] == levels[values.argmin()].tolist()
    assert best["times"] == best["timesteps"]
    assert best["proved_optimal"] is True
    assert (best["lower_bound"], best["gap"]) == (best["value"], 0.0)
    assert best["log10_choices"] == pytest.approx(math.log10(len(choices)))


@pytest.mark.parametrize(
    ("text", "steps"),
    [("4", [4]), ("2-5", [2, 3, 4, 5]), ("3,6,5", [3, 6, 5]), ("2-3, 7", [2, 3, 7]), ("6-6", [6])],
)
def test_numbers_of_steps(capsys, text, steps):
    report = document(capsys, "search", *SMALL, "--steps", text)
    assert [found["steps"] for found in report["results"]] == steps
    found = fastkl.search(DIGITS, SCHEDULE, steps, metric="w2", free_start=True)
    assert [row["value"] for row in report["results"]] == [best.value for best in found]


def test_every_option_reaches_the_library(capsys):
    options = ("--metric", "reverse_kl", "--prior", "exact", "--free-start", "--no-prove", "--time-limit", "9",
               "--visit", "20, 3", "--min-spacing", "2", "--floor", "0.5")  # fmt: skip
    report = document(capsys, "search", *SMALL, "--steps", "4", *options)
    (found,) = report["results"]
    best = fastkl.search(
        Spectrum.preset("digits", floor=0.5), SCHEDULE, 4, metric="reverse_kl", prior="exact", free_start=True,
        prove=False, time_limit=9.0, visit=[20, 3], min_spacing=2,
    )  # fmt: skip
    assert found["timesteps"] == best.timesteps.tolist()
    assert {20, 3} <= set(found["timesteps"])
    assert min(-np.diff(found["timesteps"])) >= 2
    assert (found["value"], found["lower_bound"]) == (best.value, best.lower_bound)
    assert found["log10_choices"] is None
    assert report["visit"] == [20.0, 3.0]
    assert (report["prove"], report["free_start"], report["min_spacing"]) == (False, True, 2)
    assert (report["metric"], report["prior"], report["time_limit"]) == ("reverse_kl", "exact", 9.0)
    assert (report["grid"], report["spectrum"]["floor"]) == (None, 0.5)


def test_grid_of_a_continuous_schedule(capsys):
    report = document(capsys, "search", *EDM, "--steps", "4")
    (found,) = report["results"]
    best = fastkl.search(DIGITS, NoiseSchedule.edm(), 4, metric="w2", free_start=True, grid=50)
    assert (report["grid"], found["timesteps"]) == (50, None)
    assert found["sigmas"] == best.sigmas.tolist()
    assert NoiseSchedule.edm().sigmas(found["times"]) == pytest.approx(best.sigmas[:-1])
    assert found["refined_sigmas"] == best.refined_sigmas.tolist()
    assert found["refined_value"] <= found["value"]
    assert NoiseSchedule.edm().sigmas(found["refined_times"]) == pytest.approx(best.refined_sigmas[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_standard_schedules_are_compared(capsys, name):
    option = ("--schedule-option", "gamma=0.5") if name == "tangent" else ()
    report = document(
        capsys, "search", "--spectrum", "digits", "--schedule", name, *option, "--steps", "6", "--no-prove"
    )
    schedule = NoiseSchedule.tangent(0.5) if name == "tangent" else getattr(NoiseSchedule, name)()
    (found,) = report["results"]
    rows = found["standards"]
    names = {"quadratic", "karras", "exponential", "tangent gamma*", "tangent gamma 1", "geodesic"}
    names |= {f"uniform {s}" for s in ("linspace", "leading", "trailing") if schedule.is_discrete}
    names |= {"tan/arctan"} if schedule.sigma_min > 0.0 else {"uniform linspace"}
    names |= {"uniform linspace"}
    assert {row["name"] for row in rows} == names
    for row in rows:
        spectrum = {"spectrum": DIGITS} if row["function"] == "geodesic" else {}
        levels = getattr(discretize, row["function"])(schedule, 6, **row["parameters"], **spectrum)
        levels = discretize.snap(schedule, levels) if schedule.is_discrete else levels
        assert row["left_out"] is None
        assert row["value"] == fastkl.divergence(DIGITS, levels, "w2", prior=schedule.prior)
        assert row["times_best"] == pytest.approx(row["value"] / found["value"])
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)


def test_parameters_of_the_standard_schedules(capsys):
    rows = document(capsys, "search", *SMALL, "--steps", "3")["results"][0]["standards"]
    parameters = {row["name"]: row["parameters"] for row in rows}
    assert parameters["karras"] == {"rho": 7.0}
    assert parameters["tangent gamma*"] == {"gamma": fastkl.tangent_gamma(DIGITS), "sigma_min": 0.0}
    assert parameters["tan/arctan"] == {"gamma": 1.0, "sigma_min": SCHEDULE.sigma_min}
    flow = document(capsys, "search", "--schedule", "flow", "--grid", "20", "--steps", "3", "--no-prove")
    parameters = {row["name"]: row["parameters"] for row in flow["results"][0]["standards"]}
    ends = {
        "sigma_min": pytest.approx(1 / 19),
        "sigma_max": pytest.approx(19.0),
    }  # of the grid, as flow has none
    assert parameters["exponential"] == ends


def test_standards_that_do_not_exist_are_left_out_with_a_reason(capsys, tmp_path):
    path = tmp_path / "zeros.npy"
    np.save(path, [1.0, 0.5, 0.0])
    report = document(capsys, "search", "--spectrum", str(path), "--steps", "3", "--metric", "w2")
    assert not {"geodesic", "tangent gamma*"} & {row["name"] for row in report["results"][0]["standards"]}
    np.save(path, [1e-9, 1e-8])  # such data asks for levels below those that the model knows
    arguments = ("--schedule", "edm", "--schedule-option", "sigma_min=0.01", "--steps", "5", "--no-prove")
    report = document(capsys, "search", "--spectrum", str(path), *arguments)
    last = report["results"][0]["standards"][-1]
    assert (last["value"], last["times_best"]) == (None, None)
    assert last["left_out"] == "has levels below 0.01, the schedule's least"
    assert (
        f"{last['name']}: left out, has levels below 0.01"
        in run(capsys, "search", "--spectrum", str(path), *arguments)[1]
    )


def test_infinite_levels_are_valid_json(capsys):
    arguments = ("search", "--spectrum", "digits", "--schedule", "flow", "--steps", "3", "--no-free-start")
    report = document(capsys, *arguments)
    assert report["results"][0]["sigmas"][0] == "inf"
    assert report["results"][0]["times"][0] == 1.0


# for people


def test_levels_can_be_pasted(capsys):
    status, out, err = run(capsys, "search", *SMALL, "--steps", "5")
    best = fastkl.search(DIGITS, SCHEDULE, 5, metric="w2", free_start=True)
    assert (status, err) == (0, "")
    assert numbers(out, "timesteps") == best.timesteps.tolist()
    assert numbers(out, "sigmas") == best.sigmas.tolist()
    assert f"N = 5: w2 {best.value:.6g}, proved optimal\n" in out
    assert f"lower bound {best.lower_bound:.6g}\n" in out
    assert f"{math.comb(30, 5):,} choices" in out
    assert "uniform trailing" in out
    assert "refined" not in out


def test_levels_of_continuous_schedules_can_be_pasted(capsys):
    arguments = ("--spectrum", "digits", "--schedule", "flow", "--grid", "400", "--steps", "6")
    out = run(capsys, "search", *arguments)[1]
    best = fastkl.search(DIGITS, NoiseSchedule.flow(), 6, metric="w2", free_start=True, grid=400)
    assert numbers(out, "sigmas") == best.sigmas.tolist()
    assert numbers(out, "refined_sigmas") == best.refined_sigmas.tolist()
    assert NoiseSchedule.flow().sigmas(numbers(out, "times")) == pytest.approx(best.sigmas[:-1])
    assert NoiseSchedule.flow().sigmas(numbers(out, "refined_times")) == pytest.approx(
        best.refined_sigmas[:-1]
    )
    assert "timesteps" not in out
    assert f"{math.comb(400, 6) / 1e12:.2f}e12 choices" in out


def test_what_is_not_proved_is_not_called_so(capsys):
    arguments = ("search", "--spectrum", "mnist", "--steps", "10", "--no-prove")
    (found,) = document(capsys, *arguments)["results"]
    assert found["proved_optimal"] is False
    assert found["gap"] == pytest.approx(found["value"] / found["lower_bound"] - 1.0, abs=1e-15)
    assert found["gap"] > 0.0
    out = run(capsys, *arguments)[1]
    assert f"not proved: at most {100 * found['gap']:.3g} % above the optimum" in out
    assert "optimal" not in out


def test_values_below_the_best_are_explained(capsys):
    arguments = ("search", "--spectrum", "mnist", "--steps", "2", "--metric", "kl")
    out = run(capsys, *arguments)[1]
    rows = document(capsys, *arguments)["results"][0]["standards"]
    assert (rows[0]["name"], rows[0]["times_best"] < 1.0) == (
        "uniform leading",
        True,
    )  # starts at 500, not 999
    assert "another first level (--free-start)" in out
    assert "another first level" not in run(capsys, *arguments, "--free-start")[1]


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("metric", ["w2", "kl"])
@pytest.mark.parametrize("option", [None, "--free-start", "--no-free-start"])
def test_the_first_level_is_chosen_too_where_that_can_be_judged(capsys, tmp_path, option, metric, mean):
    data = Spectrum(DIGITS.eigenvalues, mean=DIGITS.mean if mean else None)
    np.savez(tmp_path / "data.npz", eigenvalues=data.eigenvalues, **({"mean": data.mean} if mean else {}))
    arguments = [
        "search",
        "--spectrum",
        str(tmp_path / "data.npz"),
        *SMALL[2:],
        "--steps",
        "3",
        "--metric",
        metric,
    ]
    status, out, err = run(capsys, *arguments, *([option] if option else []), "--json")
    report = json.loads(out)
    free = option == "--free-start" or (option is None and metric == "w2" and mean)
    line = {
        "--free-start": "chosen too (--free-start)",
        "--no-free-start": "the schedule's (--no-free-start)",
        None: "chosen too (of least w2, --no-free-start keeps the schedule's)" if free else
              "the schedule's (it is chosen for w2, not for kl, unless --free-start)" if metric == "kl" else
              "the schedule's (the spectrum has no mean, so a lower one cannot be judged)",
    }[option]  # fmt: skip
    assert status == 0
    assert (report["free_start"], report["first_level"]) == (free, line)
    zeros = Spectrum(data.eigenvalues, mean=data.mean if mean else np.zeros(len(data)))
    best = fastkl.search(zeros, SCHEDULE, 3, metric=metric, free_start=free)
    assert report["results"][0]["timesteps"] == best.timesteps.tolist()
    warned = "fastkl: warning: free_start = True: spectrum has no mean"
    assert err.startswith(warned) if free and not mean else err == ""
    assert f"\nfirst level: {line}\n" in run(capsys, *arguments, *([option] if option else []))[1]


def test_a_prior_that_costs_nothing_keeps_the_first_level(capsys):
    report = document(
        capsys, "search", "--spectrum", "digits", *SMALL[2:], "--steps", "3", "--prior", "exact"
    )
    assert report["free_start"] is False
    assert report["first_level"] == "the schedule's (with --prior exact a lower one costs nothing)"


def test_standards_may_break_the_constraints_and_it_is_said(capsys):
    note = "do not keep to --visit and --min-spacing"
    assert note not in run(capsys, "search", *SMALL, "--steps", "3")[1]
    for constraint in (("--visit", "5"), ("--min-spacing", "2")):
        assert note in run(capsys, "search", *SMALL, "--steps", "3", *constraint)[1]


def test_levels_of_a_sampler_with_a_memory_come_with_the_advice_of_the_experiments(capsys):
    note = "the levels of --sampler ddim --free-start"
    for options, said in ((("--sampler", "dpmpp_2m"), True), (("--sampler", "ddim"), False),
                          (("--sampler", "dpmpp_2m", "--metric", "kl"), False)):  # fmt: skip
        assert (note in run(capsys, "search", *SMALL, "--steps", "3", *options)[1]) == said


# files


def test_out_holds_the_same_document(capsys, tmp_path):
    path = tmp_path / "best.json"
    status, out, err = run(capsys, "search", *SMALL, "--steps", "3,4", "--out", str(path))
    assert (status, err) == (0, "")
    written = json.loads(path.read_text(), parse_constant=pytest.fail)
    printed = document(capsys, "search", *SMALL, "--steps", "3,4")
    for report in (written, printed):
        for found in report["results"]:
            del found["seconds"]
    assert written == printed
    assert "proved optimal" in out
    assert os.listdir(tmp_path) == ["best.json"]


def test_out_replaces_a_file_only_if_told_to(capsys, tmp_path):
    path = tmp_path / "best.json"
    path.write_text("mine")
    arguments = ("search", *SMALL, "--steps", "3", "--out", str(path))
    assert run(capsys, *arguments) == (2, "", f"fastkl: error: {path}: exists; add --force to replace it\n")
    assert path.read_text() == "mine"
    assert document(capsys, *arguments, "--force") == json.loads(path.read_text())
    assert os.listdir(tmp_path) == ["best.json"]


def test_out_appears_whole_or_not_at_all(capsys, monkeypatch, tmp_path):
    path = tmp_path / "best.json"
    seen = []

    def stop(*arguments, **options):
        seen.append(sorted(os.listdir(tmp_path)))
        raise KeyboardInterrupt

    monkeypatch.setattr("fastkl.cli.search.search", stop)
    assert run(capsys, "search", *SMALL, "--out", str(path)) == (130, "", "")
    path.write_text("mine")
    assert run(capsys, "search", *SMALL, "--out", str(path), "--force") == (130, "", "")
    assert all("best.json" not in names or path.read_text() == "mine" for names in seen)
    assert len(seen) == 2
    assert os.listdir(tmp_path) == ["best.json"]
    assert path.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_kept(capsys, monkeypatch, tmp_path):
    path = tmp_path / "best.json"

    def search(*arguments, **options):
        path.write_text("theirs")
        return fastkl.search(*arguments, **options)

    monkeypatch.setattr("fastkl.cli.search.search", search)
    status, out, err = run(capsys, "search", *SMALL, "--steps", "3", "--out", str(path))
    assert (status, out) == (2, "")
    assert "File exists" in err
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["best.json"]


def test_places_where_no_file_can_be(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("fastkl.cli.search.search", lambda *a, **k: pytest.fail("searched before looking"))
    missing = tmp_path / "none" / "best.json"
    status, _, err = run(capsys, "search", *SMALL, "--out", str(missing))
    assert (status, err.count("\n")) == (2, 1)
    assert "No such file or directory" in err
    for place in (str(tmp_path), os.devnull):
        for force in ((), ("--force",)):
            message = f"fastkl: error: {place}: must be a regular file\n"
            assert run(capsys, "search", *SMALL, "--out", place, *force) == (2, "", message)


# bad input

ARGUMENTS = [
    ("--steps 0", "argument --steps: must be an integer above 0, got '0'"),
    ("--steps ten", "argument --steps: must be an integer above 0, got 'ten'"),
    ("--steps 3-", "argument --steps: must be an integer above 0, got ''"),
    ("--steps=-3", "argument --steps: must be an integer above 0, got ''"),
    ("--steps 5-3", "argument --steps: range '5-3': must ascend"),
    ("--steps 1-999999999999", "must ascend and hold at most 100,000 numbers"),
    ("--steps 3,4,3", "argument --steps: '3,4,3': holds a number twice"),
    ("--steps 1001", "steps[0] = 1001: must be at most 1000"),
    ("--schedule flow --steps 1 --no-free-start", "steps[0] = 1: must be at least 2"),
    ("--metric fid", "argument --metric: invalid choice: 'fid'"),
    ("--prior none", "argument --prior: invalid choice: 'none'"),
    ("--time-limit 0", "time_limit = 0.0: must be above 0"),
    ("--time-limit nan", "time_limit = nan: must be finite"),
    ("--time-limit soon", "argument --time-limit: invalid float value: 'soon'"),
    ("--grid 500", "--grid: is for continuous schedules; ddpm_linear has its timesteps"),
    ("--schedule edm --grid 1", "grid = 1: must be at least 2"),
    ("--schedule edm --grid 0", "argument --grid: must be an integer above 0"),
    ("--visit 3,x", "argument --visit: 'x' is not a number"),
    ("--visit 3.5", "visit[0] = 3.5: must be a timestep, an integer within 0 and 999"),
    ("--visit 5,1000", "visit[1] = 1000.0: must be a timestep"),
    ("--schedule edm --visit 0", "visit[0] = 0.0: must be at least 0.002"),
    ("--min-spacing 0", "argument --min-spacing: must be an integer above 0"),
    ("--min-spacing 400 --steps 5", "no choice of levels keeps to visit and min_spacing"),
    ("--floor 0 --metric kl", "72 of its eigenvalues are 0, for which kl is not finite; add --floor"),
    ("--spectrum mnits", "spectrum 'mnits': must be a preset"),
    ("--schedule-option beta=1", "ddpm_linear has num_train_timesteps, beta_start, beta_end, no 'beta'"),
    ("--force", "--force: says that --out may replace a file, but there is no --out"),
    ("--step 10", "unrecognized arguments: --step"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_bad_arguments(capsys, arguments, message):
    status, out, err = run(capsys, "search", *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastkl: error: ")
    assert err.count("\n") == 1


def test_tables_need_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)  # importing it fails
    status, out, err = run(capsys, "search", *SMALL, "--steps", "3")
    assert (status, out) == (2, "")
    assert 'pip install "fastkl[cli]"' in err
    assert document(capsys, "search", *SMALL, "--steps", "3")["results"][0]["proved_optimal"] is True


def test_help_imports_little():
    code = (
        "import sys; from fastkl.cli import main; status = main(['search', '--help']); "
        "print(sorted({'numba', 'scipy', 'rich', 'cupy', 'matplotlib'} & set(sys.modules))); sys.exit(status)"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1] == "[]"
    assert "--free-start" in finished.stdout
