"""When a problem of the host's arrays repays the way to a GPU and back: a model whose constants were measured.

benchmarks/gpu.py writes fastkl/data/gpu_costs.json, for each card it ran on. Without that file, or for a card that is
not in it, nothing is known and the CPU is taken.
"""

from __future__ import annotations

import json
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

__all__ = ["TRUST", "costs", "give_up", "gpu_pays", "seconds_on_cpu", "seconds_on_gpu"]

MARGIN = 2.0  # times as fast as the CPU that the GPU must be expected to be


@dataclass
class Trust:
    """Whether "auto" has given the GPU up, and whether a failure was warned of, in this process."""

    lost: bool = False
    warned: bool = False


TRUST = Trust()
_lock = threading.Lock()


def give_up(error: Exception) -> None:
    """Warn, once in a process, that the CPU is taken instead; only a lack of memory may pass, so all else is final."""
    with _lock:
        TRUST.lost = TRUST.lost or not isinstance(error, MemoryError)
        again, TRUST.warned = TRUST.warned, True
    if not again:
        warnings.warn(
            f"backend 'auto' computes on the CPU, because the GPU failed: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


@lru_cache(maxsize=1)
def costs() -> dict[str, Any]:
    """Return what was measured: "cpu_pairs_per_s" of one thread, and for each of "cards" three constants."""
    path = files("fastkl") / "data" / "gpu_costs.json"
    if not path.is_file():
        return {"cards": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def seconds_on_gpu(card: dict[str, float], work: float, moved: float) -> float:
    """Return the time expected for `work` (eigenvalue, step) pairs and `moved` bytes."""
    return card["launch_s"] + moved / card["bytes_per_s"] + work / card["pairs_per_s"]


def seconds_on_cpu(measured: dict[str, Any], work: float, threads: int) -> float:
    """Return the time expected on `threads` threads."""
    return work / (float(measured["cpu_pairs_per_s"]) * threads)


def gpu_pays(work: float, moved: float, threads: int) -> bool:
    """Return whether a GPU whose costs are known is there and expected to be faster by MARGIN."""
    measured = costs()
    if TRUST.lost or not measured["cards"]:
        return False
    here = seconds_on_cpu(measured, work, threads)
    if all(MARGIN * seconds_on_gpu(card, work, moved) > here for card in measured["cards"].values()):
        return False  # on no card: not worth finding out which one is here
    from fastkl import _gpu_device

    try:
        if _gpu_device.missing() is not None:
            return False
        name = _gpu_device.current_device().name
    except Exception as error:  # a driver that answers one question may fail at the next
        give_up(error)
        return False
    card = measured["cards"].get(name)
    return card is not None and MARGIN * seconds_on_gpu(card, work, moved) <= here
