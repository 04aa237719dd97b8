"""The spectrum of images under the stationary model: power at every spatial frequency, channels taken together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from fastkl._batches import open_samples
from fastkl._covariance import Scatter
from fastkl._progress import ProgressOption, check_progress, reporting

__all__ = ["ImageSpectrum", "spectrum_of_images"]

_EPS = float(np.finfo(np.float64).eps)
_MOST_CHANNELS_FIRST = 4  # an image so low, of more channels than that, has its channels first

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ImageSpectrum:
    """Eigenvalues (largest first), how many frequencies share each, the mean along each; how many images there were."""

    eigenvalues: _Array
    counts: _Array
    mean: _Array
    n: int
    channels: int

    @property
    def missing(self) -> int:
        """How many eigenvalues are 0 for lack of images: at frequency 0, which is centred, one more than elsewhere."""
        dim = round(float(self.counts.sum())) // self.channels
        return max(0, self.channels - self.n) * (dim - 1) + max(0, self.channels - self.n + 1)


def spectrum_of_images(x: Any, progress: ProgressOption) -> ImageSpectrum:
    """Compute the stationary spectrum of images, channels last; see `Spectrum.from_images`."""
    check_progress(progress)
    samples = open_samples("x", x)
    height, width, channels = _image_shape(samples.name, samples.shape)
    power = np.zeros((channels, channels, height, width // 2 + 1), dtype=np.complex128)
    constant = Scatter(channels)
    with reporting(progress, "images", samples.n) as advance:
        for block in samples.blocks(advance):
            images = block.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            level = images.mean(axis=(2, 3))
            _add_power(power, images - level[:, :, None, None])
            level *= np.sqrt(height * width)
            constant.add(level)
    power /= constant.count * height * width
    values = np.asarray(np.linalg.eigvalsh(np.moveaxis(power, (0, 1), (2, 3))), dtype=np.float64)
    counts = np.full(values.shape, 2.0)  # of two opposite frequencies
    counts[:, 0] = 1.0  # whose opposites are in the same column, or which are their own
    if width % 2 == 0:
        counts[:, -1] = 1.0
    mean = np.zeros(values.shape)
    values[..., : max(0, channels - constant.count)] = 0.0  # rounding: so many images have so many dimensions
    values[0, 0], mean[0, 0] = _at_frequency_zero(constant)
    values = _without_rounding(values, mean)
    order = np.argsort(-values, axis=None, kind="stable")
    return ImageSpectrum(
        values.ravel()[order], counts.ravel()[order], mean.ravel()[order], constant.count, channels
    )


def _image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and channels of samples that are images, or raise."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"{name}: must hold images of shape (H, W) or (H, W, C), channels last, got samples of shape {shape}"
        )
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    if height <= _MOST_CHANNELS_FIRST < channels:
        raise ValueError(
            f"{name}: must have its channels last, but samples of shape {shape} seem to have them first; "
            f"transpose(0, 2, 3, 1) moves them"
        )
    return height, width, channels


def _add_power(power: NDArray[np.complex128], images: _Array) -> None:
    """Add the cross-spectra of images, shape (k, C, H, W), to the lower triangle of the channels' matrix."""
    waves = scipy.fft.rfft2(images)
    for row in range(len(power)):
        for column in range(row + 1):
            power[row, column] += np.einsum("khw,khw->hw", waves[:, row], waves[:, column].conj())


def _at_frequency_zero(constant: Scatter) -> tuple[_Array, _Array]:
    """Eigenvalues, ascending, of the images' mean levels, and the length of their mean along each eigenvector."""
    centre, count = constant.mean, constant.count
    values, vectors = np.linalg.eigh(constant.take_covariance())
    values[: max(0, len(values) - count + 1)] = 0.0  # centring leaves count - 1 dimensions
    return values, np.abs(centre @ vectors)


def _without_rounding(values: _Array, mean: _Array) -> _Array:
    """Set to exactly 0 what rounding cannot tell from it: in the solver, by channels; in transforms, by all power."""
    channels = values.shape[-1]
    solver = (channels - 1) * channels * _EPS * values.max(axis=-1, keepdims=True)
    transform = (16.0 * _EPS) ** 2 * (values.max() + np.square(mean).sum())
    return np.where(values > np.maximum(solver, transform), values, 0.0)
