"""k-diffusion's sampling module alone: its package imports torchvision and much else, which no sampler needs."""

import importlib.util
import sys
import types

import torch


def load():
    """Execute the installed k_diffusion/sampling.py, once; of its sibling `utils` it uses append_dims only."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    package.utils = utils
    sys.modules.setdefault("k_diffusion", package)
    sys.modules.setdefault("k_diffusion.utils", utils)
    return importlib.import_module("k_diffusion.sampling")


def denoiser(eigenvalues, mean=0.0):
    """The exact network of Gaussian data, one pixel for each eigenvalue."""
    variances, centre = (torch.tensor(values, dtype=torch.float64) for values in (eigenvalues, mean))

    def model(x, sigma, **extra):
        return centre + (x - centre) * variances / (variances + sigma.double()[:, None, None, None] ** 2)

    return model
