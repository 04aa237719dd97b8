"""What a configuration's spectra, schedules and samplers stand for."""

from __future__ import annotations

import glob
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastkl import samplers
from fastkl._sampler_base import Sampler
from fastkl._validation import real_number
from fastkl.moments import SpectrumMoments
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum
from fastkl.sweeps.config import axis

__all__ = ["Moments", "digest", "resolved_samplers", "resolved_schedules", "resolved_spectra", "tree_sum"]

KINDS = ("ddpm_linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow", "tangent")
SOURCES = ("preset", "file", "power_law", "chunks", "spectrum")
MOST_SPECTRA = 10**6  # of one power law
Moments = Callable[[list[Any]], SpectrumMoments]  # of the chunks of one spectrum


def resolved_spectra(entries: list[Any], folder: Path, rtol: float, moments: Moments) -> dict[str, Spectrum]:
    """Return the spectra by name."""
    found: dict[str, Spectrum] = {}
    for i, entry in enumerate(entries):
        path = f"spectra[{i}]"
        for name, spectrum in named(path, spectra_of(path, entry, folder, rtol, moments)).items():
            if name in found:
                raise ValueError(f"{path}.name: must not be that of another spectrum (got {name!r})")
            found[name] = spectrum
    return found


def named(path: str, pairs: list[tuple[str, Spectrum]]) -> dict[str, Spectrum]:
    """Return pairs as a dict; no name may come twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{path}: holds two spectra of one name")
    return found


def spectra_of(
    path: str, entry: Any, folder: Path, rtol: float, moments: Moments
) -> list[tuple[str, Spectrum]]:
    """Return the names and spectra of one entry: a preset's name, a table, or a live object."""
    if isinstance(entry, str):
        entry = {"preset": entry}
    if not isinstance(entry, Mapping):
        entry = {"spectrum": entry}
    keys = [key for key in SOURCES if key in entry]
    if len(keys) != 1:
        raise ValueError(f"{path}: must have just one of the keys {', '.join(SOURCES)} (got {sorted(entry)})")
    for key in entry:
        if key not in (*SOURCES, "name", "floor"):
            raise ValueError(f"{path}.{key}: no such key")
    source, name = keys[0], checked_name(path, entry.get("name"))
    floor = entry.get("floor")
    if floor is not None:
        floor = at(f"{path}.floor", lambda: real_number("floor", floor, at_least=0.0))
    value = entry[source]
    key = f"{path}.{source}"
    if source == "preset":
        return [(name or str(value), at(key, lambda: Spectrum.preset(value, floor)))]
    if source == "power_law":
        made = power_laws(key, value, name or "power_law")
    elif source == "file":
        made = from_files(key, value, folder, name)
    elif source == "chunks":
        summed = at(key, lambda: moments(chunk_list(key, value, folder)))
        made = [(name or path, summed.spectrum(max(rtol / 4.0, 1e-12) if rtol else 1e-10))]
    elif isinstance(value, SpectrumMoments):
        made = [(name or path, value.spectrum())]
    else:
        made = [(name or path, at(key, lambda: as_spectrum("spectrum", value)))]
    return [(one, spectrum.floored(floor or 0.0)) for one, spectrum in made]


def checked_name(path: str, name: Any) -> str | None:
    """Return the name in an entry, if any, or raise."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{path}.name: must be a string (got {name!r})")
    return name


def at(path: str, make: Callable[[], Any]) -> Any:
    """Return make(), with the key's path in front of what it raises about its input."""
    try:
        return make()
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.filename}: {error.strerror}") from None


def power_laws(path: str, value: Any, name: str) -> list[tuple[str, Spectrum]]:
    """Return a power law for each exponent."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}: must be a table of dim, exponent and mean_variance (got {value!r})")
    rest = {key: item for key, item in value.items() if key != "exponent"}
    check_keys(path, rest, ("dim", "mean_variance"), ("dim",))
    if "exponent" not in value:
        raise ValueError(f"{path}.exponent: must be given")
    try:
        exponents = axis(value["exponent"])
    except ValueError as error:
        raise ValueError(f"{path}.exponent: {error}") from None
    if exponents.size > MOST_SPECTRA:
        raise ValueError(f"{path}.exponent: must be at most {MOST_SPECTRA} values (got {exponents.size})")
    numbers = exponents.at(np.arange(exponents.size)).tolist()
    return [
        (
            name if len(numbers) == 1 else f"{name} {exponent!r}",
            at(path, lambda e=exponent: Spectrum.power_law(exponent=e, **rest)),
        )
        for exponent in numbers
    ]


def from_files(path: str, value: Any, folder: Path, name: str | None) -> list[tuple[str, Spectrum]]:
    """Return the spectrum in a file, or those in all files that match a pattern."""
    from fastkl.cli.spectra import read_spectrum

    files = matching(path, value, folder)
    return [
        (name if name and len(files) == 1 else (f"{name} " if name else "") + file.stem,
         at(path, lambda f=file: read_spectrum(str(f), None)))
        for file in files
    ]  # fmt: skip


def matching(path: str, value: Any, folder: Path) -> list[Path]:
    """Return the files of a name or a pattern, in alphabetical order."""
    if not isinstance(value, str):
        raise ValueError(f"{path}: must be a string (got {value!r})")
    if not glob.has_magic(value) or (folder / value).is_file():
        return [folder / value]
    files = sorted(glob.glob(value, root_dir=folder))
    if not files:
        raise ValueError(f"{path}: no file matches {value!r}")
    return [folder / file for file in files]


def chunk_list(path: str, value: Any, folder: Path) -> list[Any]:
    """Return the parts of one spectrum: .npy files by names or a pattern, arrays, or the blocks of a Dask array."""
    if isinstance(value, str):
        return list(matching(path, value, folder))
    if hasattr(value, "to_delayed"):  # a Dask array
        return list(value.to_delayed().ravel())
    parts: list[Any] = []
    for item in value:
        parts += matching(path, item, folder) if isinstance(item, str) else [item]
    if not parts:
        raise ValueError(f"{path}: must hold at least one part")
    return parts


def chunk_moments(part: Any) -> SpectrumMoments:
    """Return the moments of one part of a spectrum, one thread's work."""
    eigenvalues = np.load(part, mmap_mode="r", allow_pickle=False) if isinstance(part, Path) else part
    if hasattr(eigenvalues, "compute"):
        eigenvalues = eigenvalues.compute()
    return SpectrumMoments.from_chunks(np.asarray(eigenvalues), num_threads=1)


def tree_sum(items: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """Return the sum of items in pairs of neighbours, then pairs of pairs: one order, wherever it is computed."""
    while len(items) > 1:
        pairs = [add(items[i], items[i + 1]) for i in range(0, len(items) - 1, 2)]
        items = pairs + items[2 * len(pairs) :]
    return items[0]


def local_moments(parts: list[Any]) -> SpectrumMoments:
    """Return the sum of the parts' moments, in the order of `tree_sum` but with few of them in memory."""
    if len(parts) == 1:
        return chunk_moments(parts[0])
    half = 1 << (len(parts) - 1).bit_length() - 1  # neighbours are paired from the left
    return local_moments(parts[:half]) + local_moments(parts[half:])


def resolved_schedules(entries: list[Any]) -> dict[str, NoiseSchedule]:
    """Return the schedules by name."""
    found: dict[str, NoiseSchedule] = {}
    for i, entry in enumerate(entries):
        path = f"schedules[{i}]"
        name, schedule = schedule_of(path, entry)
        if name in found:
            raise ValueError(f"{path}.name: must not be that of another schedule (got {name!r})")
        found[name] = schedule
    return found


def schedule_of(path: str, entry: Any) -> tuple[str, NoiseSchedule]:
    """Return name and schedule of one entry: a kind, a table, or a live object."""
    if isinstance(entry, NoiseSchedule):
        return repr(entry), entry
    table = dict(entry) if isinstance(entry, Mapping) else {"kind": entry}
    name, live = checked_name(path, table.pop("name", None)), table.pop("schedule", None)
    if isinstance(live, NoiseSchedule) and not table:
        return name or repr(live), live
    if "kind" not in table:
        raise ValueError(f"{path}.kind: must be given")
    kind = table.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"{path}.kind: must be one of {', '.join(KINDS)} (got {kind!r})")
    make = getattr(NoiseSchedule, kind)
    parameters = inspect.signature(make).parameters
    needed = tuple(key for key, found in parameters.items() if found.default is found.empty)
    check_keys(path, table, tuple(parameters), needed)
    schedule = at(path, lambda: make(**table))
    shown = ", ".join(f"{key}={value!r}" for key, value in table.items())
    return name or (f"{kind}({shown})" if shown else kind), schedule


def check_keys(
    path: str, table: Mapping[str, Any], allowed: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    """Raise about a key that does not exist or is missing."""
    for key in table:
        if key not in allowed:
            raise ValueError(f"{path}.{key}: no such key; there are {', '.join(allowed)}")
    for key in needed:
        if key not in table:
            raise ValueError(f"{path}.{key}: must be given")


def resolved_samplers(entries: list[Any]) -> dict[str, Sampler]:
    """Return the samplers by name: names, tables such as {function = "ddim", eta = 0.5}, or live objects."""
    found: dict[str, Sampler] = {}
    for i, entry in enumerate(entries):
        path = f"samplers[{i}]"
        if isinstance(entry, Mapping):
            name, sampler = sampler_of(path, dict(entry))
        else:
            sampler = at(path, lambda e=entry: samplers.get(e))
            name = entry if isinstance(entry, str) else repr(entry)
        if name in found:
            raise ValueError(f"{path}: must not be given twice (got {name!r})")
        found[name] = sampler
    return found


def sampler_of(path: str, table: dict[str, Any]) -> tuple[str, Sampler]:
    """Return name and sampler of a table."""
    others = ("Sampler", "get", "names", "nfe", "steps_for")
    functions = [name for name in samplers.__all__ if name not in others]
    function, name = table.pop("function", None), checked_name(path, table.pop("name", None))
    if function not in functions:
        raise ValueError(f"{path}.function: must be one of {', '.join(functions)} (got {function!r})")
    make = getattr(samplers, function)
    check_keys(path, table, tuple(inspect.signature(make).parameters), ())
    sampler = at(path, lambda: make(**table))
    if name in samplers.names() and samplers.get(name) != sampler:
        raise ValueError(f"{path}.name: must not be {name!r}, which is another sampler")
    return name or repr(sampler).removeprefix("fastkl.samplers."), sampler


def digest(*arrays: Any) -> str:
    """Return a digest of arrays, of None and of numbers."""
    out = hashlib.sha256()
    for array in arrays:
        if isinstance(array, np.ndarray):
            out.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        else:
            out.update(repr(array).encode())
    return out.hexdigest()
