"""Peak memory of sweeps: of many steps, of many of the best, of many cells of one row, and of many chunks."""

import json

import pytest
from processes import run
from test_memory import PEAK, needs_proc

KARRAS = {"start": 1.0, "stop": 9.0, "num": 20_000}
SWEEPS = {
    "a thousand steps": (
        {"spectra": ["digits"], "steps": 1000, "top": 3, "chunk": 10_000,
         "families": [{"family": "karras", "rho": KARRAS}]},
        160,
    ),
    "a top of 50,000": (
        {"spectra": ["digits"], "steps": 4, "top": 50_000, "chunk": 10_000,
         "families": [{"family": "karras", "rho": {**KARRAS, "num": 60_000}}]},
        110,
    ),
    "5,000 cells of one row": (
        {"spectra": [{"power_law": {"dim": 4, "exponent": {"start": 0.5, "stop": 2.0, "num": 5000}}}], "steps": 4,
         "top": 5000, "per": [], "families": [{"family": "uniform"}]},
        60,
    ),
    "two thousand chunks": (
        {"spectra": ["digits"], "steps": 4, "top": 100, "chunk": 100,
         "families": [{"family": "karras", "rho": {**KARRAS, "num": 200_000}}]},
        60,
    ),
}  # fmt: skip


@needs_proc
@pytest.mark.parametrize("case", SWEEPS)
def test_peak_memory(tmp_path, case):
    config, most = SWEEPS[case]
    config = {"schedules": ["edm"], **config}
    first = {
        **config,
        "steps": 4,
        "top": 2,
        "chunk": 100,
        "spectra": ["digits"],
        "families": [{"family": "karras"}],
    }
    code = f"""
import json
first, config = json.loads({json.dumps(json.dumps([first, config]))!s})
fastkl.sweep(first)
print(extra(lambda: fastkl.sweep(config, num_threads=2)))
"""
    assert float(run(PEAK + code, tmp_path)) < most
