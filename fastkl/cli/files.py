"""Numbers from files: NumPy's formats (never unpickled), text and JSON; and spectra to files."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._validation import real_array
from fastkl.cli.errors import InputError
from fastkl.spectrum import Spectrum

__all__ = [
    "UNNAMED",
    "arrays_from_numpy",
    "check_output",
    "number",
    "read_sigmas",
    "read_text",
    "rows_from_text",
    "write_spectrum",
]

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
    """Return the arrays in an .npz file, or the one in an .npy file, as a memory map, under the name UNNAMED."""
    try:
        with open(name, "rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                return {UNNAMED: np.lib.format.open_memmap(name, mode="r")}
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
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


def check_output(name: str, force: bool) -> None:
    """Raise unless a spectrum can be written under this name; call it before work that would be lost."""
    path = Path(name)
    if path.suffix.lower() != ".npz":
        raise InputError(f"--out {name}: must end in .npz")
    if not path.parent.is_dir():
        raise InputError(f"--out {name}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"--out {name}: is a folder")
    if path.exists() and not force:
        raise InputError(f"--out {name}: exists already; --force overwrites it")


def write_spectrum(name: str, spectrum: Spectrum, force: bool) -> None:
    """Write a spectrum as an .npz file that `fastkl rank --spectrum` takes: whole, or not at all."""
    arrays = {"eigenvalues": spectrum.eigenvalues, "counts": spectrum.counts, "mean": spectrum.mean}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    path = Path(name)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(part, "xb") as file:
            np.savez(file, rtol=np.float64(spectrum.rtol), **arrays)
            file.flush()
            os.fsync(file.fileno())
        check_output(name, force)  # again: much time may have passed
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"--out {name}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
