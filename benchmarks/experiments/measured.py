"""What the strategies know of the data and of the model, measured once and kept in results/measured-<model>.json."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import data
import numpy as np
import sampling
import strategies
from numpy.typing import NDArray
from store import check_about

import fastkl

Floats = NDArray[np.float64]

LEVELS = 40
MOST = 2000  # held-out images that the errors are measured on


def path_of(setup: sampling.Setup, out: pathlib.Path) -> pathlib.Path:
    """File of a setup; a user's images are part of its name. Delete it to measure anew."""
    images = "" if setup.pipeline is None else f"-{pathlib.Path(setup.data).resolve().name}"
    return out / f"measured-{setup.model_name}{images}.json"


def measure(setup: sampling.Setup, device: str) -> dict[str, Any]:
    """Eigenvalues and mean of the training images, and the denoising errors on held-out images."""
    images = setup.images()
    pixels = data.scaled(images.training)
    pixels = pixels.reshape(len(pixels), -1)
    spectrum = fastkl.Spectrum.from_samples(pixels)
    chosen = np.random.default_rng(0).permutation(len(images.held_out))[:MOST]
    held_out = data.scaled(images.held_out[chosen])
    sigmas = np.geomspace(setup.schedule.sigma_min, setup.schedule.sigma_max, LEVELS)
    errors = sampling.denoising_errors(
        sampling.ready(setup, device=device, exact=True), held_out, sigmas, device
    )
    offset = held_out.reshape(len(held_out), -1) - pixels.mean(0, dtype=np.float64)
    return {
        "held_out": len(held_out),
        "sigma_data": float(pixels.std(dtype=np.float64)),
        "variance": float(np.square(offset).sum(1).mean()),  # the error of the answer "the mean of the data"
        "sigmas": sigmas.tolist(),
        "errors": errors.tolist(),
        "eigenvalues": spectrum.eigenvalues.tolist(),
        "mean": None if spectrum.mean is None else spectrum.mean.tolist(),
    }


def covariance_of(found: dict[str, Any]) -> fastkl.Spectrum:
    """Spectrum of the images, with their mean."""
    return fastkl.Spectrum(np.array(found["eigenvalues"]), mean=found["mean"])


def of_use(found: dict[str, Any]) -> NDArray[np.bool_]:
    """Levels at which neither to leave the noise in, nor to answer the mean of the data, has the smaller error."""
    sigmas, errors, dim = np.array(found["sigmas"]), np.array(found["errors"]), len(found["eigenvalues"])
    return errors < np.minimum(sigmas**2 * dim, found["variance"])


def effective_spectrum(found: dict[str, Any]) -> fastkl.Spectrum | None:
    """Gaussian with the model's errors, from the levels at which the model is of use; None if no Gaussian has them.

    A denoiser's error never falls as sigma grows and error / sigma^2 never grows: what breaks that is a fault of the
    network and is lowered to the least that the other levels allow.
    """
    sigmas, errors, dim = np.array(found["sigmas"]), np.array(found["errors"]), len(found["eigenvalues"])
    useful = of_use(found)
    if not useful.all():
        print(f"sigma = {sigmas[~useful].round(4).tolist()}: the network is of no use, not used", flush=True)
    sigmas, errors = sigmas[useful], errors[useful]
    errors = np.minimum.accumulate(errors[::-1])[::-1]
    if len(errors):
        errors = np.minimum.accumulate(errors / sigmas**2) * sigmas**2
    try:
        return fastkl.Spectrum.from_denoising_errors(sigmas, errors, dim, mean_of=covariance_of(found))
    except ValueError as error:
        print(f"no effective spectrum, and no strategy that needs it: {error}", flush=True)
        return None


def situation(setup: sampling.Setup, out: pathlib.Path, device: str = "cpu") -> strategies.Situation:
    """Spectra of the data and of the model's errors."""
    path = path_of(setup, out)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setup.made_from | measure(setup, device)) + "\n", encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    check_about(path, {key: found.get(key) for key in setup.made_from}, setup.made_from)
    covariance = covariance_of(found)
    effective = effective_spectrum(found)
    schedule, useful = setup.schedule, of_use(found)
    most = float(np.array(found["sigmas"])[useful].max()) if useful.any() else schedule.sigma_max
    return strategies.Situation(schedule, setup.sampler, covariance, effective, found["sigma_data"], most)
