"""Sweeps for tests, small ones, and what their folders hold."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import fastkl

GAMMAS = {"start": 1e-3, "stop": 10.0, "num": 300, "spacing": "log"}
SCHEDULES = {"ddpm_linear": fastkl.NoiseSchedule.ddpm_linear(), "edm": fastkl.NoiseSchedule.edm()}


def small(**changes):
    """A sweep of 2,400 candidates in chunks of 100."""
    return {
        "spectra": ["mnist", "digits"],
        "schedules": ["edm"],
        "steps": [4, 6],
        "families": [{"family": "tangent", "gamma": GAMMAS, "sigma_min": [0.0, 0.01]}],
        "top": 7,
        "chunk": 100,
        **changes,
    }


def contents(folder):
    """The bytes of all results in a folder by name; the manifest without the list of runs."""
    files = {path.name: path.read_bytes() for path in folder.glob("**/*.parquet")}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sessions"]
    return {**files, "manifest": manifest}


def chunk_files(folder):
    """Paths of the chunks in a folder, in order."""
    return sorted((folder / "chunks").glob("*.parquet"))


def all_rows(folder):
    """All rows of a folder's chunks, in order of index."""
    tables = [pq.read_table(path, partitioning=None) for path in sorted((folder / "chunks").iterdir())]
    return pa.concat_tables(tables).sort_by("index")


def exact(row, spectra, **schedules):
    """The divergence of a row of the best by its own levels."""
    schedule = schedules.get(row["schedule"])
    assert schedule is None or row["prior"] == schedule.prior
    return fastkl.divergence(
        spectra[row["spectrum"]], row["sigmas"], row["metric"], row["sampler"], row["prior"]
    )


def column(table, name):
    """A column as NumPy numbers; null becomes nan."""
    return np.array([np.nan if x is None else x for x in table[name].to_pylist()])
