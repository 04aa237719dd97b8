"""``fastkl spectrum``: spectra of samples, to a file that `rank` and `score` take; bad data and options; progress."""

import io
import json
import os
import stat
import sys

import numpy as np
import pytest
from cli_calls import document, folder_of, made, pixels, python, refused, run, saved_spectrum

import fastkl
from fastkl import Spectrum
from fastkl.cli import files

LEVELS = [80.0, 5.0, 1.0, 0.0]


# ---- samples


@pytest.mark.parametrize("suffix", ["npy", "npz", "named.npz"])
@pytest.mark.parametrize("shape", [(40, 6), (30, 2, 3)])
def test_samples_in_files(capsys, tmp_path, rng, suffix, shape):
    samples = rng.standard_normal(shape) * 3 + 1
    path = tmp_path / f"samples.{suffix}"
    if suffix == "npy":
        np.save(path, samples)
    else:
        np.savez(path, **{"x" if "named" in suffix else "arr_0": samples})
    spectrum, report = made(capsys, tmp_path, path, "--floor", "0.5")
    assert spectrum == Spectrum.from_samples(samples, floor=0.5)
    assert (report["source"], report["shape"], report["floor"]) == ("samples", list(shape), 0.5)


def test_arrays_are_mapped_and_not_read(tmp_path, rng):
    np.save(tmp_path / "samples.npy", rng.standard_normal((10, 3)))
    assert isinstance(files.arrays_from_numpy(str(tmp_path / "samples.npy"))["arr_0"], np.memmap)


def test_whole_numbers_are_taken_as_they_are(capsys, tmp_path, rng):
    array = rng.integers(0, 256, (50, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "samples.npy", array)
    assert made(capsys, tmp_path, tmp_path / "samples.npy")[0] == Spectrum.from_samples(array)


def test_options_say_what_a_file_holds(capsys, tmp_path, rng):
    values = rng.uniform(1.0, 2.0, 20)
    np.save(tmp_path / "values.npy", values)
    np.savez(tmp_path / "values.npz", eigenvalues=values)
    np.savetxt(tmp_path / "table.csv", values.reshape(10, 2), delimiter=",")
    scalars = Spectrum.from_samples(values[:, None])
    for name in ("values.npy", "values.npz"):
        assert made(capsys, tmp_path, tmp_path / name)[0] == Spectrum(values)
        assert made(capsys, tmp_path, tmp_path / name, "--eigenvalues")[0] == Spectrum(values)
        assert made(capsys, tmp_path, tmp_path / name, "--samples")[0] == scalars
    table = made(capsys, tmp_path, tmp_path / "table.csv", "--samples")[0]
    assert table == Spectrum.from_samples(np.loadtxt(tmp_path / "table.csv", delimiter=","))


@pytest.mark.parametrize("shrinkage", [0.25, 1, "oas", "ledoit_wolf"])
def test_shrinkage_is_passed_on(capsys, tmp_path, rng, shrinkage):
    array = pixels(rng, 60, 4, 4)
    np.save(tmp_path / "samples.npy", array)
    found = made(capsys, tmp_path, tmp_path / "samples.npy", "--shrinkage", shrinkage)[0]
    assert found == Spectrum.from_samples(array, shrinkage=shrinkage)
    found = made(capsys, tmp_path, folder_of(tmp_path, array), "--shrinkage", shrinkage, "--floor", "0")[0]
    expected = Spectrum.from_samples(2.0 / 255.0 * array - 1.0, shrinkage=shrinkage)
    np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-9)


def test_a_missing_extra_is_an_error_in_a_line(capsys, tmp_path, rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.covariance", None)
    np.save(tmp_path / "samples.npy", rng.standard_normal((30, 4)))
    refused(capsys, "pip install 'fastkl[shrinkage]'", tmp_path / "samples.npy", "--shrinkage", "ledoit_wolf")


def test_stationary_arrays(capsys, tmp_path, rng):
    array = rng.standard_normal((9, 6, 5, 3))
    np.save(tmp_path / "images.npy", array)
    spectrum, report = made(capsys, tmp_path, tmp_path / "images.npy", "--stationary", "--floor", "0.1")
    assert spectrum == Spectrum.from_images(array, floor=0.1)
    assert report["dim"] == 90


def test_too_few_samples_warn_in_a_line(capsys, tmp_path, rng):
    np.save(tmp_path / "few.npy", rng.standard_normal((4, 10)))
    status, out, err = run(capsys, "spectrum", str(tmp_path / "few.npy"), "--json")
    assert status == 0
    assert json.loads(out)["zeros"] == 7
    assert err.startswith("fastkl: warning: ")
    assert err.count("\n") == 1
    assert "10" in err


# ---- options that do not fit the data


def test_options_without_meaning_are_refused(capsys, tmp_path, rng):
    np.save(tmp_path / "values.npy", [2.0, 1.0])
    np.save(tmp_path / "samples.npy", rng.standard_normal((9, 3, 2)))
    np.savez(tmp_path / "two.npz", a=np.ones((3, 2)), b=np.ones((3, 2)))
    folder = folder_of(tmp_path, pixels(rng, 3, 4, 4))
    values, samples = tmp_path / "values.npy", tmp_path / "samples.npy"
    refused(capsys, "mnist: is a preset, for which there is no --stationary", "mnist", "--stationary")
    refused(capsys, "mnist: is a preset, for which there is no --samples", "mnist", "--samples")
    refused(capsys, "for which there is no --shrinkage", values, "--shrinkage", "0.1")
    refused(capsys, "is a file, for which there is no --size", samples, "--size", "4")
    refused(capsys, "is a folder of images, for which there is no --eigenvalues", folder, "--eigenvalues")
    refused(capsys, "there is no --shrinkage", samples, "--stationary", "--shrinkage", "oas")
    refused(capsys, "must hold one array of samples, found a, b", tmp_path / "two.npz", "--samples")
    refused(capsys, "eigenvalues: must be 1-D", samples, "--eigenvalues")
    refused(
        capsys, "--samples: not allowed with argument --eigenvalues", values, "--eigenvalues", "--samples"
    )
    refused(capsys, "must be a preset (breast_cancer, digits, mnist, photographs) or a .npy, .npz, .csv or .txt file, "
            "or a folder of images", tmp_path / "none")  # fmt: skip


def test_bad_values_are_refused_before_the_work(capsys, tmp_path, rng):
    np.save(tmp_path / "samples.npy", rng.standard_normal((9, 3)))
    path = tmp_path / "samples.npy"
    refused(capsys, "--floor = -1.0: must be at least 0", path, "--floor=-1")
    refused(capsys, "--compress = 1e-13: must be at least 1e-12", path, "--compress", "1e-13")
    refused(capsys, "--compress = 1.0: must be below 1", path, "--compress", "1")
    refused(capsys, "shrinkage", path, "--shrinkage", "1.5")
    refused(capsys, "shrinkage", path, "--shrinkage", "much")
    refused(capsys, "--size: must be an integer above 0", path, "--size", "0")
    np.savez(tmp_path / "rtol.npz", eigenvalues=[1.0], rtol=-1.0)
    refused(capsys, "rtol = -1.0: must be at least 0", tmp_path / "rtol.npz")


def test_samples_are_not_taken_for_a_spectrum(capsys, tmp_path, rng):
    np.save(tmp_path / "samples.npy", rng.standard_normal((9, 3)))
    path = str(tmp_path / "samples.npy")
    status, out, err = run(capsys, "rank", "--spectrum", path)
    assert (status, out) == (2, "")
    assert f"{path}: holds samples, shape (9, 3); `fastkl spectrum {path} --out FILE` makes their" in err


# ---- files


def test_a_written_spectrum_comes_back(capsys, tmp_path):
    given = {"eigenvalues": [3.0, 0.1, 0.0], "counts": [1.5, 2.0, 7.0], "mean": [0.3, 1 / 3, 0.0]}
    np.savez(tmp_path / "given.npz", **given)
    copy = made(capsys, tmp_path, tmp_path / "given.npz")[0]
    assert copy == Spectrum(**given)
    bare = made(capsys, tmp_path, "photographs", "--floor", "0")[0]
    assert bare == Spectrum.preset("photographs", floor=0)
    assert bare.counts is None


def test_compressed_spectra_keep_what_they_reached(capsys, tmp_path):
    path, again = tmp_path / "small.npz", tmp_path / "again.npz"
    report = document(capsys, "spectrum", "mnist", "--compress", "1e-8", "--out", str(path))
    small = Spectrum.preset("mnist").compress(1e-8)
    assert 0.0 < small.rtol <= 1e-8
    assert saved_spectrum(path) == (small, small.rtol)
    assert (report["rtol"], report["entries"]) == (small.rtol, len(small))
    assert document(capsys, "spectrum", str(path), "--out", str(again))["rtol"] == small.rtol
    assert saved_spectrum(again) == (small, small.rtol)


@pytest.mark.parametrize("compress", [(), ("--compress", "1e-9")], ids=["whole", "compressed"])
def test_rank_and_score_take_the_file(capsys, tmp_path, rng, compress):
    np.save(tmp_path / "samples.npy", rng.standard_normal((500, 60)) * np.geomspace(3.0, 0.03, 60) + 0.2)
    (tmp_path / "levels.json").write_text(json.dumps(LEVELS))
    path = str(tmp_path / "spectrum.npz")
    document(capsys, "spectrum", str(tmp_path / "samples.npy"), "--out", path, *compress)
    truth = Spectrum.from_samples(np.load(tmp_path / "samples.npy"))
    score = document(capsys, "score", str(tmp_path / "levels.json"), "--spectrum", path, "--metric", "all")
    for metric, values in score["values"].items():
        assert values == pytest.approx([fastkl.divergence(truth, LEVELS, metric)], rel=2e-9)
    rank = document(capsys, "rank", "--spectrum", path, "--steps", "4", "--candidates-per-family", "12")
    best = rank["winner"]
    assert best["value"] == pytest.approx(fastkl.divergence(truth, best["sigmas"], "w2"), rel=2e-9)


def test_output_is_never_overwritten_unasked(capsys, tmp_path):
    path = tmp_path / "made.npz"
    path.write_bytes(b"precious")
    refused(capsys, f"--out {path}: exists already; --force overwrites it", "mnist", "--out", path)
    assert path.read_bytes() == b"precious"
    document(capsys, "spectrum", "digits", "--out", str(path), "--force")
    assert saved_spectrum(path)[0] == Spectrum.preset("digits")


def test_output_that_appears_meanwhile_is_kept(capsys, tmp_path, monkeypatch):
    path = tmp_path / "made.npz"
    monkeypatch.setattr(files.os, "fsync", lambda file: path.write_bytes(b"precious"))
    refused(capsys, "exists already", "mnist", "--out", path)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["made.npz"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(capsys, tmp_path, monkeypatch, error):
    path = tmp_path / "made.npz"
    path.write_bytes(b"precious")

    def fail(file):
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    status, _, err = run(capsys, "spectrum", "mnist", "--out", str(path), "--force", "--json")
    full = (2, f"fastkl: error: --out {path}: No space left on device\n")
    assert (status, err) == ((130, "") if isinstance(error, KeyboardInterrupt) else full)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["made.npz"]


def test_the_file_has_the_permissions_of_any_other(capsys, tmp_path):
    (tmp_path / "other").write_bytes(b"")
    made(capsys, tmp_path, "mnist")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "made.npz")}
    assert len(modes) == 1


def test_bad_outputs_are_refused_before_the_work(capsys, tmp_path, monkeypatch):
    def work(*arguments):
        raise AssertionError("too late")

    monkeypatch.setattr("fastkl.cli.spectrum.read_data", work)
    (tmp_path / "folder.npz").mkdir()
    refused(capsys, "must end in .npz", "mnist", "--out", tmp_path / "made.npy")
    refused(capsys, "there is no folder", "mnist", "--out", tmp_path / "none" / "made.npz")
    refused(capsys, "is a folder", "mnist", "--out", tmp_path / "folder.npz", "--force")


# ---- what is shown


def test_a_summary_for_people(capsys, tmp_path, rng):
    np.save(tmp_path / "samples.npy", rng.standard_normal((1234, 3)))
    out_file = tmp_path / "made.npz"
    status, out, err = run(capsys, "spectrum", str(tmp_path / "samples.npy"), "--out", str(out_file))
    assert (status, err) == (0, "")  # no bar: this is no terminal
    assert "1,234 x 3" in out
    assert "total variance" in out
    assert out.endswith(f"written to {out_file}\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", ["images", "samples"])
def test_progress_is_shown_on_a_terminal_only(capsys, tmp_path, rng, monkeypatch, kind):
    array = pixels(rng, 30, 4, 4)
    if kind == "images":
        data = str(folder_of(tmp_path, array))
    else:
        data = str(tmp_path / "samples.npy")
        np.save(data, array)
    shown = {}
    for arguments in ((), ("--json",)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("TERM", "xterm")
        status, out, _ = run(capsys, "spectrum", data, *arguments)
        assert status == 0
        assert "30/30" not in out
        shown[arguments] = sys.stderr.getvalue()
    assert "30/30" in shown[()]
    assert shown[("--json",)] == ""


def test_help_names_the_default_floor_and_needs_no_pillow():
    code = (
        "import sys; from fastkl.cli import main; main(['spectrum', '--help']); "
        "print({'PIL', 'scipy'} & set(sys.modules))"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert "for images that of rounding to 8 bits, (2/255)^2/12" in " ".join(finished.stdout.split())
    assert finished.stdout.endswith("set()\n")
