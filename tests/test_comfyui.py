"""ComfyUI's node, against its documented interface: no package of it carries ComfyUI's own node loader.

The folder is imported as the loader does it: from wherever it lies, under a module name made of its path.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from k_diffusion_sampling import load

import fastkl

sampling = load()  # ComfyUI's samplers of these names are k-diffusion's
FOLDER = Path(fastkl.__file__).parent / "integrations" / "comfyui_fastkl"


@pytest.fixture
def node(tmp_path):
    """The node's class, from a copy of the folder in custom_nodes."""
    folder = tmp_path / "custom_nodes" / "comfyui_fastkl"
    shutil.copytree(FOLDER, folder)
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        assert (
            set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS) == {"FastklScheduler"}
        )
        yield module.NODE_CLASS_MAPPINGS["FastklScheduler"]
    finally:
        for loaded in [key for key in sys.modules if key.startswith(name)]:
            del sys.modules[loaded]


class CONST:
    """ComfyUI's mark of a model of flow matching, whose x is (1 - sigma) data + sigma noise."""

    noise_scale = 1.0

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * self.noise_scale * noise + (1.0 - sigma) * latent_image

    def denoised(self, x, sigma, variances, mean):
        centred = x - (1.0 - sigma) * mean
        return mean + centred * (1.0 - sigma) * variances / ((1.0 - sigma) ** 2 * variances + sigma**2)


class Sampling:
    """What a ComfyUI model_sampling has: a table of levels, ascending, and its ends."""

    def __init__(self, sigmas):
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32)
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma) + latent_image

    def denoised(self, x, sigma, variances, mean):
        return mean + (x - mean) * variances / (variances + sigma**2)


class FlowSampling(CONST, Sampling):
    pass


class Model:
    def __init__(self, sampling):
        self.sampling = sampling

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self.sampling


DISCRETE = fastkl.NoiseSchedule.scaled_linear()
STABLE_DIFFUSION = Model(Sampling(DISCRETE.sigmas(np.arange(1000))))
T = np.arange(1, 1001) / 1000
FLUX = Model(FlowSampling(3.0 * T / (1.0 + 2.0 * T)))


def call(node, model=STABLE_DIFFUSION, **inputs):
    """Run the node as ComfyUI does: its function by name, with the defaults of its inputs."""
    declared = node.INPUT_TYPES()
    defaults = {
        key: value[1]["default"]
        for group in declared.values()
        for key, value in group.items()
        if len(value) > 1
    }
    result = getattr(node(), node.FUNCTION)(model=model, **{**defaults, **inputs})
    assert isinstance(result, tuple)
    assert len(result) == len(node.RETURN_TYPES) == 1
    return result[0]


def test_the_interface_is_declared(node):
    inputs = node.INPUT_TYPES()
    assert node.RETURN_TYPES == ("SIGMAS",)
    assert inputs["required"]["model"] == ("MODEL",)
    assert set(fastkl.Spectrum.presets()) < set(inputs["required"]["spectrum"][0])
    assert node.CATEGORY.startswith("sampling/custom_sampling")
    for group in inputs.values():
        for name, (kind, *options) in group.items():
            choices = kind if isinstance(kind, list) else None
            default = options[0]["default"] if options else None
            assert choices is None or default in choices, name


def test_sigmas_are_levels_of_the_model_and_the_best(node):
    sigmas = call(node, steps=8, spectrum="digits")
    assert (sigmas.dtype, sigmas.shape, float(sigmas[-1])) == (torch.float32, (9,), 0.0)
    assert all(level in STABLE_DIFFUSION.sampling.sigmas for level in sigmas[:-1])
    best = fastkl.search(fastkl.Spectrum.preset("digits"), DISCRETE, 8, metric="w2", prove=False)
    np.testing.assert_allclose(sigmas.numpy(), best.sigmas, rtol=1e-6)


def test_denoise_keeps_the_last_part(node):
    whole = call(node, steps=20)
    part = call(node, steps=10, denoise=0.5)
    assert torch.equal(part, whole[-11:])
    assert len(call(node, steps=10, denoise=0.0)) == 0


def test_models_of_flow_matching(node):
    sigmas = call(node, model=FLUX, steps=6)
    assert sigmas[0] == 1.0
    assert all(level in FLUX.sampling.sigmas for level in sigmas[:-1])
    ratios = sigmas[:-1].double().numpy()
    ratios = np.append(np.inf, ratios[1:] / (1.0 - ratios[1:]))
    value = fastkl.divergence(
        fastkl.Spectrum.power_law(1000, 1.0), np.append(ratios, 0.0), "w2", prior="flow"
    )
    uniform = fastkl.discretize.uniform(fastkl.NoiseSchedule.flow(3.0), 6)
    assert value < fastkl.divergence(fastkl.Spectrum.power_law(1000, 1.0), uniform, "w2", prior="flow")
    with pytest.raises(ValueError, match="sampler = 'dpmpp_2m': for a model of flow matching"):
        call(node, model=FLUX, sampler="dpmpp_2m")


DATA = fastkl.Spectrum(np.geomspace(20.0, 0.005, 30), mean=np.linspace(1.0, -0.5, 30))


def ksampler(model, function, sigmas, scale, data):
    """What ComfyUI's KSAMPLER.sample makes of an empty latent and noise of this scale, with the exact network."""
    eigenvalues, mean = (torch.tensor(values.copy()) for values in (data.eigenvalues, data.mean))
    mean = (
        mean if scale == 0.0 else torch.zeros_like(mean)
    )  # all is linear: of the mean and of the noise apart
    first, top = float(sigmas[0]), float(model.sampling.sigma_max)
    greatest = np.isclose(first, top, rtol=1e-5) or first > top  # ComfyUI's max_denoise
    noise = torch.full((1, 1, 1, len(data)), scale, dtype=torch.float64)
    x = model.sampling.noise_scaling(sigmas[0].double(), noise, torch.zeros_like(noise), greatest)

    def network(x, sigma, **extra):
        return model.sampling.denoised(x, sigma.double(), eigenvalues, mean)

    return function(network, x, sigmas.double(), disable=True).flatten().numpy()


def returned_w2(model, function, sigmas, data=DATA):
    deviation, mean = (ksampler(model, function, sigmas, scale, data) for scale in (1.0, 0.0))
    return np.square(np.abs(deviation) - np.sqrt(data.eigenvalues)).sum() + np.square(mean - data.mean).sum()


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "data.npz", eigenvalues=DATA.eigenvalues, mean=DATA.mean)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize(("model", "sampler"), [
    (STABLE_DIFFUSION, "euler"), (STABLE_DIFFUSION, "heun"), (STABLE_DIFFUSION, "dpm_2"), (STABLE_DIFFUSION, "lms"),
    (STABLE_DIFFUSION, "dpmpp_2m"), (FLUX, "euler"), (FLUX, "heun"),
])  # fmt: skip
def test_a_free_start_returns_what_is_predicted(node, file, model, sampler):
    """ComfyUI scales noise by the first level, and by sqrt(1 + sigma^2) where that is the model's noisiest."""
    function = getattr(sampling, f"sample_{sampler}")
    fixed, free = (
        call(node, model=model, steps=4, sampler=sampler, spectrum_file=file, free_start=free)
        for free in (False, True)
    )
    flow = model is FLUX
    lower = bool(free[0] < model.sampling.sigma_max)
    ratios = free.double().numpy()
    if flow:
        assert lower
        ratios = ratios / (1.0 - ratios)
    name = {"euler": "flow_euler", "heun": "flow_heun"}[sampler] if flow else sampler
    predicted = fastkl.divergence(DATA, ratios, "w2", name, "ve" if lower else "vp")
    assert returned_w2(model, function, free) == pytest.approx(predicted, rel=1e-5)
    assert returned_w2(model, function, free) <= returned_w2(model, function, fixed)
    assert lower or torch.equal(free, fixed)
    assert all(level in model.sampling.sigmas for level in free[:-1])


def test_a_free_start_is_lower_where_that_is_better(node, file):
    function = sampling.sample_euler
    for model in (STABLE_DIFFUSION, FLUX):
        fixed, free = (
            call(node, model=model, steps=3, spectrum_file=file, free_start=f) for f in (False, True)
        )
        assert free[0] < 0.95 * fixed[0]
        assert returned_w2(model, function, free) < 0.98 * returned_w2(model, function, fixed)


def test_levels_of_ddim_end_in_the_least_level(node, file):
    for free in (False, True):
        options = {"spectrum_file": file, "free_start": free, "levels_of": "ddim"}
        for steps in (5, 40):
            sigmas = call(node, steps=steps, sampler="dpmpp_2m", **options)
            assert sigmas[-2] == STABLE_DIFFUSION.sampling.sigmas[0]
            assert len(sigmas) == steps + 1
            assert (sigmas[1:] < sigmas[:-1]).all()


def test_a_free_start_is_refused_where_it_would_be_wrong(node, file):
    with pytest.raises(ValueError, match=r"^denoise = 0\.5: must be 1 with free_start"):
        call(node, spectrum_file=file, free_start=True, denoise=0.5)
    other = Model(FlowSampling(3.0 * T / (1.0 + 2.0 * T)))
    other.sampling.noise_scale = 2.0
    with pytest.raises(
        ValueError, match=r"^free_start = True: FlowSampling scales the first noise by 1\.5.* at level"
    ):
        call(node, model=other, spectrum_file=file, free_start=True)
    with pytest.warns(UserWarning, match="^free_start = True: spectrum has no mean") as caught:
        call(node, free_start=True)  # of a power law
    assert len(caught) == 1


def test_every_sampler_of_the_list(node):
    for sampler in node.INPUT_TYPES()["required"]["sampler"][0]:
        for options in ({}, {"free_start": True, "spectrum": "digits"}):
            sigmas = call(node, steps=5, sampler=sampler, **options)
            assert (sigmas[1:] < sigmas[:-1]).all()
            assert len(sigmas) == 6


def test_a_spectrum_from_a_file_takes_the_place_of_the_choice(node, tmp_path):
    file = tmp_path / "eigenvalues.npy"
    np.save(file, fastkl.Spectrum.preset("digits").eigenvalues)
    plain = fastkl.Spectrum(np.load(file))
    sigmas = call(node, steps=5, spectrum_file=str(file), metric="kl")
    best = fastkl.search(plain, DISCRETE, 5, prove=False)
    np.testing.assert_allclose(sigmas.numpy(), best.sigmas, rtol=1e-6)
    with pytest.raises(FileNotFoundError):
        call(node, spectrum_file=str(tmp_path / "nowhere.npy"))
