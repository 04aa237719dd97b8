"""--plot: a picture beside the tables, with Matplotlib (the extra `plot`)."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from fastkl.cli.errors import InputError
from fastkl.spectrum import Spectrum

__all__ = ["add_plot", "check_picture", "draw_levels", "draw_search", "draw_spectrum", "new_figure", "save"]

FORMATS = (".pdf", ".png", ".svg")
DOTS = 150  # an inch
MOST_LINES = 8  # of different colours


def add_plot(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --plot."""
    text = f"draw {what}: .png, .pdf or .svg; replaces the file"
    parser.add_argument("--plot", metavar="FILE", help=text)


def check_picture(name: str | None) -> None:
    """Raise unless a picture can be drawn and written; call it before work that would be lost."""
    if name is None:
        return
    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot {name}: must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {name}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"--plot {name}: must be a regular file")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError('--plot: pictures need Matplotlib: pip install "fastkl[plot]"') from None


def new_figure(columns: int) -> tuple[Any, Any]:
    """Return a figure of so many pictures side by side, which needs no screen, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * columns, 4.6), layout="constrained")
    return figure, figure.subplots(1, columns)


def save(name: str, figure: Any) -> None:
    """Write a picture, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(name).suffix[1:].lower(), dpi=DOTS)
    try:
        Path(name).write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(f"--plot {name}: {error.strerror or error}") from None


def draw_levels(
    name: str, spectrum: Spectrum, schedules: Mapping[str, ArrayLike], sampler: str, prior: str
) -> None:
    """Draw levels and what they return of each eigenvalue, for as many schedules as have colours."""
    from fastkl import plots

    shown = dict(list(schedules.items())[:MOST_LINES])
    figure, (left, right) = new_figure(2)
    plots.levels(shown, left).get_legend().remove()  # it is that of the picture beside it
    plots.ratios(spectrum, shown, sampler, prior, right)
    save(name, figure)


def draw_search(name: str, spectrum: Spectrum, found: list[Any], others: list[Any]) -> None:
    """Draw the last result's levels beside the standard ones and what they return, and the front of several results."""
    from fastkl import plots

    best = found[-1]
    title = f"best {best.metric}, N = {best.steps}" + (" (proved)" if best.proved_optimal else "")
    schedules = {title: best.sigmas} | {o.name: o.levels for o in others if o.levels is not None}
    shown = dict(list(schedules.items())[:MOST_LINES])
    figure, panels = new_figure(3 if len(found) > 1 else 2)
    plots.levels(shown, panels[0]).get_legend().remove()  # it is that of the picture beside it
    plots.ratios(spectrum, shown, best.sampler, best.prior, panels[1])
    if len(found) > 1:
        plots.front({best.sampler: found}, panels[2])
    save(name, figure)


def draw_spectrum(name: str, spectrum: Spectrum, rtol: float | None) -> None:
    """Draw a spectrum and its compression."""
    from fastkl import plots

    figure, ax = new_figure(1)
    plots.spectrum(spectrum, rtol, ax)
    save(name, figure)
