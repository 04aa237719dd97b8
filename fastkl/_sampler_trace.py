"""The coefficients of a sampler as a list of instructions on levels, which a device evaluates where they are.

A sampler's own code runs once for each number of steps, on symbols in place of levels, and what it does to them is
recorded. No formula is written twice, and nothing is copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["OPERATIONS", "Instructions", "Recorder", "Symbol", "SymbolicLevels"]

# the numbers of kernels/cuda/expressions.cuh
OPERATIONS = (
    "level", "write", "add", "subtract", "multiply", "divide", "power", "sqrt", "exp", "expm1", "log", "log1p",
    "hypot", "maximum", "minimum", "absolute", "where", "isinf", "isfinite", "less", "less_equal", "logical_and",
)  # fmt: skip
CODE = {name: number for number, name in enumerate(OPERATIONS)}
SWAPPED = {"greater": "less", "greater_equal": "less_equal"}
OPERANDS = 3


class Recorder:
    """What was done to levels: operation and operands, each a number or an earlier symbol; repetitions are one."""

    def __init__(self) -> None:
        self.nodes: list[tuple[int, tuple[Any, ...]]] = []
        self._known: dict[tuple[Any, ...], int] = {}

    def record(self, name: str, *operands: Any) -> Any:
        """Return the symbol of an operation's result."""
        if name in SWAPPED:
            name, operands = SWAPPED[name], operands[::-1]
        operands = tuple(value if isinstance(value, Symbol) else float(value) for value in operands)
        if name == "add" and not isinstance(operands[0], Symbol) and operands[0] == 0.0:
            return operands[1]  # tables begin with zeros
        parts = tuple(("node", value.index) if isinstance(value, Symbol) else value for value in operands)
        key = CODE[name], *(repr(part) for part in parts)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append((CODE[name], parts))
        return Symbol(self, self._known[key])

    def level(self, k: int) -> Symbol:
        """Return the symbol of level k."""
        key = CODE["level"], str(k)
        if key not in self._known:
            self._known[key] = len(self.nodes)
            self.nodes.append((CODE["level"], (k,)))
        return Symbol(self, self._known[key])


def plain(value: Any) -> Any:
    """Return the only element of an array, as tables of symbols have it, else the value."""
    return value.item() if isinstance(value, np.ndarray) else value


def operator(name: str, reflected: bool = False) -> Callable[[Symbol, Any], Any]:
    """Return the method of an operator with two operands."""

    def method(self: Symbol, other: Any) -> Any:
        operands = (plain(other), self) if reflected else (self, plain(other))
        return self.recorder.record(name, *operands)

    return method


class Symbol:
    """A number for each candidate that is not known yet; NumPy's functions on it are recorded."""

    def __init__(self, recorder: Recorder, index: int) -> None:
        self.recorder, self.index = recorder, index

    __add__, __radd__ = operator("add"), operator("add", True)
    __sub__, __rsub__ = operator("subtract"), operator("subtract", True)
    __mul__, __rmul__ = operator("multiply"), operator("multiply", True)
    __truediv__, __rtruediv__ = operator("divide"), operator("divide", True)
    __lt__, __le__ = operator("less"), operator("less_equal")
    __gt__, __ge__ = operator("greater"), operator("greater_equal")
    __and__ = operator("logical_and")
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: Any) -> Any:
        """Record whether two numbers are equal: Python's own answer would be that a symbol never is."""
        return (self <= other) & (self >= other)

    def __ne__(self, other: Any) -> Any:
        return self.recorder.record("where", self == other, 0.0, 1.0)

    def __neg__(self) -> Any:
        return self.recorder.record("multiply", -1.0, self)

    def __pow__(self, exponent: Any) -> Any:
        exponent = plain(exponent)
        if not isinstance(exponent, Symbol) and exponent in (0, 1, 2):  # NumPy is exact there too
            return (1.0, self, self * self)[int(exponent)]
        return self.recorder.record("power", self, exponent)

    def __bool__(self) -> bool:
        raise TypeError("a sampler's steps must not depend on the values of levels")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None) -> Any:
        """Record a NumPy function of elements; `out` is a table's element."""
        special = {"square": lambda x: x * x, "negative": lambda x: -x, "power": lambda x, y: x**y,
                   "equal": lambda x, y: x == y, "not_equal": lambda x, y: x != y}  # fmt: skip
        name = ufunc.__name__
        if method != "__call__" or not (name in special or name in CODE or name in SWAPPED):
            return NotImplemented
        values = [plain(value) for value in inputs]
        result = special[name](*values) if name in special else self.recorder.record(name, *values)
        if out is None:
            return result
        out[0][...] = result
        return out[0]

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Record numpy.where; answer what makes constants."""
        name = function.__name__
        if name == "where":
            return self.recorder.record("where", *(plain(value) for value in arguments))
        if name == "full_like":
            return float(arguments[1])
        return {"zeros_like": 0.0, "ones_like": 1.0}.get(name, NotImplemented)


class SymbolicLevels:
    """What a tape is written on in place of candidates (M, N+1): one row, which ends at 0 or above."""

    dtype = np.dtype(object)

    def __init__(self, steps: int, to_zero: bool) -> None:
        self.recorder, self.shape = Recorder(), (1, steps + 1)
        self.to_zero = to_zero

    def __getitem__(self, index: tuple[Any, int]) -> Any:
        rows, k = index
        k = range(self.shape[1])[k]
        if rows == 0:  # how they all end is known; no other value is
            return 0.0 if self.to_zero and k == self.shape[1] - 1 else 1.0
        return self.recorder.level(k)


class Instructions:
    """Instructions (n, 5) that evaluate outputs: operation, result, operands; a constant c is the operand -1 - c.

    A result is a register, or for "write" the number of the output. A register is used again once it was last read.
    """

    def __init__(self, recorder: Recorder, outputs: list[Any]) -> None:
        self._constants: dict[str, int] = {}
        self._rows: list[list[int]] = []
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self.registers = 0
        writes: dict[int, list[int]] = {}
        for number, value in enumerate(outputs):
            if isinstance(value, Symbol):
                writes.setdefault(value.index, []).append(number)
            else:
                self._add("write", number, self._constant(float(value)))
        self._emit(recorder, writes)
        self.code: NDArray[np.int64] = np.array(self._rows, dtype=np.int64)
        self.constants = np.array([float(text) for text in self._constants] or [0.0])
        for array in (self.code, self.constants):
            array.flags.writeable = False

    def _add(self, operation: str | int, result: int, *operands: int) -> None:
        code = CODE[operation] if isinstance(operation, str) else operation
        self._rows.append([code, result, *operands, *(0 for _ in range(OPERANDS - len(operands)))])

    def _constant(self, value: float) -> int:
        return -1 - self._constants.setdefault(repr(value), len(self._constants))

    def _emit(self, recorder: Recorder, writes: dict[int, list[int]]) -> None:
        last = last_reads(recorder, writes)
        for index, (code, parts) in enumerate(recorder.nodes):
            if index not in last:
                continue
            if code == CODE["level"]:
                operands = list(parts)
            else:
                operands = [self._places[p[1]] if isinstance(p, tuple) else self._constant(p) for p in parts]
            for part in {p[1] for p in parts if isinstance(p, tuple)}:
                if last[part] == index:
                    self._free.append(self._places[part])
            if not self._free:
                self._free.append(self.registers)
                self.registers += 1
            place = self._places[index] = self._free.pop()
            self._add(code, place, *operands)
            for number in writes.get(index, ()):
                self._add("write", number, place)
            if last[index] == index:
                self._free.append(place)


def last_reads(recorder: Recorder, writes: dict[int, list[int]]) -> dict[int, int]:
    """Return the last node that reads each node which an output needs; itself where only an output does."""
    last: dict[int, int] = {index: index for index in writes}
    for index in range(len(recorder.nodes) - 1, -1, -1):
        if index not in last:
            continue
        for part in recorder.nodes[index][1]:
            if isinstance(part, tuple):
                last[part[1]] = max(last.get(part[1], index), index)
    return last
