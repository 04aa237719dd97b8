"""benchmarks/gpu.py as far as it goes without a GPU: arguments, problems, what is written, and its table."""

import importlib
import json
import sys
import types
from pathlib import Path

import cases
import emulation
import numpy as np
import pytest

import fastkl
from fastkl import _gpu_costs, _gpu_device

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


@pytest.fixture
def device(monkeypatch):
    made = emulation.HostDevice()
    monkeypatch.setattr(_gpu_device, "current_device", lambda: made)
    monkeypatch.setattr(_gpu_device, "device_of", lambda array: made)
    return made


class HostCard:
    """A card on the host: every call takes a millisecond."""

    rounds = 1

    def __init__(self, device):
        self.device = device
        self.cupy = types.SimpleNamespace(asarray=lambda array: emulation.HostArray(np.asarray(array)))
        self.calls = 0

    def seconds(self, call):
        call()
        self.calls += 1
        return 1e-3


def test_without_a_gpu_it_says_what_is_missing(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(_gpu_device, "missing", lambda: "there is no driver")
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "there is no driver; --rehearse" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_compares_and_writes_nothing(gpu, monkeypatch, capsys, device, tmp_path):
    monkeypatch.setattr(cases, "SMALL_SHAPES", {"few": (5, 7, 4), "ragged": (1030, 2, 17)})
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    worst = json.loads(out[: out.rindex("}") + 1])
    assert {*cases.METRICS, "output_variance", "trajectory", "heun", "unipc_3"} <= set(worst)
    assert max(worst.values()) <= gpu.AGREEMENT
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_fails_where_the_kernels_are_wrong(gpu, monkeypatch, device):
    monkeypatch.setattr(gpu, "small_problems", lambda: None)
    monkeypatch.setattr(gpu, "agreement", lambda: {"kl": 1e-3})
    with pytest.raises(SystemExit, match="disagree"):
        gpu.main(["--rehearse"])
    with pytest.raises(SystemExit, match="nothing is timed"):
        gpu.measure(quick=True)


def test_the_problems_cover_what_is_to_be_measured(gpu):
    every = list(gpu.problems(quick=False))
    assert (10**6, 1000, 16) in every
    assert {d for d, _, _ in every} == set(gpu.SIZES)
    assert {m for _, m, _ in every} == set(gpu.COUNTS)
    assert {n for _, _, n in every} == set(gpu.STEPS)
    assert (10**6, 1000, 16) in list(gpu.problems(quick=True))


def test_the_naive_way_is_right(gpu):
    eigenvalues, levels = cases.log_normal(50)["eigenvalues"], cases.power_uniform(4, 6)
    assert np.allclose(
        gpu.elementwise(np, eigenvalues, levels), fastkl.divergence(eigenvalues, levels), rtol=1e-12
    )


def test_a_result_has_what_the_table_and_the_costs_take(gpu, report, monkeypatch, device, tmp_path):
    card = HostCard(device)
    naive = []
    monkeypatch.setattr(gpu, "elementwise", lambda cupy, eigenvalues, levels: naive.append(levels.shape))
    row = gpu.timing(card, 2000, 3, 4, 1e12)
    assert naive == [(3, 5)]
    assert (row["seconds"], row["times_elementwise"]) == (1e-3, 1.0)
    assert row["pairs_per_s"] == pytest.approx(2000 * 3 * 4 / 1e-3)
    assert row["share_of_fma_rate"] == pytest.approx(2 * row["pairs_per_s"] / 1e12)
    costs = gpu.costs(card, [row])
    assert set(costs) == {"launch_s", "bytes_per_s", "pairs_per_s"}
    assert min(costs.values()) > 0
    monkeypatch.setattr(gpu, "COSTS", tmp_path / "gpu_costs.json")
    gpu.write_costs("NVIDIA X 1", costs)
    gpu.write_costs("NVIDIA X 2", costs)
    written = json.loads((tmp_path / "gpu_costs.json").read_text())
    assert set(written["cards"]) == {"NVIDIA X 1", "NVIDIA X 2"}
    assert _gpu_costs.seconds_on_gpu(written["cards"]["NVIDIA X 1"], 1e9, 1e6) > 0
    assert _gpu_costs.seconds_on_cpu(written, 1e9, 2) > 0
    description = {"card": "NVIDIA X 1", "driver": 13000, "cuda_runtime": 13000, "cupy": "14", "kernels": "compiled",
                   "date": "2026-01-01", "commit": "0" * 40}  # fmt: skip
    measured = {**description, "agreement": {"kl": 1e-14}, "sanitizer": gpu.sanitizer_missing(), "fma_per_s": 1e12,
                "copied_bytes_per_s": 1e12, "rows": [row], "costs": costs}  # fmt: skip
    lines = "\n".join(report.gpu([json.loads(json.dumps(measured))]))
    assert "NVIDIA X 1" in lines
    assert "| 2,000 | 3 | 4 | 1 ms |" in lines
    assert "compute-sanitizer is not installed" in lines


def test_nothing_measured_is_said_so(report):
    assert "GPU: not measured" in report.gpu([])[0]
    assert "GPU: not measured" in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8") or list(
        (BENCHMARKS / "results").glob("gpu-*.json")
    )


def test_file_names(gpu):
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3.json"
    assert "gpu" in sys.modules
