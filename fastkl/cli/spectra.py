"""A spectrum from the name of a preset or of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastkl.cli.errors import InputError
from fastkl.cli.files import UNNAMED, arrays_from_numpy, read_text, rows_from_text
from fastkl.spectrum import Spectrum

__all__ = ["check_finite", "read_spectrum"]


def read_spectrum(name: str, floor: float | None) -> Spectrum:
    """Return the preset or the file called `name`, a preset first, with a floor."""
    if name in Spectrum.presets():
        return Spectrum.preset(name, floor)
    spectrum = Spectrum(**_arguments(name))
    return spectrum if floor is None else spectrum.floored(floor)


def _arguments(name: str) -> dict[str, Any]:
    suffix = Path(name).suffix.lower()
    if suffix not in (".npy", ".npz", ".csv", ".txt"):
        presets = ", ".join(Spectrum.presets())
        raise InputError(
            f"spectrum {name!r}: must be a preset ({presets}) or a .npy, .npz, .csv or .txt file"
        )
    if suffix in (".csv", ".txt"):
        rows = rows_from_text(name, read_text(name))
        if 1 not in rows.shape:
            raise InputError(
                f"{name}: must hold one row or one column of eigenvalues, got shape {rows.shape}"
            )
        return {"eigenvalues": rows.ravel()}
    arrays = arrays_from_numpy(name)
    if list(arrays) == [UNNAMED]:
        return {"eigenvalues": arrays[UNNAMED]}
    if "eigenvalues" not in arrays or not arrays.keys() <= {"eigenvalues", "counts", "mean"}:
        found = ", ".join(sorted(arrays)) or "none"
        raise InputError(
            f"{name}: must hold one unnamed array or eigenvalues, with counts and mean if it has them, found {found}"
        )
    return arrays


def check_finite(name: str, spectrum: Spectrum, metric: str) -> None:
    """Raise if a divergence of schedules that end at 0 is not finite for this spectrum."""
    zeros = len(spectrum) - int((spectrum.eigenvalues > 0.0).sum())
    if zeros and metric != "w2":
        raise InputError(
            f"spectrum {name!r}: {zeros} of its eigenvalues are 0, for which {metric} is not finite; "
            "add --floor VARIANCE or use --metric w2"
        )
