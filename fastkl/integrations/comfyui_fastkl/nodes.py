"""The node: a model, a number of steps and a spectrum in, SIGMAS out."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastkl import NoiseSchedule, Spectrum, divergence, samplers
from fastkl.cli.spectra import read_spectrum
from fastkl.integrations._levels import LEVELS_OF, best_levels

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "FastklScheduler"]

# ComfyUI's names of samplers that are fastkl's; some have another formula where the model is one of flow matching.
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde",
            "dpmpp_3m_sde", "ddim")  # fmt: skip
FLOW_SAMPLERS = {"euler": "flow_euler", "ddim": "flow_euler", "heun": "flow_heun"}
METRICS = ["w2", "kl", "reverse_kl", "jeffreys"]
POWER_LAW = "power law"


class FastklScheduler:
    """The levels of a model with the least divergence for a number of steps."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SIGMAS",)
    FUNCTION: ClassVar[str] = "get_sigmas"
    CATEGORY: ClassVar[str] = "sampling/custom_sampling/schedulers"
    DESCRIPTION: ClassVar[str] = (
        "Noise levels that lose least of the data's variance in a given number of steps."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Return the inputs in ComfyUI's form."""
        return {
            "required": {
                "model": ("MODEL",),
                "steps": ("INT", {"default": 10, "min": 1, "max": 1000}),
                "sampler": (list(SAMPLERS), {"default": "euler"}),
                "metric": (METRICS, {"default": "w2"}),
                "spectrum": ([POWER_LAW, *Spectrum.presets()], {"default": POWER_LAW}),
                "exponent": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 4.0, "step": 0.05,
                                       "tooltip": "eigenvalues fall as i^-exponent (power law)"}),
                "mean_variance": ("FLOAT", {"default": 1.0, "min": 0.001, "max": 1000.0, "step": 0.01,
                                            "tooltip": "mean eigenvalue (power law)"}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            "optional": {
                "spectrum_file": ("STRING", {"default": "", "tooltip": "written by `fastkl spectrum --out`, or "
                                             "eigenvalues as .npy, .csv or .txt; in place of the choice above"}),
                "free_start": ("BOOLEAN", {"default": False, "tooltip": "choose the first level too, from an empty "
                                           "latent; the spectrum should have the data's mean, as presets and "
                                           "files of `fastkl spectrum` have it"}),
                "levels_of": (list(LEVELS_OF), {"default": "sampler", "tooltip": "ddim: the best levels of Euler's "
                                                "step that go down to the lowest; for dpmpp_2m with free_start, "
                                                "better images in our experiments than its own best"}),
            },
        }  # fmt: skip

    def get_sigmas(
        self,
        model: Any,
        steps: int,
        sampler: str,
        metric: str,
        spectrum: str,
        exponent: float,
        mean_variance: float,
        denoise: float,
        spectrum_file: str = "",
        free_start: bool = False,
        levels_of: str = "sampler",
    ) -> tuple[Any]:
        """Return (SIGMAS,): steps + 1 levels, of which `denoise` keeps the last part, as ComfyUI's schedulers do."""
        import torch

        if denoise <= 0.0:
            return (torch.FloatTensor([]),)
        if free_start and denoise < 1.0:
            raise ValueError(
                f"denoise = {denoise!r}: must be 1 with free_start, or it says where to start itself"
            )
        total = steps if denoise >= 1.0 else int(steps / denoise)
        sampling = model.get_model_object("model_sampling")
        data = chosen(spectrum, exponent, mean_variance, spectrum_file)
        places = timesteps(sampling, data, total, sampler, metric, free_start, levels_of)
        levels = sampling.sigmas[torch.as_tensor(places)].float().cpu()
        return (torch.cat([levels, levels.new_zeros(1)])[-(steps + 1) :],)


def timesteps(
    sampling: Any, data: Spectrum, steps: int, sampler: str, metric: str, free_start: bool, levels_of: str
) -> list[int]:
    """Return the best places in the table of a model's levels, descending.

    ComfyUI's first noise has variance sigma^2 (of flow matching: sigma/(1 - sigma), squared, as a ratio), but 1 +
    sigma^2 at the noisiest level of other models.
    """
    table = np.asarray(sampling.sigmas.tolist(), dtype=np.float64)
    # models of flow matching (ComfyUI's CONST) have sigma of x = (1 - sigma) x0 + sigma noise
    is_flow = any(base.__name__ == "CONST" for base in type(sampling).__mro__)
    if is_flow and sampler not in FLOW_SAMPLERS:
        raise ValueError(
            f"sampler = {sampler!r}: for a model of flow matching, must be one of {', '.join(FLOW_SAMPLERS)}"
        )
    with np.errstate(divide="ignore"):
        ratios = table / (1.0 - table) if is_flow else table
    schedule = NoiseSchedule.from_alphas_cumprod(1.0 / (1.0 + np.square(ratios)))
    rule = samplers.get(FLOW_SAMPLERS[sampler] if is_flow else sampler)
    prior = "ve" if is_flow else "vp"
    if free_start:
        check_noise(sampling)
    free = free_start and is_flow
    options = {"prove": False, "levels_of": levels_of}
    levels = best_levels(schedule, data, steps, metric, rule, prior, free_start=free, **options).levels
    if free_start and not is_flow and len(table) > steps:
        below = NoiseSchedule.from_alphas_cumprod(schedule.alphas_cumprod[:-1])
        lower = best_levels(below, data, steps, metric, rule, "ve", free_start=True, **options).levels
        judge = samplers.get("ddim") if levels_of == "ddim" else rule
        if divergence(data, lower, metric, judge, "ve") < divergence(data, levels, metric, judge, prior):
            levels = lower
    return list(schedule.timesteps(levels[:-1]).tolist())


def check_noise(sampling: Any) -> None:
    """Raise unless a model's first noise is scaled by the first level, where that is not the noisiest."""
    import torch

    level = sampling.sigmas[len(sampling.sigmas) // 2].float().cpu()
    noise = torch.ones((1, 1, 1, 1))
    scale = float(sampling.noise_scaling(level, noise, torch.zeros_like(noise), False).flatten()[0])
    if not abs(scale - float(level)) <= 1e-5 * float(level):
        raise ValueError(
            f"free_start = True: {type(sampling).__name__} scales the first noise by {scale:.6g} at level "
            f"{float(level):.6g}, must be by the level; start at the noisiest one"
        )


def chosen(spectrum: str, exponent: float, mean_variance: float, file: str) -> Spectrum:
    """Return the spectrum of a file, else that of a preset or a power law of 1,000 directions."""
    if file.strip():
        return read_spectrum(file.strip(), None)
    if spectrum == POWER_LAW:
        return Spectrum.power_law(1000, exponent, mean_variance)
    return Spectrum.preset(spectrum)


NODE_CLASS_MAPPINGS = {"FastklScheduler": FastklScheduler}
NODE_DISPLAY_NAME_MAPPINGS = {"FastklScheduler": "fastkl Scheduler"}
