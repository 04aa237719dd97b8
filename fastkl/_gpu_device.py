"""The one layer between fastkl and a GPU: CuPy's arrays, streams and modules. The tests put a host in its place.

Everything runs on the caller's current stream and in CuPy's current memory pool; nothing here synchronises but
`download`, and nothing frees the pool's blocks.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
import threading
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._gpu_source import FLAGS, OLDEST, digest, instances, parts, unit

__all__ = ["BLOCK", "CupyDevice", "current_device", "device_of", "missing"]

PROBE = "group_sums"  # a kernel that is asked for to have a file loaded
PER_THREAD = 2  # CUDA's number of a thread's own default stream
BLOCK = 128  # threads of a block, as the kernels' launch bounds have it
CUBIN = re.compile(r"fastkl-sm_(\d+)\.cubin")
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_lock = threading.RLock()
_entered = threading.local()  # CuPy's objects of the devices that a thread has entered, innermost last
_devices: dict[int, CupyDevice] = {}


def missing() -> str | None:
    """Return what a GPU backend lacks here, package, driver or device, or None; CuPy is imported last."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        return "the package CuPy is not installed (pip install 'fastkl[gpu-cuda12]' or 'fastkl[gpu-cuda13]')"
    try:
        ctypes.CDLL(DRIVER)
    except OSError:
        return f"there is no NVIDIA driver ({DRIVER} is not found)"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # a broken CuPy or driver says what is wrong in its own words
        return f"CuPy finds no device ({type(error).__name__}: {error})"
    return None if count else "CuPy finds no device"


def current_device() -> CupyDevice:
    """Return the device that CuPy has current, or raise a RuntimeError that says what is missing."""
    lack = missing()
    if lack is not None:
        raise RuntimeError(f"backend = 'gpu': no GPU can be used: {lack}")
    import cupy

    return _device(int(cupy.cuda.runtime.getDevice()))


def device_of(array: Any) -> CupyDevice:
    """Return the device that an array is on."""
    device = current_device()
    return _device(int(device.as_array(array).device.id))


def _device(number: int) -> CupyDevice:
    with _lock:
        if number not in _devices:
            _devices[number] = CupyDevice(number)
        return _devices[number]


class CupyDevice:
    """Arrays and launches on one CUDA device."""

    def __init__(self, number: int) -> None:
        import cupy

        self._cupy = cupy
        self.number = number
        self.OutOfMemory = cupy.cuda.memory.OutOfMemoryError
        self._functions: dict[str, Any] = {}

    def __enter__(self) -> CupyDevice:
        device = self._cupy.cuda.Device(self.number)
        device.__enter__()
        _entered.__dict__.setdefault("stack", []).append(device)
        return self

    def __exit__(self, *error: object) -> None:
        # the object that was entered: it alone knows which device was current before
        _entered.stack.pop().__exit__(*error)

    @cached_property
    def name(self) -> str:
        """The card's name."""
        name: bytes = self._cupy.cuda.runtime.getDeviceProperties(self.number)["name"]
        return name.decode()

    def as_array(self, value: Any) -> Any:
        """Return a device array as CuPy's, without a copy; a DLPack producer orders its stream before ours."""
        if isinstance(value, self._cupy.ndarray):
            return value
        return self._cupy.from_dlpack(value) if hasattr(value, "__dlpack__") else self._cupy.asarray(value)

    def number_of(self, array: Any) -> int:
        """Return the number of the device that an array is on."""
        return int(array.device.id)

    def as_float64(self, array: Any) -> Any:
        """Return a C-contiguous float64 array; a copy only where it is not one."""
        return self._cupy.ascontiguousarray(array, dtype=np.float64)

    def empty(self, shape: int | tuple[int, ...], dtype: Any = np.float64) -> Any:
        """Return an array whose elements are undefined."""
        return self._cupy.empty(shape, dtype=dtype)

    def upload(self, array: NDArray[Any]) -> Any:
        """Return a copy on the device."""
        # not ascontiguousarray, which makes a scalar's shape (1,)
        return self._cupy.asarray(np.asarray(array, order="C"))

    def download(self, array: Any) -> NDArray[Any]:
        """Return a copy on the host, once everything before it on the current stream is done."""
        result: NDArray[Any] = self._cupy.asnumpy(array)
        return result

    def free_bytes(self) -> int:
        """Return the memory that can be had: the device's and what CuPy's pool holds unused."""
        free, _ = self._cupy.cuda.runtime.memGetInfo()
        return int(free) + int(self._cupy.get_default_memory_pool().free_bytes())

    def stream(self) -> tuple[int, int]:
        """Return what tells the current stream from others; a per-thread default stream has one number for all."""
        number = int(self._cupy.cuda.get_current_stream().ptr)
        return number, threading.get_ident() if number == PER_THREAD else 0

    def mark(self) -> Any:
        """Return an event after all that is queued on the current stream."""
        event = self._cupy.cuda.Event(block=False, disable_timing=True)
        event.record()
        return event

    def wait(self, event: Any) -> None:
        """Have the current stream, not the host, wait for an event: a stream's number may have been another's."""
        self._cupy.cuda.get_current_stream().wait_event(event)

    def launch(self, name: str, count: int, *arguments: Any) -> None:
        """Run a kernel on at least `count` threads; None stands for a null pointer. No threads, no launch."""
        if count > 0:
            values = tuple(np.uint64(0) if value is None else value for value in arguments)
            self.function(name)((-(-count // BLOCK),), (BLOCK,), values)

    def function(self, name: str) -> Any:
        """Return a kernel; CuPy's own look-up is slow, so each is looked up once."""
        found = self._functions.get(name)
        if found is None:
            with _lock:
                found = self._functions[name] = self.kernels.module_of(name).get_function(name)
        return found

    @cached_property
    def kernels(self) -> Kernels:
        """Where kernels come from."""
        capability = int(self._cupy.cuda.Device(self.number).compute_capability)
        return Kernels(self._cupy, source_folder(), capability)

    @property
    def how(self) -> str:
        """How the kernels that were used so far were compiled."""
        return self.kernels.how

    def load_all(self) -> None:
        """Load every kernel: the driver loads each at its first use, which may wait for the whole device."""
        for name in instances(unit(source_folder())):
            int(self.function(name).num_regs)


class Kernels:
    """The one loader: all kernels from a file compiled ahead of time, or each part compiled at its first use."""

    def __init__(self, cupy: Any, folder: Path, capability: int) -> None:
        self._cupy, self._texts = cupy, parts(folder)
        self._parts: dict[str, Any] = {}  # modules by their text
        self._whole, self._file, self._reason = None, "", "nothing was compiled ahead of time"
        for path in ahead_of_time(folder, digest(unit(folder)), capability):
            module = cupy.RawModule(path=str(path))
            try:
                load(module, PROBE)
                self._whole, self._file = module, path.name
                return
            except Exception as error:  # an older driver does not read a newer compiler's PTX
                self._reason = f"{path.name} was refused: {error}"

    def module_of(self, name: str) -> Any:
        """Return the loaded module that has a kernel."""
        if self._whole is not None:
            return self._whole
        text = self._texts[name]
        if text not in self._parts:
            module = self._cupy.RawModule(code=text, options=FLAGS)
            load(module, name)
            self._parts[text] = module
        return self._parts[text]

    @property
    def how(self) -> str:
        """How the kernels were compiled, as far as they were used."""
        if self._whole is not None:
            return f"compiled ahead of time ({self._file})"
        count, used = len(set(self._texts.values())), len(self._parts)
        return f"compiled by CuPy at first use, {used} of {count} parts so far ({self._reason})"


def load(module: Any, name: str) -> None:
    """Have CuPy load a module now: it waits until something is asked of one of its kernels."""
    int(module.get_function(name).num_regs)


def source_folder() -> Path:
    """Return where the CUDA sources are installed."""
    return Path(str(files("fastkl.kernels"))) / "cuda"


def ahead_of_time_files() -> str:
    """Return which files were compiled ahead of time from the sources that are installed, in words."""
    folder = source_folder()
    index = folder / "built.json"
    if not index.exists():
        return "none compiled ahead of time; CuPy compiles them at first use"
    built = json.loads(index.read_text(encoding="utf-8"))
    if built["digest"] != digest(unit(folder)):
        return "those compiled ahead of time are of other sources; CuPy compiles them at first use"
    needs = built.get("ptx_needs")
    note = f" (the PTX needs a driver for CUDA {needs} or newer)" if needs else ""
    return "compiled ahead of time: " + ", ".join(built["files"]) + note


def ahead_of_time(folder: Path, of_source: str, capability: int) -> list[Path]:
    """Return the compiled files that suit a card, best first, if they belong to the sources that are there."""
    index = folder / "built.json"
    if not index.exists():
        return []
    built = json.loads(index.read_text(encoding="utf-8"))
    if built["digest"] != of_source:
        return []
    made = [int(found[1]) for found in map(CUBIN.fullmatch, built["files"]) if found]
    # a cubin runs on its own major version, from its minor version on
    suits = [arch for arch in made if arch // 10 == capability // 10 and arch <= capability]
    names = [f"fastkl-sm_{arch}.cubin" for arch in sorted(suits, reverse=True)]
    if capability >= OLDEST:
        names.append(f"fastkl-compute_{OLDEST}.ptx")
    return [folder / name for name in names if name in built["files"]]
