"""When "auto" takes a GPU, and what it does where that fails."""

import types

import emulation
import numpy as np
import pytest

import fastkl
from fastkl import _gpu_costs, _gpu_device


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
