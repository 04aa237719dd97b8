"""The CUDA sources without a GPU: compilers accept them, nothing spills, sanitizers are content, wheels have them."""

import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulation
import numpy as np
import pytest

import fastkl
from fastkl import _gpu_costs, _gpu_device
from fastkl._gpu_source import FLAGS, OLDEST, digest, instances, unit

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
SOURCE = unit(emulation.FOLDER)
REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) reg",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def compilers():
    sys.path.append(str(ROOT / "setup_ext"))
    yield importlib.import_module("cuda_compilers")
    sys.path.remove(str(ROOT / "setup_ext"))


@pytest.fixture(scope="module")
def backend(compilers):
    return importlib.import_module("backend")


def spills(log):
    """Kernels that keep registers in memory, of a compiler's report; every kernel must be in it."""
    rows = REPORT.findall(log)
    assert sorted(name for name, *_ in rows) == instances(SOURCE)
    return {name: (stores, loads) for name, stores, loads, _ in rows if (stores, loads) != ("0", "0")}


@pytest.mark.skipif(sys.platform != "linux", reason="the package nvidia-cuda-nvrtc is for Linux")
def test_nvrtc_compiles_every_kernel_for_every_architecture_without_spills(compilers):
    nvrtc = compilers.Nvrtc()
    options = (*FLAGS, "--ptxas-options=-v")

    def build(target):
        return nvrtc.compile(SOURCE, target, options)

    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), len(ARCHITECTURES))) as pool:
        results = list(pool.map(build, ARCHITECTURES))
    for target, (code, log) in zip(ARCHITECTURES, results, strict=True):
        assert code[:4] == b"\x7fELF", target
        assert "warning" not in log, log
        assert not spills(log), target
        assert all(name.encode() in code for name in instances(SOURCE)), target


@pytest.mark.skipif(sys.platform != "linux", reason="the package nvidia-cuda-nvrtc is for Linux")
def test_nvrtc_refuses_what_is_wrong(compilers):
    nvrtc = compilers.Nvrtc()
    with pytest.raises(compilers.CompileError, match="cmath"):
        nvrtc.compile("#include <cmath>\n", "compute_80", FLAGS)
    with pytest.raises(compilers.CompileError, match="invalid"):
        nvrtc.compile(SOURCE, "sm_1", FLAGS)


def test_nvcc_finds_no_spills(compilers):
    if compilers.nvcc_path() is None:
        pytest.skip("no nvcc here; the test with NVRTC reads the same report")
    _, log = compilers.compile_with_nvcc(SOURCE, "sm_90", (*FLAGS, "-Xptxas", "-v"))
    assert not spills(log)


def test_the_search_for_spills_can_fail():
    name = instances(SOURCE)[0]
    lines = [
        f"Compiling entry function '{kernel}' for 'sm_90'\n    0 bytes stack frame, {8 * (kernel == name)} bytes spill "
        f"stores, 0 bytes spill loads\nUsed 32 registers"
        for kernel in instances(SOURCE)
    ]
    assert spills("\n".join(lines)) == {name: ("8", "0")}
    with pytest.raises(AssertionError):
        spills("\n".join(lines[1:]))


def test_the_unit_has_every_file_once():
    files = [path.name for path in emulation.FOLDER.glob("*.cu*") if path.suffix in (".cu", ".cuh")]
    assert len(files) > 10
    for name in files:
        text = (emulation.FOLDER / name).read_text()
        first = next(line for line in text.splitlines() if line.startswith("//"))
        assert SOURCE.count(first) == 1, name
    assert "#pragma once" not in SOURCE
    assert not re.search(r'^#include "', SOURCE, re.MULTILINE)


# Sanitizers


WALK = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import emulation, fastkl
from cases import METRICS, SCHEDULES, SPECTRA
from fastkl import _gpu, _gpu_device, samplers

device = emulation.HostDevice()
_gpu_device.current_device = lambda: device
_gpu_device.device_of = lambda array: device
for size, count in ((1, 1), (7, 2), (9, 33), (1024, 3), (1033, 1), (2055, 5)):
    spectrum = fastkl.Spectrum(**SPECTRA["with_mean"](size))
    for steps in (1, 2, 4, 9, 16, 17, 25):
        for name in ("karras", "fine") if size < 1000 or steps == 9 else ("karras",):
            levels = SCHEDULES[name](count, steps)
            for metric in METRICS:
                fastkl.divergence(spectrum, levels, metric, prior="exact", backend="gpu")
            fastkl.divergence(spectrum, levels, backend="gpu", precision="float32")
    fastkl.divergence(emulation.HostArray(np.array(spectrum.eigenvalues)), emulation.HostArray(levels))
    for function in (fastkl.output_variance, fastkl.trajectory):
        function(spectrum, levels, backend="gpu")
    for sampler in ("heun", "plms", "unipc_3", "euler_ancestral", "sde_dpmpp_2m"):
        for name in ("karras", "fine"):
            levels = SCHEDULES[name](count, 5)
            for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
                function(spectrum, levels, sampler=sampler, backend="gpu")
"""
# One row too many: what the sanitizer is there for.
WRONG = """
array, out = device.empty((3, 4)), device.empty((1, 4))
device.launch("group_sums", 4, array, np.int64(3000), np.int64(4), np.int64(3000), out)
"""


def sanitized(code, folder):
    library = subprocess.run(
        [emulation.COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "FASTKL_EMULATION_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all -g",
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0,abort_on_error=0,exitcode=66",
    }
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded, which is done so on Linux")
def test_sanitizers_find_nothing_in_the_launches(tmp_path):
    done = sanitized(WALK.format(tests=str(ROOT / "tests")) + "print(len(device.log), 'launches')", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="the sanitizers are preloaded, which is done so on Linux")
def test_sanitizers_find_a_read_beyond_the_end(tmp_path):
    start = WALK.format(tests=str(ROOT / "tests")).partition("for size, count")[0]
    done = sanitized(start + WRONG, tmp_path)
    assert done.returncode == 66
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


# Wheels and the loader


def test_a_wheel_has_sources_and_kernels_that_belong_to_them(compilers, tmp_path):
    """Built from a copy: the sources of this checkout are left alone."""
    copy = tmp_path / "source"
    files = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                           capture_output=True, check=True).stdout.decode().split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith(("benchmarks/", "tests/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; sys.path.insert(0, 'setup_ext'); import backend; print(backend.build_wheel('out'))"
    names = {}
    for wish in ("1", "0"):
        environment = {**os.environ, "FASTKL_CUDA": wish, "FASTKL_CUDA_ARCHS": "90"}
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        with zipfile.ZipFile(copy / "out" / done.stdout.split()[-1]) as wheel:
            names[wish] = {name.rpartition("/")[2] for name in wheel.namelist() if "/kernels/cuda/" in name}
            if wish == "1":
                index = json.loads(wheel.read("fastkl/kernels/cuda/built.json"))
                ptx = wheel.read(f"fastkl/kernels/cuda/fastkl-compute_{OLDEST}.ptx").decode()
    sources = {path.name for path in emulation.FOLDER.glob("*.cu*") if path.suffix in (".cu", ".cuh")}
    assert names["1"] == {*sources, "built.json", *index["files"]}
    assert names["0"] == sources
    assert set(index["files"]) == {f"fastkl-compute_{OLDEST}.ptx", "fastkl-sm_90.cubin"}
    assert index["digest"] == digest(SOURCE)
    assert f"release {index['ptx_needs']}," in ptx
    assert f".target sm_{OLDEST}" in ptx
    assert all(f".entry {name}(" in ptx for name in instances(SOURCE))
    assert not list((copy / "kernels" / "cuda").glob("built*"))


def test_what_to_compile_for(backend):
    assert backend.targets({}, 80) == ["compute_80", *ARCHITECTURES]
    assert backend.targets({"FASTKL_CUDA_ARCHS": ""}, 80) == ["compute_80"]
    assert backend.targets({"FASTKL_CUDA_ARCHS": "90, 100"}, 80) == ["compute_80", "sm_90", "sm_100"]
    for wrong in ("sm_90", "75", "9.0"):
        with pytest.raises(ValueError, match="FASTKL_CUDA_ARCHS"):
            backend.targets({"FASTKL_CUDA_ARCHS": wrong}, 80)
    with (
        pytest.raises(ValueError, match="FASTKL_CUDA = 'yes'"),
        backend.compiled_kernels({"FASTKL_CUDA": "yes"}),
    ):
        pass


def test_without_a_compiler_a_wheel_is_built_and_says_so(backend, compilers, monkeypatch, capsys):
    def nothing(*_):
        raise compilers.CompileError("NVRTC is not found")

    monkeypatch.setattr(compilers, "compile_ahead", nothing)
    with backend.compiled_kernels({}) as files:
        assert files == []
    assert "CuPy will compile the CUDA kernels at first use: NVRTC is not found" in capsys.readouterr().err
    with pytest.raises(compilers.CompileError), backend.compiled_kernels({"FASTKL_CUDA": "1"}):
        pass


def test_machine_code_is_left_out_where_the_compiler_does_not_know_the_card(
    backend, compilers, monkeypatch, capsys, tmp_path
):
    def old(source, target, options):
        if target == "sm_120":
            raise compilers.CompileError("sm_120 is not known")
        return b"// release 12.4, V12.4.1" if target.startswith("compute") else b"\x7fELF", "nvcc"

    for path in emulation.FOLDER.glob("*.cu*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(compilers, "compile_ahead", old)
    backend.compile_into(tmp_path, {}, [])
    files = [f"fastkl-compute_{OLDEST}.ptx", *(f"fastkl-{arch}.cubin" for arch in ARCHITECTURES[:-1])]
    built = json.loads((tmp_path / "built.json").read_text())
    assert built == {"digest": digest(SOURCE), "files": files, "ptx_needs": "12.4"}
    assert "no machine code for sm_120: sm_120 is not known" in capsys.readouterr().err
    monkeypatch.setattr(_gpu_device, "source_folder", lambda: tmp_path)
    assert "the PTX needs a driver for CUDA 12.4 or newer" in _gpu_device.ahead_of_time_files()
    with pytest.raises(compilers.CompileError, match="sm_120"):
        backend.compile_into(tmp_path, {"FASTKL_CUDA_ARCHS": "120"}, [])


def test_where_nvcc_fails_nvrtc_is_tried(compilers, monkeypatch):
    def refuses(*_):
        raise compilers.CompileError("nvcc refuses")

    monkeypatch.setattr(compilers, "compile_with_nvcc", lambda *_: (b"by nvcc", ""))
    monkeypatch.setattr(
        compilers, "Nvrtc", lambda: types.SimpleNamespace(compile=lambda *_: (b"by NVRTC", ""))
    )
    assert compilers.compile_ahead("", "sm_90", ()) == (b"by nvcc", "nvcc")
    monkeypatch.setattr(compilers, "compile_with_nvcc", refuses)
    assert compilers.compile_ahead("", "sm_90", ()) == (b"by NVRTC", "NVRTC")

    def absent():
        raise compilers.CompileError("NVRTC is not found")

    monkeypatch.setattr(compilers, "Nvrtc", absent)
    with pytest.raises(compilers.CompileError, match="nvcc refuses; NVRTC is not found"):
        compilers.compile_ahead("", "sm_90", ())


def test_the_loader_takes_only_what_belongs_to_the_sources(tmp_path):
    names = [f"fastkl-compute_{OLDEST}.ptx", "fastkl-sm_90.cubin"]
    assert _gpu_device.ahead_of_time(tmp_path, "x", 90) == []
    (tmp_path / "built.json").write_text(json.dumps({"digest": "x", "files": names}))
    assert [path.name for path in _gpu_device.ahead_of_time(tmp_path, "x", 90)] == [names[1], names[0]]
    assert [path.name for path in _gpu_device.ahead_of_time(tmp_path, "x", 120)] == [names[0]]
    assert _gpu_device.ahead_of_time(tmp_path, "x", 75) == []
    assert _gpu_device.ahead_of_time(tmp_path, "y", 90) == []
    cubins = ["fastkl-sm_80.cubin", "fastkl-sm_86.cubin", "fastkl-sm_90.cubin", "fastkl-sm_100.cubin"]
    (tmp_path / "built.json").write_text(json.dumps({"digest": "x", "files": [*cubins, names[0]]}))
    for capability, suits in ((80, cubins[:1]), (89, [cubins[1], cubins[0]]), (103, cubins[3:]), (120, [])):
        found = [path.name for path in _gpu_device.ahead_of_time(tmp_path, "x", capability)]
        assert found == [*suits, names[0]]


class FakeModule:
    def __init__(self, refused, **made):
        self.made, self.refused, self.asked = made, refused, set()

    def get_function(self, name):
        assert name in instances(SOURCE)
        self.found = name
        return self

    def __call__(self, *launch):
        self.launched = self.found, launch

    @property
    def num_regs(self):
        if "path" in self.made and self.refused:
            raise RuntimeError("unsupported PTX version")
        self.asked.add(self.found)
        return 32


def fake_device(capability, refused=False):
    """A CupyDevice on a stand-in for CuPy that loads everything, or refuses files."""
    device = object.__new__(_gpu_device.CupyDevice)
    device.number, device._module, device._functions, device.how = 0, None, {}, "not loaded"
    device._cupy = types.SimpleNamespace(
        RawModule=lambda **made: FakeModule(refused, **made),
        cuda=types.SimpleNamespace(
            Device=lambda _: types.SimpleNamespace(compute_capability=str(capability))
        ),
    )
    return device


def test_the_loader_says_how_the_kernels_came(tmp_path, monkeypatch):
    for path in emulation.FOLDER.glob("*.cu*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(_gpu_device, "source_folder", lambda: tmp_path)
    device = fake_device(90)
    assert device.module().made == {"code": SOURCE, "options": FLAGS}
    assert device.how == "compiled by CuPy at first use (nothing was compiled ahead of time)"
    assert "none compiled ahead of time" in _gpu_device.ahead_of_time_files()
    name = f"fastkl-compute_{OLDEST}.ptx"
    (tmp_path / "built.json").write_text(json.dumps({"digest": digest(SOURCE), "files": [name]}))
    device = fake_device(90)
    assert device.module().made == {"path": str(tmp_path / name)}
    assert device.how == f"compiled ahead of time ({name})"
    assert name in _gpu_device.ahead_of_time_files()
    device = fake_device(90, refused=True)
    assert device.module().made["code"] == SOURCE
    assert f"{name} was refused: unsupported PTX version" in device.how
    (tmp_path / "built.json").write_text(json.dumps({"digest": "old", "files": [name]}))
    assert "of other sources" in _gpu_device.ahead_of_time_files()


def test_a_launch_has_whole_blocks_and_null_pointers():
    device = fake_device(90)
    device.launch("group_sums", 129, None, np.int64(3))
    name, (grid, block, arguments) = device.module().launched
    assert (name, grid, block) == ("group_sums", (2,), (128,))
    assert [(type(value), value) for value in arguments] == [(np.uint64, 0), (np.int64, 3)]
    device.module().launched = None
    device.launch("group_sums", 0)
    assert device.module().launched is None


class FakeCuda:
    """CuPy's devices: entering one keeps, in the object that was entered, which was current before."""

    def __init__(self):
        self.current, self.asked = 0, 0
        self.runtime = self

    def getDeviceProperties(self, number):
        self.asked += 1
        return {"name": f"card {number}".encode()}

    def Device(self, number):
        before = []

        class Entered:
            def __enter__(_):
                before.append(self.current)
                self.current = number

            def __exit__(_, *error):
                self.current = before.pop()

        return Entered()


def test_devices_are_entered_and_left_in_turn():
    cuda = FakeCuda()
    first, second = fake_device(90), fake_device(90)
    for number, device in enumerate((first, second)):
        device.number, device._cupy = number, types.SimpleNamespace(cuda=cuda)
    with second:
        assert cuda.current == 1
        with first, second:
            assert cuda.current == 1
        assert cuda.current == 1
        with first:
            assert cuda.current == 0
    assert cuda.current == 0
    with pytest.raises(KeyError), second:
        raise KeyError
    assert cuda.current == 0
    assert [second.name, second.name, cuda.asked] == ["card 1", "card 1", 1]  # asked for once


def test_an_upload_keeps_the_shape_and_makes_rows_contiguous():
    device = fake_device(90)
    device._cupy.asarray = lambda array: array
    for array in (
        np.float64(3.0),
        np.array(3.0),
        np.ones(1),
        np.ones((2, 3)),
        np.asfortranarray(np.ones((2, 3))),
    ):
        got = device.upload(array)
        assert got.shape == array.shape
        assert got.flags.c_contiguous
        assert (got == array).all()


def test_warmup_loads_every_kernel(monkeypatch):
    device = fake_device(90)
    device.load_all()
    assert device.module().asked == set(instances(SOURCE))
    host = emulation.HostDevice()
    monkeypatch.setattr(_gpu_device, "current_device", lambda: host)
    assert fastkl.warmup(backend="gpu") >= 0.0
    assert (host.loaded, host.entered) == (True, 0)


# What is missing, and when a GPU pays


def test_what_is_missing_is_named_in_order(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(_gpu_device.importlib.util, "find_spec", lambda name: None)
    assert "the package CuPy is not installed" in _gpu_device.missing()
    assert "fastkl[gpu-cuda12]" in _gpu_device.missing()

    count, libraries = [0], []

    def driver(name):
        libraries.append(name)
        if len(libraries) == 1:
            raise OSError(name)

    runtime = types.SimpleNamespace(getDeviceCount=lambda: count[0])
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(ctypes, "CDLL", driver)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert "no NVIDIA driver" in _gpu_device.missing()
    assert _gpu_device.missing() == "CuPy finds no device"
    count[0] = 1
    assert _gpu_device.missing() is None

    def broken():
        raise RuntimeError("cudaErrorInsufficientDriver")

    runtime.getDeviceCount = broken
    assert "cudaErrorInsufficientDriver" in _gpu_device.missing()


def test_without_measured_costs_the_cpu_is_taken(monkeypatch):
    monkeypatch.setattr(
        _gpu_device, "missing", lambda: pytest.fail("nothing was measured: no GPU is looked for")
    )
    monkeypatch.setattr(_gpu_costs, "costs", lambda: {"cards": {}})
    assert not _gpu_costs.gpu_pays(1e18, 0.0, 1)


def test_a_gpu_pays_where_its_costs_say_so(monkeypatch):
    card = {"launch_s": 1e-4, "bytes_per_s": 1e10, "pairs_per_s": 1e12}
    monkeypatch.setattr(_gpu_costs, "costs", lambda: {"cpu_pairs_per_s": 1e9, "cards": {"card": card}})
    monkeypatch.setattr(_gpu_device, "missing", lambda: None)
    monkeypatch.setattr(_gpu_device, "current_device", lambda: types.SimpleNamespace(name="card"))
    assert _gpu_costs.gpu_pays(1e9, 1e7, 8)  # 125 ms here, 2 ms there
    assert not _gpu_costs.gpu_pays(1e5, 1e7, 8)  # 12 us here
    assert not _gpu_costs.gpu_pays(1e9, 1e9, 8)  # 101 ms there, most of it transfer: not twice as fast
    monkeypatch.setattr(_gpu_device, "current_device", lambda: types.SimpleNamespace(name="another"))
    assert not _gpu_costs.gpu_pays(1e9, 1e7, 8)
    monkeypatch.setattr(_gpu_device, "missing", lambda: "no driver")
    assert not _gpu_costs.gpu_pays(1e9, 1e7, 8)


@pytest.fixture
def trusted(monkeypatch):
    """A GPU that "auto" expects to pay, whatever the problem."""
    device = emulation.HostDevice()
    card = {"launch_s": 0.0, "bytes_per_s": 1e30, "pairs_per_s": 1e30}
    monkeypatch.setattr(_gpu_costs, "costs", lambda: {"cpu_pairs_per_s": 1e9, "cards": {"host": card}})
    monkeypatch.setattr(_gpu_costs, "TRUST", _gpu_costs.Trust())
    monkeypatch.setattr(_gpu_device, "missing", lambda: None)
    monkeypatch.setattr(_gpu_device, "current_device", lambda: device)
    return device


def every_function(**options):
    """The results of the functions on a small problem."""
    problem = [1.0, 2.0, 3.0], [[3.0, 1.0, 0.0], [4.0, 1.0, 0.0]]
    functions = (fastkl.divergence, fastkl.output_variance, fastkl.trajectory)
    return np.concatenate([function(*problem, **options).ravel() for function in functions])


def test_auto_takes_the_cpu_where_the_gpu_fails_and_warns_once(trusted, monkeypatch):
    expected, tried = every_function(backend="cpu"), []

    def launch(*arguments):
        tried.append(arguments)
        raise RuntimeError("NVRTC is not found")

    assert np.allclose(every_function(), expected, rtol=1e-12)
    assert trusted.log
    monkeypatch.setattr(trusted, "launch", launch)
    with pytest.warns(RuntimeWarning, match="computes on the CPU.*NVRTC is not found") as caught:
        assert (every_function() == expected).all()
    assert (len(caught), len(tried)) == (1, 1)
    assert (every_function() == expected).all()  # a second warning would be an error here
    assert len(tried) == 1
    with pytest.raises(RuntimeError, match="NVRTC"):
        every_function(backend="gpu")


def test_auto_goes_on_with_a_gpu_that_lacked_memory_once(trusted, monkeypatch):
    class Short(MemoryError):
        pass

    def empty(*_, **__):
        raise Short("1 GiB")

    expected = every_function(backend="cpu")
    monkeypatch.setattr(trusted, "OutOfMemory", Short, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(trusted, "empty", empty)
        with pytest.warns(RuntimeWarning, match="1 GiB") as caught:
            assert (every_function() == expected).all()
        assert len(caught) == 1
    trusted.log.clear()
    assert np.allclose(every_function(), expected, rtol=1e-12)
    assert trusted.log


def test_auto_takes_the_cpu_where_the_driver_fails_while_it_is_asked(trusted, monkeypatch):
    def broken():
        raise RuntimeError("cudaErrorUnknown")

    expected = every_function(backend="cpu")
    monkeypatch.setattr(_gpu_device, "current_device", broken)
    with pytest.warns(RuntimeWarning, match="cudaErrorUnknown") as caught:
        assert (every_function() == expected).all()
    assert len(caught) == 1


def test_auto_asks_the_costs_for_ddim_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(_gpu_costs, "gpu_pays", lambda *problem: bool(asked.append(problem)))
    fastkl.divergence([1.0, 2.0, 3.0], [[3.0, 1.0, 0.0], [4.0, 1.0, 0.0]], num_threads=2)
    fastkl.divergence([1.0, 2.0, 3.0], [3.0, 1.0, 0.0], sampler="heun")
    fastkl.divergence([1.0, 2.0, 3.0], [3.0, 1.0, 0.0], backend="cpu")
    assert asked == [(3 * 2 * 2, 8 * (3 + 6 + 2), 2)]
