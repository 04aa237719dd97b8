"""The spectra that ship with the package: names, files and the numbers that are known about the data."""

import importlib.resources

import numpy as np
import pytest

from fastkl.spectrum import Spectrum

NAMES = ["breast_cancer", "digits", "mnist", "photographs"]


def test_preset_names():
    assert Spectrum.presets() == NAMES
    with pytest.raises(ValueError, match=r"^name = 'cifar': must be one of .*'digits', 'mnist'"):
        Spectrum.preset("cifar")
    with pytest.raises(ValueError, match=r"^name = '\.\./data/mnist'"):
        Spectrum.preset("../data/mnist")
    with pytest.raises(TypeError, match=r"^name: "):
        Spectrum.preset(None)


@pytest.mark.parametrize("name", NAMES)
def test_preset_file(name):
    file = importlib.resources.files("fastkl").joinpath("data", f"{name}.npz")
    assert len(file.read_bytes()) < 10 * 1024
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        assert set(data) == {"eigenvalues", "mean", "floor", "n_samples", "source", "scaling"}
        assert data["eigenvalues"].dtype == np.float64
        assert int(data["n_samples"]) > len(data["eigenvalues"])
        assert str(data["source"])
        assert str(data["scaling"])
        own_floor = float(data["floor"])
    raw, default = Spectrum.preset(name, floor=0), Spectrum.preset(name)
    assert default == raw.floored(own_floor)
    assert default.eigenvalues.min() > 0
    assert np.all(np.diff(raw.eigenvalues) <= 0)
    assert np.all(raw.mean >= 0)
    assert Spectrum.preset(name, floor=0.5) == raw.floored(0.5)


# name, dim, exact zeros, total variance, squared length of the mean, floor
PRESET_FACTS = [
    ("mnist", 784, 72, 210.900142, 514.58869, (2 / 255) ** 2 / 12),
    ("digits", 64, 3, 18.773140, 27.13706, (2 / 16) ** 2 / 12),
    ("photographs", 768, 0, 254.5791, 44.9780, (2 / 255) ** 2 / 12),
    ("breast_cancer", 30, 0, 30.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("name", "dim", "zeros", "variance", "mean_square", "floor"), PRESET_FACTS)
def test_preset_values(name, dim, zeros, variance, mean_square, floor):
    raw = Spectrum.preset(name, floor=0)
    assert (raw.dim, np.count_nonzero(raw.eigenvalues == 0)) == (dim, zeros)
    assert raw.total_variance == pytest.approx(variance, rel=1e-5)
    assert (raw.mean**2).sum() == pytest.approx(mean_square, rel=1e-5)
    assert Spectrum.preset(name).total_variance - raw.total_variance == pytest.approx(dim * floor, abs=1e-9)
