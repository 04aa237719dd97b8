"""What the experiments on networks committed: weights that are small and good, an answer that is current."""

import itertools
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import fastkl

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "experiments"
pytestmark = pytest.mark.usefixtures("experiments")


def linear_denoiser(images):
    """The best denoiser of a Gaussian with the images' mean and covariance, as a function of rows and sigma."""
    pixels = images.reshape(len(images), -1)
    values, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
    values, mean = np.maximum(values, 0), pixels.mean(0)
    return lambda noisy, sigma: mean + ((noisy - mean) @ vectors * (values / (values + sigma**2))) @ vectors.T


def test_committed_weights_are_small_and_denoise_far_better_than_a_linear_map():
    import data
    import networks
    import sampling

    files = sorted(networks.WEIGHTS.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    names = [file.stem for file in files if not file.stem.endswith("classifier")]
    assert names == ["mnist-edm", "mnist-epsilon", "patches-edm"]
    torch.set_num_threads(1)
    sets = {name: make() for name, make in data.DATA_SETS.items()}
    linear = {name: linear_denoiser(data.scaled(images.training[:20_000])) for name, images in sets.items()}
    # Shares of the linear map's error; patches of photographs are far closer to Gaussian than digits.
    limits = {"mnist": ((0.3, 0.3), (1.0, 0.45)), "patches": ((0.1, 0.5), (0.3, 0.65))}
    for name in names:
        model = networks.load(name)
        assert 500_000 <= sum(value.numel() for value in model.parameters()) <= 3_000_000
        clean = data.scaled(sets[model.description.data].held_out[:250])
        rows = clean.reshape(len(clean), -1)
        for sigma, most in limits[model.description.data]:
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7)).numpy()
            answer = linear[model.description.data](rows + sigma * noise.reshape(rows.shape), sigma)
            limit = most * np.square(answer - rows).sum(1).mean()
            assert sampling.denoising_errors(model, clean, np.array([sigma]), seed=7)[0] < limit, (
                name,
                sigma,
            )


def test_a_half_done_number_of_evaluations_is_not_shown():
    import answer

    rows = [
        {"strategy": name, "nfe": nfe, "seed": 0, "count": 10}
        for nfe, names in ((3, "abcd"), (5, "a"), (4, "abcd"))
        for name in names
    ]
    assert list(answer.survey(rows)) == [3, 4]


def test_what_failed_is_left_out_and_named():
    import answer
    import answer_text

    shown = (*answer.DISTANCES, "precision", "coverage", "recall", "confidence", "class_shift")
    cells = [
        {"strategy": name, "nfe": nfe, "seed": seed, "count": 10}
        for nfe, name, seed in itertools.product((3, 4), "abcd", (1, 2, 3))
    ]
    rows = [cell | dict.fromkeys(shown, float(cell["seed"])) for cell in cells]
    assert answer.failures(rows) == {}
    for k in (0, 2, 5):  # at NFE 3 a of seeds 1 and 3, b of seed 3
        rows[k] = cells[k] | {"failed": "samples are not finite"}
    tables = {nfe: list(table) for nfe, table in answer.survey(rows).items()}
    assert tables == {3: ["b", "c", "d"], 4: ["a", "b", "c", "d"]}  # NFE 3 is shown: a was run there
    means = {(line["nfe"], line["strategy"]): line["fd_features"][0] for line in answer.finals(rows)}
    complete = {(3, "c"): 2.0, (3, "d"): 2.0} | {(4, name): 2.0 for name in "abcd"}
    assert means == complete | {(3, "b"): 1.5}
    failed = answer.failures(rows)
    said = "Not finite, and in no table: the samples of 3 cells, a (NFE 3 seed 1, NFE 3 seed 3); b (NFE 3 seed 3)."
    answers = json.loads((HERE / "results" / "answer.json").read_text(encoding="utf-8"))
    setup = answers["setups"]["mnist-edm-ddim"]
    text = answer_text.setup_text("x", setup)
    assert answer_text.setup_text("x", setup | failed) == f"{text}\n\n{said}"


def committed(name):
    """Rows of a setup by number of evaluations, those of the seed and count that has most strategies, and all."""
    import answer

    rows = json.loads((HERE / "results" / f"samples-{name}.json").read_text(encoding="utf-8"))["rows"]
    groups = Counter((row["nfe"], row["count"], row["seed"]) for row in rows)
    largest = {nfe: max(n for key, n in groups.items() if key[0] == nfe) for nfe, _, _ in groups}
    tables = {}
    for (nfe, count, seed), size in groups.items():
        if size == largest[nfe] >= answer.COMPLETE * max(largest.values()) and nfe not in tables:
            cell = [row for row in rows if (row["nfe"], row["count"], row["seed"]) == (nfe, count, seed)]
            tables[nfe] = [row for row in cell if "failed" not in row]
    return tables, [row for row in rows if "failed" not in row]


@pytest.fixture(scope="module")
def answers():
    return json.loads((HERE / "results" / "answer.json").read_text(encoding="utf-8"))


def test_rank_correlations_follow_from_the_committed_rows(answers):
    import measured
    import sampling

    assert len(answers["setups"]) >= 4
    for name, setup in answers["setups"].items():
        known, (tables, _) = sampling.SETUPS[name], committed(name)
        assert set(setup["survey"]) == {str(nfe) for nfe in tables}
        s = measured.situation(known, HERE / "results")
        spectra = {"w2-eff-0": (s.effective, "w2"), "kl-cov-0.01": (s.covariance.floored(0.01), "kl")}
        for nfe, table in tables.items():
            distances = rankdata([row["fd_features"] for row in table])
            for key, (spectrum, metric) in spectra.items():
                how = (metric, known.sampler, known.schedule.prior)
                predicted = [float(fastkl.divergence(spectrum, row["sigmas"], *how)) for row in table]
                expected = np.corrcoef(rankdata(predicted), distances)[0, 1]
                found = setup["survey"][str(nfe)]["correlation"][key]["fd_features"]
                assert found == pytest.approx(expected, abs=2e-4), (name, nfe, key)


def test_means_over_seeds_follow_from_the_committed_rows(answers):
    for name, setup in answers["setups"].items():
        rows = committed(name)[1]
        most = max(row["count"] for row in rows)
        seeds = defaultdict(list)
        for row in rows:
            if row["count"] == most:
                seeds[row["strategy"], row["nfe"]].append(row)
        lines = {(line["strategy"], line["nfe"]): line for line in setup["final"]}
        assert lines.keys() == {key for key, cells in seeds.items() if len(cells) > 1}
        for key, line in lines.items():
            for score in ("fd_features", "to_teacher", "recall"):
                values = [row[score] for row in seeds[key]]
                expected = [statistics.mean(values), statistics.stdev(values)]
                assert line[score] == pytest.approx(expected, rel=1e-9)


def test_regrets_follow_from_the_committed_rows(answers):
    import sampling

    for sampler, regret in answers["regret"].items():
        for strategy in ("karras-7", "tan-1-to0", "search-w2-eff-0"):
            ratios = {}
            for name in answers["setups"]:
                for nfe, table in committed(name)[0].items():
                    of = {row["strategy"]: row["fd_features"] for row in table}
                    ratios[f"{name} NFE {nfe}"] = of[strategy] / min(of.values())
            own = {
                case: r for case, r in ratios.items() if sampling.SETUPS[case.split()[0]].sampler == sampler
            }
            line = regret["fd_features"][strategy]
            assert line["mean"] == pytest.approx(statistics.geometric_mean(own.values()), abs=2e-4)
            assert line["worst"] == pytest.approx(max(own.values()), abs=2e-4)
            assert own[line["where"]] == max(own.values())


def test_the_answer_is_that_of_the_committed_results():
    import answer
    import answer_text

    result = json.loads((HERE / "results" / "answer.json").read_text(encoding="utf-8"))
    readme = answer.README.read_text(encoding="utf-8")
    assert answer.with_headline(readme, answer_text.headline(result)) == readme
    assert (HERE / "results" / "answer.md").read_text(encoding="utf-8") == answer_text.written(result)
    for name, setup in result["setups"].items():
        rows = json.loads((HERE / "results" / f"samples-{name}.json").read_text(encoding="utf-8"))["rows"]
        for nfe, part in setup["survey"].items():
            cell = (int(nfe), part["count"], part["seed"])
            same = {row["strategy"]: row for row in rows if (row["nfe"], row["count"], row["seed"]) == cell}
            for score, distances in part["distances"].items():
                assert distances == {
                    strategy: pytest.approx(row[score], abs=1e-4) for strategy, row in same.items()
                }


def test_the_best_of_several_strategies_counts_cases_that_have_them_all():
    import answer_text

    parts = [{"a": 2.0, "b": 3.0, "a-from5": 1.5}, {"a": 4.0, "b": 1.0}, {"a": 1.0, "c": 1.0}]
    names = ("a", "b", "a-from5")
    assert answer_text.least_ratios(parts, names) == [1.5, 1.0]
    assert answer_text.over_cases(parts, names, "cases") == "1.22 (1.50), 2 of 3 cases"
    assert answer_text.over_cases(parts, ("d",), "cases") == ""


def test_regret_is_over_strategies_that_all_setups_have():
    import answer

    def part(**distances):
        return {"distances": {"fd_pixels": distances}}

    setups = {
        "x": {"survey": {"3": part(a=2.0, b=8.0, c=2.0)}},
        "y": {"survey": {"3": part(a=4.0, b=1.0), "5": part(a=1.0, b=0.5)}},
    }
    found = answer.regrets(setups, "fd_pixels")
    assert list(found) == ["b", "a"]
    assert found["a"] == {"mean": 2.0, "worst": 4.0, "where": "y NFE 3"}
