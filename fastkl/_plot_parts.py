"""What all pictures share: checked input, the axes, and the looks of lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._candidates import candidate_levels

__all__ = ["COLOURS", "DASHES", "axes", "checked_mapping", "look", "named_levels", "whole_numbers"]

Array = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#5A5A5A")
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


def named_levels(schedules: Any) -> dict[str, Array]:
    """Return checked levels by their names."""
    checked_mapping("schedules", schedules)
    named = {}
    for name, sigmas in schedules.items():
        rows, single = candidate_levels(f"schedules[{name!r}]", sigmas)
        if not single:
            raise ValueError(f"schedules[{name!r}]: must have shape (N+1,), got shape {rows.shape}")
        named[str(name)] = rows[0]
    return named


def checked_mapping(argument: str, value: Any) -> None:
    """Raise unless a value is a mapping that is not empty."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{argument}: must be a mapping of names, got {type(value).__name__}")
    if not value:
        raise ValueError(f"{argument}: must not be empty")


def look(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of the line of a number; they repeat, combined differently, after 8."""
    dashes = DASHES[(index + index // len(COLOURS)) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)],
            "linestyle": dashes, "linewidth": 1.5, "markersize": 4.5}  # fmt: skip


def whole_numbers(ax: Any) -> None:
    """Put the ticks of the x axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def axes(ax: Any) -> Any:
    """Return `ax`, or the axes of a new figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError('pictures need Matplotlib: pip install "fastkl[plot]"') from None
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    if not callable(getattr(ax, "plot", None)):
        raise TypeError(f"ax: must be Matplotlib axes, got {type(ax).__name__}")
    return ax
