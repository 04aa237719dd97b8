"""What `search` refuses, or warns of, before any work, and what it takes although it looks odd."""

import re
import warnings

import numpy as np
import pytest

from fastkl import NoiseSchedule, Spectrum, exhaustive, search

LINEAR = NoiseSchedule.ddpm_linear(20)
ZERO_SNR = NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.0])
TWO = [Spectrum([1.0]), Spectrum([2.0])]
BAD = {
    "spectrum": (([1.0, -1.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = -1\.0"),
    "no spectra": (([], LINEAR, 3), {}, ValueError, r"^spectrum: must have at least 1"),
    "mixed spectra": (
        ([Spectrum([1.0]), [2.0]], LINEAR, 3),
        {},
        ValueError,
        r"^spectrum: must be a rectangular",
    ),
    "zero": (([1.0, 0.0], LINEAR, 3), {}, ValueError, r"^spectrum\[1\] = 0\.0: must be above 0, because kl"),
    "zero of a Spectrum": (
        (Spectrum([0.0]), LINEAR, 3),
        {},
        ValueError,
        r"^spectrum\.eigenvalues\[0\] = 0\.0",
    ),
    "zero of several": (
        ([Spectrum([1.0]), Spectrum([1.0, 0.0])], LINEAR, 3),
        {},
        ValueError,
        r"^spectrum\[1\]\.eigenvalues\[1\] = 0\.0: must be above 0, because kl",
    ),
    "only zeros": (
        ([0.0], LINEAR, 3),
        {"metric": "w2"},
        ValueError,
        r"^spectrum: must have an eigenvalue above 0",
    ),
    "free_start": (
        ([1.0], LINEAR, 3),
        {"free_start": 1},
        TypeError,
        r"^free_start: must be True or False, got 1",
    ),
    "prove": (([1.0], LINEAR, 3), {"prove": "no"}, TypeError, r"^prove: must be True or False, got 'no'"),
    "level out of range": (
        ([1.0], NoiseSchedule.ddpm_linear(10_000), 3),
        {},
        ValueError,
        r"^schedule = NoiseSchedule.ddpm_linear\(num_train.*: has the level .*, must be within 1e-15 and 1e\+15",
    ),
    "one level": (
        ([1.0], NoiseSchedule.from_betas([1.0]), 3),
        {},
        ValueError,
        r"^schedule = .*only level is inf",
    ),
    "schedule": (([1.0], [3.0, 2.0], 3), {}, TypeError, r"^schedule: must be a NoiseSchedule, got list"),
    "steps": (([1.0], LINEAR, 0), {}, ValueError, r"^steps = 0: must be at least 1"),
    "many steps": (([1.0], LINEAR, 21), {}, ValueError, r"^steps = 21: must be at most 20"),
    "float steps": (([1.0], LINEAR, 3.0), {}, TypeError, r"^steps: must be an integer, got 3\.0"),
    "several steps": (([1.0], LINEAR, [3, 0]), {}, ValueError, r"^steps\[1\] = 0: must be at least 1"),
    "text": (([1.0], LINEAR, "3"), {}, TypeError, r"^steps\[0\]: must be an integer, got '3'"),
    "one step from inf": (([1.0], ZERO_SNR, 1), {}, ValueError, r"^steps = 1: must be at least 2"),
    "sampler": (([1.0], LINEAR, 3), {"sampler": "heun3"}, ValueError, r"^sampler = 'heun3': must be one of"),
    "metric": (([1.0], LINEAR, 3), {"metric": "fid"}, ValueError, r"^metric = 'fid': must be one of 'kl'"),
    "metric's kind": (([1.0], LINEAR, 3), {"metric": 3}, TypeError, r"^metric: must be one of .*, got 3"),
    "prior": (([1.0], LINEAR, 3), {"prior": "normal"}, ValueError, r"^prior = 'normal': must be one of"),
    "time_limit": (([1.0], LINEAR, 3), {"time_limit": 0}, ValueError, r"^time_limit = 0\.0: must be above 0"),
    "time_limit's kind": (
        ([1.0], LINEAR, 3),
        {"time_limit": "1"},
        TypeError,
        r"^time_limit: must be a real number",
    ),
    "grid": (([1.0], NoiseSchedule.edm(), 1), {"grid": 1}, ValueError, r"^grid = 1: must be at least 2"),
    "min_spacing": (
        ([1.0], LINEAR, 3),
        {"min_spacing": 0},
        ValueError,
        r"^min_spacing = 0: must be at least 1",
    ),
    "wide spacing": (
        ([1.0], LINEAR, 4),
        {"min_spacing": 7},
        ValueError,
        r"^steps = 4: no choice of levels keeps",
    ),
    "visit": (
        ([1.0], LINEAR, 3),
        {"visit": [3, 20]},
        ValueError,
        r"^visit\[1\] = 20\.0: must be a timestep, an",
    ),
    "visit a half": (
        ([1.0], LINEAR, 3),
        {"visit": [2.5]},
        ValueError,
        r"^visit\[0\] = 2\.5: must be a timestep",
    ),
    "visit's kind": (
        ([1.0], LINEAR, 3),
        {"visit": ["3"]},
        TypeError,
        r"^visit: must be an array of real numbers",
    ),
    "visit 0": (
        ([1.0], NoiseSchedule.edm(), 3),
        {"visit": [1.0, 0.0]},
        ValueError,
        r"^visit\[1\] = 0\.0: must be at least 0\.002",
    ),
    "visit inf": (
        ([1.0], NoiseSchedule.flow(), 3),
        {"visit": [np.inf]},
        ValueError,
        r"^visit\[0\] = inf: must be fin",
    ),
    "many to visit": (
        ([1.0], LINEAR, 2),
        {"visit": [1, 2, 3]},
        ValueError,
        r"^steps = 2: no choice of levels keeps",
    ),
    "weights of one": (
        ([1.0], LINEAR, 3),
        {"weights": [1.0]},
        ValueError,
        r"^weights: must be left out where there",
    ),
    "weights' shape": (
        (TWO, LINEAR, 3),
        {"weights": [1.0]},
        ValueError,
        r"^weights: must have shape \(2,\) like",
    ),
    "negative weight": (
        (TWO, LINEAR, 3),
        {"weights": [1.0, -1.0]},
        ValueError,
        r"^weights\[1\] = -1\.0: must be at least",
    ),
    "weights' kind": (
        (TWO, LINEAR, 3),
        {"weights": "12"},
        TypeError,
        r"^weights: must be an array of real numbers",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    args, kwargs, exception, pattern = BAD[case]
    with pytest.raises(exception) as caught:
        search(*args, **kwargs)
    assert type(caught.value) is exception
    assert re.search(pattern, str(caught.value)), str(caught.value)


def test_a_number_of_steps_may_be_an_array_without_axes():
    assert search([1.0], LINEAR, np.array(3)).steps == 3


def test_the_levels_of_an_extreme_flow_are_as_of_any():
    plain, extreme = (search([1.0], NoiseSchedule.flow(shift), 4) for shift in (1.0, 1e300))
    assert extreme.value == plain.value


def test_counts_of_steps_are_checked_before_any_work(monkeypatch):
    def never(*args):
        raise AssertionError("worked before the arguments were checked")

    monkeypatch.setattr("fastkl._search_problem.Problem.solve", never)
    with pytest.raises(ValueError, match=r"^steps\[1\] = 99: must be at most 20"):
        search([1.0], LINEAR, [3, 99])


class Worked(Exception):
    """Raised in place of the work."""


NO_MEAN, MEAN = Spectrum([1.0, 0.1]), Spectrum([1.0, 0.1], mean=[0.0, 0.0])
WITHOUT_MEAN = [
    (NO_MEAN, "spectrum has no mean"),
    ([1.0, 0.1], "spectrum has no mean"),
    (np.array([1.0, 0.1]), "spectrum has no mean"),
    ([MEAN, NO_MEAN, NO_MEAN], r"spectrum\[1\] has no mean"),
]


@pytest.mark.parametrize(("spectrum", "message"), WITHOUT_MEAN)
def test_a_free_start_without_a_mean_is_warned_of_once_and_before_any_work(monkeypatch, spectrum, message):
    def never(*args):
        raise Worked

    monkeypatch.setattr("fastkl._search_problem.Problem.__init__", never)
    monkeypatch.setattr("fastkl._exhaustive.best_ranks", never)
    calls = [lambda: search(spectrum, LINEAR, [2, 3, 4], free_start=True)]
    calls += [lambda: exhaustive(spectrum, LINEAR, 3, free_start=True)] if "[" not in message else []
    for call in calls:
        with (
            pytest.warns(UserWarning, match=rf"^free_start = True: {message}, .* pass Spectrum") as caught,
            pytest.raises(Worked),
        ):
            call()
        assert [warning.filename for warning in caught] == [__file__]  # where the caller is


def test_a_mean_of_zeros_says_that_the_mean_is_0():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = search(MEAN, LINEAR, 3, free_start=True)
        exhaustive(MEAN, LINEAR, 3, free_start=True)
        search(MEAN.compress(), LINEAR, 3, free_start=True)
        search(NO_MEAN, LINEAR, 3)
    with pytest.warns(UserWarning, match="has no mean"):
        assert search(NO_MEAN, LINEAR, 3, free_start=True).value == best.value
