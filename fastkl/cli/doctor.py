"""``fastkl doctor``: what fastkl runs on here, and whether it works."""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastkl import __version__
from fastkl._threads import thread_count
from fastkl.cli.options import add_json
from fastkl.cli.printing import digits, print_json, require_rich, table

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "show versions, threads, backends and the kernel cache, and check that the CPU backend works"
DESCRIPTION = (
    "Shows versions, processor, threads, backends and the cache of compiled kernels, and computes a small divergence "
    "whose value is known. The exit status is 0 if that works and 1 if it does not."
)

PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "rich")
OPTIONAL = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
FEATURES = ("fma", "avx2", "avx512f", "asimd", "sve")  # asimd and sve are Arm's
EIGENVALUES, SIGMAS = (4.0, 1.0, 0.25), (80.0, 10.0, 2.0, 0.5, 0.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor`."""
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; 0 if the CPU backend works, else 1."""
    if not arguments.json:
        require_rich()
    cpu = check_cpu()
    report = {
        "fastkl": __version__,
        "python": platform.python_version(),
        **versions(),
        "platform": platform.platform(),
        **processor(),
        "threads": threads(),
        "cpu_backend": cpu,
        **check_gpu(),
        **cache(),
    }
    if arguments.json:
        print_json(report)
    else:
        rows = [(key.replace("_", " "), shown(value)) for key, value in report.items()]
        table("fastkl doctor", [("what", "left"), ("found", "left")], rows)
    return 0 if cpu == "works" else 1


def shown(value: Any) -> str:
    """Return a cell of the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(value) or "none" if isinstance(value, list) else digits(value)


def versions() -> dict[str, str]:
    """Return the versions of what fastkl needs, and of CuPy where it is installed."""
    found = {}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                found[name] = "not installed"
    return found


def processor() -> dict[str, Any]:
    """Return the processor's name and those of its vector instructions that matter here; None if unknown."""
    fields: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for text in file:
                key, _, value = text.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        return {"processor": platform.processor() or platform.machine(), "vector_features": None}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "processor": fields.get("model name", platform.machine()),
        "vector_features": [name for name in FEATURES if name in flags],
    }


def threads() -> int | str:
    """Return how many threads a call uses, or what is wrong with the setting."""
    try:
        return thread_count(None)
    except ValueError as error:
        return str(error)


def check_cpu() -> str:
    """Compare a small divergence with a plain evaluation of the same formula; "works", or what went wrong."""
    expected = 0.0
    for value in EIGENVALUES:
        ratio = (1.0 + SIGMAS[0] ** 2) / value
        for here, there in pairwise(SIGMAS):
            ratio *= ((value + here * there) / (value + here * here)) ** 2
        expected += (1.0 / ratio - 1.0 + math.log(ratio)) / 2.0
    try:
        from fastkl.evaluate import divergence

        found = divergence(EIGENVALUES, SIGMAS, backend="cpu")
    except Exception as error:  # whatever it is, the user is to see it in the report
        return f"fails: {type(error).__name__}: {error}"
    return "works" if math.isclose(found, expected, rel_tol=1e-10) else f"wrong: {found!r}, not {expected!r}"


def check_gpu() -> dict[str, str]:
    """Return whether the GPU backend works, or what is missing, and how its kernels are compiled."""
    from fastkl import _gpu_device

    lack = _gpu_device.missing()
    if lack is not None:
        return {"gpu_backend": lack, "gpu_kernels": _gpu_device.ahead_of_time_files()}
    try:
        from fastkl.evaluate import divergence

        expected = divergence(EIGENVALUES, SIGMAS, backend="cpu")
        found = divergence(EIGENVALUES, SIGMAS, backend="gpu")
        device = _gpu_device.current_device()
    except Exception as error:  # whatever it is, the user is to see it in the report
        return {"gpu_backend": f"fails: {type(error).__name__}: {error}", "gpu_kernels": "not loaded"}
    good = math.isclose(found, expected, rel_tol=1e-12)
    state = f"works ({device.name})" if good else f"wrong: {found!r}, not {expected!r}"
    return {"gpu_backend": state, "gpu_kernels": device.how}


def cache() -> dict[str, Any]:
    """Return where compiled kernels are kept between runs, whether that can be written, and how many are there."""
    try:
        from fastkl.kernels.ddim_horner import tile_sums

        place = tile_sums._cache.cache_path  # Numba has no public name for it; None without a cache
    except Exception:  # the report is worth having also where Numba does not load or its insides have changed
        place = None
    if place is None:
        return {"kernel_cache": None, "cache_writable": False, "cached_kernels": 0}
    entries = sum(1 for _ in Path(place).glob("*.nbc"))
    return {"kernel_cache": os.fspath(place), "cache_writable": writable(place), "cached_kernels": entries}


def writable(directory: str) -> bool:
    """Return whether a file can be made there; permission bits alone do not tell, as on read-only mounts."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
