"""The node: a model, a number of steps and a spectrum in, SIGMAS out."""

from __future__ import annotations

from typing import Any, ClassVar

from fastkl import Spectrum
from fastkl.cli.spectra import read_spectrum
from fastkl.integrations.k_diffusion import levels_for

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "FastklScheduler"]

# ComfyUI's names of samplers, as far as fastkl has their formulas
SAMPLERS = {
    "euler": "euler",
    "euler_ancestral": "euler_ancestral",
    "heun": "heun",
    "dpm_2": "dpm_2",
    "lms": "lms",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddim": "ddim",
}
METRICS = ["w2", "kl", "reverse_kl", "jeffreys"]
POWER_LAW = "power law"


class FastklScheduler:
    """The levels with the least divergence for a number of steps, between the ends of the model's noise levels."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("SIGMAS",)
    FUNCTION: ClassVar[str] = "get_sigmas"
    CATEGORY: ClassVar[str] = "sampling/custom_sampling/schedulers"

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
    ) -> tuple[Any]:
        """Return (SIGMAS,): steps + 1 levels, of which `denoise` keeps the last part, as ComfyUI's schedulers do."""
        import torch

        total = steps
        if denoise < 1.0:
            if denoise <= 0.0:
                return (torch.FloatTensor([]),)
            total = int(steps / denoise)
        sampling = model.get_model_object("model_sampling")
        levels = levels_for(
            total, chosen(spectrum, exponent, mean_variance, spectrum_file), float(sampling.sigma_min),
            float(sampling.sigma_max), SAMPLERS[sampler], metric,
        )  # fmt: skip
        return (torch.tensor(levels, dtype=torch.float32)[-(steps + 1) :],)


def chosen(spectrum: str, exponent: float, mean_variance: float, file: str) -> Spectrum:
    """Return the spectrum of a file, else that of a preset or a power law of 1,000 directions."""
    if file.strip():
        return read_spectrum(file.strip(), None)
    if spectrum == POWER_LAW:
        return Spectrum.power_law(1000, exponent, mean_variance)
    return Spectrum.preset(spectrum)


NODE_CLASS_MAPPINGS = {"FastklScheduler": FastklScheduler}
NODE_DISPLAY_NAME_MAPPINGS = {"FastklScheduler": "fastkl Scheduler"}
