"""A GPU made of a C++ compiler: the CUDA sources built for the host, and a device that walks their threads in a loop.

It takes the place of fastkl._gpu_device.CupyDevice, so that the whole GPU backend (launches, tails, chunks, out of
memory) runs in the tests. No kernel has threads that wait for each other, so a loop is a fair stand-in. With
FASTKL_EMULATION_FLAGS (say "-fsanitize=address,undefined") the sources are built with more flags.
"""

import ctypes
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from functools import cache
from pathlib import Path

import numpy as np

from fastkl import _gpu_device
from fastkl._gpu_source import instances, unit

FOLDER = Path(_gpu_device.__file__).resolve().parents[1] / "kernels" / "cuda"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
         "-Wno-unused-function", "-Wno-unused-const-variable"]  # fmt: skip

WALKER = """
#include <cstddef>
#include <tuple>
#include <utility>
thread_local long long walked_thread;
extern "C" double host_quotient(double a, double b) { return quotient(a, b); }
extern "C" double host_square_root(double x) { return square_root(x); }
template <class... P, std::size_t... I>
static void walk(void (*kernel)(P...), long long count, void **arguments, std::index_sequence<I...>) {
    for (walked_thread = 0; walked_thread < count; walked_thread++)
        kernel(*static_cast<P *>(arguments[I])...);
}
template <class... P>
static void walk(void (*kernel)(P...), long long count, void **arguments) {
    walk(kernel, count, arguments, std::index_sequence_for<P...>());
}
"""


def host_source():
    """The kernels' text and a function launch_<name>(threads, arguments) for each of them."""
    source = unit(FOLDER)
    launches = [
        f'extern "C" void launch_{name}(long long n, void **a) {{ walk(&{name}, n, a); }}'
        for name in instances(source)
    ]
    return "\n".join([source, WALKER, *launches])


@cache
def parameters(name):
    """The C types of a kernel's parameters, without qualifiers: a launch on a GPU does not check them."""
    source = unit(FOLDER).replace("\\\n", "\n")
    found = re.search(rf"^KERNEL {name}\((.*?)\)\s*\{{", source, re.MULTILINE | re.DOTALL)
    found = found or re.search(r"KERNEL NAME\((.*?)\)\s*\{", source, re.DOTALL)
    return [re.sub(r"const|RESTRICT|\w+$", "", p.strip()).replace(" ", "") for p in found[1].split(",")]


def fused():
    """The flag that lets the compiler use fused multiply-adds where they are written, if the processor has them."""
    try:
        return ["-mfma"] if " fma " in Path("/proc/cpuinfo").read_text() else []
    except OSError:
        return []


@cache
def library():
    """Build the sources, or take what was built from the same text with the same flags, and load them."""
    assert COMPILER, "these tests need a C++ compiler: g++ or clang++, or its name in CXX"
    flags = [*FLAGS, *fused(), *shlex.split(os.environ.get("FASTKL_EMULATION_FLAGS", ""))]
    source = host_source()
    key = hashlib.sha256("\n".join([source, str(COMPILER), *flags]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"fastkl-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{key}.so"
    if not path.exists():
        code, built = folder / f"{key}-{os.getpid()}.cpp", folder / f"{key}-{os.getpid()}.so"
        code.write_text(source)
        done = subprocess.run([COMPILER, *flags, "-shared", "-fPIC", "-o", built, code],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        built.rename(path)
        code.unlink()
    return ctypes.CDLL(str(path))


def arithmetic(name, *arguments):
    """quotient or square_root as the kernels have it."""
    function = getattr(library(), f"host_{name}")
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double] * len(arguments)
    return function(*arguments)


class HostArray:
    """What stands for an array of CuPy: it can be indexed, reshaped and asked for its shape, and is no NumPy array."""

    __array_ufunc__ = None

    def __init__(self, values):
        self.values = values
        self.__cuda_array_interface__ = values.__array_interface__

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    ndim = property(lambda self: self.values.ndim)
    size = property(lambda self: self.values.size)

    def __getitem__(self, index):
        return HostArray(np.asarray(self.values[index]))

    def reshape(self, *shape):
        return HostArray(self.values.reshape(*shape))

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to NumPy")

    def __bool__(self):
        raise TypeError("the truth of an array waits for its values")

    __len__ = __iter__ = __float__ = __int__ = __bool__


class HostDevice:
    """A device of `memory` bytes on the host. `log` has the launches, `failures` how often memory ran out."""

    class OutOfMemory(Exception):
        pass

    name, how, number = "host", "compiled for the host", 0

    def __init__(self, memory=1 << 62, claimed=None):
        self.memory, self.claimed = memory, memory if claimed is None else claimed
        self.current_stream = 0
        self.log, self.failures, self.downloads, self.uploads = [], 0, 0, 0
        self.entered, self.loaded = 0, False
        self.held, self.peak = 0, 0  # bytes of arrays that are alive, and the most there ever were

    def __enter__(self):
        self.entered += 1
        return self

    def __exit__(self, *_):
        self.entered -= 1

    def as_array(self, value):
        return value if isinstance(value, HostArray) else HostArray(np.asarray(value.host()))

    def number_of(self, array):
        return self.number

    def as_float64(self, array):
        return HostArray(np.ascontiguousarray(array.values, dtype=np.float64))

    def empty(self, shape, dtype=np.float64):
        array = np.empty(shape, dtype)
        if array.nbytes > self.memory:
            self.failures += 1
            raise self.OutOfMemory(f"{array.nbytes} bytes")
        array.view(np.uint8).fill(0xFF)  # NaN: whatever is read before it is written shows
        return self.counted(array)

    def upload(self, array):
        self.uploads += 1
        return self.counted(np.array(array, order="C"))

    def counted(self, array):
        self.hold(array.nbytes)
        weakref.finalize(array, self.hold, -array.nbytes)
        return HostArray(array)

    def hold(self, size):
        self.held += size
        self.peak = max(self.peak, self.held)

    def download(self, array):
        self.downloads += 1
        return array.values.copy()

    def stream(self):
        return self.current_stream

    def mark(self):
        return self.current_stream, len(self.log)

    def wait(self, event):
        assert event[0] == self.current_stream

    def free_bytes(self):
        return self.claimed

    def module(self):
        return library()

    def load_all(self):
        self.loaded = all(hasattr(library(), f"launch_{name}") for name in instances(unit(FOLDER)))

    def launch(self, name, count, *arguments):
        self.log.append(name)
        if count <= 0:
            return
        threads = -(-count // _gpu_device.BLOCK) * _gpu_device.BLOCK  # the last block's tail as on a GPU
        boxed = [box(argument, kind) for argument, kind in zip(arguments, parameters(name), strict=True)]
        pointers = (ctypes.c_void_p * len(boxed))(*(ctypes.addressof(value) for value in boxed))
        getattr(library(), f"launch_{name}")(ctypes.c_longlong(threads), pointers)


KINDS = {np.int64: ("int64", ctypes.c_longlong), np.int32: ("int", ctypes.c_int),
         np.float64: ("double", ctypes.c_double), np.float32: ("float", ctypes.c_float)}  # fmt: skip


def box(argument, kind):
    """An argument as the C type of the kernel's parameter, which must be of that very type."""
    if argument is None:
        assert kind.endswith("*")
        return ctypes.c_void_p(0)
    if isinstance(argument, HostArray):
        assert argument.values.flags.c_contiguous
        assert KINDS[argument.dtype.type][0] + "*" == kind
        return ctypes.c_void_p(argument.values.ctypes.data)
    name, made = KINDS[type(argument)]
    assert name == kind
    return made(argument.item())
