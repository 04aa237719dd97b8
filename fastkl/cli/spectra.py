"""A spectrum from the name of a preset, of a file or of a folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._validation import real_number
from fastkl.cli.errors import InputError
from fastkl.cli.files import UNNAMED, arrays_from_numpy, read_text, rows_from_text
from fastkl.cli.images import ROUNDING, ImageFolder
from fastkl.spectrum import Spectrum

__all__ = ["Data", "Reading", "check_finite", "read_data", "read_spectrum"]

FIELDS = {"eigenvalues", "counts", "mean", "rtol"}


@dataclass(frozen=True)
class Reading:
    """How to make a spectrum of data; the defaults leave it to the data."""

    kind: str | None = None  # "samples" or "eigenvalues"
    stationary: bool = False
    shrinkage: str | float | None = None
    size: int | None = None  # of images
    progress: bool = False

    def refuse(self, name: str, what: str, *options: str) -> None:
        """Raise if one of these options is set, which have no meaning for data that is `what`."""
        for option in options:
            value = getattr(self, option)
            if value is not None and value is not False:
                flag = value if option == "kind" else option
                raise InputError(f"{name}: is {what}, for which there is no --{flag}")


@dataclass(frozen=True)
class Data:
    """A spectrum, and what it was made of."""

    spectrum: Spectrum
    source: str  # "preset", "eigenvalues", "samples" or "images"
    shape: tuple[int, ...] | None  # of the samples or images
    floor: float | None  # None: a preset's own


def read_spectrum(name: str, floor: float | None) -> Spectrum:
    """Return the preset or the file of eigenvalues called `name`, a preset first, with a floor."""
    if name in Spectrum.presets():
        return Spectrum.preset(name, floor)
    arrays = _arrays(name)
    samples = _samples(name, arrays, None)
    if samples is not None:
        raise InputError(
            f"{name}: holds samples, shape {samples.shape}; `fastkl spectrum {name} --out FILE` makes their spectrum"
        )
    return _spectrum(name, arrays).floored(0.0 if floor is None else floor)


def read_data(name: str, floor: float | None, reading: Reading) -> Data:
    """Return the spectrum of the preset, file or folder called `name`, a preset first, with a floor."""
    if reading.stationary:
        reading.refuse("--stationary", "a model of its own", "shrinkage")
    if name in Spectrum.presets():
        reading.refuse(name, "a preset", "kind", "stationary", "shrinkage", "size")
        return Data(Spectrum.preset(name, floor), "preset", None, floor)
    if Path(name).is_dir():
        reading.refuse(name, "a folder of images", "kind")
        images = ImageFolder(name, reading.size, reading.progress)
        floor = ROUNDING if floor is None else floor
        spectrum = _from_samples(images, floor, replace(reading, progress=False))  # the folder shows its own
        return Data(spectrum, "images", images.shape, floor)
    reading.refuse(name, "a file", "size")
    floor = 0.0 if floor is None else floor
    arrays = _arrays(name, reading.kind, ", or a folder of images")
    samples = _samples(name, arrays, reading.kind)
    if samples is None:
        reading.refuse(name, "a spectrum", "stationary", "shrinkage")
        return Data(_spectrum(name, arrays).floored(floor), "eigenvalues", None, floor)
    return Data(_from_samples(samples, floor, reading), "samples", samples.shape, floor)


def _arrays(name: str, kind: str | None = None, also: str = "") -> dict[str, NDArray[Any]]:
    """Return the arrays in a file by their names; text is one without a name."""
    suffix = Path(name).suffix.lower()
    if suffix in (".npy", ".npz"):
        return arrays_from_numpy(name)
    if suffix not in (".csv", ".txt"):
        presets = ", ".join(Spectrum.presets())
        raise InputError(
            f"spectrum {name!r}: must be a preset ({presets}) or a .npy, .npz, .csv or .txt file{also}"
        )
    rows = rows_from_text(name, read_text(name))
    if kind == "samples":
        return {UNNAMED: rows}
    if 1 not in rows.shape:
        raise InputError(f"{name}: must hold one row or one column of eigenvalues, got shape {rows.shape}")
    return {UNNAMED: rows.ravel()}


def _samples(name: str, arrays: dict[str, NDArray[Any]], kind: str | None) -> NDArray[Any] | None:
    """Return the one array in a file if it holds samples: of 2 axes and more, or of any number if `kind` says so."""
    found = list(arrays)
    if kind == "samples":
        if len(found) != 1:
            raise InputError(
                f"{name}: must hold one array of samples, found {', '.join(sorted(found)) or 'none'}"
            )
        array = arrays[found[0]]
        return array[:, None] if array.ndim == 1 else array
    if kind == "eigenvalues" or len(found) != 1 or found == ["eigenvalues"]:
        return None
    return arrays[found[0]] if arrays[found[0]].ndim > 1 else None


def _spectrum(name: str, arrays: dict[str, NDArray[Any]]) -> Spectrum:
    """Return the spectrum whose eigenvalues, counts, mean and rtol these are."""
    if list(arrays) == [UNNAMED]:
        arrays = {"eigenvalues": arrays[UNNAMED]}
    if "eigenvalues" not in arrays or not arrays.keys() <= FIELDS:
        found = ", ".join(sorted(arrays)) or "none"
        raise InputError(
            f"{name}: must hold one unnamed array or eigenvalues, with counts and mean if it has them, found {found}"
        )
    spectrum = Spectrum(arrays["eigenvalues"], arrays.get("counts"), arrays.get("mean"))
    rtol = real_number("rtol", arrays.get("rtol", 0.0), at_least=0.0)
    return Spectrum._trusted(spectrum.eigenvalues, spectrum.counts, spectrum.mean, rtol)


def _from_samples(samples: NDArray[Any] | ImageFolder, floor: float, reading: Reading) -> Spectrum:
    """Return the spectrum of an array or of batches."""
    try:
        if reading.stationary:
            return Spectrum.from_images(samples, floor, progress=reading.progress)
        samples = _at_once(samples, reading.shrinkage)
        return Spectrum.from_samples(samples, floor, shrinkage=reading.shrinkage, progress=reading.progress)
    except ImportError as error:  # of an extra, which the message names
        raise InputError(str(error)) from None


def _at_once(
    samples: NDArray[Any] | ImageFolder, shrinkage: str | float | None
) -> NDArray[Any] | ImageFolder:
    """Return samples as an array in memory where the computation needs one.

    Ledoit and Wolf's coefficient does. So does the matrix of products of fewer samples than dimensions; they take no
    more memory than the covariance would, which has as many columns and more rows.
    """
    if isinstance(samples, ImageFolder):
        few = samples.shape[0] <= math.prod(samples.shape[1:])
        return samples.array() if few or shrinkage == "ledoit_wolf" else samples
    return np.array(samples) if shrinkage == "ledoit_wolf" else samples


def check_finite(name: str, spectrum: Spectrum, metric: str) -> None:
    """Raise if a divergence of schedules that end at 0 is not finite for this spectrum."""
    zeros = len(spectrum) - int((spectrum.eigenvalues > 0.0).sum())
    if zeros and metric != "w2":
        raise InputError(
            f"spectrum {name!r}: {zeros} of its eigenvalues are 0, for which {metric} is not finite; "
            "add --floor VARIANCE or use --metric w2"
        )
