"""Sweeps against loops over fastkl.divergence: values, order, the best, all rows, and every way to cut the work."""

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference_sweep import best, rows
from sweeps import GAMMAS, SCHEDULES, all_rows, column, exact, small

import fastkl
from fastkl.sweeps.axes import Ranged
from fastkl.sweeps.running import plan_of

SPECTRA = {"mnist": fastkl.Spectrum.preset("mnist"), "digits": fastkl.Spectrum.preset("digits")}
FAMILIES = [
    {"family": "karras", "rho": [1.0, 3.0, 7.0], "sigma_min": [0.011, 0.05], "sigma_max": [40.0, 80.0]},
    {"family": "geodesic"},
    {"family": "power_uniform", "power": np.linspace(1.0, 3.0, 20).tolist()},
    {"family": "quadratic"},
    {"family": "uniform"},
    {"family": "tangent", "gamma": [0.1, 1.0], "sigma_min": [0.0, 0.02]},
    {"family": "exponential", "snap": False},
]
LISTS = {
    "steps": [4, 7],
    "samplers": ["ddim", "heun"],
    "metrics": ["kl", "w2"],
    "priors": ["schedule", "exact"],
}
PER = ("spectrum", "metric", "steps")


@pytest.fixture(scope="module")
def slow():
    """All rows of the reference."""
    return list(rows(SPECTRA, SCHEDULES, families=FAMILIES, **LISTS))


def config(**changes):
    return {
        "spectra": list(SPECTRA),
        "schedules": list(SCHEDULES),
        "families": FAMILIES,
        "top": 6,
        **LISTS,
        **changes,
    }


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The same sweep with all rows, and its folder."""
    folder = tmp_path_factory.mktemp("full") / "out"
    return fastkl.sweep(config(full=True, chunk=100), folder), folder


def check_best(found, reference, per=PER):
    """The rows of `top` are those of the reference, in order, with its values to the last bit."""
    got = {}
    for row in found.top.to_pylist():
        got.setdefault(tuple(row[key] for key in per), []).append(row)
    assert got.keys() == reference.keys()
    for key, wanted in reference.items():
        assert [row["index"] for row in got[key]] == [row["index"] for row in wanted]
        assert [row["value"] for row in got[key]] == [row["value"] for row in wanted]
        assert [row["rank"] for row in got[key]] == list(range(1, len(wanted) + 1))
        assert [row["sigmas"] for row in got[key]] == [row["levels"].tolist() for row in wanted]


def test_all_rows_are_those_of_the_loops(full, slow):
    found, folder = full
    table = all_rows(folder)
    assert found.candidates == len(table) == len(slow) > 2000
    values, wanted = column(table, "value"), np.array([row["value"] for row in slow])
    np.testing.assert_allclose(values, wanted, rtol=1e-8, equal_nan=True)
    for key in ("index", "spectrum", "schedule", "steps", "sampler", "family", "metric", "prior"):
        assert table[key].to_pylist() == [row[key] for row in slow], key
    for key in ("power", "rho", "gamma"):
        assert table[key].to_pylist() == [row["parameters"].get(key) for row in slow], key


def test_the_best_are_those_of_the_loops(full, slow):
    check_best(full[0], best(slow, 6, PER))


@pytest.mark.parametrize("changes", [{"chunk": 211}, {"chunk": 10**6}, {}, {"rtol": 0.0}, {"rtol": 1e-3}])
def test_the_best_do_not_depend_on_chunks_or_rtol(changes, slow):
    check_best(fastkl.sweep(config(**changes)), best(slow, 6, PER))


@pytest.mark.parametrize("per", [[], ["family"], ["schedule", "sampler"], ["spectrum", "prior", "steps"]])
def test_groups(per, slow):
    check_best(fastkl.sweep(config(per=per)), best(slow, 6, per), per)


def test_copies_count_where_they_are_wanted():
    """power_uniform repeats timesteps, often."""
    spectra, schedules = {"digits": SPECTRA["digits"]}, {"ddpm_linear": SCHEDULES["ddpm_linear"]}
    families = [{"family": "power_uniform", "power": np.linspace(1.0, 2.0, 700).tolist()}]
    lists = {"steps": [3], "metrics": ["w2"], "priors": ["vp"], "samplers": ["ddim"]}
    slow = list(rows(spectra, schedules, families=families, **lists))
    few, many = best(slow, 40, PER), best(slow, 40, PER, distinct=False)
    assert [row["index"] for row in few["digits", "w2", 3]] != [
        row["index"] for row in many["digits", "w2", 3]
    ]
    given = {
        "spectra": "digits",
        "schedules": "ddpm_linear",
        "families": families,
        "top": 40,
        "chunk": 99,
        **lists,
    }
    check_best(fastkl.sweep(given), few)
    check_best(fastkl.sweep({**given, "distinct": False}), many)


def test_the_same_prior_by_two_names_counts_once():
    once, twice = (fastkl.sweep(small(priors=priors)).top for priors in (["ve"], ["schedule", "ve"]))
    assert twice["value"].to_pylist() == once["value"].to_pylist()


def test_same_bits_for_any_number_of_threads(tmp_path):
    for threads in (1, 2, 5):
        fastkl.sweep(small(full=True), tmp_path / str(threads), num_threads=threads)
    first, *others = (
        {p.name: p.read_bytes() for p in (tmp_path / name).glob("**/*.parquet")} for name in "125"
    )
    assert len(first) == 25
    assert all(other == first for other in others)


@pytest.mark.parametrize("rtol", [1e-2, 1e-6])
def test_compressed_evaluation_finds_the_best_of_a_large_grid(rtol):
    """100,000 candidates screened to rtol on a compression, against the exact evaluation of every one."""
    gammas = {"start": 0.1, "stop": 3.0, "num": 100_000, "spacing": "log"}
    found = fastkl.sweep(
        small(spectra=["mnist"], steps=10, top=100, rtol=rtol, chunk=None,
              families=[{"family": "tangent", "gamma": gammas, "sigma_min": 0.0}])
    )  # fmt: skip
    places = np.arange(100_000)
    axis = Ranged(**gammas).at(places)
    valid = np.array(fastkl.NoiseSchedule.edm().sigma_min <= fastkl.discretize.tangent(
        fastkl.NoiseSchedule.edm(), 10, axis, sigma_min=0.0)[:, -2])  # fmt: skip
    levels = fastkl.discretize.tangent(fastkl.NoiseSchedule.edm(), 10, axis, sigma_min=0.0)
    values = fastkl.divergence(SPECTRA["mnist"], levels, prior="ve")
    values[~valid] = np.inf
    order = np.lexsort((places, values))[:100]
    assert found.plan.compresses == [True]
    assert found.top["index"].to_pylist() == order.tolist()
    assert found.top["value"].to_pylist() == values[order].tolist()


def test_a_spectrum_is_compressed_only_where_that_pays():
    """A compression takes longer than a few hundred candidates of a small spectrum."""
    few = fastkl.sweep(small(spectra=["mnist"]))
    many = {"family": "tangent", "gamma": {**GAMMAS, "num": 10**8}, "sigma_min": 0.0}
    assert few.plan.compresses == [False]
    assert plan_of(small(spectra=["mnist", "digits"], families=[many])).compresses == [True, False]
    assert plan_of(small(spectra=["mnist"], families=[many], rtol=0.0)).compresses == [False]


def test_searches_are_those_of_search():
    schedules = {"few": fastkl.NoiseSchedule.ddpm_linear(200), "edm": SCHEDULES["edm"]}
    found = fastkl.sweep(
        small(
            spectra=["digits"],
            schedules=[{"name": name, "schedule": schedule} for name, schedule in schedules.items()],
            families=[],
            searches=[{"grid": 200}],
            metrics=["kl", "w2"],
            per=["schedule", "metric", "steps"],
        )
    )
    table = found.top.to_pylist()
    assert len(table) == found.candidates == 8
    for row in table:
        schedule = schedules[row["schedule"]]
        single = fastkl.search(SPECTRA["digits"], schedule, row["steps"], metric=row["metric"], grid=200)
        moved = single.refined_sigmas is not None
        assert row["sigmas"] == (single.refined_sigmas if moved else single.sigmas).tolist()
        assert row["value"] == pytest.approx(single.refined_value if moved else single.value, rel=1e-12)
        assert (row["lower_bound"], row["proved_optimal"]) == (single.lower_bound, single.proved_optimal)
        assert row["family"] == "search"
        if schedule.is_discrete:
            assert row["timesteps"] == single.timesteps.tolist()


def test_searches_and_geodesics_compete_with_families():
    found = fastkl.sweep(
        small(schedules=["ddpm_linear"], searches=[{}], top=400, chunk=None,
              families=[{"family": "tangent", "gamma": GAMMAS, "sigma_min": 0.0}, {"family": "geodesic"}])
    )  # fmt: skip
    by_group = {}
    for row in found.top.to_pylist():
        by_group.setdefault((row["spectrum"], row["steps"]), []).append(row)
    assert len(by_group) == 4
    for group in by_group.values():
        assert group[0]["family"] == "search"
        assert {"tangent", "geodesic"} <= {row["family"] for row in group}
        assert [row["value"] for row in group] == sorted(row["value"] for row in group)


def test_a_search_and_a_candidate_of_the_same_levels_count_once():
    """The search's levels are among the timesteps of a grid of all pairs."""
    schedule = fastkl.NoiseSchedule.ddpm_linear(20)
    best = fastkl.search(SPECTRA["digits"], schedule, 2)
    power = [np.log(best.timesteps[1] / 19) / np.log(0.5)]  # steps 2: times 1 and 0.5**power
    config = small(spectra=["digits"], schedules=[schedule], steps=2, families=[{"family": "power_uniform",
                   "power": power}], searches=[{"refine": False}])  # fmt: skip
    for samplers in (["ddim"], ["heun", {"function": "ddim", "name": "mine"}]):
        rows = fastkl.sweep({**config, "samplers": samplers, "per": ["spectrum"]}).top.to_pylist()
        same = [row for row in rows if row["sigmas"] == best.sigmas.tolist() and row["sampler"] != "heun"]
        assert len(same) == 1
        assert same[0]["sampler"] == ("ddim" if samplers == ["ddim"] else "mine")
    twice = fastkl.sweep({**config, "distinct": False}).top.to_pylist()
    assert sorted(row["generator"] for row in twice) == ["families[0]", "searches[0]"]


def test_rows_name_the_table_that_made_them():
    families = [{"family": "karras", "rho": 3.0}, {"family": "geodesic"}, {"family": "karras", "rho": 5.0}]
    found = fastkl.sweep(small(spectra=["digits"], steps=4, families=families, searches=[{}, {"grid": 300}]))
    rows = {row["generator"]: row for row in found.top.to_pylist()}
    assert {name: row["family"] for name, row in rows.items()} == {
        "families[0]": "karras", "families[1]": "geodesic", "families[2]": "karras",
        "searches[0]": "search", "searches[1]": "search",
    }  # fmt: skip
    assert (rows["families[0]"]["rho"], rows["families[2]"]["rho"]) == (3.0, 5.0)


def test_what_is_not_finite_has_no_value(tmp_path, monkeypatch):
    """An evaluation that overflows is counted and null, and never among the best."""
    real = fastkl.sweeps.evaluation.divergence

    def overflowing(spectrum, levels, *rest, **options):
        values = real(spectrum, levels, *rest, **options)
        values[levels[:, 1] > np.median(levels[:, 1])] = np.inf
        return values

    monkeypatch.setattr("fastkl.sweeps.evaluation.divergence", overflowing)
    found = fastkl.sweep(small(spectra=["digits"], steps=4, full=True, chunk=1000), tmp_path / "out")
    values = all_rows(tmp_path / "out")["value"]
    assert 0 < found.left_out == values.null_count < 600
    assert np.isfinite(found.top["value"].to_numpy()).all()


def test_budgets_of_evaluations():
    found = fastkl.sweep(
        small(steps=None, nfe=[10], samplers=["ddim", "heun", "plms"], per=["sampler"], top=1)
    )
    steps = dict(zip(found.top["sampler"].to_pylist(), found.top["steps"].to_pylist(), strict=True))
    assert steps == {"ddim": 10, "heun": 5, "plms": 9}


def test_live_objects():
    spectrum = fastkl.Spectrum([1.0, 0.1, 0.01], counts=[1, 2, 3])
    schedule, sampler = fastkl.NoiseSchedule.flow(shift=3.0), fastkl.samplers.ddim(eta=0.5)
    live = small(
        spectra=[{"name": "mine", "spectrum": spectrum}, np.array([2.0, 1.0])],
        schedules=[schedule],
        samplers=[sampler],
        families=[{"family": "karras", "sigma_min": 0.01, "sigma_max": 50.0}],
        top=1,
    )
    table = fastkl.sweep(live).top.to_pylist()
    assert [row["spectrum"] for row in table] == ["mine", "mine", "spectra[1]", "spectra[1]"]
    levels = fastkl.discretize.karras(schedule, 4, 7.0, 0.01, 50.0)
    assert table[0]["value"] == fastkl.divergence(spectrum, levels, "kl", sampler, "flow")
    plain = {
        **live,
        "schedules": [{"kind": "flow", "shift": 3.0}],
        "samplers": [{"function": "ddim", "eta": 0.5}],
    }
    assert [row["value"] for row in fastkl.sweep(plain).top.to_pylist()] == [row["value"] for row in table]


def test_files_of_many_spectra(tmp_path, monkeypatch):
    for k in range(12):
        np.save(tmp_path / f"s{k:02}.npy", np.geomspace(1.0, 10.0 ** -(1 + k / 4), 20))
    config_file = tmp_path / "sweep.toml"
    config_file.write_text(
        'spectra = [{ file = "s*.npy" }, { power_law = { dim = 30, exponent = [1.0, 2.0] } }]\n'
        'schedules = ["edm"]\nsteps = 5\ntop = 1\n[[families]]\nfamily = "karras"\nrho = [3.0, 7.0]\n'
    )
    monkeypatch.chdir("/")  # paths are relative to the file
    table = fastkl.sweep(config_file).top
    assert table["spectrum"].to_pylist() == [f"s{k:02}" for k in range(12)] + [
        "power_law 1.0",
        "power_law 2.0",
    ]


def test_a_spectrum_in_chunks_is_that_of_its_moments(tmp_path, rng):
    parts = [rng.lognormal(0.0, 2.0, 1000 + k) for k in range(7)]
    for k, part in enumerate(parts):
        np.save(tmp_path / f"part{k}.npy", part)
    whole = fastkl.Spectrum(np.concatenate(parts))
    found = fastkl.sweep(small(spectra=[{"name": "x", "chunks": str(tmp_path / "part*.npy")}], rtol=1e-9))
    for row in found.top.to_pylist():
        assert row["value"] == pytest.approx(exact(row, {"x": whole}), rel=1e-9)
    from_arrays = fastkl.sweep(small(spectra=[{"name": "x", "chunks": parts}], rtol=1e-9))
    assert from_arrays.top.equals(found.top)
    assert from_arrays.config_hash == found.config_hash


def test_what_has_no_value_is_counted_and_null(tmp_path):
    """Ends the wrong way round, and a law that leaves the schedule's range."""
    families = [
        {"family": "karras", "sigma_min": [0.01, 3.0], "sigma_max": [1.0, 5.0]},
        {"family": "tangent", "gamma": [1e-9, 1.0], "sigma_min": 0.0},
    ]
    found = fastkl.sweep(small(spectra=["digits"], steps=4, families=families, full=True), tmp_path / "out")
    table = all_rows(tmp_path / "out")
    assert np.isnan(column(table, "value")).tolist() == [False, False, True, False, True, False]
    assert found.left_out == 2
    assert sorted(found.top["index"].to_pylist()) == [0, 1, 3, 5]


def test_parquet_files_name_units_and_configuration(full):
    found, folder = full
    files = [folder / "top.parquet", *sorted((folder / "chunks").iterdir())]
    for path in files:
        schema = pq.read_schema(path)
        assert schema.metadata[b"fastkl.config_hash"].decode() == found.config_hash
        assert schema.field("value").metadata[b"unit"].startswith(b"nats; for metric w2 squared data units")
        assert schema.field("sigma_min").metadata[b"unit"] == b"noise-to-signal ratio sigma_t/alpha_t"
    index = [int(pq.read_schema(path).metadata[b"fastkl.first"]) for path in files[1:]]
    assert index == sorted(index)


def test_pandas_and_polars_read_the_results(full, slow):
    found, folder = full
    by_pandas = pandas.read_parquet(folder / "chunks").sort_values("index")
    by_polars = polars.read_parquet(folder / "chunks" / "*.parquet").sort("index")
    values = [row["value"] for row in slow]
    np.testing.assert_allclose(by_pandas["value"], values, rtol=1e-8)
    np.testing.assert_allclose(by_polars["value"].to_numpy(), values, rtol=1e-8)
    assert by_polars["sampler"].cast(polars.String).to_list() == by_pandas["sampler"].tolist()
    assert found.to_pandas()["value"].tolist() == found.to_polars()["value"].to_list()
    assert pa.table(found.top).num_rows == 6 * len(
        found.top["rank"].filter(pa.compute.equal(found.top["rank"], 1))
    )


def test_sigmas_of_any_index(full, slow):
    found, _ = full
    for index in (0, 1, 1234, len(slow) - 1):
        np.testing.assert_array_equal(found.sigmas(index), slow[index]["levels"])
    with pytest.raises(ValueError, match=f"index = {len(slow)}: must be at most"):
        found.sigmas(len(slow))
    searched = fastkl.sweep(small(families=[], searches=[{}], spectra=["digits"], steps=3))
    with pytest.raises(ValueError, match="index = 0: is a search"):
        searched.sigmas(0)


def test_progress_counts_every_candidate(capfd):
    reports = []
    found = fastkl.sweep(small(), progress=lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 2400)
    assert reports[-1] == (2400, 2400)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    fastkl.sweep(small(), progress=True)  # no terminal: lines
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "0 of 2,400 candidates"
    assert lines[-1].startswith("2,400 of 2,400 candidates, ")
    assert found.evaluated_now == 2400
