"""How the tests call the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastkl import Spectrum
from fastkl.cli import main

FEW = ("--spectrum", "digits", "--candidates-per-family", "12")  # a quick `rank`


def run(capsys, *arguments):
    """Exit status, stdout and stderr of a command run in this process."""
    before = capsys.readouterr().out  # such as the seed
    status = main(list(arguments))
    captured = capsys.readouterr()
    print(before, end="")
    return status, captured.out, captured.err


def document(capsys, *arguments):
    """The JSON document that a command prints."""
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(out, parse_constant=pytest.fail)  # no NaN or Infinity, which are not JSON


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )


def saved_spectrum(path):
    """The spectrum in a file written by --out, and its rtol."""
    with np.load(path) as arrays:
        spectrum = Spectrum(arrays["eigenvalues"], arrays.get("counts"), arrays.get("mean"))
        return spectrum, float(arrays["rtol"])


def made(capsys, tmp_path, *arguments):
    """The spectrum that a command writes."""
    path = tmp_path / "made.npz"
    report = document(capsys, "spectrum", *map(str, arguments), "--out", str(path), "--force")
    assert report["out"] == str(path)
    return saved_spectrum(path)[0], report


def pixels(rng, n, *shape):
    """Images whose neighbouring pixels are alike."""
    white = rng.standard_normal((n, *shape)).cumsum(axis=1).cumsum(axis=2)
    return np.clip(128.0 + 20.0 * white, 0.0, 255.0).astype(np.uint8)


def folder_of(tmp_path, array, suffix="png", name="images"):
    folder = tmp_path / name
    folder.mkdir()
    for k, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{k:03}.{suffix}")
    return folder


def refused(capsys, message, *arguments):
    status, out, err = run(capsys, "spectrum", *map(str, arguments), "--json")
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("fastkl: error: ")
    assert err.count("\n") == 1
