"""End to end with diffusers' own pipelines: a small network with random weights, and the exact one in its place."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers_runs import Network

import fastkl
from fastkl.integrations.diffusers import optimize

torch.set_num_threads(1)
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE = {**SCALED, "steps_offset": 1}
SPECTRUM = fastkl.Spectrum(np.geomspace(10.0, 0.01, 64))  # of a latent of 1 x 8 x 8
MU = 1.15

DETERMINISTIC = [
    ("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {**STABLE, "use_karras_sigmas": True}),
    ("HeunDiscreteScheduler", STABLE),
    ("DPMSolverMultistepScheduler", STABLE),
    ("DPMSolverSinglestepScheduler", SCALED),
    ("UniPCMultistepScheduler", {**STABLE, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
]
ALL = [("DDPMScheduler", {**STABLE, "clip_sample": False}), *DETERMINISTIC]


class Exact(torch.nn.Module):
    """The exact network of Gaussian data, one pixel for each eigenvalue, behind the interface of another."""

    def __init__(self, scheduler, other):
        super().__init__()
        self.network = Network(scheduler, SPECTRUM.eigenvalues.reshape(1, 8, 8))
        self.config = other.config
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    dtype = torch.float64
    device = torch.device("cpu")

    def forward(self, sample=None, timestep=None, hidden_states=None, **conditions):
        x = sample if hidden_states is None else hidden_states
        return (self.network(x, timestep.flatten()[0]),)


def stable_diffusion(scheduler):
    """Stable Diffusion's pipeline without text encoder: prompts are given as embeddings."""
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
        cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=1), text_encoder=None, tokenizer=None, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_3(scheduler):
    """Stable Diffusion 3's pipeline, which is for flow matching, without text encoders."""
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=1, out_channels=1, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8,
    )  # fmt: skip
    none = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=1)
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **none)


def made(name, options, exact):
    """A pipeline around a scheduler, with random weights or the exact network."""
    torch.manual_seed(0)
    scheduler = getattr(diffusers, name)(**options)
    flow = name.startswith("FlowMatch")
    pipe = stable_diffusion_3(scheduler) if flow else stable_diffusion(scheduler)
    pipe.set_progress_bar_config(disable=True)
    if exact:
        part = "transformer" if flow else "unet"
        setattr(pipe, part, Exact(scheduler, getattr(pipe, part)))
    return pipe, (MU if options.get("use_dynamic_shifting") else None)


def sampled(pipe, latents, mu, **arguments):
    """The latents that a pipeline returns."""
    embeddings = torch.zeros((len(latents), 2, 8), dtype=latents.dtype)
    if isinstance(pipe, StableDiffusion3Pipeline):
        arguments |= {"pooled_prompt_embeds": torch.zeros((len(latents), 8), dtype=latents.dtype), "mu": mu}
    return pipe(
        prompt_embeds=embeddings, latents=latents, guidance_scale=1.0, output_type="latent", height=64, width=64,
        **arguments,
    ).images  # fmt: skip


@pytest.mark.parametrize(("name", "options"), ALL)
def test_the_best_schedule_runs_through_a_pipeline(name, options):
    pipe, mu = made(name, options, exact=False)
    best = optimize(pipe, SPECTRUM, 5, mu=mu)
    told = []
    start = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = sampled(
        pipe,
        start,
        mu,
        callback_on_step_end=lambda pipe, i, t, kept: told.append(float(t)) or {},
        **best.arguments,
    )
    assert images.shape == (2, 1, 8, 8)
    assert torch.isfinite(images).all()
    assert not torch.equal(images, start)
    expected = best.reading.path_of(best.arguments).timesteps
    assert sorted(set(told), reverse=True) == pytest.approx(expected.tolist(), rel=1e-6)


WITH_MEAN = fastkl.Spectrum(SPECTRUM.eigenvalues, mean=np.linspace(1.0, -0.5, 64))


@pytest.mark.parametrize(("name", "options"), DETERMINISTIC)
def test_a_pipeline_starts_free_schedules_from_the_right_noise(name, options):
    """It scales latents of ones as it scales noise; from zeros it returns the mean."""
    pipe, mu = made(name, options, exact=True)
    best = optimize(pipe, WITH_MEAN, 4, mu=mu, free_start=True)
    part = "transformer" if name.startswith("FlowMatch") else "unet"
    network = getattr(pipe, part).network
    ones = torch.ones((1, 1, 8, 8), dtype=torch.float64)
    deviations = sampled(pipe, ones, mu, **best.arguments).flatten().abs().numpy()
    network.mean = torch.tensor(WITH_MEAN.mean.copy()).reshape(1, 8, 8)
    mean = sampled(pipe, 0.0 * ones, mu, **best.arguments).flatten().numpy()
    w2 = np.square(deviations - np.sqrt(WITH_MEAN.eigenvalues)).sum() + np.square(mean - WITH_MEAN.mean).sum()
    rough = {
        "DPMSolverSinglestepScheduler": 2e-3,
        "UniPCMultistepScheduler": 0.02,
    }  # whole timesteps: the mean
    assert w2 == pytest.approx(best.value, rel=rough.get(name, 1e-4))


@pytest.mark.parametrize(("name", "options"), DETERMINISTIC)
def test_a_pipeline_with_the_exact_network_returns_the_predicted_variance(name, options):
    """From latents of ones, which the pipeline scales, the squares of the pixels are the variances."""
    pipe, mu = made(name, options, exact=True)
    best = optimize(pipe, SPECTRUM, 6, mu=mu)
    ones = torch.ones((1, 1, 8, 8), dtype=torch.float64)

    def w2(**arguments):
        deviations = sampled(pipe, ones, mu, **arguments).flatten().abs().numpy()
        return np.square(deviations - np.sqrt(SPECTRUM.eigenvalues)).sum()

    # levels that are neighbours leave few digits to the float32 of the scheduler
    assert w2(**best.arguments) == pytest.approx(best.value, rel=2e-3 if "Singlestep" in name else 1e-4)
    assert w2(num_inference_steps=6) == pytest.approx(best.shipped_value, rel=1e-4)
    assert best.value < best.shipped_value


def test_a_schedule_is_set_on_the_pipelines_own_scheduler():
    pipe, _ = made("EulerDiscreteScheduler", STABLE, exact=False)
    best = optimize(pipe, SPECTRUM, 6, apply=True)
    assert pipe.scheduler.timesteps.tolist() == best.arguments["timesteps"]
