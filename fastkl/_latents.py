"""Latents of images: what an autoencoder's diffusion model is trained on, and their spectrum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._validation import integer

if TYPE_CHECKING:
    from fastkl.spectrum import Spectrum

__all__ = ["LatentSources", "encoded"]


class LatentSources:
    """Base class of `Spectrum` with its constructor from an autoencoder."""

    __slots__ = ()

    @classmethod
    def from_latents(  # type: ignore[misc]
        cls: type[Spectrum],
        vae: Any,
        images: ArrayLike | Iterable[ArrayLike],
        floor: float = 0.0,
        *,
        stationary: bool = False,
        batch_size: int = 8,
    ) -> Spectrum:
        """Spectrum of the latents of images, scaled as a latent diffusion model is trained on them.

        Parameters
        ----------
        vae : object
            A diffusers autoencoder, such as ``pipe.vae``: ``vae.encode(x)`` has ``latent_dist`` or ``latents``. The
            mode of the latent distribution is taken, less ``shift_factor`` or ``latents_mean``, times
            ``scaling_factor``, over ``latents_std``, as far as its configuration has them.
        images : array_like or tensor, shape (n, C, H, W), or iterable of such batches
            In [-1, 1], channels first, as the autoencoder takes them. An iterable, such as a data loader, gives
            batches; they are encoded one at a time.
        floor : float
            Variance to add to every eigenvalue, as `Spectrum.floored` does.
        stationary : bool
            The model of `Spectrum.from_images` (the power at every spatial frequency) in place of the full covariance:
            for few images, or latents of many dimensions.
        batch_size : int
            Images that are encoded at a time, where `images` is one array.

        Returns
        -------
        Spectrum
            That of all latent dimensions (not stationary) or frequencies.

        Raises
        ------
        ValueError
            If there are fewer than two images, or an image is not of shape (C, H, W).
        TypeError
            If `vae` has no `encode`, or an argument is of a wrong kind.
        ImportError
            If PyTorch is not installed.

        Notes
        -----
        All latents are held in memory, as float32.

        Examples
        --------
        >>> from diffusers import AutoencoderKL
        >>> import numpy as np
        >>> import fastkl
        >>> vae = AutoencoderKL(block_out_channels=(32,), latent_channels=2)
        >>> images = np.random.default_rng(0).uniform(-1.0, 1.0, (9, 3, 2, 2))
        >>> fastkl.Spectrum.from_latents(vae, images).dim
        8
        """
        parts = list(encoded(vae, images, integer("batch_size", batch_size)))
        count = sum(len(part) for part in parts)
        if count < 2:
            raise ValueError(f"images: must hold at least 2 images, got {count}")
        latents = np.concatenate(parts)
        if stationary:
            return cls.from_images(np.moveaxis(latents, 1, -1), floor)
        return cls.from_samples(latents, floor)


def encoded(
    vae: Any, images: ArrayLike | Iterable[ArrayLike], batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the latents of batches."""
    try:
        import torch
    except ImportError:
        raise ImportError('latents need PyTorch: pip install "fastkl[diffusers]"') from None
    if not callable(getattr(vae, "encode", None)):
        raise TypeError(f"vae: must be an autoencoder with encode(x), got {type(vae).__name__}")
    like = next(vae.parameters())
    for i, batch in enumerate(batches(images, batch_size)):
        x = torch.as_tensor(batch)
        if x.ndim != 4:
            raise ValueError(f"images[{i}]: must have shape (n, C, H, W), got shape {tuple(x.shape)}")
        with torch.no_grad():
            answer = vae.encode(x.to(device=like.device, dtype=like.dtype))
        z = answer.latent_dist.mode() if hasattr(answer, "latent_dist") else answer.latents
        yield scaled(z.float().cpu().numpy(), vae.config)


def batches(images: Any, batch_size: int) -> Iterator[Any]:
    """Yield the parts of an array, or the batches of an iterable."""
    if not hasattr(images, "shape") and isinstance(images, Iterable) and not isinstance(images, list | tuple):
        yield from images
        return
    whole = images if hasattr(images, "shape") else np.asarray(images)
    for begin in range(0, len(whole), batch_size):
        yield whole[begin : begin + batch_size]


def scaled(z: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    """Return latents as the diffusion model sees them."""

    def channels(name: str, default: float) -> NDArray[np.float32]:
        value = config.get(name)
        return np.asarray(default if value is None else value, dtype=np.float32).reshape(-1, 1, 1)

    shift = channels("latents_mean", 0.0) if config.get("latents_mean") else channels("shift_factor", 0.0)
    moved = (z - shift) / channels("latents_std", 1.0) * channels("scaling_factor", 1.0)
    return np.asarray(moved, dtype=np.float32)
