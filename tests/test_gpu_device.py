"""The layer between fastkl and CuPy, on stand-ins for CuPy: the loader, launches, devices, and what is missing."""

import ctypes
import json
import sys
import types

import emulation
import numpy as np
import pytest

import fastkl
from fastkl import _gpu_device
from fastkl._gpu_source import FLAGS, OLDEST, digest, instances, parts, unit

SOURCE, PARTS = unit(emulation.FOLDER), parts(emulation.FOLDER)


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
        assert name in instances(self.made.get("code", SOURCE))
        self.found = name
        return FakeFunction(self, name)


class FakeFunction:
    def __init__(self, module, name):
        self.module, self.name, self.launched = module, name, None

    def __call__(self, *launch):
        self.launched = launch

    @property
    def num_regs(self):
        if "path" in self.module.made and self.module.refused:
            raise RuntimeError("unsupported PTX version")
        self.module.asked.add(self.name)
        return 32


def fake_device(capability, refused=False):
    """A CupyDevice on a stand-in for CuPy that loads everything, or refuses files; `loaded` has the modules."""
    device = object.__new__(_gpu_device.CupyDevice)
    device.number, device._functions, device.loaded = 0, {}, []

    def module(**made):
        device.loaded.append(FakeModule(refused, **made))
        return device.loaded[-1]

    device._cupy = types.SimpleNamespace(
        RawModule=module,
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
    count = len(set(PARTS.values()))
    assert (
        device.how
        == f"compiled by CuPy at first use, 0 of {count} parts so far (nothing was compiled ahead of time)"
    )
    device.function("group_sums")
    assert device.loaded[0].made == {"code": PARTS["group_sums"], "options": FLAGS}
    assert f", 1 of {count} parts so far" in device.how
    assert "none compiled ahead of time" in _gpu_device.ahead_of_time_files()
    name = f"fastkl-compute_{OLDEST}.ptx"
    (tmp_path / "built.json").write_text(json.dumps({"digest": digest(SOURCE), "files": [name]}))
    device = fake_device(90)
    device.function("group_sums")
    device.function("ddim_entropies_16_1")
    assert [module.made for module in device.loaded] == [{"path": str(tmp_path / name)}]
    assert device.how == f"compiled ahead of time ({name})"
    assert name in _gpu_device.ahead_of_time_files()
    device = fake_device(90, refused=True)
    device.function("group_sums")
    assert device.loaded[-1].made["code"] == PARTS["group_sums"]
    assert f"{name} was refused: unsupported PTX version" in device.how
    (tmp_path / "built.json").write_text(json.dumps({"digest": "old", "files": [name]}))
    assert "of other sources" in _gpu_device.ahead_of_time_files()


def test_a_first_call_compiles_what_it_needs():
    """One file of entry points, and of the fast kernel one instance."""
    device = fake_device(90)
    for _ in range(2):
        for name in (
            "spectrum_totals",
            "group_sums",
            "ddim_expand",
            "ddim_entropies_16_1",
            "ddim_refine",
            "ddim_finish",
        ):
            device.function(name)
    sources = [module.made["code"] for module in device.loaded]
    assert sources == [PARTS["group_sums"], PARTS["ddim_entropies_16_1"]]
    assert instances(sources[1]) == ["ddim_entropies_16_1"]


def test_every_kernel_is_in_its_part():
    assert sorted(PARTS) == instances(SOURCE)
    assert all(name in instances(text) for name, text in PARTS.items())
    assert sorted(name for text in set(PARTS.values()) for name in instances(text)) == instances(SOURCE)


def test_a_launch_has_whole_blocks_and_null_pointers():
    device = fake_device(90)
    device.launch("group_sums", 129, None, np.int64(3))
    function = device.function("group_sums")
    grid, block, arguments = function.launched
    assert (grid, block) == ((2,), (128,))
    assert [(type(value), value) for value in arguments] == [(np.uint64, 0), (np.int64, 3)]
    function.launched = None
    device.launch("group_sums", 0)
    assert function.launched is None


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
    assert sorted(name for module in device.loaded for name in module.asked) == instances(SOURCE)
    host = emulation.HostDevice()
    monkeypatch.setattr(_gpu_device, "current_device", lambda: host)
    assert fastkl.warmup(backend="gpu") >= 0.0
    assert (host.loaded, host.entered) == (True, 0)


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
