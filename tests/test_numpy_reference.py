"""The NumPy reference of the kernels against the scalar reference, and the library against it on the case table."""

import itertools
import math

import numpy as np
import pytest
import reference as scalar
from cases import METRICS, PRIORS, SCHEDULES, SMALL_SHAPES, SPECTRA

import fastkl
from fastkl.kernels import reference as vectorised

INF = math.inf


def float64_reference(spectrum, levels, metric, prior):
    values = {name: None if array is None else array.tolist() for name, array in spectrum.items()}
    eigenvalues = values.pop("eigenvalues")
    return [
        scalar.divergence(eigenvalues, row.tolist(), metric, prior, digits=None, **values) for row in levels
    ]


ROUGH = [name for name in SCHEDULES if name != "fine"]  # where textbook order keeps its digits


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("schedule", ROUGH)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_numpy_reference_is_the_scalar_one(spectrum, schedule, prior):
    data = SPECTRA[spectrum](5)
    levels = SCHEDULES[schedule](3, 6)
    eigenvalues = data["eigenvalues"]
    for metric in METRICS:
        got = vectorised.divergence(levels=levels, metric=metric, prior=prior, **data)
        np.testing.assert_allclose(got, float64_reference(data, levels, metric, prior), rtol=1e-9)
    path = vectorised.trajectory(eigenvalues, levels, prior)
    true = [np.transpose([scalar.trajectory(v, row.tolist(), prior) for v in eigenvalues]) for row in levels]
    np.testing.assert_allclose(path, true, rtol=1e-13)
    np.testing.assert_allclose(
        vectorised.output_variance(eigenvalues, levels, prior), path[:, -1], rtol=1e-13
    )


def test_numpy_reference_takes_infinite_and_finite_first_levels_together():
    levels = np.array([[INF, 3.0, 0.0], [9.0, 3.0, 0.0], [INF, 1.0, 0.5]])
    data = {
        "eigenvalues": np.array([2.0, 0.1]),
        "mean": np.array([1.0, -2.0]),
        "counts": np.array([1.0, 3.0]),
    }
    for metric, prior in itertools.product(METRICS, PRIORS):
        got = vectorised.divergence(levels=levels, metric=metric, prior=prior, **data)
        np.testing.assert_allclose(got, float64_reference(data, levels, metric, prior), rtol=1e-12)
    for metric in METRICS:
        one_step = vectorised.divergence(np.array([2.0]), np.array([[INF, 0.0]]), metric)
        assert one_step.tolist() == float64_reference(
            {"eigenvalues": np.array([2.0])}, [np.array([INF, 0.0])], metric, "vp"
        )


@pytest.mark.parametrize("shape", SMALL_SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_library_agrees_with_the_numpy_reference(spectrum, shape):
    size, candidates, steps = SMALL_SHAPES[shape]
    data = SPECTRA[spectrum](size)
    library = fastkl.Spectrum(**data)
    for name, prior in itertools.product(SCHEDULES, PRIORS):
        if name == "fine" or (name == "tangent" and steps == 1):
            continue
        levels = SCHEDULES[name](candidates, steps)
        for metric in METRICS:
            plain = vectorised.divergence(levels=levels, metric=metric, prior=prior, **data)
            np.testing.assert_allclose(
                fastkl.divergence(library, levels, metric, prior=prior), plain, rtol=1e-8
            )
        variance = fastkl.output_variance(library, levels, prior=prior)
        np.testing.assert_allclose(
            variance, vectorised.output_variance(library.eigenvalues, levels, prior), rtol=1e-11
        )
    path = fastkl.trajectory(library, levels[:1])
    np.testing.assert_allclose(path, vectorised.trajectory(library.eigenvalues, levels[:1]), rtol=1e-11)
