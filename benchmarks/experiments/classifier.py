"""A small classifier of each data set, whose 64 features measure how far samples are from the data.

    python benchmarks/experiments/classifier.py mnist | patches

trains it (two or three minutes on a CPU) and writes weights/<data>-classifier.safetensors.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import data
import numpy as np
import torch
import torch.nn.functional as F
from networks import WEIGHTS
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FEATURES = 64
BATCH = 128
EPOCHS = 5


class Classifier(nn.Module):
    """Two strided convolutions after a first one, then a dense layer of FEATURES units: the features."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.dense = nn.Linear(32 * ((size + 3) // 4) ** 2, FEATURES)
        self.out = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(n, 1, H, W) in [-1, 1] to (n, FEATURES)."""
        hidden = F.relu(self.conv2(F.relu(self.conv1(images))))
        return F.silu(self.dense(hidden.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.features(images))


def path_of(name: str) -> pathlib.Path:
    """File with the weights of a data set's classifier."""
    return WEIGHTS / f"{name}-classifier.safetensors"


def fit(images: data.Images, seed: int = 0) -> Classifier:
    """Train on the training images; Adam, half-cosine rate."""
    torch.manual_seed(seed)
    model = Classifier(images.size, images.classes)
    pixels, labels = torch.from_numpy(images.training), torch.from_numpy(images.training_labels)
    steps = EPOCHS * len(pixels) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,))
        batch = pixels[chosen].float() * (2 / 255) - 1
        loss = F.cross_entropy(model(batch), labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


@torch.inference_mode()
def look(model: Classifier, images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (n, FEATURES) and class probabilities (n, classes) of images in [-1, 1]."""
    features, probabilities = [], []
    for start in range(0, len(images), 1000):
        found = model.features(torch.from_numpy(images[start : start + 1000]))
        features.append(found.double().numpy())
        probabilities.append(model.out(found).softmax(1).double().numpy())
    return np.concatenate(features), np.concatenate(probabilities)


def load(name: str, size: int, classes: int) -> Classifier:
    """Read the committed classifier of a data set."""
    model = Classifier(size, classes)
    model.load_state_dict({key: value.float() for key, value in load_file(path_of(name)).items()})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=data.DATA_SETS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = data.DATA_SETS[arguments.name]()
    model = fit(images)
    WEIGHTS.mkdir(exist_ok=True)
    _, probabilities = look(model, data.scaled(images.held_out))
    accuracy = float((probabilities.argmax(1) == images.held_out_labels).mean())
    tensors = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, path_of(arguments.name), metadata={"held_out_accuracy": json.dumps(accuracy)})
    print(f"{arguments.name}: {accuracy:.4f} of the held-out images right")


if __name__ == "__main__":
    main()
