"""k-diffusion: levels in its form, which its own samplers run on, and what they then return."""

import numpy as np
import pytest
import torch
from k_diffusion_sampling import denoiser, load

import fastkl
from fastkl.integrations.k_diffusion import SAMPLERS, get_sigmas_fastkl, levels_for

sampling = load()
SPECTRUM = fastkl.Spectrum(np.geomspace(20.0, 0.005, 30))
WITH_MEAN = fastkl.Spectrum(SPECTRUM.eigenvalues, mean=np.linspace(1.0, -0.5, 30))
ENDS = (0.0292, 14.6146)
STOCHASTIC = {"sample_euler_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"}


def w2(variance):
    return float(np.square(np.sqrt(variance) - np.sqrt(SPECTRUM.eigenvalues)).sum())


def returned_variance(function, sigmas):
    """Variance that a sampler of k-diffusion returns."""
    return returned(function, sigmas, float(sigmas[0]), 0.0).square().sum(dim=0).flatten().numpy()


def returned_mean(function, sigmas):
    """Mean that it returns for the data WITH_MEAN."""
    return returned(function, sigmas, 0.0, WITH_MEAN.mean.copy())[0].flatten().numpy()


def returned(function, sigmas, start, mean):
    """Rows that a sampler returns, the first from `start`; its fresh noises are 1 in a row each."""
    rows = 40
    x = torch.zeros((rows, 1, 1, len(SPECTRUM)), dtype=torch.float64)
    x[0] = start
    count = 0

    def noise(sigma, sigma_next):
        nonlocal count
        count += 1
        fresh = torch.zeros_like(x)
        fresh[count] = 1.0
        return fresh

    options = {"noise_sampler": noise} if function.__name__ in STOCHASTIC else {}
    network = denoiser(SPECTRUM.eigenvalues.copy(), mean)
    return function(network, x, sigmas.double(), disable=True, **options)


def test_the_form_is_that_of_its_own_functions():
    ours, theirs = get_sigmas_fastkl(9, SPECTRUM, *ENDS), sampling.get_sigmas_karras(9, *ENDS)
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    assert ours[0] == pytest.approx(ENDS[1], rel=1e-6)
    assert ours[-1] == 0.0
    assert (ours[1:] < ours[:-1]).all()
    assert ours[-2] >= ENDS[0] * (1 - 1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_its_samplers_return_the_predicted_variance_and_less_is_lost_than_by_its_own_levels(name):
    function = getattr(sampling, name)
    sigmas = get_sigmas_fastkl(8, SPECTRUM, *ENDS, sampler=name)
    variance = returned_variance(function, sigmas)
    sampler = fastkl.samplers.get(SAMPLERS[name])
    if name == "sample_dpmpp_sde":  # independent noises are injected here; the default is one Brownian path
        sampler = fastkl.samplers.dpmpp_sde(brownian=False)
    predicted = fastkl.output_variance(SPECTRUM, sigmas.double().numpy(), sampler, "ve")
    np.testing.assert_allclose(variance, predicted, rtol=1e-9)
    rivals = [sampling.get_sigmas_karras(8, *ENDS), sampling.get_sigmas_exponential(8, *ENDS)]
    for levels in rivals:
        assert w2(variance) < w2(returned_variance(function, levels))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_return_what_is_predicted_from_a_free_start(name):
    """From noise of the deviation sigmas[0]; the data has a mean, which noise has not."""
    function, sampler = getattr(sampling, name), fastkl.samplers.get(SAMPLERS[name])
    if name == "sample_dpmpp_sde":
        sampler = fastkl.samplers.dpmpp_sde(brownian=False)

    def value(sigmas):
        lost = returned_mean(function, sigmas) - WITH_MEAN.mean
        return w2(returned_variance(function, sigmas)) + np.square(lost).sum()

    fixed, free = (get_sigmas_fastkl(4, WITH_MEAN, *ENDS, sampler=name, free_start=f) for f in (False, True))
    predicted = fastkl.divergence(WITH_MEAN, free.double().numpy(), "w2", sampler, "ve")
    assert value(free) == pytest.approx(predicted, rel=1e-8)
    assert ENDS[0] * (1 - 1e-6) <= free[-2] < free[0] <= ENDS[1] * (1 + 1e-6)
    assert value(free) <= value(fixed) * (1 + 1e-5)  # of two local searches, in float32


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpmpp_2m"])
def test_a_free_start_is_lower_where_that_is_better(name):
    fixed, free = (levels_for(3, WITH_MEAN, 0.0292, 80.0, name, free_start=f) for f in (False, True))
    assert free[0] < 0.5 * fixed[0]
    one = levels_for(1, WITH_MEAN, 0.0292, 80.0, name, free_start=True)
    assert one.shape == (2,)
    assert one[0] < 80.0


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("n", [2, 6, 40])
def test_levels_of_ddim_are_the_best_of_euler_that_go_down_to_the_least_one(free, n):
    levels = levels_for(n, WITH_MEAN, *ENDS, "sample_dpmpp_2m", free_start=free, levels_of="ddim")
    assert levels[-2] == pytest.approx(ENDS[0], rel=1e-12)
    assert levels.shape == (n + 1,)
    assert (np.diff(levels) < 0).all()
    assert free or levels[0] == pytest.approx(ENDS[1])

    def value(levels):
        return fastkl.divergence(WITH_MEAN, levels, "w2", prior="ve")

    other = levels_for(n, WITH_MEAN, *ENDS, "sample_euler", free_start=free)
    if n > 2:  # the least level costs little
        fewer = levels_for(n - 1, WITH_MEAN, *ENDS, "sample_euler", free_start=free)
        assert value(levels) <= value(fewer) * (1 + 1e-9)
    assert value(other) <= value(levels)
    same = levels_for(n, WITH_MEAN, *ENDS, "sample_euler", free_start=free, levels_of="ddim")
    np.testing.assert_array_equal(same, other)


def test_a_free_start_without_a_mean_is_warned_of():
    with pytest.warns(UserWarning, match="^free_start = True: spectrum has no mean") as caught:
        get_sigmas_fastkl(4, SPECTRUM, *ENDS, free_start=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # who calls the library, not the library


def test_the_metric_and_the_sampler_matter():
    one = get_sigmas_fastkl(6, SPECTRUM, *ENDS)
    for other in ({"metric": "kl"}, {"sampler": "dpmpp_2m"}):
        assert not torch.allclose(one, get_sigmas_fastkl(6, SPECTRUM, *ENDS, **other), rtol=1e-2)


def test_one_step_and_an_array_of_eigenvalues():
    assert get_sigmas_fastkl(1, [1.0, 0.1], 0.1, 10.0).tolist() == [10.0, 0.0]
    expected = torch.tensor(levels_for(3, [1.0, 0.1], 0.1, 10.0), dtype=torch.float32)
    assert torch.equal(get_sigmas_fastkl(3, [1.0, 0.1], 0.1, 10.0, device=torch.device("cpu")), expected)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((0, SPECTRUM, *ENDS), ValueError, "n = 0"),
    ((5, SPECTRUM, 0.0, 1.0), ValueError, "sigma_min = 0.0"),
    ((5, SPECTRUM, 2.0, 1.0), ValueError, "sigma_max = 1.0"),
    ((5, SPECTRUM, *ENDS, "sample_unknown"), ValueError, "sampler = 'sample_unknown'"),
    ((5, [-1.0], *ENDS), ValueError, r"spectrum\[0\] = -1.0"),
    ((5, SPECTRUM, *ENDS, "euler", "cpu", "l2"), ValueError, "metric = 'l2'"),
    ((1, SPECTRUM, *ENDS, "euler", "cpu", "w2", 1), TypeError, "free_start: must be True or False, got 1"),
    ((4, SPECTRUM, *ENDS, "heun", "cpu", "w2", False, "lms"), ValueError, "levels_of = 'lms': must be one of"),
    ((1, SPECTRUM, *ENDS, "heun", "cpu", "w2", False, "ddim"), ValueError,
     "steps = 1: must be at least 2 with levels_of = 'ddim'"),
    ((1, SPECTRUM, *ENDS, "heun", "cpu", "w2", False, 3), TypeError, "levels_of"),
])  # fmt: skip
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        get_sigmas_fastkl(*arguments)
