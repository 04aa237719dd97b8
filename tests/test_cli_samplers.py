"""The command line's samplers: rank at equal evaluations, score, and what they refuse."""

import numpy as np
import pytest
from cli_calls import FEW, document, run

import fastkl
from fastkl import Spectrum, samplers

DIGITS = Spectrum.preset("digits")
NAMES = "ddim,heun,dpmpp_2m,sde_dpmpp_2m"


@pytest.mark.parametrize("metric", ["kl", "w2"])
def test_samplers_are_ranked_at_equal_evaluations(capsys, metric):
    report = document(capsys, "rank", *FEW, "--nfe", "10", "--samplers", NAMES, "--metric", metric)
    assert report["nfe"] == 10
    assert report["samplers"] == {
        name: {"steps": samplers.steps_for(name, 10), "nfe": samplers.nfe(name, samplers.steps_for(name, 10))}
        for name in NAMES.split(",")
    }
    rows = report["ranking"]
    assert sorted(row["sampler"] for row in rows) == sorted(NAMES.split(","))
    assert [row["value"] for row in rows] == sorted(row["value"] for row in rows)
    winner = report["winner"]
    assert winner["value"] == rows[0]["value"]
    assert winner["value"] == fastkl.divergence(DIGITS, winner["sigmas"], metric, winner["sampler"])
    assert len(winner["sigmas"]) == report["steps"] + 1 == rows[0]["steps"] + 1
    alone = document(
        capsys, "rank", *FEW, "--steps", "5", "--samplers", "heun", "--metric", metric, "--no-snap"
    )
    assert {row["sampler"] for row in alone["ranking"]} == {"heun"}
    assert len(alone["ranking"]) > 3  # the best of each family


def test_the_best_of_all_and_the_uniform_levels_of_the_winner(capsys):
    report = document(capsys, "rank", *FEW, "--steps", "6", "--samplers", "ddim,dpmpp_2m", "--top", "9")
    assert len(report["ranking"]) == 9
    schedule = fastkl.NoiseSchedule.ddpm_linear()
    for spacing, row in report["uniform"].items():
        levels = fastkl.discretize.uniform(schedule, 6, spacing)
        assert row["value"] == fastkl.divergence(DIGITS, levels, "w2", report["winner"]["sampler"])


def test_candidates_from_inf_are_left_to_the_samplers_that_can(capsys):
    options = (*FEW, "--schedule", "flow", "--steps", "5", "--samplers")
    heun = document(capsys, "rank", *options, "heun")
    flow = document(capsys, "rank", *options, "flow_heun")
    assert heun["candidates"] < flow["candidates"]
    assert np.isfinite(np.array(heun["winner"]["sigmas"], dtype=float)).all()
    assert heun["candidates"] + heun["outside_schedule"] + heun["duplicates"] == heun["generated"]


def test_rank_of_samplers_for_people(capsys):
    status, out, _ = run(capsys, "rank", *FEW, "--nfe", "10", "--samplers", "heun,ddim")
    assert status == 0
    assert "10 evaluations" in out
    assert "sampler" in out
    status, out, _ = run(capsys, "rank", *FEW, "--steps", "4", "--samplers", "heun")
    assert "heun, 4 steps (7 evaluations)" in out


def test_score_with_a_sampler(capsys, tmp_path):
    path = tmp_path / "sigmas.txt"
    path.write_text("80 5 1 0.1 0\n")
    report = document(capsys, "score", str(path), "--spectrum", "digits", "--sampler", "unipc_2")
    expected = fastkl.divergence(DIGITS, [80, 5, 1, 0.1, 0], "w2", "unipc_2")
    assert report["sampler"] == "unipc_2"
    assert report["values"]["w2"] == [expected]
    assert "unipc_2" in run(capsys, "score", str(path), "--spectrum", "digits", "--sampler", "unipc_2")[1]


REFUSED = [
    ("rank --samplers no_such", "no sampler is called 'no_such'; there are ddim, euler,"),
    ("rank --samplers prk --steps 3", "--samplers prk: needs at least 4 steps"),
    (
        "rank --samplers prk --nfe 12",
        "nfe = 12: fastkl.samplers.prk(middles=None) needs at least 13 evaluations",
    ),
    ("rank --samplers sde_dpm_2m", "--samplers sde_dpm_2m: needs a last level above 0"),
    ("rank --nfe 10 --steps 10", "not allowed with argument"),
    ("rank --nfe 0", "argument --nfe: must be an integer above 0, got '0'"),
    ("score - --sampler no_such", "invalid choice: 'no_such'"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED)
def test_what_is_refused(capsys, command, message):
    try:
        status, out, err = run(capsys, *command.split())
    except SystemExit as exit_:  # the parser's own errors
        status, (out, err) = exit_.code, capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("fastkl: error: ")
    assert message in err
