"""Everything about the GPU backend that needs a GPU, in one go.

Run on a machine with a GPU and CuPy as `python benchmarks/gpu.py` (some five minutes; `--quick` about two). It

1. measures the card's own rate of float64 multiply-adds and its copy bandwidth;
2. times exact evaluation of the contract case, d = 1e6, M = 1000, N = 16, before anything else;
3. compares every function, metric, prior and sampler with the CPU over the case table of the tests (1e-12 relative);
4. times d = 1e4 to 1e7, M = 1 to 1e5, N = 4 to 100, counts, and ratios near 1, and CuPy elementwise beside it.

benchmarks/results/gpu-<card>.json is written anew after every row. A disagreement or a failure is recorded there and
makes the exit status 1. `--costs` also writes what `backend="auto"` goes by. `--sanitizer` runs compute-sanitizer
(memcheck, initcheck, racecheck) on small cases, and nothing else, and adds what it says to that file. `--rehearse`
does 3 and the sanitizer's problems on any machine, with the kernels built by the host's compiler (it writes nothing).

Predictions, written before anything was measured (H100 SXM: 132 multiprocessors x 64 float64 lanes x 1.98 GHz =
16.7e12 multiply-adds/s; 3.35e12 bytes/s). For `kl`, d = 1e6, M = 1000, N = 16:

- floor: 2 x 16 multiply-adds for each of 1e9 ratios, 1.9 ms; bytes: 8 MB of eigenvalues and 31 MB of sums, nothing;
- in the code that nvcc 13.0 makes for sm_90 of `ddim_entropies_16_1` a warp's batch of 8 ratios, all far from 1 and
  with a last level of 0, has 446 issued instructions (478 from NVRTC 13.5), 326 of them float64, of which 256 are those
  multiply-adds. Float64 issues every other cycle, so its pipe allows at most 256/326 = 78.5 % of the multiply-add rate;
  the other 120 fit the 326 slots in between. Expected 63 to 68 %, 2.8 to 3 ms. (504 and 364 before, at first 783 and
  396.) A batch with ratios near 1 takes a logarithm for each of those besides;
- 196 registers: 2 blocks of 128 threads a multiprocessor, 2 warps a scheduler with 16 independent chains each, enough
  to hide the latency of a multiply-add. Three blocks, 168 registers, would spill 20 to 56 bytes of most instances;
- other kernels of the call (polynomials 30 us, sums 20 us, the check of rounding errors 30 us): under 0.1 ms;
- CuPy elementwise moves about 5 x 16 bytes x 16 steps for each ratio: 1.3e12 bytes, 0.4 s, about 100 times as long;
- one candidate on d = 1e7: 80 MB at 3.35e12 bytes/s is 24 us, arithmetic 40 us, a dozen launches 50 us: about 0.1 ms;
- N = 100 reads its coefficients from the L1 cache, 16 bytes for 16 multiply-adds of a thread: 40 to 50 %.
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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
from gpu_checks import AGREEMENT, agreement, small_problems

import fastkl
from fastkl import _gpu_device

sys.path.append(str(machine.ROOT / "tests"))
import cases

RESULTS = Path(__file__).resolve().parent / "results"
COSTS = machine.ROOT / "fastkl" / "data" / "gpu_costs.json"
SIZES, COUNTS, STEPS = (10**4, 10**5, 10**6, 10**7), (1, 10, 100, 1000, 10**4, 10**5), (4, 10, 16, 100)
MOST_PAIRS = 1e12  # of one timing: a quarter of a second on an H100, so that all are over in a minute or two
LONG, LONG_ROUNDS = 0.02, 3  # seconds of a call from which on it is repeated less often
NAIVE_ELEMENTS = 1 << 24  # of the arrays of the elementwise way
CONTRACT = (10**6, 1000, 16)  # d, M, N
KINDS = ("plain", "counts", "near")
TOOLS = ("memcheck", "initcheck", "racecheck")
TOOL_SECONDS = 180


def sanitizer_missing() -> dict[str, str]:
    """Return what stands in the result where there is no compute-sanitizer."""
    return dict.fromkeys(TOOLS, "not run: compute-sanitizer is not installed")


def sanitizer() -> tuple[dict[str, str], bool]:
    """Return what compute-sanitizer says to the small problems, and whether it ran and is content."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return sanitizer_missing(), False
    found, good = {}, True
    for name in TOOLS:
        options = ["--tool", name, "--error-exitcode", "9"]
        command = [tool, *options, sys.executable, __file__, "--small-problems"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS)
        except subprocess.TimeoutExpired:
            found[name], good = f"not over after {TOOL_SECONDS} s", False
            continue
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line] or ["no summary"]
        found[name] = f"exit status {done.returncode}: {lines[-1].strip('= ')}"
        good = good and done.returncode == 0
    return found, good


def without_pool() -> None:
    """Have every array allocated by itself: within a pool's block the sanitizer sees no read beyond the end."""
    import cupy

    cupy.cuda.set_allocator(None)


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

    def once(self, call: Callable[[], object]) -> float:
        """Return the time of a call between two events of the stream."""
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e-3

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median time of a call, after one or, if it is short, two that do not count."""
        self.once(call)  # compiles
        first = self.once(call)
        if first > LONG:
            return statistics.median([first, *(self.once(call) for _ in range(LONG_ROUNDS - 1))])
        return statistics.median([self.once(call) for _ in range(self.rounds)])

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


def problems(quick: bool) -> Iterator[tuple[int, int, int, str]]:
    """Yield d, M, N and the kind of the timings: the contract case in all kinds, then the grid, none too long."""
    for kind in KINDS:
        yield *CONTRACT, kind
    sizes, counts, steps = (SIZES, COUNTS, STEPS) if not quick else ((10**4, 10**6), (1, 1000), (4, 16))
    for d, m, n in itertools.product(sizes, counts, steps):
        if float(d) * m * n <= MOST_PAIRS and (d, m, n) != CONTRACT:
            yield d, m, n, "plain"


@lru_cache(maxsize=1)
def eigenvalues_of(d: int) -> Any:
    """Return the timings' eigenvalues, which take longer to make than to evaluate."""
    return cases.log_normal(d)["eigenvalues"]


def problem(cupy: Any, d: int, m: int, n: int, kind: str) -> tuple[Any, Any, str]:
    """Return a spectrum, candidates on the card and the prior; "near" has all ratios within 1/16 of 1."""
    values = eigenvalues_of(d)
    if kind == "near":
        scale = np.linspace(1.0, 1.1, m)[:, np.newaxis]
        width = 0.28 * np.sqrt(n)  # so that steps lose the same together, however many they are
        return cupy.asarray(values), cupy.asarray(scale * np.exp(np.linspace(width, 0.0, n + 1))), "exact"
    spectrum = (
        fastkl.Spectrum(values, counts=np.arange(d) % 3 + 1.0) if kind == "counts" else cupy.asarray(values)
    )
    return spectrum, cupy.asarray(cases.power_uniform(m, n)), "vp"


def timing(card: Card, d: int, m: int, n: int, rate: float, kind: str = "plain") -> dict[str, Any]:
    """Return the times of one problem whose arrays are on the card."""
    cupy = card.cupy
    spectrum, levels, prior = problem(cupy, d, m, n, kind)
    eigenvalues = cupy.asarray(eigenvalues_of(d))
    seconds = card.seconds(lambda: fastkl.divergence(spectrum, levels, prior=prior))
    single = card.seconds(lambda: fastkl.divergence(spectrum, levels, prior=prior, precision="float32"))
    few = max(1, min(m, NAIVE_ELEMENTS // d))  # it needs M x d temporaries: its time for a part is scaled up
    naive = card.seconds(lambda: elementwise(cupy, eigenvalues, levels[:few])) * m / few
    pairs = float(d) * m * n
    return {"kind": kind, "d": d, "M": m, "N": n, "seconds": seconds, "pairs_per_s": pairs / seconds,
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
            "pairs_per_s": max((row["pairs_per_s"] for row in rows), default=1.0)}  # fmt: skip


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


class Record:
    """A result file, written anew whenever something is added: what was measured outlives whatever comes after."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    def add(self, **entries: Any) -> None:
        """Add entries and write the file, whole or not at all."""
        self.content.update(entries)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Return work(), or None if it raises, which is recorded as a failure."""
        try:
            return work()
        except Exception as error:  # the rest is still to be measured
            message = f"{name}: {type(error).__name__}: {error}"
            print(message, file=sys.stderr)
            self.add(failures=[*self.content["failures"], message])
            return None


def record_of(card: Card, folder: Path, fresh: bool) -> Record:
    """Return the card's record: a new one, or what is there already."""
    path = folder / file_name(card.device.name)
    if not fresh and path.exists():
        return Record(path, json.loads(path.read_text(encoding="utf-8")))
    content = {**machine.description(), **card.description(), "agreement": {}, "failures": [], "rows": [],
               "sanitizer": dict.fromkeys(TOOLS, "not run: --sanitizer was not given")}  # fmt: skip
    return Record(path, content)


def time_all(card: Card, record: Record, which: list[tuple[int, int, int, str]]) -> None:
    """Time problems one by one, each recorded at once."""
    rate = record.content["fma_per_s"]
    for d, m, n, kind in which:
        row = record.attempt(f"{kind} {d} {m} {n}", partial(timing, card, d, m, n, rate, kind))
        if row is not None:
            print(json.dumps(row), flush=True)
            record.add(rows=[*record.content["rows"], row])


def measure(card: Card, record: Record, quick: bool) -> bool:
    """Measure and check everything; return whether nothing failed and the GPU agrees with the CPU."""
    record.add(fma_per_s=card.multiply_adds_per_s(), copied_bytes_per_s=card.copied_bytes_per_s())
    print(f"{card.device.name}: {record.content['fma_per_s']:.3g} multiply-adds/s", flush=True)
    first, *rest = problems(quick)
    time_all(card, record, [first])
    worst = record.attempt("agreement", agreement) or {}
    wrong = {name: value for name, value in worst.items() if not value <= AGREEMENT}
    record.add(agreement=worst)
    print("largest differences from the CPU:", json.dumps(worst, indent=1), flush=True)
    if wrong:
        record.attempt("agreement", partial(disagree, wrong))
    time_all(card, record, rest)
    found = record.attempt("costs", lambda: costs(card, record.content["rows"]))
    record.add(costs=found)
    return not record.content["failures"]


def disagree(wrong: dict[str, float]) -> None:
    """Raise, for differences that are too large."""
    raise ArithmeticError(f"the GPU disagrees with the CPU: {wrong}")


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
    parser.add_argument("--sanitizer", action="store_true", help="run compute-sanitizer, and nothing else")
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
        without_pool()
        small_problems()
        return 0
    return on_card(Card(rounds=5 if options.quick else 15), options)


def on_card(card: Card, options: argparse.Namespace) -> int:
    """Do what needs a card; return the exit status."""
    record = record_of(card, options.out, fresh=not options.sanitizer)
    if options.sanitizer:
        found, good = sanitizer()
        print(json.dumps(found, indent=1))
        record.add(sanitizer=found)
    else:
        good = measure(card, record, options.quick)
        if options.costs and good:
            write_costs(record.content["card"], record.content["costs"])
    print(f"wrote {os.fspath(record.path)}" + ("" if good else ", with failures"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
