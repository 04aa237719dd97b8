"""The command line: values against the library, from presets and from every kind of file."""

import io
import json
import sys

import numpy as np
import pytest
from cli_calls import FEW, document, run

import fastkl
from fastkl import NoiseSchedule, Spectrum, _gpu_device, discretize
from fastkl.cli.schedules import NAMES

SCHEDULE = NoiseSchedule.ddpm_linear()
DIGITS = Spectrum.preset("digits")
LEVELS = np.array([[80.0, 5.0, 1.0, 0.0], [60.0, 4.0, 0.5, 0.0]])


# rank


@pytest.mark.parametrize("metric", ["kl", "w2"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_winner_is_what_the_library_says(capsys, metric, steps):
    report = document(capsys, "rank", *FEW, "--steps", str(steps), "--metric", metric)
    winner = report["winner"]
    sigmas, timesteps = np.array(winner["sigmas"]), winner["timesteps"]
    assert sigmas.shape == (steps + 1,)
    assert sigmas[-1] == 0.0
    assert all(isinstance(t, int) and 0 <= t < 1000 for t in timesteps)
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert np.array_equal(SCHEDULE.sigmas(timesteps), sigmas[:-1])
    assert winner["times"] == timesteps
    assert winner["value"] == fastkl.divergence(DIGITS, sigmas, metric)
    assert winner["value"] == report["ranking"][0]["value"]


def test_ranking_values_are_those_of_the_functions_named(capsys):
    report = document(capsys, "rank", *FEW, "--steps", "5")
    rows = report["ranking"]
    assert {row["function"] for row in rows} == {*discretize.FAMILIES, "geodesic"}
    for row in rows:
        function, parameters = row["function"], row["parameters"]
        if function == "geodesic":
            levels = discretize.geodesic(SCHEDULE, 5, DIGITS)
        else:
            levels = discretize.FAMILIES[function](SCHEDULE, 5, **parameters)
        assert row["value"] == fastkl.divergence(DIGITS, discretize.snap(SCHEDULE, levels), "w2")


def test_ranking_ascends_and_repeats(capsys):
    report = document(capsys, "rank", *FEW, "--top", "25")
    values = [row["value"] for row in report["ranking"]]
    assert values == sorted(values)
    assert [row["rank"] for row in report["ranking"]] == list(range(1, 26))
    assert report["ranking"][0]["times_best"] == 1.0
    assert report["ranking"][9]["times_best"] == pytest.approx(values[9] / values[0])
    again = document(capsys, "rank", *FEW, "--top", "25", "--threads", "1")
    assert again["ranking"] == report["ranking"]
    assert again["winner"] == report["winner"]


def test_duplicates_are_dropped_and_counted(capsys):
    report = document(capsys, "rank", *FEW, "--steps", "1000")
    assert report["candidates"] == 1  # there is only one way to visit all timesteps
    assert report["duplicates"] == report["generated"] - 1
    assert report["ranking"][0]["parameters"] == {"spacing": "linspace"}  # the first is kept


def test_uniform_spacings_are_compared(capsys):
    report = document(capsys, "rank", *FEW)
    assert list(report["uniform"]) == ["linspace", "leading", "trailing"]
    for spacing, row in report["uniform"].items():
        value = fastkl.divergence(DIGITS, discretize.uniform(SCHEDULE, 10, spacing), "w2")
        assert row["value"] == value
        assert row["times_best"] == pytest.approx(value / report["winner"]["value"])


def test_ideal_levels_need_not_be_timesteps(capsys):
    report = document(capsys, "rank", *FEW, "--no-snap")
    assert report["snapped"] is False
    assert report["winner"]["timesteps"] is None
    assert report["winner"]["value"] == fastkl.divergence(DIGITS, report["winner"]["sigmas"], "w2")
    assert min(report["winner"]["sigmas"][:-1]) >= SCHEDULE.sigma_min


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_can_be_ranked(capsys, name):
    option = ("--schedule-option", "gamma=0.5") if name == "tangent" else ()
    report = document(capsys, "rank", *FEW, "--schedule", name, *option, "--steps", "4")
    schedule = NoiseSchedule.tangent(0.5) if name == "tangent" else getattr(NoiseSchedule, name)()
    sigmas = np.array(report["winner"]["sigmas"], dtype=float)  # "inf" is how JSON has it
    assert report["schedule"] == repr(schedule)
    assert report["prior"] == schedule.prior
    assert report["winner"]["value"] == fastkl.divergence(DIGITS, sigmas, "w2", prior=schedule.prior)
    assert schedule.sigmas(report["winner"]["times"]) == pytest.approx(sigmas[:-1], rel=1e-9)
    assert (report["winner"]["timesteps"] is not None) == schedule.is_discrete


def fits(levels):
    """Whether the evaluator takes a row: non-zero finite levels within [1e-15, 1e15]."""
    finite = levels[(levels > 0) & np.isfinite(levels)]
    return finite.min() >= 1e-15 and finite.max() <= 1e15


@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, steps) for name in NAMES for steps in ("--steps 10", "--steps 500")]
    + [("flow", "--steps 20"), ("flow", "--schedule-option shift=3")],
)
def test_extreme_parameters_are_left_out_where_they_cannot_be_scored(capsys, name, arguments):
    """The least and the largest parameter of every family are tried, whatever the number of candidates."""
    arguments = arguments.split() + (["--schedule-option", "gamma=1"] if name == "tangent" else [])
    report = document(capsys, "rank", *FEW, "--schedule", name, *arguments)
    assert report["candidates"] + report["outside_schedule"] + report["duplicates"] == report["generated"]
    if name in ("flow", "tangent"):
        schedule = NoiseSchedule.flow() if name == "flow" else NoiseSchedule.tangent(1.0)
        levels = discretize.power_uniform(schedule, report["steps"], [16.0])
        assert not fits(levels)
        assert report["outside_schedule"] > 0
    assert fits(np.array(report["winner"]["sigmas"], dtype=float))


def test_uniform_levels_that_cannot_be_scored_are_not_compared(capsys):
    options = ("--schedule-option", "num_train_timesteps=20", "--schedule-option", "beta_start=1e-32")
    report = document(capsys, "rank", *FEW, *options, "--steps", "5")
    assert list(report["uniform"]) == ["trailing"]  # the other two visit timestep 0, of level 1e-16
    assert fits(np.array(report["winner"]["sigmas"]))
    assert "out of range" in run(capsys, "rank", *FEW, *options, "--steps", "5")[1]


@pytest.mark.parametrize("threads", [None, 1])
def test_every_evaluation_of_rank_uses_the_threads_asked_for(capsys, monkeypatch, threads):
    seen = []

    def spy(*arguments, num_threads=None, **options):
        seen.append(num_threads)
        return fastkl.divergence(*arguments, num_threads=num_threads, **options)

    monkeypatch.setattr("fastkl.cli.rank.divergence", spy)
    document(capsys, "rank", *FEW, *(("--threads", str(threads)) if threads else ()))
    assert len(seen) > 3
    assert set(seen) == {threads}


def test_schedule_options_reach_the_schedule(capsys):
    options = ("--schedule-option", "num_train_timesteps=50", "--schedule-option", "beta_end=0.3")
    report = document(capsys, "rank", *FEW, *options)
    assert report["schedule"] == repr(NoiseSchedule.ddpm_linear(50, beta_end=0.3))
    assert max(report["winner"]["timesteps"]) < 50


def test_prior_and_floor_are_used(capsys):
    report = document(capsys, "rank", *FEW, "--prior", "exact", "--floor", "0.25")
    spectrum = Spectrum.preset("digits", floor=0.25)
    levels = report["winner"]["sigmas"]
    assert report["winner"]["value"] == fastkl.divergence(spectrum, levels, "w2", prior="exact")


def test_rank_for_people(capsys):
    status, out, err = run(capsys, "rank", *FEW)
    winner = document(capsys, "rank", *FEW)["winner"]
    assert status == 0
    assert f"timesteps = {winner['timesteps']}" in out
    assert f"sigmas = [{', '.join(f'{s:.6g}' for s in winner['sigmas'])}]" in out
    assert "power_uniform" in out
    assert "candidates/s" in out
    assert "times lower" in out
    assert "scoring candidates" in err
    assert "scoring" not in out


# score


def saved(tmp_path, kind, levels):
    """A file of `kind` that holds `levels`."""
    path = tmp_path / f"sigmas.{kind}"
    rows = np.atleast_2d(levels).tolist()
    if kind == "npy":
        np.save(path, levels)
    elif kind == "npz":
        np.savez(path, sigmas=levels, other=np.ones(3))
    elif kind == "json":
        path.write_text(json.dumps(np.asarray(levels).tolist()))
    elif kind == "csv":
        path.write_text("# levels\n\n" + "\n".join(", ".join(map(repr, row)) for row in rows))
    else:
        path.write_text("\n".join(" ".join(map(repr, row)) + "  # a row" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "json", "csv", "txt"])
@pytest.mark.parametrize("levels", [LEVELS, LEVELS[0]], ids=["two", "one"])
def test_scores_from_every_kind_of_file(capsys, tmp_path, kind, levels):
    report = document(
        capsys, "score", saved(tmp_path, kind, levels), "--spectrum", "digits", "--metric", "all"
    )
    assert report["candidates"] == len(np.atleast_2d(levels))
    assert list(report["values"]) == ["kl", "reverse_kl", "jeffreys", "w2"]
    for metric, values in report["values"].items():
        assert values == np.atleast_1d(fastkl.divergence(DIGITS, levels, metric)).tolist()


def test_a_single_column_is_one_candidate(capsys, tmp_path):
    path = tmp_path / "column.txt"
    path.write_text("inf\n2\n0.5\n0\n")
    report = document(capsys, "score", str(path), "--prior", "flow")
    assert report["values"]["w2"] == [fastkl.divergence(Spectrum.preset("mnist"), [np.inf, 2, 0.5, 0], "w2")]


@pytest.mark.parametrize("text", ["80 5 1 0", "[80, 5, 1, 0]", "[[80, 5, 1, 0]]", '["inf", 5, 1, 0]'])
def test_scores_from_stdin(capsys, monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    report = document(capsys, "score", "-", "--metric", "w2", "--metric", "kl", "--metric", "w2")
    levels = [np.inf if "inf" in text else 80.0, 5.0, 1.0, 0.0]
    assert list(report["values"]) == ["w2", "kl"]
    assert report["values"]["kl"] == [fastkl.divergence(Spectrum.preset("mnist"), levels)]


def test_infinite_values_are_valid_json(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('["inf", 0]'))
    assert document(capsys, "score", "-", "--metric", "kl")["values"]["kl"] == ["inf"]


def test_score_for_people(capsys, tmp_path):
    status, out, _ = run(capsys, "score", saved(tmp_path, "csv", LEVELS))
    values = fastkl.divergence(Spectrum.preset("mnist"), LEVELS, "w2")
    assert status == 0
    assert all(f"{value:.6g}" in out for value in values)
    assert f"least w2: candidate {values.argmin()}" in out


def test_score_says_what_a_table_leaves_out(capsys, tmp_path):
    levels = np.linspace(50.0, 80.0, 1100)[:, None] * [1.0, 0.1, 0.0]
    _, out, _ = run(capsys, "score", saved(tmp_path, "npy", levels))
    assert "and 100 more candidates" in out


# spectrum


def test_spectrum_summary_against_numpy(capsys):
    report = document(capsys, "spectrum", "mnist")
    spectrum = Spectrum.preset("mnist")
    values = np.sort(spectrum.eigenvalues)[::-1]
    shares = values / values.sum()
    assert (report["entries"], report["dim"], report["zeros"]) == (784, 784, 0)
    assert report["total_variance"] == pytest.approx(values.sum())
    assert report["largest"] == values[0]
    assert report["smallest"] == values[-1]
    assert report["condition_number"] == pytest.approx(values[0] / values[-1])
    assert report["participation_ratio"] == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert report["entropy_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert report["tangent_gamma"] == fastkl.tangent_gamma(spectrum)
    assert report["mean_norm"] == pytest.approx(np.linalg.norm(spectrum.mean))
    for share in (0.5, 0.9, 0.99):
        assert report["variance_quantiles"][str(share)] == 1 + np.sum(np.cumsum(shares) < share)


def test_counts_weigh_in_the_summary(capsys, tmp_path):
    path = tmp_path / "spectrum.npz"
    np.savez(path, eigenvalues=[1.0, 4.0, 0.0], counts=[3, 2, 5], mean=[1.0, 0.0, 2.0])
    report = document(capsys, "spectrum", str(path))
    repeated = np.repeat([4.0, 1.0], [2, 3])
    shares = repeated / repeated.sum()
    assert (report["entries"], report["dim"], report["zeros"]) == (3, 10, 5)
    assert report["participation_ratio"] == pytest.approx(1 / (shares**2).sum())
    assert report["entropy_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert report["mean_norm"] == pytest.approx(np.sqrt(3 + 20))
    assert report["variance_quantiles"] == {"0.5": 2, "0.9": 4, "0.99": 5}
    assert report["condition_number"] is None
    assert report["tangent_gamma"] is None


@pytest.mark.parametrize("kind", ["npy", "csv", "txt"])
def test_spectrum_files(capsys, tmp_path, kind):
    path = saved(tmp_path, kind, np.array([3.0, 1.0]))
    assert document(capsys, "spectrum", path, "--floor", "1")["total_variance"] == 6.0


def test_spectrum_files_with_unnamed_or_named_arrays(capsys, tmp_path):
    for i, arrays in enumerate(
        [([2.0, 1.0],), {"eigenvalues": [2.0, 1.0]}, {"eigenvalues": [1.0], "counts": [3]}]
    ):
        path = str(tmp_path / f"{i}.npz")
        np.savez(path, **arrays) if isinstance(arrays, dict) else np.savez(path, *arrays)
        assert document(capsys, "spectrum", path)["total_variance"] == 3.0


def test_a_spectrum_without_variance_has_no_ranks(capsys, tmp_path):
    path = saved(tmp_path, "npy", np.zeros(3))
    status, out, _ = run(capsys, "spectrum", path)
    report = document(capsys, "spectrum", path)
    assert status == 0
    assert "zero eigenvalues" in out
    assert report["zeros"] == 3
    assert report["participation_ratio"] is None
    assert report["variance_quantiles"] == {"0.5": None, "0.9": None, "0.99": None}
    assert document(capsys, "rank", "--spectrum", path, "--metric", "w2")["winner"]["value"] >= 0.0


# doctor and warmup


def test_doctor_finds_a_working_backend(capsys):
    status, out, _ = run(capsys, "doctor")
    report = document(capsys, "doctor")
    assert status == 0
    assert "gpu backend" in out
    lack = _gpu_device.missing()
    assert report["gpu_backend"] == lack if lack else report["gpu_backend"].startswith("works (")
    assert "compile" in report["gpu_kernels"]  # ahead of time, or by CuPy at first use
    assert report["fastkl"] == fastkl.__version__
    assert report["numpy"] == np.__version__
    assert report["cpu_backend"] == "works"
    assert report["threads"] >= 1


def test_warmup_of_the_gpu_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(_gpu_device, "missing", lambda: "there is no NVIDIA driver")
    status, out, err = run(capsys, "warmup", "--gpu")
    assert (status, out) == (1, "")
    assert "backend = 'gpu': no GPU can be used: there is no NVIDIA driver" in err


@pytest.mark.parametrize("value", [0.5, ValueError("broken")])
def test_doctor_fails_with_a_broken_backend(capsys, monkeypatch, value):
    def broken(*arguments, **options):
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr("fastkl.evaluate.divergence", broken)
    status, out, _ = run(capsys, "doctor", "--json")
    assert status == 1
    assert json.loads(out)["cpu_backend"].startswith(("fails: ValueError: broken", "wrong: 0.5"))


def test_doctor_reports_a_bad_setting_of_threads(capsys, monkeypatch):
    monkeypatch.setenv("FASTKL_NUM_THREADS", "many")
    report = json.loads(run(capsys, "doctor", "--json")[1])
    assert "FASTKL_NUM_THREADS = 'many'" in report["threads"]


def test_warmup_compiles_every_signature(capsys):
    assert document(capsys, "warmup")["seconds"] >= 0.0
    seconds = fastkl.warmup()
    assert isinstance(seconds, float)
    from fastkl.kernels import (
        cells,
        ddim_compensated,
        ddim_horner,
        paths,
        sampler_deviation,
        sampler_sums,
        step_paths,
        subsets,
    )

    searching = [
        getattr(module, name) for module in (cells, paths, step_paths, subsets) for name in module.__all__
    ]
    kernels = [ddim_horner.tile_sums, ddim_horner.variances, ddim_horner.level_variances,
               ddim_compensated.compensated_tile_sums, sampler_sums.sampler_sums, sampler_sums.sampler_variances,
               sampler_sums.sampler_levels, sampler_deviation.precise_sums,
               sampler_deviation.precise_variances,
               *(kernel for kernel in searching if callable(kernel))]  # fmt: skip
    before = [list(kernel.signatures) for kernel in kernels]
    assert all(before)
    evaluate_all_kinds()
    assert [list(kernel.signatures) for kernel in kernels] == before


def evaluate_all_kinds():
    """Calls of every kind: metrics, priors, counts, a mean, one candidate and many, coarse and fine, long and short."""
    counted = Spectrum(np.geomspace(1e-3, 10.0, 3000), counts=np.full(3000, 2), mean=np.ones(3000))
    wide = np.geomspace(1e-20, 1e20, 50)
    fine, coarse = np.linspace(1.01, 1.0, 41), np.append(np.geomspace(100.0, 0.01, 40), 0.0)
    for spectrum in (counted, wide, DIGITS):
        for levels in (coarse, fine, np.array([coarse, coarse / 2]), np.append(np.inf, coarse)):
            for prior in ("vp", "ve", "flow", "exact"):
                for metric in ("kl", "reverse_kl", "jeffreys", "w2"):
                    fastkl.divergence(spectrum, levels, metric, prior=prior)
                fastkl.output_variance(spectrum, levels, prior=prior)
                fastkl.trajectory(spectrum, levels, prior=prior)
            if np.isfinite(levels).all():
                for sampler in ("lms", "dpmpp_2m", "dpmpp_sde", "unipc_3"):
                    fastkl.divergence(spectrum, levels, sampler=sampler)
                    fastkl.output_variance(spectrum, levels, sampler=sampler)
                    fastkl.trajectory(DIGITS, levels, sampler=sampler)
