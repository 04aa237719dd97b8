"""Compilation of the CUDA sources ahead of time, by nvcc or by NVRTC through ctypes; no GPU and no driver is needed."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "kernels" / "cuda"


def gpu_source() -> ModuleType:
    """Return fastkl._gpu_source, loaded from its file: what it needs is the standard library."""
    spec = importlib.util.spec_from_file_location("_gpu_source", ROOT / "fastkl" / "_gpu_source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nvcc_path() -> str | None:
    """Return where nvcc is: in CUDA_HOME, CUDA_PATH or PATH."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        path = Path(os.environ.get(variable, "")) / "bin" / "nvcc"
        if os.environ.get(variable) and path.is_file():
            return str(path)
    return shutil.which("nvcc")


def nvrtc_candidates() -> Iterator[str]:
    """Yield the libraries that may be NVRTC: of a toolkit, of the nvidia-cuda-nvrtc wheel, of the system."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [Path(home) / "lib64" for home in homes]
    folders += [
        folder
        for entry in sys.path
        if entry
        for folder in sorted(Path(entry).glob("nvidia/*/lib"), reverse=True)
    ]
    for folder in folders:
        found = [
            path
            for path in folder.glob("libnvrtc.so.*")
            if "builtins" not in path.name and "alt" not in path.name
        ]
        yield from map(str, sorted(found, reverse=True))
    system = ctypes.util.find_library("nvrtc")
    if system:
        yield system


class CompileError(RuntimeError):
    """A compiler refused the sources, or is not what it should be."""


class Nvrtc:
    """The run-time compiler, as a library."""

    def __init__(self) -> None:
        for path in nvrtc_candidates():
            try:
                self._library = ctypes.CDLL(path)
                self.path = path
                break
            except OSError:
                continue
        else:
            raise CompileError(
                "NVRTC is not found: neither a CUDA toolkit nor the package nvidia-cuda-nvrtc is there"
            )

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise CompileError(f"{name}: {text(status).decode()}")

    def _bytes(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, source: str, target: str, options: tuple[str, ...]) -> tuple[bytes, str]:
        """Return PTX for a target compute_XY or a cubin for sm_XY, and the compiler's log; raise CompileError."""
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"fastkl.cu", 0, None, None)
        flags = [f"--gpu-architecture={target}", *options]
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        try:
            status = self._library.nvrtcCompileProgram(program, len(flags), array)
            log = self._bytes("ProgramLog", program).rstrip(b"\0").decode()
            if status:
                raise CompileError(f"NVRTC refuses the sources for {target}:\n{log}")
            return self._bytes("PTX" if target.startswith("compute") else "CUBIN", program), log
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))


def compile_with_nvcc(source: str, target: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Return PTX for a target compute_XY or a cubin for sm_XY, and the compiler's log; raise CompileError."""
    nvcc = nvcc_path()
    if nvcc is None:
        raise CompileError("nvcc is not found: neither in CUDA_HOME, CUDA_PATH nor PATH")
    with tempfile.TemporaryDirectory() as folder:
        code, out = Path(folder) / "fastkl.cu", Path(folder) / "out"
        code.write_text(source, encoding="utf-8")
        kind = "-ptx" if target.startswith("compute") else "-cubin"
        command = [nvcc, kind, f"-arch={target}", *options, "-o", str(out), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"nvcc refuses the sources for {target}:\n{done.stderr}")
        return out.read_bytes(), done.stdout + done.stderr


def compile_ahead(source: str, target: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """Compile with nvcc, or with NVRTC where nvcc is not or fails; return the code and which compiler it was."""
    try:
        return compile_with_nvcc(source, target, options)[0], "nvcc"
    except (CompileError, OSError) as error:  # an nvcc may be there without a host compiler that it accepts
        refusal = error
    try:
        return Nvrtc().compile(source, target, options)[0], "NVRTC"
    except CompileError as error:
        raise CompileError(f"{refusal}; {error}") from error
