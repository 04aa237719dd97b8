"""k-diffusion: levels in its form, which its own samplers run on, and what they then return."""

import numpy as np
import pytest
import torch
from k_diffusion_sampling import denoiser, load

import fastkl
from fastkl.integrations.k_diffusion import SAMPLERS, get_sigmas_fastkl, levels_for

sampling = load()
SPECTRUM = fastkl.Spectrum(np.geomspace(20.0, 0.005, 30))
ENDS = (0.0292, 14.6146)
STOCHASTIC = {"sample_euler_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"}


def w2(variance):
    return float(np.square(np.sqrt(variance) - np.sqrt(SPECTRUM.eigenvalues)).sum())


def returned_variance(function, sigmas):
    """Variance that a sampler of k-diffusion returns; its fresh noises are 1 in a row each."""
    rows = 40
    x = torch.zeros((rows, 1, 1, len(SPECTRUM)), dtype=torch.float64)
    x[0] = float(sigmas[0])
    count = 0

    def noise(sigma, sigma_next):
        nonlocal count
        count += 1
        fresh = torch.zeros_like(x)
        fresh[count] = 1.0
        return fresh

    options = {"noise_sampler": noise} if function.__name__ in STOCHASTIC else {}
    out = function(denoiser(SPECTRUM.eigenvalues), x, sigmas.double(), disable=True, **options)
    return out.square().sum(dim=0).flatten().numpy()


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
])  # fmt: skip
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        get_sigmas_fastkl(*arguments)
