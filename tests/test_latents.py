"""Spectra of an autoencoder's latents."""

import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from sampled import expect_warning

import fastkl

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(32, 32), latent_channels=2, norm_num_groups=8, down_block_types=(
        "DownEncoderBlock2D", "DownEncoderBlock2D"), up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        scaling_factor=0.7, shift_factor=0.25)  # fmt: skip


def images(rng, n):
    return rng.uniform(-1.0, 1.0, (n, 3, 8, 8)).astype(np.float32)


def latents(vae, x):
    with torch.no_grad():
        return (vae.encode(torch.tensor(x)).latent_dist.mode().numpy() - 0.25) * 0.7


def test_it_is_the_spectrum_of_the_scaled_latents(vae, rng):
    x = images(rng, 40)
    z = latents(vae, x)
    assert z.shape == (40, 2, 4, 4)
    expected = fastkl.Spectrum.from_samples(z, 1e-3)
    found = fastkl.Spectrum.from_latents(vae, x, 1e-3, batch_size=7)
    assert found.dim == 32
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.mean), np.abs(expected.mean), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["tensor", "batches", "tensors", "list"])
def test_images_come_as_arrays_tensors_or_batches(vae, rng, kind):
    x = images(rng, 36)
    parts = [x[:10], x[10:11], x[11:]]
    given = {
        "tensor": torch.tensor(x),
        "batches": iter(parts),
        "tensors": (torch.tensor(part) for part in parts),
        "list": x.tolist(),
    }[kind]
    expected = fastkl.Spectrum.from_latents(vae, x)
    found = fastkl.Spectrum.from_latents(vae, given)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-4)


def test_the_stationary_model(vae, rng):
    x = images(rng, 12)
    expected = fastkl.Spectrum.from_images(np.moveaxis(latents(vae, x), 1, -1))
    found = fastkl.Spectrum.from_latents(vae, x, stationary=True)
    assert found.dim == 32
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-4)


def test_few_images_are_warned_about_as_few_samples(vae, rng):
    with expect_warning(9, 32):
        fastkl.Spectrum.from_latents(vae, images(rng, 9))


def test_means_and_deviations_of_channels(rng):
    """Autoencoders with latents_mean, latents_std and plain `latents`, such as those of videos and quantised ones."""
    z = rng.normal(size=(30, 2, 2, 2)).astype(np.float32)
    answer = types.SimpleNamespace(latents=torch.tensor(z))
    vae = types.SimpleNamespace(
        encode=lambda x: answer, parameters=lambda: iter([torch.zeros(1)]),
        config={"latents_mean": [0.5, -1.0], "latents_std": [2.0, 0.5], "shift_factor": 9.0},
    )  # fmt: skip
    found = fastkl.Spectrum.from_latents(vae, iter([z]))
    scaled = (z - np.reshape([0.5, -1.0], (2, 1, 1))) / np.reshape([2.0, 0.5], (2, 1, 1))
    np.testing.assert_allclose(found.eigenvalues, fastkl.Spectrum.from_samples(scaled).eigenvalues, rtol=1e-5)


def test_bad_input_is_named(vae, rng):
    with pytest.raises(TypeError, match=r"vae: must be an autoencoder with encode\(x\), got int"):
        fastkl.Spectrum.from_latents(3, images(rng, 4))
    with pytest.raises(
        ValueError, match=r"images\[1\]: must have shape \(n, C, H, W\), got shape \(3, 8, 8\)"
    ):
        fastkl.Spectrum.from_latents(vae, iter([images(rng, 4), images(rng, 1)[0]]))
    with pytest.raises(ValueError, match="batch_size = 0"):
        fastkl.Spectrum.from_latents(vae, images(rng, 4), batch_size=0)
    with pytest.raises(ValueError, match="images: must hold at least 2 images, got 1"):
        fastkl.Spectrum.from_latents(vae, images(rng, 1))
