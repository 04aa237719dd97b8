"""Everything about the GPU backend that needs a GPU, in one go: right first, then fast.

Run on a machine with a GPU and CuPy as `python benchmarks/gpu.py` (about ten minutes; `--quick` about two). It

1. compares every function, metric, prior and sampler with the CPU over the case table of the tests (1e-12 relative);
2. runs compute-sanitizer (memcheck, initcheck, racecheck) on small cases, where it is installed;
3. measures the card's own rate of float64 multiply-adds and its copy bandwidth;
4. times exact evaluation for d = 1e4 to 1e7, M = 1 to 1e5, N = 4 to 100, and CuPy elementwise beside it;
5. writes benchmarks/results/gpu-<card>.json, and with `--costs` what `backend="auto"` goes by.

`--rehearse` does 1 and 2's problems on any machine, with the kernels built by the host's compiler (it writes nothing).

Predictions, written before anything was measured (H100 SXM: 132 multiprocessors x 64 float64 lanes x 1.98 GHz =
16.7e12 multiply-adds/s; 3.35e12 bytes/s). For `kl`, d = 1e6, M = 1000, N = 16:

- floor: 2 x 16 multiply-adds for each of 1e9 ratios, 1.9 ms; bytes: 8 MB of eigenvalues and 31 MB of sums, nothing;
- float64 operations of a ratio beside the 32: 2 products of chunks, 1 square, 22 products and a division of 8
  operations shared by 8 ratios, 5 for scale and target, 4 for q - 1, its size, the sum and the product of ratios:
  16 more. So 67 % of the multiply-add rate if those alone bound it: 2.9 ms. Some 40 integer operations a ratio take
  the issue slots that float64, at half rate, leaves free, and about fill them: 55 % is the pessimist's figure;
- 208 registers: 2 blocks of 128 threads a multiprocessor, 2 warps a scheduler with 16 independent chains each, enough
  to hide the latency of a multiply-add;
- other kernels of the call (polynomials 30 us, sums 20 us, the check of rounding errors 30 us): under 0.1 ms;
- CuPy elementwise moves about 5 x 16 bytes x 16 steps for each ratio: 1.3e12 bytes, 0.4 s, over 100 times as long;
- one candidate on d = 1e7: 80 MB at 3.35e12 bytes/s is 24 us, arithmetic 29 us, a dozen launches 50 us: about 0.1 ms;
- N = 100 reads its coefficients from the L1 cache, 16 bytes for 16 multiply-adds of a thread: about 50 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np

import fastkl
from fastkl import _gpu_device, samplers

sys.path.append(str(machine.ROOT / "tests"))
import cases

RESULTS = Path(__file__).resolve().parent / "results"
COSTS = machine.ROOT / "fastkl" / "data" / "gpu_costs.json"
AGREEMENT = 1e-12
SIZES, COUNTS, STEPS = (10**4, 10**5, 10**6, 10**7), (1, 10, 100, 1000, 10**4, 10**5), (4, 10, 16, 100)
MOST_PAIRS = 2e13  # of one timing: about two seconds on an H100
CONTRACT = {"d": 10**6, "M": 1000, "N": 16}
TOOLS = ("memcheck", "initcheck", "racecheck")


def difference(got: Any, expected: Any) -> float:
    """Return the largest relative difference; equal infinities differ by 0, a NaN by inf."""
    got, expected = np.asarray(got), np.asarray(expected)
    with np.errstate(all="ignore"):
        error = np.where(got == expected, 0.0, np.abs(got / expected - 1.0))
    return float(np.where(np.isnan(error), np.inf, error).max())


def on_both(function: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    """Return how much a call's results on the GPU and on the CPU differ."""
    return difference(*(function(*arguments, backend=backend, **options) for backend in ("gpu", "cpu")))


def agreement() -> dict[str, float]:
    """Return the largest difference from the CPU for each metric, function and sampler over the case table."""
    worst: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        worst[name] = max(worst.get(name, 0.0), value)

    for shape, make, prior in itertools.product(
        cases.SMALL_SHAPES.values(), cases.SPECTRA.values(), cases.PRIORS
    ):
        spectrum = fastkl.Spectrum(**make(shape[0]))
        for schedule in cases.SCHEDULES.values():
            levels = schedule(*shape[1:])
            for metric in cases.METRICS:
                note(metric, on_both(fastkl.divergence, spectrum, levels, metric, prior=prior))
            for function in (fastkl.output_variance, fastkl.trajectory):
                note(function.__name__, on_both(function, spectrum, levels, prior=prior))
    for name in samplers.names():
        for schedule, steps, size in (("karras", 6, 1030), ("fine", 6, 7)):
            levels = cases.SCHEDULES[schedule](3, steps)
            if samplers.get(name).above_zero and levels[0, -1] == 0.0:
                levels = levels[:, :-1]
            spectrum = fastkl.Spectrum(**cases.with_mean(size))
            for function in (fastkl.divergence, fastkl.output_variance, fastkl.trajectory):
                note(name, on_both(function, spectrum, levels, sampler=name))
    return worst


def small_problems() -> None:
    """Run every kernel on problems with tails: what compute-sanitizer looks at."""
    for (size, count), steps in itertools.product(((1, 1), (9, 33), (1033, 2)), (1, 4, 9, 17)):
        spectrum = fastkl.Spectrum(**cases.with_mean(size))
        for schedule, metric in itertools.product(("karras", "fine"), cases.METRICS):
            levels = cases.SCHEDULES[schedule](count, steps)
            fastkl.divergence(spectrum, levels, metric, prior="exact", backend="gpu")
            fastkl.divergence(spectrum, levels, metric, backend="gpu", precision="float32")
        for function, sampler in itertools.product(
            (fastkl.output_variance, fastkl.trajectory), ("ddim", "heun", "euler_ancestral")
        ):
            function(spectrum, cases.karras(count, 5), sampler=sampler, backend="gpu")
        for sampler, schedule in itertools.product(("heun", "unipc_3", "sde_dpmpp_2m"), ("karras", "fine")):
            fastkl.divergence(spectrum, cases.SCHEDULES[schedule](count, 5), sampler=sampler, backend="gpu")


def sanitizer_missing() -> dict[str, str]:
    """Return what stands in the result where there is no compute-sanitizer."""
    return dict.fromkeys(TOOLS, "not run: compute-sanitizer is not installed")


def sanitizer() -> dict[str, str]:
    """Return what compute-sanitizer says to the small problems, or that it is not installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return sanitizer_missing()
    found = {}
    for name in TOOLS:
        command = [
            tool,
            "--tool",
            name,
            "--error-exitcode",
            "9",
            sys.executable,
            __file__,
            "--small-problems",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line] or ["no summary"]
        found[name] = f"exit status {done.returncode}: {lines[-1].strip('= ')}"
    return found


MULTIPLY_ADDS = """
extern "C" __global__ void multiply_adds(double *out, double x, long long repeats) {
    double u[16];
    for (int j = 0; j < 16; j++) u[j] = threadIdx.x + j;
    for (long long i = 0; i < repeats; i++)
        #pragma unroll
        for (int j = 0; j < 16; j++) u[j] = fma(u[j], x, 0.5);
    double sum = 0.0;
    for (int j = 0; j < 16; j++) sum += u[j];
    if (sum == 12345.0) out[0] = sum;
}
"""


class Card:
    """A card, and how things are timed on it."""

    def __init__(self, rounds: int) -> None:
        import cupy

        self.cupy, self.rounds = cupy, rounds
        self.device = _gpu_device.current_device()
        self.properties = cupy.cuda.runtime.getDeviceProperties(self.device.number)

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median time of a call between two events of the stream, after two calls that do not count."""
        call(), call()
        times = []
        for _ in range(self.rounds):
            start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(self.cupy.cuda.get_elapsed_time(start, end) * 1e-3)
        return statistics.median(times)

    def multiply_adds_per_s(self) -> float:
        """Return the rate of float64 multiply-adds with 16 chains a thread."""
        kernel, out = self.cupy.RawKernel(MULTIPLY_ADDS, "multiply_adds"), self.cupy.zeros(1)
        blocks, threads, repeats = 8 * self.properties["multiProcessorCount"], 256, 4096
        seconds = self.seconds(
            lambda: kernel((blocks,), (threads,), (out, np.float64(0.999), np.int64(repeats)))
        )
        return blocks * threads * repeats * 16 / seconds

    def copied_bytes_per_s(self) -> float:
        """Return the bandwidth of a copy on the card, bytes read and written."""
        source = self.cupy.ones(1 << 27)
        target = self.cupy.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: self.cupy.copyto(target, source))

    def description(self) -> dict[str, Any]:
        """Return the card, its software and how the kernels were compiled."""
        runtime = self.cupy.cuda.runtime
        return {
            "card": self.device.name,
            "compute_capability": f"{self.properties['major']}.{self.properties['minor']}",
            "multiprocessors": self.properties["multiProcessorCount"],
            "driver": runtime.driverGetVersion(),
            "cuda_runtime": runtime.runtimeGetVersion(),
            "cupy": self.cupy.__version__,
            "kernels": self.device.how,
        }


def elementwise(cupy: Any, eigenvalues: Any, levels: Any) -> Any:
    """Return kl, prior vp, as one writes it with arrays: an operation on (candidates, d) at a time."""
    first = levels[:, :1]
    variance = (1.0 + first * first) * cupy.ones_like(eigenvalues)
    for k in range(levels.shape[1] - 1):
        here, there = levels[:, k : k + 1], levels[:, k + 1 : k + 2]
        variance *= ((eigenvalues + here * there) / (eigenvalues + here * here)) ** 2
    ratio = (eigenvalues + levels[:, -1:] ** 2) / variance
    return (0.5 * (ratio - 1.0 - cupy.log(ratio))).sum(axis=1)


def problems(quick: bool) -> Iterator[tuple[int, int, int]]:
    """Yield d, M and N of the timings, none too long."""
    sizes, counts, steps = (SIZES, COUNTS, STEPS) if not quick else ((10**4, 10**6), (1, 1000), (4, 16))
    for d, m, n in itertools.product(sizes, counts, steps):
        if float(d) * m * n <= MOST_PAIRS:
            yield d, m, n


def timing(card: Card, d: int, m: int, n: int, rate: float) -> dict[str, Any]:
    """Return the times of one problem whose arrays are on the card."""
    cupy = card.cupy
    eigenvalues = cupy.asarray(cases.log_normal(d)["eigenvalues"])
    levels = cupy.asarray(cases.power_uniform(m, n))
    seconds = card.seconds(lambda: fastkl.divergence(eigenvalues, levels))
    single = card.seconds(lambda: fastkl.divergence(eigenvalues, levels, precision="float32"))
    few = max(
        1, min(m, (1 << 26) // d)
    )  # the naive way needs M x d temporaries: its time for a part is scaled up
    naive = card.seconds(lambda: elementwise(cupy, eigenvalues, levels[:few])) * m / few
    pairs = float(d) * m * n
    return {"d": d, "M": m, "N": n, "seconds": seconds, "pairs_per_s": pairs / seconds,
            "share_of_fma_rate": 2 * pairs / seconds / rate, "float32_seconds": single,
            "elementwise_seconds": naive, "times_elementwise": naive / seconds}  # fmt: skip


def costs(card: Card, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what a call on the host's arrays costs: launches, transfer, and work at the best rate seen."""
    import time

    def host_seconds(call: Callable[[], object]) -> float:
        times = []
        for _ in range(card.rounds + 1):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    tiny, large = np.ones(8), np.ones(1 << 24)
    launch = host_seconds(lambda: fastkl.divergence(tiny, [[3.0, 1.0, 0.0]], backend="gpu"))
    moved = host_seconds(lambda: card.device.download(card.device.upload(large)))
    return {"launch_s": launch, "bytes_per_s": 2 * large.nbytes / moved,
            "pairs_per_s": max(row["pairs_per_s"] for row in rows)}  # fmt: skip


def write_costs(card: str, measured: dict[str, float]) -> None:
    """Write a card's costs to the file that `backend="auto"` goes by; the CPU's rate is that of results/cpu.json."""
    cpu = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))
    one_thread = [row["eigenvalue_steps_per_s"] for row in cpu["rates"] if row["threads"] == 1]
    known = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {"cards": {}}
    known["cpu_pairs_per_s"] = max(one_thread)
    known["cards"][card] = measured
    COSTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def file_name(card: str) -> str:
    """Return the result file's name for a card."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"


def measure(quick: bool) -> dict[str, Any]:
    """Check and measure everything; raise if the GPU disagrees with the CPU."""
    worst = agreement()
    print("largest differences from the CPU:", json.dumps(worst, indent=1))
    wrong = {name: value for name, value in worst.items() if not value <= AGREEMENT}
    if wrong:
        raise SystemExit(f"the GPU disagrees with the CPU: {wrong}; nothing is timed")
    checks = sanitizer()
    card = Card(rounds=5 if quick else 15)
    rate, bandwidth = card.multiply_adds_per_s(), card.copied_bytes_per_s()
    print(f"{card.device.name}: {rate:.3g} multiply-adds/s, {bandwidth:.3g} bytes/s")
    rows = []
    for d, m, n in problems(quick):
        rows.append(timing(card, d, m, n, rate))
        print(json.dumps(rows[-1]))
    return {**machine.description(), **card.description(), "agreement": worst, "sanitizer": checks,
            "fma_per_s": rate, "copied_bytes_per_s": bandwidth, "rows": rows, "costs": costs(card, rows)}  # fmt: skip


def rehearse() -> None:
    """Run the comparison and the small problems with the kernels built for the host."""
    import emulation

    stand_in = emulation.HostDevice()
    _gpu_device.current_device = lambda: stand_in
    small_problems()
    worst = agreement()
    print(json.dumps(worst, indent=1))
    if not max(worst.values()) <= AGREEMENT:
        raise SystemExit("the kernels disagree with the CPU")
    print(f"{len(stand_in.log)} launches on the host; {len(list(problems(False)))} timings wait for a GPU")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few sizes, few rounds")
    parser.add_argument("--costs", action="store_true", help=f"also write {COSTS.relative_to(machine.ROOT)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU: the same kernels built for the host"
    )
    parser.add_argument("--small-problems", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rehearse:
        rehearse()
        return 0
    lack = _gpu_device.missing()
    if lack is not None:
        print(f"benchmarks/gpu.py: {lack}; --rehearse runs what can be run without", file=sys.stderr)
        return 1
    if options.small_problems:
        small_problems()
        return 0
    result = measure(options.quick)
    path = options.out / file_name(result["card"])
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.costs:
        write_costs(result["card"], result["costs"])
    print(f"wrote {os.fspath(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
