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

import fastkl

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
    """ComfyUI's mark of a model of flow matching."""


class Sampling:
    """What a ComfyUI model_sampling has: a table of levels, ascending, and its ends."""

    def __init__(self, sigmas):
        self.sigmas = torch.tensor(sigmas, dtype=torch.float32)
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]


class FlowSampling(Sampling, CONST):
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


def test_every_sampler_of_the_list(node):
    for sampler in node.INPUT_TYPES()["required"]["sampler"][0]:
        sigmas = call(node, steps=5, sampler=sampler)
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
