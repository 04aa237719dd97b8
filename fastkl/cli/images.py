"""Folders of 8-bit images as batches of samples; Pillow (the extra `images`) reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastkl._progress import reporting
from fastkl.cli.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ROUNDING", "SUFFIXES", "ImageFolder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
ROUNDING = (2.0 / 255.0) ** 2 / 12.0  # variance of rounding to 256 grey levels in [-1, 1]
BATCH = 1 << 21  # numbers in a batch: 16 MiB
NAMED = 3  # files that an error lists
CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3}  # by Pillow's name of the mode

Array = NDArray[np.float64]
Result = TypeVar("Result")


class Header(NamedTuple):
    """What the first bytes of a file say: its channels, its size in pixels, and what is wrong with it, if anything."""

    channels: int
    width: int
    height: int
    problem: str = ""


class ImageFolder:
    """The images of a folder and its subfolders in the order of their paths; iterate for batches, any number of times.

    Batches have shape (n, H, W) if all images are greyscale, else (n, H, W, 3) with greyscale ones as grey RGB. Values
    are 2 x/255 - 1. The headers of all files are checked first; whatever is wrong is an InputError that names files.
    """

    def __init__(self, folder: str, size: int | None, progress: bool) -> None:
        require_pillow()
        self._progress = progress
        self._files = image_files(folder)
        if len(self._files) < 2:
            found = f"only {self._files[0]}" if self._files else "none"
            raise InputError(f"{folder}: must hold at least 2 images ({', '.join(SUFFIXES)}), found {found}")
        self._size = size
        headers = []
        with reporting(progress, "checking images", len(self._files)) as advance:
            for path in self._files:
                headers.append(header(path))
                advance(1)
        refuse((path, found.problem) for path, found in zip(self._files, headers, strict=True))
        first = headers[0]
        if size is None:
            rule = f"pixels, not {first.width}x{first.height} like {self._files[0]}; --size N makes all NxN"
            refuse(
                (path, "" if found[1:] == first[1:] else f"has {found.width}x{found.height} {rule}")
                for path, found in zip(self._files, headers, strict=True)
            )
        self._mode, channels = ("RGB", (3,)) if any(found.channels == 3 for found in headers) else ("L", ())
        height, width = (size, size) if size else (first.height, first.width)
        self.shape: tuple[int, ...] = (len(headers), height, width, *channels)

    def __iter__(self) -> Iterator[Array]:
        """Yield batches of float64 samples."""
        length = max(1, BATCH // int(np.prod(self.shape[1:])))
        with reporting(self._progress, "reading images", len(self._files)) as advance:
            for begin in range(0, len(self._files), length):
                batch = np.stack([self._pixels(path) for path in self._files[begin : begin + length]])
                yield batch * (2.0 / 255.0) - 1.0
                advance(len(batch))

    def array(self) -> Array:
        """Return all samples at once, shape (n, H, W) or (n, H, W, 3)."""
        samples, done = np.empty(self.shape), 0
        for batch in self:
            samples[done : done + len(batch)] = batch
            done += len(batch)
        return samples

    def _pixels(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        def read() -> Any:
            with Image.open(path) as image:
                if "A" in image.mode or "transparency" in image.info:
                    refuse([(path, transparency(image))])
                return image.convert(self._mode)

        plain = attempt(path, read)
        if self._size is not None:  # the middle square, scaled
            plain = ImageOps.fit(plain, (self._size, self._size), Image.Resampling.LANCZOS)
        return np.asarray(plain)


def require_pillow() -> None:
    """Raise unless Pillow is installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise InputError('images need Pillow: pip install "fastkl[images]"') from None


def image_files(folder: str) -> list[Path]:
    """Return the image files below a folder, sorted; hidden ones and those in linked folders are left out."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def header(path: Path) -> Header:
    """Return what Pillow sees before it decodes the pixels."""
    from PIL import Image

    def read() -> Header:
        with Image.open(path) as image:
            problem = ""
            if getattr(image, "n_frames", 1) != 1:
                problem = f"holds {image.n_frames} images, not one"  # type: ignore[attr-defined]
            elif image.mode not in CHANNELS:
                problem = f"has pixels of mode {image.mode}, not 8-bit greyscale or RGB"
            return Header(CHANNELS.get(image.mode, 0), *image.size, problem)

    try:
        return attempt(path, read)
    except InputError as error:
        return Header(0, 0, 0, str(error).removeprefix(f"{path}: "))


def attempt(path: Path, read: Callable[[], Result]) -> Result:
    """Return what `read` returns; an InputError that names the file if it fails."""
    from PIL import UnidentifiedImageError

    try:
        return read()
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: is not an image, or a damaged one") from None
    except Exception as error:  # a damaged file can raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from None


def transparency(image: Image.Image) -> str:
    """Say that an image is not opaque, or nothing: a spectrum has no place for what shines through."""
    least, _ = image.convert("RGBA").getchannel("A").getextrema()
    return "has transparent pixels" if least < 255 else ""


def refuse(problems: Iterable[tuple[Path, str]]) -> None:
    """Raise an InputError that lists the files with problems, if there are any."""
    found = [f"{path}: {problem}" for path, problem in problems if problem]
    if found:
        more = f"; and {len(found) - NAMED:,} more files" if len(found) > NAMED else ""
        raise InputError("; ".join(found[:NAMED]) + more)
