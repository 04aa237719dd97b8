"""Samplers: the update rules between noise levels, by the names that users know them by and with their options.

`fastkl.divergence`, `output_variance` and `trajectory` take a name of `names()`, or what one of the functions here
makes: ``sampler="dpmpp_2m"`` or ``sampler=fastkl.samplers.ddim(eta=0.5)``. A new sampler is a function that writes
its steps on a tape (`fastkl._sampler_tape`), and a line here.
"""

from __future__ import annotations

from typing import Any

from fastkl._sampler_base import Sampler
from fastkl._samplers_adams import deis, lms, plms, prk
from fastkl._samplers_onestep import ddim, ddpm, flow_stochastic
from fastkl._samplers_solver import multistep, singlestep
from fastkl._samplers_staged import dpm_2, dpmpp_2s, dpmpp_sde, flow_heun, heun
from fastkl._samplers_unipc import unipc

__all__ = [
    "Sampler",
    "ddim",
    "ddpm",
    "deis",
    "dpm_2",
    "dpmpp_2s",
    "dpmpp_sde",
    "flow_heun",
    "flow_stochastic",
    "get",
    "heun",
    "lms",
    "multistep",
    "names",
    "nfe",
    "plms",
    "prk",
    "singlestep",
    "steps_for",
    "unipc",
]

_PLUS, _NOISE, _SDE, _SDE_NOISE = "dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"

# Names that stand for the same map stand for the same object.
_NAMED: dict[str, Sampler] = {
    **dict.fromkeys(("ddim", "euler", "flow_euler", "dpmpp_1", "dpm_1", "deis_1"), ddim()),
    **dict.fromkeys(("euler_ancestral", "sde_dpmpp_1"), ddim(eta=1.0)),
    "ddpm_fixed_small": ddpm("fixed_small"),
    "ddpm_fixed_large": ddpm("fixed_large"),
    "flow_stochastic": flow_stochastic(),
    "heun": heun(),
    "flow_heun": flow_heun(),
    "dpm_2": dpm_2(),
    "dpmpp_2s": dpmpp_2s(),
    "dpmpp_sde": dpmpp_sde(),
    "lms": lms(),
    "plms": plms(),
    "prk": prk(),
    "deis_2": deis(2),
    "deis_3": deis(3),
    "dpmpp_2m": multistep(),
    "dpmpp_2m_heun": multistep(solver_type="heun"),
    "dpmpp_3m": multistep(order=3),
    "dpmpp_3m_heun": multistep(order=3, solver_type="heun"),
    "dpm_2m": multistep(_NOISE),
    "dpm_2m_heun": multistep(_NOISE, solver_type="heun"),
    "dpm_3m": multistep(_NOISE, 3),
    "sde_dpmpp_2m": multistep(_SDE),
    "sde_dpmpp_2m_heun": multistep(_SDE, solver_type="heun"),
    "sde_dpmpp_3m": multistep(_SDE, 3, as_shipped=True),
    "sde_dpmpp_3m_corrected": multistep(_SDE, 3),
    "dpmpp_2m_sde": multistep(_SDE, lower_order_final=False),
    "dpmpp_3m_sde": multistep(_SDE, 3, second_step="heun", lower_order_final=False),
    "sde_dpm_1": multistep(_SDE_NOISE, 1),
    "sde_dpm_2m": multistep(_SDE_NOISE),
    "sde_dpm_2m_heun": multistep(_SDE_NOISE, solver_type="heun"),
    "singlestep_2": singlestep(order=2),
    "singlestep_2_heun": singlestep(order=2, solver_type="heun"),
    "singlestep_3": singlestep(order=3),
    "singlestep_3_heun": singlestep(order=3, solver_type="heun"),
    "dpm_singlestep_2": singlestep(_NOISE, 2),
    "dpm_singlestep_3": singlestep(_NOISE, 3),
    "dpm_singlestep_3_heun": singlestep(_NOISE, 3, "heun"),
    "sde_singlestep_2": singlestep(_SDE, 2),
    "sde_singlestep_2_heun": singlestep(_SDE, 2, "heun"),
    "sde_singlestep_3": singlestep(_SDE, 3),
    "sde_singlestep_3_heun": singlestep(_SDE, 3, "heun", as_shipped=True),
    "sde_singlestep_3_heun_corrected": singlestep(_SDE, 3, "heun"),
    "unipc_1": unipc(1),
    "unipc_2": unipc(2),
    "unipc_3": unipc(3),
    "unipc_1_bh1": unipc(1, "bh1"),
    "unipc_2_bh1": unipc(2, "bh1"),
    "unipc_3_bh1": unipc(3, "bh1"),
    "unipc_2_noise": unipc(2, prediction="noise"),
}


def names() -> tuple[str, ...]:
    """Return the names that `sampler=` takes.

    Returns
    -------
    tuple of str
        Names; several may stand for one sampler.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.names()[:3]
    ('ddim', 'euler', 'flow_euler')
    """
    return tuple(_NAMED)


def get(sampler: str | Sampler) -> Sampler:
    """Return the sampler of a name; a `Sampler` is returned as it is.

    Parameters
    ----------
    sampler : str or Sampler
        One of `names()`, or a sampler.

    Returns
    -------
    Sampler
        The sampler.

    Raises
    ------
    TypeError, ValueError
        If it is neither.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.get("euler_ancestral")
    fastkl.samplers.ddim(eta=1.0)
    """
    if isinstance(sampler, Sampler):
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(
            f"sampler: must be a name or a fastkl.samplers.Sampler, got {sampler!r} ({type(sampler).__name__})"
        )
    if sampler not in _NAMED:
        raise ValueError(f"sampler = {sampler!r}: must be one of {', '.join(map(repr, _NAMED))}")
    return _NAMED[sampler]


def nfe(sampler: str | Sampler, steps: Any) -> int:
    """Return how many times `steps` steps, the last one to level 0, evaluate the network.

    Parameters
    ----------
    sampler : str or Sampler
        Which sampler.
    steps : int
        N.

    Returns
    -------
    int
        N for most, 2N - 1 for Heun's kind, N + 1 for plms, N + 9 for prk.

    Raises
    ------
    TypeError, ValueError
        If there is no such sampler, or it cannot do so few steps.

    Examples
    --------
    >>> import fastkl
    >>> [fastkl.samplers.nfe(name, 10) for name in ("ddim", "heun", "plms", "prk")]
    [10, 19, 11, 19]
    """
    return get(sampler).nfe(steps)


def steps_for(sampler: str | Sampler, nfe: Any) -> int:
    """Return the most steps, the last one to level 0, that evaluate the network at most `nfe` times.

    Parameters
    ----------
    sampler : str or Sampler
        Which sampler.
    nfe : int
        The evaluations that may be used.

    Returns
    -------
    int
        The number of steps.

    Raises
    ------
    TypeError, ValueError
        If there is no such sampler, or so few evaluations are not enough for it.

    Examples
    --------
    >>> import fastkl
    >>> [fastkl.samplers.steps_for(name, 10) for name in ("ddim", "heun", "plms")]
    [10, 5, 9]
    """
    return get(sampler).steps_for(nfe)
