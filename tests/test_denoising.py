"""Effective spectra: known spectra's error curves and best levels come back, with and without noise; bad input."""

import re
import warnings

import numpy as np
import pytest

import fastkl
from fastkl import NoiseSchedule, PoorFitWarning, Spectrum, _denoising, discretize

SIGMAS = np.geomspace(0.002, 80.0, 40)
SPECTRA = {
    **{name: Spectrum.preset(name) for name in Spectrum.presets()},
    "one": Spectrum([0.7], counts=[5]),
    "two clusters": Spectrum([2.0, 0.01], counts=[20, 300]),
    "mostly zeros": Spectrum([2.2, 0.024, 0.0015, 0.0], counts=[17, 24, 10, 205]),
    "power law 1": Spectrum.power_law(3072, 1.0),
    "power law 2": Spectrum.power_law(3072, 2.0),
}


def curve(spectrum, sigmas=SIGMAS):
    """Expected squared error of the exact denoiser, as the sum over directions of a posterior variance."""
    counts = np.ones(len(spectrum)) if spectrum.counts is None else spectrum.counts
    errors = np.zeros(len(sigmas))
    for value, count in zip(spectrum.eigenvalues, counts, strict=True):
        if value > 0.0:
            errors += count / (1.0 / value + 1.0 / sigmas**2)
    return errors


def candidates(steps):
    """Levels of the tangent law and of Karras' law over a grid of their parameters."""
    schedule = NoiseSchedule.edm(0.002, 80.0)
    return {
        "tangent": discretize.tangent(schedule, steps, np.geomspace(1e-3, 100.0, 200), sigma_min=0.0),
        "karras": discretize.karras(schedule, steps, rho=np.geomspace(0.5, 50.0, 200), sigma_min=0.002),
    }


def cost_of_the_best_levels(truth, fitted, levels):
    """True w2 of the levels that are best on `fitted`, over the least true w2."""
    centred = Spectrum(truth.eigenvalues, truth.counts)
    true = fastkl.divergence(centred, levels, "w2", prior="ve")
    return true[fastkl.divergence(fitted, levels, "w2", prior="ve").argmin()] / true.min()


# ---- recovery


@pytest.mark.parametrize("name", SPECTRA)
def test_exact_curves_come_back(name):
    truth = SPECTRA[name]
    fit = fastkl.fit_denoising_errors(SIGMAS, curve(truth), truth.dim)
    assert fit.worst < 3e-4
    assert np.abs(curve(fit.spectrum) / curve(truth) - 1.0).max() < 3e-4
    between = np.sqrt(SIGMAS[1:] * SIGMAS[:-1])
    assert np.abs(curve(fit.spectrum, between) / curve(truth, between) - 1.0).max() < 1e-3
    assert fit.spectrum.total_variance == pytest.approx(truth.total_variance, rel=1e-3)
    for steps in (4, 8, 20):
        for levels in candidates(steps).values():
            assert cost_of_the_best_levels(truth, fit.spectrum, levels) < 1.001


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("name", SPECTRA)
def test_noisy_curves_come_back(rng, name, noise):
    truth = SPECTRA[name]
    exact = curve(truth)
    for _ in range(3):
        errors = exact * (1.0 + noise * rng.standard_normal(len(SIGMAS)))
        fit = fastkl.fit_denoising_errors(SIGMAS, errors, truth.dim, noise=1.5 * noise)
        deviation = curve(fit.spectrum) / exact - 1.0
        assert np.sqrt(np.mean(deviation**2)) < noise  # of 40 numbers of that noise
        assert np.abs(deviation).max() < 4.0 * noise
        assert fit.rms < 1.5 * noise
        assert fit.spectrum.dim == truth.dim
        for steps in (4, 8, 20):
            for levels in candidates(steps).values():
                assert cost_of_the_best_levels(truth, fit.spectrum, levels) < 1.05


def test_random_spectra_and_sigmas(rng):
    for _ in range(60):
        entries = int(rng.integers(1, 50))
        truth = Spectrum(10.0 ** rng.uniform(-4, 3, entries), counts=rng.integers(1, 1000, entries))
        sigmas = rng.permutation(np.unique(10.0 ** rng.uniform(-3, 3, int(rng.integers(3, 80)))))
        errors = curve(truth, sigmas)
        dim = truth.dim + int(rng.integers(0, 2000))
        fit = fastkl.fit_denoising_errors(sigmas, errors, dim)
        assert fit.worst < 2e-3
        assert fit.spectrum.dim == dim
        assert fit.spectrum.mean is None
        assert np.all(np.diff(fit.spectrum.eigenvalues) < 0.0)
        np.testing.assert_allclose(curve(fit.spectrum, sigmas), fit.predicted, rtol=1e-9)


def test_few_entries_where_few_variances_are_there():
    fit = fastkl.fit_denoising_errors(SIGMAS, curve(SPECTRA["mostly zeros"]), 256)
    np.testing.assert_allclose(fit.spectrum.eigenvalues, [2.2, 0.024, 0.0015, 0.0], rtol=1e-2)
    np.testing.assert_allclose(fit.spectrum.counts, [17, 24, 10, 205], rtol=1e-2)


def test_merging_keeps_the_fit(monkeypatch):
    entries = []
    for truth in SPECTRA.values():
        merged = fastkl.fit_denoising_errors(SIGMAS, curve(truth), truth.dim)
        monkeypatch.setattr(_denoising, "_MERGING", -np.inf)
        plain = fastkl.fit_denoising_errors(SIGMAS, curve(truth), truth.dim)
        monkeypatch.undo()
        assert merged.rms <= plain.rms + 0.01 * 0.02
        entries.append([np.count_nonzero(fit.spectrum.eigenvalues) for fit in (merged, plain)])
    few, many = np.transpose(entries)
    assert np.all(few <= many)
    assert few.sum() < many.sum()


# ---- the bound on the counts


@pytest.mark.parametrize("dim", [3, 5, 9])
def test_counts_are_the_constrained_optimum(rng, dim):
    """The conditions of Karush, Kuhn and Tucker, where the bound is in the way (3 and 5) and where it is not (9)."""
    variances = np.geomspace(0.01, 6.0, 12)
    sigmas = np.geomspace(0.05, 10.0, 20)
    errors = curve(Spectrum([0.01, 0.2, 1.0, 6.0], counts=[2, 1, 1, 2]), sigmas)
    errors *= 1.0 + 0.05 * rng.standard_normal(len(sigmas))
    noise = rng.uniform(0.01, 0.1, len(sigmas))
    counts = _denoising._counts(variances, sigmas, errors, dim, noise)
    rows = variances / (1.0 + variances / sigmas[:, None] ** 2) / errors[:, None] / noise[:, None]
    gradient = rows.T @ (rows @ counts - 1.0 / noise)
    multiplier = -gradient[counts > 0.0].mean()
    scale = 1e-9 * np.abs(rows.T @ (1.0 / noise))
    assert counts.min() >= 0.0
    assert np.all(np.abs(gradient + multiplier)[counts > 0.0] < scale[counts > 0.0])
    assert np.all((gradient + multiplier)[counts == 0.0] > 0.0)
    if dim < 6:
        assert counts.sum() == pytest.approx(dim, rel=1e-12)
        assert multiplier > 1.0  # fewer directions would fit worse
    else:
        assert counts.sum() < dim
        assert abs(multiplier) < scale.max()


@pytest.mark.parametrize("dim", [1, 7, 784, 10**6 + 3, 10**12])
def test_counts_add_up_to_dim_exactly(rng, dim):
    entries = min(dim, 6)
    counts = 1 + rng.multinomial(dim - entries, rng.dirichlet(np.ones(entries)))
    errors = curve(Spectrum(10.0 ** rng.uniform(-3, 1, entries), counts=counts))
    for scale in (1.0, 0.3, 1.0 - 1e-11):
        spectrum = fastkl.fit_denoising_errors(SIGMAS, scale * errors, dim).spectrum
        assert spectrum.dim == dim
        assert isinstance(spectrum.dim, int)


def test_noise_above_the_bound_cannot_raise_the_counts():
    sigmas = np.geomspace(0.001, 0.01, 20)  # far below all variances: the errors are those of doing nothing
    spectrum = Spectrum.from_denoising_errors(sigmas, 1.03 * 50 * sigmas**2, 50)
    assert spectrum.dim == 50
    assert spectrum.eigenvalues.min() > 0.0
    assert np.all(curve(spectrum, sigmas) <= 50 * sigmas**2)


def test_noise_in_the_plateau_does_not_become_an_enormous_variance(rng):
    """One direction's error cannot exceed the total, which bounds its variance."""
    for _ in range(20):
        errors = curve(SPECTRA["one"]) * (1.0 + 0.02 * rng.standard_normal(len(SIGMAS)))
        spectrum = Spectrum.from_denoising_errors(SIGMAS, errors, 5, noise=0.03)
        assert spectrum.eigenvalues.max() < 1.1 * errors[-1]


# ---- floor, ends, order, weights


def test_floor_makes_entropies_finite():
    errors = curve(SPECTRA["mostly zeros"])
    levels = candidates(8)["tangent"][:3]
    raw = Spectrum.from_denoising_errors(SIGMAS, errors, 256)
    floored = Spectrum.from_denoising_errors(SIGMAS, errors, 256, floor=1e-4)
    assert floored == raw.floored(1e-4)
    assert raw.eigenvalues[-1] == 0.0
    assert np.all(np.isfinite(fastkl.divergence(floored, levels)))
    with pytest.raises(ValueError, match="floor"):
        fastkl.divergence(raw, levels)
    fit = fastkl.fit_denoising_errors(SIGMAS, errors, 256, 1e-4)
    np.testing.assert_allclose(fit.predicted, errors, rtol=3e-4)  # before the floor


def test_variances_out_of_sight_keep_what_is_determined():
    small = fastkl.fit_denoising_errors(SIGMAS, curve(Spectrum([1.0, 1e-12], counts=[1, 1000])), 2000)
    assert small.worst < 3e-4
    large = fastkl.fit_denoising_errors([0.1, 0.2, 0.4], curve(Spectrum([1e9]), np.array([0.1, 0.2, 0.4])), 5)
    assert large.spectrum.eigenvalues[0] == pytest.approx(16.0)  # the grid's end: 100 times 0.4 squared
    assert large.spectrum.counts[0] == pytest.approx(1.0, rel=0.02)
    below = fastkl.fit_denoising_errors([1e3, 1e4, 1e5], [1.0, 1.0, 1.0], 100)
    assert below.spectrum.total_variance == pytest.approx(1.0, rel=1e-3)


def test_order_is_free(rng):
    errors = curve(SPECTRA["digits"]) * (1.0 + 0.01 * rng.standard_normal(len(SIGMAS)))
    order = rng.permutation(len(SIGMAS))
    straight = fastkl.fit_denoising_errors(SIGMAS, errors, 64)
    mixed = fastkl.fit_denoising_errors(SIGMAS[order], errors[order], 64)
    np.testing.assert_allclose(mixed.predicted, straight.predicted[order], rtol=1e-6)
    np.testing.assert_array_equal(mixed.residual, mixed.predicted / errors[order] - 1.0)


def test_points_count_by_their_noise():
    """Two curves that no spectrum fits both: the precise half is followed."""
    errors = curve(SPECTRA["one"])
    errors[::2] *= 1.2
    precise = np.where(np.arange(len(SIGMAS)) % 2 == 0, 0.3, 0.001)
    fit = fastkl.fit_denoising_errors(SIGMAS, errors, 10, noise=precise)
    assert np.abs(fit.residual[1::2]).max() < 1e-3
    assert np.abs(fit.residual[::2]).min() > 0.1
    assert fit.rms_in_noise == pytest.approx(np.sqrt(np.mean((fit.residual / precise) ** 2)), rel=1e-9)


def test_residual_is_reported():
    errors = curve(SPECTRA["one"]) * (1.0 + 0.03 * np.where(np.arange(len(SIGMAS)) % 2, 1.0, -1.0))
    fit = fastkl.fit_denoising_errors(SIGMAS, errors, 5)
    assert fit.rms == np.sqrt(np.mean(fit.residual**2))
    assert fit.worst == np.abs(fit.residual).max()
    assert 0.02 < fit.rms < 0.035
    for array in (fit.predicted, fit.residual):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.0


def test_a_poor_fit_warns():
    """Errors with a corner between a plateau and sigma**2 are no Gaussian's, though they obey the bounds."""
    sigmas = np.geomspace(0.01, 10.0, 31)
    errors = 1e-3 * np.clip(sigmas / 0.1, 1.0, 10.0) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fastkl.fit_denoising_errors(sigmas, errors, 100)  # whose caller sees the residual
    assert fit.rms_in_noise > 2.5
    message = re.escape(f"off by {fit.rms:.2g} (relative RMS) and at most {fit.worst:.2g}")
    with pytest.warns(PoorFitWarning, match=message) as caught:
        spectrum = Spectrum.from_denoising_errors(sigmas, errors, 100)
    assert caught[0].filename == __file__
    assert spectrum == fit.spectrum


# ---- the mean


def test_the_mean_is_taken_by_rank():
    covariance = Spectrum([0.1, 3.0, 1.0, 0.2], counts=[2, 1, 1, 2], mean=[4.0, 1.0, 3.0, 2.0])
    errors = curve(Spectrum([2.0, 0.1], counts=[2, 4]))
    fit = fastkl.fit_denoising_errors(SIGMAS, errors, 6, 0.01, mean_of=covariance)
    # a trace of eigenvalue 0 completes the counts, which are not quite 2 and 4
    np.testing.assert_allclose(fit.spectrum.eigenvalues, [2.01, 0.11, 0.01], rtol=1e-2)
    np.testing.assert_allclose(
        fit.spectrum.mean, np.sqrt([5.0, 10.0, 16.0]), rtol=1e-2
    )  # of 1, 9; 4, 4, 16, 16; 16
    assert fit.spectrum.counts @ np.square(fit.spectrum.mean) == pytest.approx(50.0, rel=1e-12)
    assert Spectrum.from_denoising_errors(SIGMAS, errors, 6, 0.01, mean_of=covariance) == fit.spectrum
    plain = fastkl.fit_denoising_errors(SIGMAS, errors, 6, mean_of=Spectrum([1.0] * 6))
    assert plain.spectrum == fastkl.fit_denoising_errors(SIGMAS, errors, 6).spectrum
    assert plain.spectrum.mean is None


def test_the_mean_comes_back_with_the_spectrum_itself():
    truth = Spectrum([2.2, 0.024, 0.0015, 0.0], counts=[17, 24, 10, 205], mean=[1.0, -2.0, 0.5, 3.0])
    spectrum = Spectrum.from_denoising_errors(SIGMAS, curve(truth), 256, mean_of=truth)
    np.testing.assert_allclose(spectrum.mean, [1.0, 2.0, 0.5, 3.0], rtol=2e-2)  # the sign makes no difference
    levels = candidates(6)["karras"][:20]
    for sigmas in (levels, levels[:, 2:]):  # from far below, where the mean matters
        found, expected = (fastkl.divergence(s, sigmas, "w2", prior="ve") for s in (spectrum, truth))
        np.testing.assert_allclose(found, expected, rtol=1e-2)


# ---- bad input


def changed(index, value):
    array = curve(SPECTRA["one"])
    array[index] = value
    return array


def changed_sigma(index, value):
    array = SIGMAS.copy()
    array[index] = value
    return array


GOOD = curve(SPECTRA["one"])
BAD = {
    "two points": (([1.0, 2.0], [0.5, 0.6], 5), {}, ValueError, r"^sigmas: must have at least 3 elements"),
    "2-D sigmas": (([SIGMAS], GOOD, 5), {}, ValueError, r"^sigmas: must be 1-D"),
    "words": ((["a", "b", "c"], GOOD, 5), {}, TypeError, r"^sigmas: .*<U1"),
    "zero sigma": ((changed_sigma(0, 0.0), GOOD, 5), {}, ValueError, r"^sigmas\[0\] = 0\.0: must be within"),
    "negative sigma": ((changed_sigma(3, -1.0), GOOD, 5), {}, ValueError, r"^sigmas\[3\] = -1\.0: must be w"),
    "nan sigma": ((changed_sigma(3, np.nan), GOOD, 5), {}, ValueError, r"^sigmas\[3\] = nan: must be within"),
    "inf sigma": ((changed_sigma(39, np.inf), GOOD, 5), {}, ValueError, r"^sigmas\[39\] = inf: must be w"),
    "equal sigmas": ((changed_sigma(7, SIGMAS[2]), GOOD, 5), {}, ValueError, r"^sigmas\[7\] = .* twice"),
    "lengths": ((SIGMAS, GOOD[:-1], 5), {}, ValueError, r"^errors: must have shape \(40,\) like sigmas"),
    "zero error": ((SIGMAS, changed(0, 0.0), 5), {}, ValueError, r"^errors\[0\] = 0\.0: must be within"),
    "negative error": ((SIGMAS, changed(5, -1.0), 5), {}, ValueError, r"^errors\[5\] = -1\.0: must be w"),
    "nan error": ((SIGMAS, changed(5, np.nan), 5), {}, ValueError, r"^errors\[5\] = nan: must be within"),
    "inf error": ((SIGMAS, changed(5, np.inf), 5), {}, ValueError, r"^errors\[5\] = inf: must be within"),
    "booleans": ((SIGMAS, GOOD > 0, 5), {}, TypeError, r"^errors: .*bool"),
    "above the bound": (
        (SIGMAS, changed(0, 1.1 * 5 * SIGMAS[0] ** 2), 5),
        {},
        ValueError,
        r"^errors\[0\] = 2\.2.*e-05: must be at most sigma\*\*2 \* dim = 2e-05, which leaving the noise in costs",
    ),
    "too small a dim": ((SIGMAS, GOOD, 4), {}, ValueError, r"^errors\[0\] = .*: must be at most sigma\*\*2"),
    "falling": (
        (SIGMAS, changed(39, 0.8 * GOOD[38]), 5),
        {},
        ValueError,
        r"^errors\[39\] = .* at sigma 80 contradicts errors\[38\] = .*: errors must not fall as sigma grows",
    ),
    "growing relative to sigma squared": (
        (SIGMAS, changed(slice(0, 3), 0.5 * GOOD[:3]), 5),
        {},
        ValueError,
        r"^errors\[2\] = .* contradicts errors\[3\] = .*: errors / sigma\*\*2 must not grow with sigma",
    ),
    "falling, unsorted": (
        (SIGMAS[::-1], changed(39, 0.8 * GOOD[38])[::-1], 5),
        {},
        ValueError,
        r"^errors\[0\] = .* at sigma 80 contradicts errors\[1\] = .*: errors must not fall",
    ),
    "precise and falling": (
        (SIGMAS, changed(39, 0.99 * GOOD[38]), 5),
        {"noise": 0.001},
        ValueError,
        r"^errors\[39\] = .* must not fall as sigma grows by more than 3 times the noise",
    ),
    "dim of 0": ((SIGMAS, GOOD, 0), {}, ValueError, r"^dim = 0: must be at least 1"),
    "real dim": ((SIGMAS, GOOD, 5.0), {}, TypeError, r"^dim: must be an integer"),
    "negative floor": ((SIGMAS, GOOD, 5, -1.0), {}, ValueError, r"^floor = -1\.0: must be at least 0"),
    "zero noise": ((SIGMAS, GOOD, 5), {"noise": 0.0}, ValueError, r"^noise\[0\] = 0\.0: must be within"),
    "large noise": ((SIGMAS, GOOD, 5), {"noise": 0.4}, ValueError, r"^noise\[0\] = 0\.4: must be within"),
    "nan noise": ((SIGMAS, GOOD, 5), {"noise": np.nan}, ValueError, r"^noise\[0\] = nan: must be within"),
    "length of noise": ((SIGMAS, GOOD, 5), {"noise": [0.1]}, ValueError, r"^noise: must be one number or"),
    "a number for a mean": (
        (SIGMAS, GOOD, 5),
        {"mean_of": 1.0},
        TypeError,
        r"^mean_of: must be a Spectrum, got float",
    ),
    "mean of another dim": (
        (SIGMAS, GOOD, 5),
        {"mean_of": Spectrum([1.0])},
        ValueError,
        r"^mean_of: must have dim = 5 dimensions, got 1",
    ),
    "words as noise": ((SIGMAS, GOOD, 5), {"noise": "low"}, TypeError, r"^noise: .*<U3"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [fastkl.fit_denoising_errors, Spectrum.from_denoising_errors])
def test_bad_input(function, case):
    arguments, options, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        function(*arguments, **options)
    assert type(caught.value) is error


def test_noise_within_its_bounds_is_taken():
    for errors in (1.05 * GOOD, changed(39, 0.96 * GOOD[38]), changed(0, 0.96 * GOOD[0])):
        assert fastkl.fit_denoising_errors(SIGMAS, errors, 5).rms < 0.05
