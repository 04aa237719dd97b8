"""Parts of a sweep alone: levels of any block, ranges, places in the product, and the best of what passes by."""

import re

import numpy as np
import pytest
from reference_sweep import grid
from sweeps import SCHEDULES, small

import fastkl
from fastkl.sweeps.axes import Ranged
from fastkl.sweeps.best import Best
from fastkl.sweeps.config import validated
from fastkl.sweeps.generation import levels_of
from fastkl.sweeps.plan import Product
from fastkl.sweeps.progress import bar, duration
from fastkl.sweeps.running import plan_of

GRIDS = [
    {"family": "karras", "rho": {"start": 1.0, "stop": 9.0, "num": 7}, "sigma_min": [0.01, 0.02]},
    {"family": "exponential", "sigma_max": {"start": 9.0, "stop": 80.0, "num": 13, "spacing": "log"}},
    {
        "family": "tangent",
        "gamma": {"start": 0.01, "stop": 9.0, "num": 11, "spacing": "log"},
        "sigma_min": [0.0],
    },
    {"family": "power_uniform", "power": {"start": 1.0, "stop": 9.0, "num": 17}},
    {"family": "random", "num": 29, "seed": 3},
]


@pytest.mark.parametrize("snap", [False, True])
@pytest.mark.parametrize("table", GRIDS, ids=lambda table: table["family"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_levels_do_not_depend_on_the_block(table, steps, snap, rng):
    """The same bits alone, in any block, and from the public functions of discretize."""
    schedule = SCHEDULES["ddpm_linear"] if snap else SCHEDULES["edm"]
    if snap:
        table = {key: value for key, value in table.items() if key != "sigma_max"}
        table |= {"sigma_min": [0.02]} if "sigma_min" in table else {}
    family = validated(small(families=[{**table, "snap": snap}])).families[0]
    places = np.arange(family.size())
    levels, valid = levels_of(family, schedule, steps, None, places)
    assert valid.all()
    for place in places:
        np.testing.assert_array_equal(
            levels_of(family, schedule, steps, None, places[place : place + 1])[0][0], levels[place]
        )
    shuffled = rng.permutation(places)
    np.testing.assert_array_equal(levels_of(family, schedule, steps, None, shuffled)[0], levels[shuffled])
    if table["family"] == "random":
        assert len(np.unique(levels, axis=0)) >= (1 if steps == 1 else 25)  # timesteps may coincide
        return
    lists = {k: a.at(np.arange(a.size)).tolist() for k, a in family.axes().items()}
    for place, parameters in enumerate(grid({"family": table["family"], **lists})):
        name = parameters.pop("family")
        more = {"snap": snap} if name == "power_uniform" else {}
        single = getattr(fastkl.discretize, name)(schedule, steps, **parameters, **more)
        np.testing.assert_array_equal(
            levels[place], fastkl.discretize.snap(schedule, single) if snap else single
        )


def test_random_levels_are_log_uniform():
    family = validated(small(families=[{"family": "random", "num": 20_000, "seed": 1}])).families[0]
    levels, valid = levels_of(family, SCHEDULES["edm"], 5, None, np.arange(20_000))
    assert valid.all()
    assert (levels[:, 0] == 80.0).all()
    shares = np.log(levels[:, 1:-1] / 80.0) / np.log(0.002 / 80.0)
    np.testing.assert_allclose(shares.mean(axis=0), np.arange(1, 5) / 5, atol=0.005)  # order statistics
    other = validated(small(families=[{"family": "random", "num": 5, "seed": 2}])).families[0]
    assert not np.array_equal(levels_of(other, SCHEDULES["edm"], 5, None, np.arange(5))[0], levels[:5])


@pytest.mark.parametrize("spacing", ["linear", "log"])
def test_ranges(spacing):
    axis = Ranged(0.5, 32.0, 10**9, spacing)
    assert axis.at(np.array([0, 10**9 - 1])).tolist() == [0.5, 32.0]
    few = Ranged(0.5, 32.0, 7, spacing).at(np.arange(7))
    wanted = np.linspace(0.5, 32.0, 7) if spacing == "linear" else np.geomspace(0.5, 32.0, 7)
    np.testing.assert_allclose(few, wanted, rtol=1e-15)


@pytest.mark.parametrize(
    ("start", "stop"), [(1e-160, 1e160), (1e160, 1e-160), (1e-300, 1e300), (1e-300, 1e-299)]
)
def test_ranges_over_all_magnitudes(start, stop):
    values = Ranged(start, stop, 1001, "log").at(np.arange(1001))
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == 1001
    assert (values[0], values[-1]) == (start, stop)
    ratios = np.diff(np.log(values))
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=1e-9)


def test_every_index_has_one_place():
    product = Product(2, 3, 2, (4, 1, 5), 3, 2, 2)
    seen = [product.locate(index) for index in range(product.size)]
    assert len(set(seen)) == product.size == 2 * 3 * 2 * 10 * 3 * 2 * 2
    for begin, end in ((0, product.size), (13, 14), (7, 155)):
        cut = [(cell, p) for cell, _, low, high in product.segments(begin, end) for p in range(low, high)]
        assert cut == seen[begin:end]


@pytest.mark.parametrize("copies", [1, 3])
def test_best_is_that_of_sorting_everything(copies, rng):
    values = rng.integers(0, 300, 5000) / 7.0
    levels = np.stack([values // 3, values], axis=1)  # equal levels have equal values
    keep, slack = 20, 1.3
    found = Best(keep, copies, slack)
    for part in np.array_split(rng.permutation(5000), 60):
        part.sort()
        found.add(values[part], part, 0, levels[part])
    kept, seen, bar = [], {}, np.inf
    for i in np.lexsort((np.arange(5000), values)):
        seen[values[i]] = seen.get(values[i], 0) + 1
        if values[i] <= bar and seen[values[i]] <= copies:
            kept.append(i)
            bar = values[i] * slack if len(kept) == keep else bar
    assert [record.index for record in found.records()] == kept
    assert len(kept) > keep


def test_memory_does_not_grow_with_the_number_of_candidates():
    """A grid of 1e15 is planned at once, and its last chunk evaluated."""
    from fastkl.sweeps.evaluation import chunk_table

    wide = {"start": 0.5, "stop": 50.0, "num": 10**7}
    families = [{"family": "karras", "rho": wide, "sigma_max": {"start": 40.0, "stop": 80.0, "num": 10**8}}]
    plan = plan_of(small(spectra=["digits"], steps=6, families=families, chunk=1000))
    assert plan.size == 10**15
    assert plan.chunks == 10**12
    last = chunk_table(plan, plan.chunks - 1)
    assert last["index"].to_pylist()[-1] < 10**15
    assert last["sigma_max"].to_pylist()[-1] <= 80.0


def test_the_bar_shows_count_and_rate(capfd):
    with bar(4000, 1000) as advance:
        advance(3000)
    assert re.search(r"candidates .* 4000/4000 [0-9,]+/s", capfd.readouterr().err)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00:00"), (61.0, "0:01:01"), (36_610.0, "10:10:10")])
def test_times_left(seconds, text):
    assert duration(seconds) == text
