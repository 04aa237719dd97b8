"""The CUDA sources without a GPU: compilers accept them, nothing spills, sanitizers are content, wheels have them."""

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
import pytest

from fastkl import _gpu_device
from fastkl._gpu_source import FLAGS, OLDEST, digest, instances, parts, unit

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
def test_nvrtc_compiles_every_part_by_itself(compilers):
    """What CuPy compiles at first use."""
    nvrtc, found = compilers.Nvrtc(), []
    for text in set(parts(emulation.FOLDER).values()):
        code, log = nvrtc.compile(text, f"compute_{OLDEST}", FLAGS)
        assert set(re.findall(r"warning #(\d+)", log)) <= {"177"}, log  # a constant that only other parts use
        found += [name for name in instances(text) if f".entry {name}(".encode() in code]
    assert sorted(found) == instances(SOURCE)


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
                arrays = map(emulation.HostArray, (np.array(spectrum.eigenvalues), levels))
                function(*arrays, sampler=sampler)
device.claimed = 30_000  # pieces
for sampler in ("ddim", "heun", "euler_ancestral"):
    for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
        function(spectrum, SCHEDULES["fine"](5, 16), sampler=sampler, backend="gpu")
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


# Wheels


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
