"""k-diffusion: levels for its samplers, in the style of its get_sigmas_karras and siblings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastkl._sampler_base import Sampler
from fastkl._validation import boolean, choice, integer, real_number
from fastkl.integrations._levels import LEVELS_OF, best_levels, with_variance
from fastkl.samplers import get
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum

__all__ = ["SAMPLERS", "get_sigmas_fastkl", "levels_for"]

# k-diffusion's functions (with their default options, and no churn) and their names in fastkl.samplers
SAMPLERS = {
    "sample_euler": "euler",
    "sample_euler_ancestral": "euler_ancestral",
    "sample_heun": "heun",
    "sample_dpm_2": "dpm_2",
    "sample_lms": "lms",
    "sample_dpmpp_sde": "dpmpp_sde",
    "sample_dpmpp_2m": "dpmpp_2m",
    "sample_dpmpp_2m_sde": "dpmpp_2m_sde",
    "sample_dpmpp_3m_sde": "dpmpp_3m_sde",
}


def get_sigmas_fastkl(
    n: int,
    spectrum: Spectrum | ArrayLike,
    sigma_min: float,
    sigma_max: float,
    sampler: str | Sampler = "sample_euler",
    device: Any = "cpu",
    metric: str = "w2",
    free_start: bool = False,
    levels_of: str = "sampler",
) -> Any:
    """Return the n levels with the least divergence between sigma_min and sigma_max, and 0.

    Parameters
    ----------
    n : int
        Number of steps, at least 1: the levels before 0.
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units).
    sigma_min, sigma_max : float
        The least and the largest level that the network knows. The first level is `sigma_max` unless `free_start`; the
        last before 0 may be above `sigma_min`.
    sampler : str or Sampler
        k-diffusion's function, such as "sample_dpmpp_2m", or what `fastkl.samplers.get` takes. Levels are those of
        `fastkl.search`, or, except for Euler's step, of a family of `fastkl rank` where that is better.
    device : str or torch.device
        Where the tensor goes.
    metric : {"w2", "kl", "reverse_kl", "jeffreys"}
        Which divergence. `w2` counts variance, and so what one sees.
    free_start : bool
        Whether the first level is chosen too, for which the spectrum should have the data's mean: better for trained
        networks and few steps. Sampling must start from noise of standard deviation ``sigmas[0]``, not `sigma_max`.
    levels_of : {"sampler", "ddim"}
        "ddim": the levels of least divergence of Euler's step that go down to `sigma_min`. For "sample_dpmpp_2m" and
        the networks that were tried, with `free_start` and the effective spectrum, they made better images than levels
        of its own least divergence. Of no effect for Euler's step itself.

    Returns
    -------
    torch.Tensor, shape (n + 1,)
        Levels in float32, descending to 0, as ``sample_*(model, x, sigmas)`` take them with
        ``x = torch.randn(...) * sigmas[0]``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong kind or out of range.
    ImportError
        If PyTorch is not installed.

    Notes
    -----
    Tens of milliseconds for Euler's step, under a second with `free_start`; a second or so for other samplers, 20 at 50
    steps. It does not import k-diffusion.

    Examples
    --------
    >>> import fastkl
    >>> from fastkl.integrations.k_diffusion import get_sigmas_fastkl
    >>> sigmas = get_sigmas_fastkl(5, fastkl.Spectrum.power_law(100, 1.0), 0.03, 14.6)
    >>> sigmas.shape, round(float(sigmas[0]), 4), float(sigmas[-1])
    (torch.Size([6]), 14.6, 0.0)
    >>> digits = fastkl.Spectrum.preset("digits")
    >>> sigmas = get_sigmas_fastkl(5, digits, 0.03, 14.6, free_start=True)
    >>> bool(sigmas[0] < 14.6)
    True
    """
    try:
        import torch
    except ImportError:
        raise ImportError('sigmas as a tensor need PyTorch: pip install "fastkl[diffusers]"') from None
    levels = levels_for(n, spectrum, sigma_min, sigma_max, sampler, metric, free_start, levels_of)
    return torch.tensor(levels, dtype=torch.float32, device=device)


def levels_for(
    n: int,
    spectrum: Spectrum | ArrayLike,
    sigma_min: float,
    sigma_max: float,
    sampler: str | Sampler = "sample_euler",
    metric: str = "w2",
    free_start: bool = False,
    levels_of: str = "sampler",
) -> Any:
    """Return what `get_sigmas_fastkl` returns as an array, without PyTorch.

    Parameters
    ----------
    n : int
        Number of steps, and all else as in `get_sigmas_fastkl`.
    spectrum : Spectrum or array_like, shape (d,)
        Of the data.
    sigma_min, sigma_max : float
        What the network knows.
    sampler : str or Sampler
        The update rule.
    metric : {"w2", "kl", "reverse_kl", "jeffreys"}
        Which divergence.
    free_start : bool
        Whether the first level is chosen too.
    levels_of : {"sampler", "ddim"}
        As in `get_sigmas_fastkl`.

    Returns
    -------
    ndarray of float64, shape (n + 1,)
        Levels, descending to 0.

    Raises
    ------
    TypeError, ValueError
        As `get_sigmas_fastkl`.

    Examples
    --------
    >>> from fastkl.integrations.k_diffusion import levels_for
    >>> levels_for(3, [1.0, 0.01], 0.03, 14.6).shape
    (4,)
    """
    n = integer("n", n)
    low = real_number("sigma_min", sigma_min, above=0.0)
    high = real_number("sigma_max", sigma_max, above=low)
    rule = get(SAMPLERS.get(sampler, sampler) if isinstance(sampler, str) else sampler)
    data = with_variance(spectrum)
    free_start = boolean("free_start", free_start)
    choice("levels_of", levels_of, LEVELS_OF)
    if n == 1 and not free_start and levels_of == "sampler":
        return np.array([high, 0.0])
    # x starts as noise of deviation sigmas[0]; even times of rho 7 resolve both ends
    schedule = NoiseSchedule.edm(low, high)
    found = best_levels(
        schedule, data, n, metric, rule, "ve", prove=False, free_start=free_start, levels_of=levels_of
    )
    return found.levels
