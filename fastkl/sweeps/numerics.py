"""What a machine's arithmetic makes of a few fixed levels and values.

NumPy chooses its exp, power and tan by the processor, so that processors of two kinds may differ in the last bits.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from fastkl import _gpu_device, discretize
from fastkl.evaluate import divergence
from fastkl.schedule import NoiseSchedule

__all__ = ["numerics", "warn_of_others"]


@cache
def numerics(backend: str = "auto") -> str:
    """Return the versions of NumPy and numba, and a digest of levels and values as they come out here."""
    schedule, powers = NoiseSchedule.edm(), np.linspace(1.1, 9.7, 64)
    levels: list[Any] = [
        discretize.karras(schedule, 9, powers),
        discretize.tangent(schedule, 9, powers),
        discretize.exponential(schedule, 9, np.linspace(0.01, 0.7, 64)),
        discretize.power_uniform(NoiseSchedule.flow(), 9, powers),
    ]
    values = divergence(np.geomspace(1e-4, 1e3, 32), levels[0], backend=backend, num_threads=1)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in (*levels, values))).hexdigest()
    gpu = ", a GPU" if backend != "cpu" and _gpu_device.missing() is None else ""
    return f"numpy {version('numpy')}, numba {version('numba')}{gpu}, {digest[:16]}"


def warn_of_others(where: str, found: Iterable[str], here: str) -> None:
    """Warn if chunks were evaluated by another arithmetic than that of this process."""
    others = sorted(set(found) - {here})
    if others:
        warnings.warn(
            f"{where}: some chunks were evaluated with other versions or on another kind of processor "
            f"({'; '.join(others)}) than this one ({here}): values may differ in their last bits from those of a run "
            "on one kind",
            UserWarning,
            stacklevel=2,
        )
