"""``fastkl spectrum`` on folders of images: what is read, how it is scaled, and what is refused."""

import sys

import numpy as np
import pytest
from cli_calls import document, folder_of, made, pixels, refused, run
from PIL import Image

from fastkl import Spectrum
from fastkl.cli import images
from fastkl.cli.images import ROUNDING


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_images_without_loss_are_their_arrays(capsys, tmp_path, rng, suffix, shape):
    array = pixels(rng, 70, *shape)
    folder = tmp_path / "images"
    folder.mkdir()
    for k, image in enumerate(array):
        options = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(image).save(folder / f"{k:03}.{suffix}", **options)
    if suffix == "webp" and len(shape) == 2:  # which has no greyscale
        array = np.repeat(array[..., None], 3, axis=3)
    spectrum, report = made(capsys, tmp_path, folder)
    assert report["shape"] == [70, *array.shape[1:]]
    assert (report["source"], report["floor"]) == ("images", ROUNDING)
    assert spectrum == Spectrum.from_samples(2.0 / 255.0 * array - 1.0, floor=ROUNDING)
    raw = made(capsys, tmp_path, folder, "--floor", "0")[0]
    assert raw == Spectrum.from_samples(2.0 / 255.0 * array - 1.0)


def test_jpegs_are_what_they_decode_to(capsys, tmp_path, rng):
    folder = folder_of(tmp_path, pixels(rng, 60, 4, 4, 3), "jpg")
    (folder / "000.jpg").rename(folder / "000.JPEG")
    decoded = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    spectrum, report = made(capsys, tmp_path, folder)
    assert report["shape"] == [60, 4, 4, 3]
    assert spectrum == Spectrum.from_samples(2.0 / 255.0 * np.array(decoded) - 1.0, floor=ROUNDING)


def test_the_floor_is_that_of_the_presets():
    assert pytest.approx((2 / 255) ** 2 / 12, rel=1e-14) == ROUNDING
    raw, own = Spectrum.preset("mnist", floor=0.0), Spectrum.preset("mnist")
    assert own.eigenvalues[-1] - raw.eigenvalues[-1] == pytest.approx(ROUNDING)


def test_batches_change_nothing(capsys, tmp_path, rng, monkeypatch):
    folder = folder_of(tmp_path, pixels(rng, 40, 4, 4))
    whole = made(capsys, tmp_path, folder)[0]
    monkeypatch.setattr(images, "BATCH", 16 * 7)
    assert [len(batch) for batch in images.ImageFolder(str(folder), None, False)] == [7, 7, 7, 7, 7, 5]
    parts = made(capsys, tmp_path, folder)[0]
    np.testing.assert_allclose(parts.eigenvalues, whole.eigenvalues, rtol=1e-10)


def test_large_images_need_no_covariance(capsys, tmp_path, rng):
    """Its 12,288 squared numbers would take 1.2 GB; the 5 x 5 products of the images do."""
    array = pixels(rng, 5, 64, 64, 3)
    spectrum, report = made(capsys, tmp_path, folder_of(tmp_path, array))
    assert spectrum.dim == 64 * 64 * 3
    assert report["rtol"] == 0.0
    flat = (2.0 / 255.0 * array - 1.0).reshape(5, -1)
    flat -= flat.mean(axis=0)
    exact = np.linalg.svd(flat, compute_uv=False)[:4] ** 2 / 5 + ROUNDING
    np.testing.assert_allclose(spectrum.eigenvalues[:4], exact, rtol=1e-10)
    assert np.all(spectrum.eigenvalues[4:] == ROUNDING)


def test_images_of_subfolders_in_the_order_of_paths(capsys, tmp_path, rng):
    array = pixels(rng, 3, 4, 4)
    folder = folder_of(tmp_path, array[:1])
    (folder / "b").mkdir()
    (folder / ".hidden").mkdir()
    for name, image in (("b/9.PNG", array[2]), ("a.png", array[1]), (".hidden/x.png", array[0])):
        Image.fromarray(image).save(folder / name)
    (folder / "._a.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    (batch,) = images.ImageFolder(str(folder), None, False)
    assert np.array_equal(batch, 2.0 / 255.0 * array - 1.0)


def test_stationary_images(capsys, tmp_path, rng):
    array = pixels(rng, 12, 4, 6, 3)
    spectrum = made(capsys, tmp_path, folder_of(tmp_path, array), "--stationary")[0]
    assert spectrum == Spectrum.from_images(2.0 / 255.0 * array - 1.0, floor=ROUNDING)


def test_every_kind_of_8_bit_image_counts_by_its_colours(tmp_path, rng):
    grey, colour = pixels(rng, 1, 4, 4)[0], pixels(rng, 1, 4, 4, 3)[0]
    opaque = Image.fromarray(colour).convert("RGBA")
    black = np.where(grey > 128, 255, 0).astype(np.uint8)
    folder = folder_of(tmp_path, [grey, colour])
    opaque.save(folder / "002.png")
    Image.fromarray(grey).convert("LA").save(folder / "003.png")
    Image.fromarray(black).convert("1").save(folder / "004.png")
    Image.fromarray(colour // 128 * 255).quantize(8).save(folder / "005.png")
    (batch,) = images.ImageFolder(str(folder), None, False)
    expected = [np.repeat(grey[..., None], 3, 2), colour, colour, np.repeat(grey[..., None], 3, 2),
                np.repeat(black[..., None], 3, 2), colour // 128 * 255]  # fmt: skip
    assert np.array_equal(batch, 2.0 / 255.0 * np.array(expected) - 1.0)


def test_size_cuts_and_scales(capsys, tmp_path, rng):
    folder = folder_of(tmp_path, [np.full((20, 30), 50, np.uint8), np.full((50, 20, 3), 200, np.uint8)])
    stripes = np.zeros((10, 30), np.uint8)
    stripes[:, 10:20] = 255
    Image.fromarray(stripes).save(folder / "002.png")
    loaded = images.ImageFolder(str(folder), 8, False)
    (batch,) = loaded
    assert batch.shape == loaded.shape == (3, 8, 8, 3)
    assert np.array_equal(np.rint((batch + 1.0) * 127.5)[:, 4, 4, 0], [50, 200, 255])
    assert np.all(batch[2, :, 2:6] > 0.99)  # the middle square is white, but for its edges
    report = document(capsys, "spectrum", str(folder), "--size", "8", "--floor", "0.1")
    assert report["shape"] == [3, 8, 8, 3]


def test_images_are_read_again_for_each_pass(tmp_path, rng):
    folder = images.ImageFolder(str(folder_of(tmp_path, pixels(rng, 5, 3, 3))), None, False)
    assert np.array_equal(*(np.concatenate(list(folder)) for _ in range(2)))


def test_bad_folders(capsys, tmp_path, rng):
    array = pixels(rng, 2, 4, 4)
    refused(capsys, "must hold at least 2 images (.png, .jpg,", tmp_path)
    refused(capsys, "found only", folder_of(tmp_path, array[:1], name="one"))
    folder = folder_of(tmp_path, array)
    Image.fromarray(pixels(rng, 1, 5, 7)[0]).save(folder / "big.png")
    refused(capsys, "big.png: has 7x5 pixels, not 4x4 like", folder)
    assert document(capsys, "spectrum", str(folder), "--size", "4", "--floor", "1")["dim"] == 16


BROKEN = {
    "words.png": (lambda path: path.write_text("no image"), "words.png: is not an image"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "empty.jpg: is not an image"),
    "deep.png": (
        lambda path: Image.fromarray(np.zeros((4, 4), np.uint16)).save(path),
        "deep.png: has pixels of mode I",
    ),
    "print.jpg": (
        lambda path: Image.new("CMYK", (4, 4)).save(path),
        "print.jpg: has pixels of mode CMYK, not 8-bit",
    ),
    "film.tif": (
        lambda path: Image.new("L", (4, 4)).save(path, save_all=True, append_images=[Image.new("L", (4, 4))]),
        "film.tif: holds 2 images, not one",
    ),
    "glass.png": (
        lambda path: Image.new("RGBA", (4, 4), (0, 0, 0, 100)).save(path),
        "glass.png: has transparent pixels",
    ),
    "hole.png": (
        lambda path: Image.new("P", (4, 4)).save(path, transparency=0),
        "hole.png: has transparent pixels",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_used_are_named(capsys, tmp_path, rng, name):
    folder = folder_of(tmp_path, pixels(rng, 3, 4, 4))
    make, message = BROKEN[name]
    make(folder / name)
    refused(capsys, message, folder)


def test_damage_behind_the_header_is_named(capsys, tmp_path, rng):
    folder = folder_of(tmp_path, rng.integers(0, 256, (3, 64, 64), dtype=np.uint8))
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    refused(capsys, f"{folder / '001.png'}: cannot be read (", folder)


def test_a_few_of_many_broken_files_are_listed(capsys, tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    status, _, err = run(capsys, "spectrum", str(tmp_path))
    assert status == 2
    assert err.count(".png: is not an image") == 3
    assert err.endswith("; and 6 more files\n")


def test_images_need_pillow(capsys, tmp_path, rng, monkeypatch):
    folder = folder_of(tmp_path, pixels(rng, 2, 4, 4))
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(capsys, 'images need Pillow: pip install "fastkl[images]"', folder)
    assert document(capsys, "spectrum", "mnist")["dim"] == 784  # which needs none
