"""Where a call is computed: arrays that are on a device stay there, others go where `backend` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastkl._dispatch import BACKENDS, backend_for, is_device_array
from fastkl._sampler_base import Sampler
from fastkl._threads import thread_count
from fastkl._validation import choice
from fastkl.samplers import get
from fastkl.spectrum import Spectrum

if TYPE_CHECKING:
    from fastkl._gpu_arrays import DeviceCall

__all__ = ["PRIORS", "device_call", "kernels_for", "refuse_float32", "run_on"]

PRIORS = ("vp", "ve", "flow", "exact")

Array = NDArray[np.float64]


def device_call(
    spectrum: Any, sigmas: Any, sampler: Any, prior: Any, backend: Any, num_threads: Any
) -> DeviceCall | None:
    """Return the call that arrays on a device mean, or None for arrays of the host, for which CuPy is not imported.

    What does not depend on values is checked first, as it is for arrays of the host.
    """
    choice("backend", backend, BACKENDS)
    places = is_device_array(spectrum, "spectrum"), is_device_array(sigmas, "sigmas")
    if not any(places):
        return None
    get(sampler)
    choice("prior", prior, PRIORS)
    thread_count(num_threads)
    from fastkl import _gpu_arrays

    _gpu_arrays.refuse_mixed(spectrum, sigmas, backend)
    return _gpu_arrays.DeviceCall(spectrum, sigmas)


def kernels_for(
    backend: str, data: Spectrum, levels: Array, rule: Sampler, outputs: int, threads: int
) -> Any:
    """Return the backend's module for a problem of the host's arrays whose result has `outputs` elements.

    What is known of a card's costs is DDIM's: other samplers do not go there by themselves.
    """
    work = float(len(data)) * levels.shape[0] * (levels.shape[1] - 1) if rule.is_ddim else 0.0
    return backend_for(backend, work, 8.0 * (len(data) + levels.size + outputs), threads)


def run_on(kernels: Any, backend: str, evaluate: Callable[[Any], Array]) -> Array:
    """Return evaluate(kernels); where "auto" has chosen a GPU and that fails, what the CPU makes of it."""
    if backend != "auto" or not on_gpu(kernels):
        return evaluate(kernels)
    try:
        return evaluate(kernels)
    except Exception as error:  # no compiler, no memory, a broken driver: the CPU can do it all the same
        from fastkl import _gpu_costs

        _gpu_costs.give_up(error)
    return evaluate(backend_for("cpu"))


def on_gpu(kernels: Any) -> bool:
    """Return whether these are the GPU's kernels."""
    return kernels.__name__ == "fastkl._gpu"


def refuse_float32(precision: str, kernels: Any | None, rule: Sampler) -> None:
    """Raise if float32 is asked for where there are no kernels for it; None stands for those of arrays on a GPU."""
    if precision == "float32" and not (rule.is_ddim and (kernels is None or on_gpu(kernels))):
        raise ValueError(
            "precision = 'float32': only DDIM on a GPU has it (backend 'gpu', or arrays on a GPU)"
        )
