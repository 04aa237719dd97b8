"""Peak memory of a call beyond its inputs and outputs: a fixed scratch, whatever the numbers of anything."""

from pathlib import Path

import pytest
from processes import run

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc"
)

PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024

def extra(call):
    \"\"\"MB of peak memory that a call needs above what is in use when it begins.\"\"\"
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    result = call()
    return peak() - before - getattr(result, "nbytes", 0) / 2**20

results()
"""
# A file of random bytes, whose pages are read into memory when they are touched.
MAP = """
import warnings
warnings.simplefilter("ignore", fastkl.RankDeficientWarning)

def mapped(n, d):
    rng = np.random.default_rng(0)
    with open("x.bin", "wb") as file:
        for _ in range(n):
            file.write(rng.bytes(d))
    return np.memmap("x.bin", "uint8", "r", shape=(n, d))
"""
# Names are made before the measurement: inputs are not counted, outputs are taken off.
MEMORY = {
    "contract": (
        "x = np.ones(10**6); s = np.ones((32, 1)) * np.linspace(5, 1, 17)",
        "fastkl.divergence(x, s)",
    ),
    "zeros": ("x = np.zeros(10**7); s = np.linspace(5, 1, 3)", "fastkl.divergence(x, s)"),
    "pairs": (
        "x = np.ones(10**6); s = np.ones((32, 1)) * np.linspace(2, 1.999, 17)",
        "fastkl.divergence(x, s, prior='exact')",
    ),
    "many candidates": (
        "x = np.geomspace(1e-2, 1e2, 64); s = np.linspace(1, 2, 200_000)[:, None] * np.linspace(5, 1, 17)",
        "fastkl.divergence(x, s)",
    ),
    "many candidates, some from inf, mean": (
        "x = fastkl.Spectrum(np.ones(8), mean=np.ones(8));"
        "s = np.linspace(1, 2, 10**6)[:, None] * np.linspace(5, 1, 17);"
        "s[::2, 0] = np.inf",
        "fastkl.divergence(x, s)",
    ),
    "eigenvalues beyond the contract": (
        "x = np.full(10**7, 1e20); s = np.linspace(5, 1, 3)",
        "fastkl.divergence(x, s)",
    ),
    "mean": (
        "x = fastkl.Spectrum(np.ones(10**7), mean=np.ones(10**7)); s = np.linspace(5, 1, 3)",
        "fastkl.divergence(x, s, 'jeffreys')",
    ),
    "w2 with counts": (
        "x = fastkl.Spectrum(np.ones(10**7), np.ones(10**7)); s = np.linspace(5, 1, 3)",
        "fastkl.divergence(x, s, 'w2')",
    ),
    "output variance": (
        "x = np.ones(10**6); s = np.ones((8, 1)) * np.linspace(5, 1, 17)",
        "fastkl.output_variance(x, s)",
    ),
    "trajectory": (
        "x = np.ones(10**6); s = np.ones((2, 1)) * np.linspace(5, 1, 9)",
        "fastkl.trajectory(x, s)",
    ),
    "samples in a memory map of 160 MB": (
        f"{MAP}\nx = mapped(400_000, 400); fastkl.Spectrum.from_samples(np.eye(400)[:, :9])",
        "fastkl.Spectrum.from_samples(x)",
    ),
    "fewer samples than features, in a memory map of 150 MB": (
        f"{MAP}\nx = mapped(250, 600_000).view('uint32'); fastkl.Spectrum.from_samples(x[:, :999])",
        "fastkl.Spectrum.from_samples(x)",
    ),
    "samples of many features, in a memory map of 160 MB": (
        f"{MAP}\nx = mapped(4_000, 40_000); options = dict(method='lanczos', probes=2, steps=2);"
        "fastkl.Spectrum.from_samples(np.eye(400)[:, :9], **options)",
        "fastkl.Spectrum.from_samples(x, **options)",
    ),
    "samples in 400 MB of batches": (
        "x = (np.full((1000, 50), 1.0 * k) for k in range(1000)); fastkl.Spectrum.from_samples(np.eye(9)[:, :2])",
        "fastkl.Spectrum.from_samples(x)",
    ),
    "eigenvalues in a memory map of 160 MB": (
        f"{MAP}\nx = mapped(1, 40_000_000)[0].view('uint32'); fastkl.SpectrumMoments.from_chunks([1.0])",
        "fastkl.SpectrumMoments.from_chunks(x)",
    ),
    "compression": (
        "x = fastkl.Spectrum(np.geomspace(1e-3, 1e3, 10**7)); fastkl.Spectrum(np.geomspace(1, 9, 999)).compress()",
        "x.compress(1e-10)",
    ),
    "search": (
        "x = fastkl.Spectrum(np.geomspace(1e-3, 1e3, 99)); n = fastkl.NoiseSchedule.ddpm_linear();"
        "fastkl.search(x, n, 3)",
        "fastkl.search(x, n, 9)",
    ),
    "a sampler without noise": (
        "fastkl.warmup(); x = fastkl.Spectrum(np.ones(10**6), mean=np.ones(10**6));"
        "s = np.ones((32, 1)) * np.linspace(5, 1, 17)",
        "fastkl.divergence(x, s, sampler='unipc_3')",
    ),
    "a sampler with noise": (
        "fastkl.warmup(); x = np.ones(10**6); s = np.ones((32, 1)) * np.linspace(5, 1, 17)",
        "fastkl.divergence(x, s, sampler='sde_dpmpp_2m')",
    ),
    "a sampler on nearly exact steps": (
        "fastkl.warmup(); x = np.ones(10**6); s = np.ones((8, 1)) * np.linspace(2, 1.999, 9)",
        "fastkl.divergence(x, s, sampler='dpmpp_2m', prior='exact')",
    ),
    "a sampler with noise on nearly exact steps": (
        "fastkl.warmup(); x = np.ones(10**5); s = np.ones((400, 1)) * np.linspace(2, 1.999, 9)",
        "fastkl.divergence(x, s, sampler='sde_dpmpp_3m', prior='exact')",
    ),
    "a sampler on many candidates": (
        "fastkl.warmup(); x = np.ones(8); s = np.linspace(1, 2, 100_000)[:, None] * np.linspace(5, 1, 9)",
        "fastkl.divergence(x, s, sampler='dpmpp_2m')",
    ),
    "trajectory of a sampler with noise": (
        "fastkl.warmup(); x = np.ones(10**6); s = np.ones((2, 1)) * np.linspace(5, 1, 9)",
        "fastkl.trajectory(x, s, sampler='euler_ancestral')",
    ),
    "many tasks": (
        "from fastkl._threads import run_all; from itertools import repeat",
        "run_all(time.sleep, repeat((0,), 60_000), 2)",
    ),
}


@needs_proc
@pytest.mark.parametrize("case", MEMORY)
def test_peak_memory_is_inputs_and_outputs_and_64_mb(tmp_path, case):
    inputs, call = MEMORY[case]
    extra = float(run(f"{PEAK}\n{inputs}\nprint(extra(lambda: {call}))", tmp_path))
    assert extra < 64
