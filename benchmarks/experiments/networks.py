"""The small U-Net of the experiments, what it predicts, and its weights on disk.

Both kinds of model share one network F(x, log(sigma)/4) and differ in what goes in and comes out:

    edm      D(y, sigma) = c_skip y + c_out F(c_in y), the preconditioning of Karras et al. 2022, table 1
    epsilon  D(y, sigma) = y - sigma F(y / sqrt(1 + sigma^2)): F predicts the noise, as DDPM's networks do

y is the noisy image divided by alpha: y = image + sigma * noise.
"""

from __future__ import annotations

import json
import math
import pathlib
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = pathlib.Path(__file__).parent / "weights"
FREQUENCIES = 16
EMBEDDING = 64
DENSE = 192


@dataclass(frozen=True)
class Description:
    """What a trained model is: stored beside its weights."""

    name: str
    data: str  # key of data.DATA_SETS
    kind: str  # "edm" or "epsilon"
    channels: tuple[int, int, int]
    size: int  # pixels along one side
    sigma_data: float  # standard deviation of the pixels; edm only uses it
    sigma_min: float
    sigma_max: float  # the range of noise levels that it was trained for
    seed: int
    images_seen: int
    minutes: float
    loss: float  # last running mean of the training loss


class Norm(nn.Module):
    """Divides by the root mean square over the channels of a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.gain


class Block(nn.Module):
    """Residual block: two 3x3 convolutions, the noise level scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(inputs), Norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.level = nn.Linear(EMBEDDING, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.level.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.level(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))
        return self.skip(x) + hidden


class Dense(nn.Module):
    """Three fully connected layers from the image to an image, the noise level scales and shifts between them.

    At high noise what the image is must be read off all pixels at once. Convolutions learn that far too slowly: after
    1.2 million images a U-Net without these layers was hardly better at sigma = 4 than a linear map.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(size**2, DENSE), nn.Linear(DENSE, DENSE)
        self.layer3 = nn.Linear(DENSE, size**2)
        self.level = nn.Linear(EMBEDDING, 4 * DENSE)
        nn.init.zeros_(self.level.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale1, shift1, scale2, shift2 = self.level(embedding).chunk(4, dim=1)
        hidden = F.silu(self.layer1(x.flatten(1)) * (1 + scale1) + shift1)
        hidden = F.silu(self.layer2(hidden) * (1 + scale2) + shift2)
        return self.layer3(hidden).reshape(x.shape)


class UNet(nn.Module):
    """Three resolutions, a half, a quarter and an eighth of the image, given the image and what `Dense` makes of it."""

    def __init__(self, channels: tuple[int, int, int], size: int) -> None:
        super().__init__()
        high, middle, low = channels
        frequencies = torch.logspace(0, math.log10(30), FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed1 = nn.Linear(2 * FREQUENCIES, EMBEDDING)
        self.embed2 = nn.Linear(EMBEDDING, EMBEDDING)
        self.enter = nn.Conv2d(8, high, 3, padding=1)
        self.down1, self.down2, self.down3 = Block(high, high), Block(middle, middle), Block(middle, middle)
        self.shrink1 = nn.Conv2d(high, middle, 3, stride=2, padding=1)
        self.shrink2 = nn.Conv2d(middle, low, 3, stride=2, padding=1)
        self.bottom = Block(low, low)
        self.dense = Dense(size)
        self.grow2, self.grow1 = nn.Conv2d(low, middle, 1), nn.Conv2d(middle, high, 1)
        self.up3, self.up2, self.up1 = Block(2 * middle, middle), Block(middle, middle), Block(2 * high, high)
        self.leave_norm = Norm(high)
        self.leave = nn.Conv2d(high + 8, 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """x: (n, 1, H, W); noise: (n,), log(sigma)/4."""
        angles = noise.float()[:, None] * self.frequencies
        embedding = F.silu(self.embed1(torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)))
        embedding = F.silu(self.embed2(embedding))
        inputs = F.pixel_unshuffle(torch.cat([x, self.dense(x, embedding)], dim=1), 2)
        high = self.down1(self.enter(inputs), embedding)
        middle = self.down3(self.down2(self.shrink1(high), embedding), embedding)
        hidden = self.bottom(self.shrink2(middle), embedding)
        hidden = F.interpolate(self.grow2(hidden), size=middle.shape[-2:], mode="nearest")
        hidden = self.up2(self.up3(torch.cat([hidden, middle], dim=1), embedding), embedding)
        hidden = F.interpolate(self.grow1(hidden), size=high.shape[-2:], mode="nearest")
        hidden = self.up1(torch.cat([hidden, high], dim=1), embedding)
        # The input once more: at the highest levels the noise in it is most of the noise to predict.
        hidden = torch.cat([F.silu(self.leave_norm(hidden)), inputs], dim=1)
        return F.pixel_shuffle(self.leave(hidden), 2)


class Denoiser(nn.Module):
    """D(y, sigma): the mean of the images that y = image + sigma * noise can have come from."""

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.network = UNet(description.channels, description.size)

    def raw(self, inputs: Tensor, sigma: Tensor) -> Tensor:
        """F(inputs), float32 outside."""
        inputs = inputs.to(self.network.leave.weight.dtype, memory_format=torch.channels_last)
        return self.network(inputs, sigma.log() / 4).float()

    def forward(self, y: Tensor, sigma: Tensor) -> Tensor:
        """y: (n, 1, H, W); sigma: (n,)."""
        level = sigma[:, None, None, None]
        if self.description.kind == "epsilon":
            return y - level * self.raw(y / (1 + level.square()).sqrt(), sigma)
        data = self.description.sigma_data
        total = level.square() + data**2
        skip = data**2 / total
        return skip * y + level * data / total.sqrt() * self.raw(y / total.sqrt(), sigma)


def save(model: Denoiser, description: Description) -> pathlib.Path:
    """Write weights as float16 with the description in the file's header."""
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{description.name}.safetensors"
    tensors = {name: value.half().contiguous() for name, value in model.network.state_dict().items()}
    save_file(tensors, path, metadata={"description": json.dumps(asdict(description))})
    return path


def load(name: str) -> Denoiser:
    """Read a committed model, float32, channels last, in evaluation mode."""
    tensors = {}
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        fields = json.loads(file.metadata()["description"])
        for key in file.keys():  # noqa: SIM118
            tensors[key] = file.get_tensor(key).float()
    fields["channels"] = tuple(fields["channels"])
    model = Denoiser(Description(**fields))
    model.network.load_state_dict(tensors)
    return model.eval().to(memory_format=torch.channels_last)
