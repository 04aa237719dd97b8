"""What tests of the GPU backend on the host have in common."""

import emulation
import numpy as np

from fastkl import _gpu_device

AGREEMENT = 1e-12  # with the CPU, relative

BAD_LEVELS = {
    "rises": [3.0, 4.0, 0.0],
    "repeats": [3.0, 3.0, 0.0],
    "nan": [3.0, np.nan, 0.0],
    "negative": [3.0, 1.0, -1.0],
    "too large": [1e16, 1.0, 0.0],
    "too small": [1.0, 1e-16, 0.0],
    "0 inside": [1.0, 0.0, 0.0],
    "inf inside": [np.inf, np.inf, 0.0],
    "minus inf": [-np.inf, 1.0, 0.0],
}


def put_in_place(monkeypatch, made):
    monkeypatch.setattr(_gpu_device, "current_device", lambda: made)
    monkeypatch.setattr(_gpu_device, "device_of", lambda array: made)
    return made


def on_device(array):
    return emulation.HostArray(np.array(array, dtype=np.float64))


def largest_difference(got, expected):
    """The largest relative difference; equal infinities and equal zeros differ by 0, a NaN by inf."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    with np.errstate(all="ignore"):
        difference = np.where(got == expected, 0.0, np.abs(got / expected - 1.0))
    return np.where(np.isnan(difference), np.inf, difference).max()
