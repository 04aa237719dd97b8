"""Numbers from files: NumPy's formats (never unpickled), text and JSON."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._validation import real_array
from fastkl.cli.errors import InputError

__all__ = ["UNNAMED", "arrays_from_numpy", "number", "read_sigmas", "rows_from_text"]

Array = NDArray[np.float64]
UNNAMED = "arr_0"  # what NumPy calls an array saved without a name


def read_sigmas(name: str) -> Array:
    """Return the candidates in a file, shape (N+1,) or (M, N+1); the name - stands for text or JSON from stdin."""
    if name == "-":
        text = _read_stdin()
        return _from_json(name, text) if text.lstrip().startswith("[") else _from_text(name, text)
    suffix = Path(name).suffix.lower()
    if suffix in (".npy", ".npz"):
        arrays = arrays_from_numpy(name)
        if "sigmas" not in arrays and len(arrays) != 1:
            found = ", ".join(sorted(arrays)) or "none"
            raise InputError(f"{name}: must hold one array or one called sigmas, found {found}")
        return real_array("sigmas", arrays.get("sigmas", next(iter(arrays.values()))), ndim=(1, 2))
    if suffix == ".json":
        return _from_json(name, read_text(name))
    if suffix in (".csv", ".txt"):
        return _from_text(name, read_text(name))
    raise InputError(f"{name}: must be a .npy, .npz, .csv, .txt or .json file, or - for stdin")


def arrays_from_numpy(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays in an .npz file, or the one in an .npy file under the name UNNAMED."""
    try:
        with open(name, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {UNNAMED: loaded}
            return {key: np.asarray(loaded[key]) for key in loaded.files}
    except (OSError, MemoryError):
        raise
    except Exception:  # a damaged file can raise nearly anything from NumPy, zipfile or zlib
        raise InputError(f"{name}: not a NumPy file of plain numbers, or a damaged one") from None


def read_text(name: str) -> str:
    """Return the contents of a UTF-8 text file."""
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{name}: not a text file in UTF-8") from None


def _read_stdin() -> str:
    if sys.stdin is None:
        raise InputError("-: stdin is closed")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise InputError("-: not text in UTF-8") from None


def rows_from_text(name: str, text: str) -> Array:
    """Return rows of numbers, separated by commas or blanks; # begins a comment, empty lines are skipped."""
    rows: list[list[float]] = []
    for line_number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        row = [_number(name, line_number, word) for word in _words(content)]
        if rows and len(row) != len(rows[0]):
            raise InputError(
                f"{name}, line {line_number}: has {len(row)} numbers, lines before it {len(rows[0])}"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{name}: holds no numbers")
    return np.array(rows)


def _words(content: str) -> list[str]:
    return content.split(",") if "," in content else content.split()


def _number(name: str, line_number: int, word: str) -> float:
    try:
        return number(word.strip())
    except ValueError as error:
        raise InputError(f"{name}, line {line_number}: {error}") from None


def number(word: str) -> float:
    """Return a word as a float, or raise: for underscores, and for what would become inf or 0 without being it."""
    try:
        value = float("" if "_" in word else word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number") from None
    vanished = value == 0.0 and any(digit in word.lower().partition("e")[0] for digit in "123456789")
    if vanished or (math.isinf(value) and "inf" not in word.lower()):
        raise ValueError(f"{word!r} is out of the range of float64")
    return value


def _from_text(name: str, text: str) -> Array:
    """Candidates, one a row; a single column is one candidate, because none has just one level."""
    rows = rows_from_text(name, text)
    return rows[:, 0] if rows.shape[1] == 1 else rows


def _from_json(name: str, text: str) -> Array:
    try:
        value = json.loads(text, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON ({error})") from None
    if not isinstance(value, list):
        raise InputError(
            f"{name}: must be a list of levels or a list of such lists, got {type(value).__name__}"
        )
    return real_array("sigmas", [_finite_or_inf(item) for item in value], ndim=(1, 2))


def _finite_or_inf(item: Any) -> Any:
    """Undo how this program writes an infinite level in JSON, in a list or a list of lists."""
    if isinstance(item, list):
        return [_finite_or_inf(level) if isinstance(level, str) else level for level in item]
    return float("inf") if item == "inf" else item
