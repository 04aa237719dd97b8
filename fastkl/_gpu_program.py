"""A sampler's program for a number of steps as the GPU has it: tables of operations, and instructions for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._sampler_base import Sampler
from fastkl._sampler_losses import LossTable
from fastkl._sampler_program import Program
from fastkl._sampler_trace import Instructions, SymbolicLevels

__all__ = ["MOST_REGISTERS", "DeviceProgram", "device_program", "program_of"]

MOST_REGISTERS = 12  # of a program, in the kernels' local memory


@dataclass(frozen=True)
class DeviceProgram:
    """What a sampler does in N steps to candidates that end alike, whatever their levels are."""

    instructions: Instructions
    sections: dict[
        str, tuple[int, ...]
    ]  # tables that the instructions make, in order, by the shape of a candidate's
    integers: dict[str, NDArray[np.int64]]  # tables that no level decides
    noise_form: bool

    @property
    def length(self) -> int:
        """Number of operations."""
        return int(self.integers["operations"].shape[0])

    @property
    def outputs(self) -> int:
        """Number of the instructions' results for a candidate."""
        return sum(int(np.prod(shape)) for shape in self.sections.values())


@lru_cache(maxsize=64)
def device_program(sampler: Sampler, steps: int, to_zero: bool) -> DeviceProgram:
    """Return a sampler's program; sampler.draw runs here, on symbols."""
    levels: Any = SymbolicLevels(steps, to_zero)
    with np.errstate(all="ignore"):
        program = Program(sampler, levels)
        tables = {"coefficients": program.coefficients, "sizes": program.sizes()}
        integers = {"operations": program.operations, "grid": program.grid}
        if sampler.stochastic:
            losses = LossTable(program)
            tables |= {"defects": losses.defects, "extras": losses.extras}
            integers |= {"partners": losses.partners, "reads": losses.reads}
        else:
            tables["deviations"] = program.deviations()
        conditions = sampler.allowed(levels, **dict(sampler.options)) if sampler.allowed else []
        allowed = np.empty((1, 1), dtype=object)
        allowed[0, 0] = reduce(lambda a, b: a & b, conditions) if conditions else 1.0
        tables["allowed"] = allowed
    if program.registers > MOST_REGISTERS:
        raise RuntimeError(
            f"{sampler!r} needs {program.registers} registers, the GPU kernels have {MOST_REGISTERS}; use backend 'cpu'"
        )
    for array in integers.values():
        array.flags.writeable = False
    outputs = [value for table in tables.values() for value in table.ravel().tolist()]
    sections = {name: table.shape[1:] for name, table in tables.items()}
    return DeviceProgram(
        Instructions(levels.recorder, outputs), sections, integers, program.tape.kind == "noise"
    )


def program_of(sampler: Sampler, steps: int, to_zero: bool) -> DeviceProgram:
    """Return a sampler's program, made anew in every call for a sampler with an option that has no hash."""
    try:
        hash(sampler)
    except TypeError:
        return device_program.__wrapped__(sampler, steps, to_zero)
    return device_program(sampler, steps, to_zero)
