"""DPM-Solver and DPM-Solver++, multistep and singlestep, and their SDE versions: one set of weights for all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_math import log_ratio, one_minus_power, phi
from fastkl._sampler_tape import Point, Tape
from fastkl._samplers_adams import FEW, solver_order
from fastkl._validation import choice, integer, real_number

__all__ = ["ALGORITHMS", "multistep", "singlestep"]

Array = NDArray[np.float64]
ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")


def multistep(
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "midpoint",
    eta: float = 1.0,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    second_step: str | None = None,
    as_shipped: bool = False,
) -> Sampler:
    r"""DPM-Solver(++) multistep, orders 1 to 3, deterministic or with noise; N evaluations.

    With :math:`h = \log(s/s')`, :math:`r_0 = \log(s_{-1}/s)/h`, :math:`E_1 = (f_0 - f_1)/r_0` and f = D (++) or e,
    order 2 adds to the first-order step (1-E)/2 E_1 (midpoint) or ((E-1)/H + 1) E_1 (heun), E = exp(-H); order 3 adds
    ((E-1)/H + 1) F_1 + ((1-E-H)/H^2 + 1/2) F_2, F_1 and F_2 differences of two E_1. H is h, (1 + eta) h for the SDE.

    Parameters
    ----------
    algorithm : {"dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"}
        Data or noise form, ODE or SDE.
    order : int
        1 to 3 (1 and 2 for sde-dpmsolver); the first steps have less.
    solver_type : {"midpoint", "heun"}
        Form of the second-order steps.
    eta : float
        Amount of noise of sde-dpmsolver++, within (0, 1]; 1 is the reverse SDE. The others have no use for it.
    lower_order_final : bool
        Whether, below 15 steps, the last step has order 1 and the one before at most 2. (k-diffusion: False.)
    euler_at_final : bool
        Whether the last step has order 1 in any case, as a step to level 0 always has.
    second_step : {"midpoint", "heun"}, optional
        Form of the second step if order = 3, by default `solver_type`. (k-diffusion's 3M SDE: "heun".)
    as_shipped : bool
        Whether sde-dpmsolver++ of order 3 has the wrong sign of 1/2 that diffusers ships: see Warnings.

    Returns
    -------
    Sampler
        The sampler. "dpmpp_2m", "dpmpp_2m_sde" and others are names of it.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong kind, does not exist, or does not go with another.

    Warnings
    --------
    diffusers 0.42.1 ships the third order of sde-dpmsolver++ with -1/2 for +1/2 in the weight of
    F_2. The weight then tends to -1 instead of 0 as steps get short: on the usual grids to level 0 the output's
    variance does not converge (1.1 to 7.7 times the data's between 21 and 400 steps), on smooth ones it does to first
    order only. "sde_dpmpp_3m" is that sampler, "sde_dpmpp_3m_corrected" the one that was meant.

    Notes
    -----
    F_2 is half a second derivative, as in all published code, so that the third order converges as the second does.
    sde-dpmsolver can neither start at inf nor end at 0: its noise and its drift stay too large there.

    References
    ----------
    Lu et al., "DPM-Solver++" (arXiv 2211.01095), algorithm 2 and appendix B; "DPM-Solver" (arXiv 2206.00927).

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([1.0], [9.0, 3.0, 1.0, 0.3, 0.0], sampler="dpmpp_2m").round(4)
    array([0.8056])
    """
    choice("algorithm", algorithm, ALGORITHMS)
    order = integer("order", order, minimum=1, maximum=2 if algorithm == "sde-dpmsolver" else 3)
    choice("solver_type", solver_type, ("midpoint", "heun"))
    if second_step is not None:
        choice("second_step", second_step, ("midpoint", "heun"))
    eta = real_number("eta", eta, above=0.0, at_most=1.0)
    flags = {
        "lower_order_final": lower_order_final,
        "euler_at_final": euler_at_final,
        "as_shipped": as_shipped,
    }
    check_flags(flags)
    check_as_shipped(as_shipped, algorithm, order)
    options = {"algorithm": algorithm, "order": order, "solver_type": solver_type, "eta": eta, **flags,
               "second_step": second_step}  # fmt: skip
    return solver("multistep", draw_multistep, options)


def singlestep(
    algorithm: str = "dpmsolver++",
    order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
    as_shipped: bool = False,
) -> Sampler:
    """DPM-Solver(++) singlestep on the grid: blocks of `order` steps, the inner nodes being levels; N evaluations.

    The p-th step of a block starts again from the block's base and uses all values since: base and first-order part are
    those of one long step, the weights those of `multistep` for it.

    Parameters
    ----------
    algorithm : {"dpmsolver++", "dpmsolver", "sde-dpmsolver++"}
        Data or noise form, ODE or SDE.
    order : int
        1 to 3: length of the blocks.
    solver_type : {"midpoint", "heun"}
        Form of the steps of order 2 and 3.
    lower_order_final : bool
        Whether the last blocks are shorter; where N is no multiple of `order` or the path ends at 0, they always are.
    as_shipped : bool
        Whether sde-dpmsolver++ of order 3 with ``heun`` has the wrong sign of 1/2 that diffusers ships: see Warnings.

    Returns
    -------
    Sampler
        The sampler; above order 1 it needs a finite first level.

    Raises
    ------
    TypeError, ValueError
        If an option is of the wrong kind, does not exist, or does not go with another.

    Warnings
    --------
    diffusers 0.42.1 ships sde-dpmsolver++ of order 3 with ``heun`` with the wrong sign described at `multistep`: the
    output's variance comes out 30 to 47 times the data's. "sde_singlestep_3_heun" is that sampler,
    "sde_singlestep_3_heun_corrected" the one that was meant.

    References
    ----------
    Lu et al., "DPM-Solver" (arXiv 2206.00927), algorithms 1 and 2, as schedulers lay them on a grid.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.samplers.singlestep(order=3).nfe(10)
    10
    """
    choice("algorithm", algorithm, ALGORITHMS[:3])
    order = integer("order", order, minimum=1, maximum=3)
    choice("solver_type", solver_type, ("midpoint", "heun"))
    check_flags({"lower_order_final": lower_order_final, "as_shipped": as_shipped})
    check_as_shipped(as_shipped and solver_type == "heun", algorithm, order)
    options = {"algorithm": algorithm, "order": order, "solver_type": solver_type,
               "lower_order_final": lower_order_final, "as_shipped": as_shipped}  # fmt: skip
    return solver("singlestep", draw_singlestep, options)


def check_flags(flags: dict[str, Any]) -> None:
    """Raise unless all are booleans."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: must be True or False, got {value!r} ({type(value).__name__})")


def check_as_shipped(as_shipped: bool, algorithm: str, order: int) -> None:
    """Raise if the wrong sign is asked for where none is shipped."""
    if as_shipped and (algorithm, order) != ("sde-dpmsolver++", 3):
        raise ValueError(
            f"as_shipped = True: only sde-dpmsolver++ of order 3 has a wrong sign, not {algorithm} {order}"
        )


def solver(name: str, draw: Any, options: dict[str, Any]) -> Sampler:
    """Return the sampler with its facts."""
    algorithm, order = options["algorithm"], options["order"]
    noisy = algorithm.startswith("sde")
    blocks = name == "singlestep"
    reached = order if blocks else min(order, 2)
    if options["as_shipped"]:
        reached = 0 if blocks else 1
    elif noisy and blocks:
        reached = 1
    return Sampler(name, draw, tuple(options.items()), order=reached, stochastic=noisy,
                   finite_start=algorithm == "sde-dpmsolver" or (blocks and order > 1),
                   above_zero=algorithm == "sde-dpmsolver")  # fmt: skip


class Leg:
    """One step from a base level `here` to `there`: its first-order part, its weights, and its noise."""

    def __init__(self, here: Array, there: Array, algorithm: str, eta: float) -> None:
        self.here, self.there = here, there
        self.h = log_ratio(here, there)
        self.data = algorithm.endswith("++")
        self.noisy = algorithm.startswith("sde")
        self.power = 1.0 + eta if algorithm == "sde-dpmsolver++" else 1.0

    def first_order(self, eta: float) -> dict[str, Array]:
        """Return the arguments of the tape's step that make its first-order part."""
        here, there = self.here, self.there
        if not self.noisy:
            return {}
        if self.data:
            keep, rest = there * (there / here) ** eta, one_minus_power(here, there, self.power)
            return {
                "keep": keep,
                "rest": rest,
                "noise": there * np.sqrt(one_minus_power(here, there, 2.0 * eta)),
            }
        noise = np.sqrt((here - there) * (here + there))
        gap = here - there
        return {
            "keep": 2.0 * there - here,
            "rest": 2.0 * gap / here,
            "noise": noise,
            "excess": 2.0 * gap * gap,
        }

    def weights(self, solver_type: str, as_shipped: bool) -> tuple[Array, Array]:
        """Return the weights of F_1 and F_2; those of second-order midpoint steps have no F_2."""
        if self.data:
            long = self.power * self.h
            if solver_type == "midpoint":
                return 0.5 * one_minus_power(self.here, self.there, self.power), np.zeros_like(long)
            second = long * phi(3, -long)
            return long * phi(2, -long), second - 1.0 if as_shipped else second
        twice = 2.0 if self.noisy else 1.0
        if solver_type == "midpoint":
            return -0.5 * twice * (self.here - self.there), np.zeros_like(self.h)
        scale = -twice * self.there * self.h
        return scale * phi(2, self.h), scale * phi(3, self.h)


def draw_multistep(
    tape: Tape, algorithm: str, order: int, solver_type: str, eta: float, lower_order_final: bool,
    euler_at_final: bool, second_step: str | None, as_shipped: bool,
) -> list[Point]:  # fmt: skip
    """Write the multistep solvers."""
    tape.kind = "data" if algorithm.endswith("++") else "noise"
    points = [tape.start]
    for k, (here, there) in enumerate(tape.pairs()):
        leg = Leg(here, there, algorithm, eta)
        lower = lower_order_final and tape.count < FEW
        p = solver_order(k, tape.count, order, lower, tape.to_zero or euler_at_final)
        terms = []
        if p > 1:
            back = log_ratio(points[-2].level, here) / leg.h
            form = (second_step or solver_type) if order == 3 and p == 2 else solver_type
            one, two = leg.weights("heun" if p == 3 else form, as_shipped)
            if p == 2:
                terms = [(points[-2], -one / back)]
            else:
                older = log_ratio(points[-3].level, points[-2].level) / leg.h
                share = (one * back + two) / (back + older)
                terms = [
                    (points[-2], -one / back - share * (1.0 / back + 1.0 / older)),
                    (points[-3], share / older),
                ]
        points.append(tape.step(points[-1], there, terms, **leg.first_order(eta)))
    return points


def block_orders(steps: int, order: int, lower_order_final: bool, to_zero: bool) -> list[int]:
    """Return the place of each step in its block, 1 to `order`."""
    block = list(range(1, order + 1))
    if not (lower_order_final or steps % order or to_zero):
        return block * (steps // order)
    if order == 1:
        orders = block * steps
    elif order == 2:
        orders = block * ((steps - 1) // 2) + ([1] if steps % 2 else [1, 1])
    else:
        whole, left = divmod(steps, 3)
        orders = block * (whole if left else whole - 1) + ([1, 2, 1], [1], [1, 2])[left]
    return [*orders[:-1], 1] if to_zero else orders


def draw_singlestep(
    tape: Tape, algorithm: str, order: int, solver_type: str, lower_order_final: bool, as_shipped: bool
) -> list[Point]:
    """Write the singlestep solvers."""
    tape.kind = "data" if algorithm.endswith("++") else "noise"
    points = [tape.start]
    places = block_orders(tape.count, order, lower_order_final, tape.to_zero)
    for k, place in enumerate(places):
        base, there = points[k - place + 1], tape.levels[:, k + 1]
        leg = Leg(base.level, there, algorithm, 1.0)
        one, two = leg.weights("heun" if place == 3 else solver_type, as_shipped)
        inner = [(point, log_ratio(base.level, point.level) / leg.h) for point in points[k - place + 2 :]]
        terms = []
        if place == 2:
            terms = [(point, one / r) for point, r in inner]
        elif place == 3:
            (first, near), (second, far) = inner
            if solver_type == "midpoint":
                terms = [(second, one / far)]
            else:
                gap = 1.0 / (far - near)
                terms = [
                    (first, (one * far - 2.0 * two) * gap / near),
                    (second, (2.0 * two - one * near) * gap / far),
                ]
        points.append(tape.step(base, there, terms, **leg.first_order(1.0)))
    return points
