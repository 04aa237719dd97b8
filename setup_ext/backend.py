"""PEP 517 build backend of fastkl: setuptools, and CUDA kernels compiled ahead of time into the wheel.

Where nvcc or NVRTC is at hand, a wheel gets PTX for the oldest supported architecture, which any newer card runs if its
driver is as new as the compiler, and machine code (cubins) for those of ARCHITECTURES that the compiler knows, which
asks less of the driver. Where none is, CuPy compiles the same sources at first use. An editable install compiles none:
its sources may change. Environment: FASTKL_CUDA=0 never compiles, FASTKL_CUDA=1 makes it an error if nothing can;
FASTKL_CUDA_ARCHS="90,100" chooses other architectures for machine code, each of which must compile, and "" none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

sys.path.append(str(Path(__file__).resolve().parent))
import cuda_compilers

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


ARCHITECTURES = (80, 90, 100, 120)  # one of each major version: a cubin runs on later minor ones
RELEASE = re.compile(rb"release (\d+\.\d+)")  # in PTX: the CUDA version that its driver must have at least


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel with compiled kernels in it, if they can be compiled here."""
    with compiled_kernels(os.environ):
        return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def targets(environment: Mapping[str, str], oldest: int) -> list[str]:
    """Return what to compile for: a virtual architecture, and real ones."""
    if "FASTKL_CUDA_ARCHS" not in environment:
        return [f"compute_{oldest}", *(f"sm_{arch}" for arch in ARCHITECTURES)]
    chosen = environment["FASTKL_CUDA_ARCHS"].replace(",", " ").split()
    for arch in chosen:
        if not arch.isdecimal() or int(arch) < oldest:
            raise ValueError(
                f"FASTKL_CUDA_ARCHS = {environment['FASTKL_CUDA_ARCHS']!r}: must be numbers such as 90, each at least "
                f"{oldest}, separated by commas"
            )
    return [f"compute_{oldest}", *(f"sm_{arch}" for arch in chosen)]


@contextmanager
def compiled_kernels(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Put compiled kernels beside their sources while a wheel is built, and say so; yield the files' names."""
    wish = environment.get("FASTKL_CUDA", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"FASTKL_CUDA = {wish!r}: must be 0 (do not compile) or 1 (compile or fail)")
    written: list[Path] = []
    # what an earlier build left there would go into this wheel
    shutil.rmtree(cuda_compilers.ROOT / "build" / "lib" / "fastkl" / "kernels" / "cuda", ignore_errors=True)
    try:
        if wish == "0":
            print("fastkl: CUDA kernels are not compiled ahead of time (FASTKL_CUDA=0)", file=sys.stderr)
        else:
            try:
                compile_into(cuda_compilers.FOLDER, environment, written)
            except (cuda_compilers.CompileError, OSError) as error:
                if wish == "1":
                    raise
                remove(written)
                print(f"fastkl: CuPy will compile the CUDA kernels at first use: {error}", file=sys.stderr)
        yield [path.name for path in written]
    finally:
        remove(written)


def remove(written: list[Path]) -> None:
    """Remove files that were written for the wheel."""
    while written:
        written.pop().unlink(missing_ok=True)


def compile_into(folder: Path, environment: Mapping[str, str], written: list[Path]) -> None:
    """Compile the sources for all targets into folder, with an index that says which sources they belong to."""
    source_module = cuda_compilers.gpu_source()
    source = source_module.unit(folder)
    wanted = targets(environment, source_module.OLDEST)
    with ThreadPoolExecutor(min(len(wanted), os.cpu_count() or 1)) as pool:
        running = {
            target: pool.submit(cuda_compilers.compile_ahead, source, target, source_module.FLAGS)
            for target in wanted
        }
    about = {"digest": source_module.digest(source)}
    for target, future in running.items():
        code = code_of(target, future, "FASTKL_CUDA_ARCHS" not in environment)
        if code is None:
            continue
        path = folder / f"fastkl-{target}.{'ptx' if target.startswith('compute') else 'cubin'}"
        written.append(path)
        path.write_bytes(code)
        release = RELEASE.search(code) if path.suffix == ".ptx" else None
        if release:
            about["ptx_needs"] = release[1].decode()
    index = folder / "built.json"
    files = [path.name for path in written]
    written.append(index)
    index.write_text(json.dumps({**about, "files": files}), encoding="utf-8")


def code_of(target: str, future: Future[tuple[bytes, str]], optional: bool) -> bytes | None:
    """Return what was compiled and say so; None for machine code that is optional and was refused."""
    try:
        code, compiler = future.result()
    except cuda_compilers.CompileError as error:
        if not (optional and target.startswith("sm_")):
            raise
        print(f"fastkl: no machine code for {target}: {error}", file=sys.stderr)
        return None
    print(f"fastkl: CUDA kernels compiled for {target} by {compiler}", file=sys.stderr)
    return code
