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


class HostCard:
    """A card on the host: every call takes a millisecond."""

    rounds = 1

    def multiply_adds_per_s(self):
        return 1e12

    def copied_bytes_per_s(self):
        return 1e12

    def description(self):
        return {
            "card": "NVIDIA X 1",
            "driver": 13000,
            "cuda_runtime": 13000,
            "cupy": "14",
            "kernels": "compiled",
        }

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


def test_the_problems_cover_what_is_to_be_measured(gpu):
    every = list(gpu.problems(quick=False))
    assert every[0] == (10**6, 1000, 16, "plain")
    assert {kind for *case, kind in every if tuple(case) == gpu.CONTRACT} == set(gpu.KINDS)
    assert {d for d, *_ in every} == set(gpu.SIZES)
    assert {m for _, m, *_ in every} == set(gpu.COUNTS)
    assert {n for _, _, n, _ in every} == set(gpu.STEPS)
    assert len(set(every)) == len(every)
    assert next(gpu.problems(quick=True)) == every[0]


def test_all_timings_fit_ten_minutes_at_half_the_predicted_speed(gpu):
    calls = 2 * (1 + gpu.LONG_ROUNDS)  # float32 too
    seconds = sum(float(d) * m * n for d, m, n, _ in gpu.problems(quick=False)) * calls / 2e12
    assert 10 < seconds < 120  # the rest is for the comparison with the CPU and for moving data


def test_kinds_are_what_they_are_called(gpu):
    for steps in gpu.STEPS:
        eigenvalues, levels, prior = gpu.problem(np, 2000, 3, steps, "near")
        target = eigenvalues + levels[:, -1:] ** 2
        ratio = target / fastkl.output_variance(eigenvalues, levels, prior=prior)
        assert 0.01 < np.abs(ratio - 1.0).max() < 0.0625  # what the kernels take for near
        assert (
            fastkl.divergence(eigenvalues, levels, prior=prior).min() / 2000 > 1e-5
        )  # and not for cancelled
    spectrum, _, _ = gpu.problem(np, 2000, 3, 4, "counts")
    assert set(spectrum.counts) == {1.0, 2.0, 3.0}


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
    measured = {**card.description(), "date": "2026-01-01", "commit": "0" * 40, "agreement": {"kl": 1e-14},
                "sanitizer": gpu.sanitizer_missing(), "fma_per_s": 1e12, "copied_bytes_per_s": 1e12, "rows": [row],
                "costs": costs, "failures": ["no luck"]}  # fmt: skip
    lines = "\n".join(report.gpu([json.loads(json.dumps(measured))]))
    assert "NVIDIA X 1" in lines
    assert "| 2,000 | 3 | 4 | 1 ms |" in lines
    assert "compute-sanitizer is not installed" in lines
    assert "Failed: no luck." in lines


@pytest.fixture
def card(gpu, device, monkeypatch):
    """A card on which every row takes no time; two rows after the first."""
    every = [(*gpu.CONTRACT, "plain"), (10, 2, 4, "counts"), (20, 2, 4, "plain")]
    monkeypatch.setattr(gpu, "problems", lambda quick: iter(every))
    monkeypatch.setattr(
        gpu, "timing", lambda card, d, m, n, rate, kind: {"d": d, "kind": kind, "pairs_per_s": rate}
    )
    monkeypatch.setattr(gpu, "costs", lambda card, rows: {"pairs_per_s": rows[0]["pairs_per_s"]})
    made = HostCard(device)
    made.device = types.SimpleNamespace(name="NVIDIA X 1")
    return made


def options(gpu, tmp_path, *, sanitizer=False):
    return types.SimpleNamespace(out=tmp_path, sanitizer=sanitizer, quick=True, costs=False)


def test_every_row_is_on_disk_at_once_and_the_contract_case_first(gpu, card, monkeypatch, tmp_path):
    path, seen = tmp_path / "gpu-nvidia-x-1.json", []

    def agreement():
        seen.append([row["d"] for row in json.loads(path.read_text())["rows"]])
        return {"kl": 1e-14}

    monkeypatch.setattr(gpu, "agreement", agreement)
    assert gpu.on_card(card, options(gpu, tmp_path)) == 0
    assert seen == [[10**6]]
    written = json.loads(path.read_text())
    assert [row["d"] for row in written["rows"]] == [10**6, 10, 20]
    assert (written["failures"], written["agreement"], written["costs"]) == (
        [],
        {"kl": 1e-14},
        {"pairs_per_s": 1e12},
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_disagreement_or_a_failure_is_recorded_and_the_rest_is_measured(
    gpu, card, monkeypatch, tmp_path, capsys
):
    plain = gpu.timing

    def timing(card, d, *rest):
        if d == 10:
            raise MemoryError("no room")
        return plain(card, d, *rest)

    monkeypatch.setattr(gpu, "timing", timing)
    monkeypatch.setattr(gpu, "agreement", lambda: {"kl": 1e-3, "w2": float("inf")})
    assert gpu.on_card(card, options(gpu, tmp_path)) == 1
    written = json.loads((tmp_path / "gpu-nvidia-x-1.json").read_text())
    assert [row["d"] for row in written["rows"]] == [10**6, 20]
    assert written["agreement"]["kl"] == 1e-3
    assert len(written["failures"]) == 2
    assert "disagrees with the CPU: {'kl': 0.001" in written["failures"][0]
    assert "counts 10 2 4: MemoryError: no room" in written["failures"][1]
    assert "with failures" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "good"), [(0, True), (9, False)])
def test_the_sanitizers_exit_status_counts_and_rows_are_kept(gpu, card, monkeypatch, tmp_path, status, good):
    monkeypatch.setattr(gpu, "agreement", lambda: {"kl": 1e-14})
    assert gpu.on_card(card, options(gpu, tmp_path)) == 0
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    done = types.SimpleNamespace(returncode=status, stdout="===== ERROR SUMMARY: 7 errors\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **_: done)
    assert (gpu.on_card(card, options(gpu, tmp_path, sanitizer=True)) == 0) is good
    written = json.loads((tmp_path / "gpu-nvidia-x-1.json").read_text())
    assert written["sanitizer"] == dict.fromkeys(gpu.TOOLS, f"exit status {status}: ERROR SUMMARY: 7 errors")
    assert len(written["rows"]) == 3


def test_a_sanitizer_that_is_missing_or_hangs_is_no_success(gpu, monkeypatch):
    def hangs(command, timeout, **_):
        raise gpu.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.sanitizer() == (gpu.sanitizer_missing(), False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu.subprocess, "run", hangs)
    found, good = gpu.sanitizer()
    assert not good
    assert set(found.values()) == {"not over after 180 s"}


def test_the_sanitizers_problems_run_without_a_pool(gpu, monkeypatch):
    calls = []
    cupy = types.SimpleNamespace(cuda=types.SimpleNamespace(set_allocator=calls.append))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(_gpu_device, "missing", lambda: None)
    monkeypatch.setattr(gpu, "small_problems", lambda: calls.append("problems"))
    assert gpu.main(["--small-problems"]) == 0
    assert calls == [None, "problems"]


def test_long_calls_are_repeated_less(gpu, monkeypatch):
    for seconds, calls in ((1e-3, 17), (1.0, 1 + gpu.LONG_ROUNDS)):
        card, made = object.__new__(gpu.Card), []
        card.rounds = 15
        monkeypatch.setattr(
            card, "once", lambda call, made=made, seconds=seconds: made.append(call) or seconds
        )
        assert card.seconds(print) == seconds
        assert len(made) == calls


def test_nothing_measured_is_said_so(report):
    assert "GPU: not measured" in report.gpu([])[0]
    assert "GPU: not measured" in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8") or list(
        (BENCHMARKS / "results").glob("gpu-*.json")
    )


def test_file_names(gpu):
    assert gpu.file_name("NVIDIA H100 80GB HBM3") == "gpu-nvidia-h100-80gb-hbm3.json"
    assert "gpu" in sys.modules
