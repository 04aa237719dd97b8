"""Sweeps are never lost: kills, damage, changed configurations, two writers, and disks that cannot be written to.

The tests run as root as well as not, so a read-only target is a read-only mount where mounting is allowed, and in any
case a file in the folder's place; a full disk is a limit on the size of files, and a small file system where mounting
is allowed.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SEED
from sweeps import chunk_files, contents, small

import fastkl
from fastkl.sweeps.running import plan_of

KILLS = 20
EACH, CHUNKS = 6, 800  # so many that twenty runs cannot finish them, however fast the machine


LARGE = small(chunk=EACH, top=20, full=True, rtol=0.0, steps=[4, 6, 8, 10])
RUN = """
import json, sys
import fastkl
print("ready", flush=True)
found = fastkl.sweep(json.loads(sys.argv[1]), sys.argv[2], num_threads=2)
print(found.evaluated_now, flush=True)
"""


def start(folder, config=LARGE, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN, json.dumps(config), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(process):
    """What a run printed after "ready", and what it said when it failed."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out.removeprefix("ready\n").strip(), err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    fastkl.sweep(LARGE, folder)
    return contents(folder)


def test_killed_at_twenty_random_moments(tmp_path, undisturbed):
    """SIGKILL after a random time, twenty times; each time the next run goes on from what is there."""
    seed = random.Random(SEED).randrange(2**32)
    print(f"seed {seed}")
    draws, folder = random.Random(seed), tmp_path / "out"
    counts, killed = [], 0
    for _ in range(KILLS):
        process = start(folder)
        assert process.stdout.readline() == "ready\n"
        before = len(chunk_files(folder)) if folder.exists() else 0
        wanted = before + draws.randrange(5)
        deadline = time.monotonic() + 60.0
        while wanted > before and time.monotonic() < deadline and process.poll() is None:
            if len(list(folder.glob("chunks/*.parquet"))) >= wanted:  # into some chunk, then anywhere in it
                break
            time.sleep(0.001)
        time.sleep(draws.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        counts.append(len(chunk_files(folder)) if folder.exists() else 0)
    assert killed == KILLS, counts
    assert counts == sorted(counts), counts  # nothing that was written is lost
    assert 0 < counts[-1] < CHUNKS, counts
    status, evaluated, err = finished(start(folder))
    assert (status, err) == (0, "")
    assert int(evaluated) == EACH * (CHUNKS - counts[-1])  # no chunk twice
    assert contents(folder) == undisturbed
    assert not list(folder.rglob("*.part"))
    assert len(json.loads((folder / "manifest.json").read_text())["sessions"]) <= KILLS + 1


def test_a_finished_sweep_is_not_computed_again(tmp_path, monkeypatch):
    first = fastkl.sweep(small(), tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(
        "fastkl.sweeps.running.chunk_bytes", lambda plan, number: pytest.fail("computed again")
    )
    again = fastkl.sweep(small(), tmp_path / "out")
    assert (first.evaluated_now, again.evaluated_now, again.candidates) == (2400, 0, 2400)
    assert again.top.equals(first.top)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 8}, "top was 7, is 8"),
        ({"chunk": 101}, "chunk was 100, is 101"),
        ({"steps": [4, 7]}, r"steps\[1\] was 6, is 7"),
        ({"spectra": ["mnist"]}, r"spectra\[1\]\.name was 'digits', is 'absent'"),
        ({"spectra": ["mnist", {"preset": "digits", "floor": 1.0}]}, r"spectra\[1\]\.sha256 was '"),
        ({"schedules": [{"kind": "edm", "sigma_max": 70, "name": "edm"}]}, r"\.parameters\.sigma_max was 80"),
        ({"families": [{"family": "karras"}]}, r"families\[0\]\.family was 'tangent', is 'karras'"),
        ({"samplers": ["heun"]}, r"samplers\[0\]\.name was 'ddim', is 'heun'"),
    ],
)  # fmt: skip
def test_a_changed_configuration_is_refused(tmp_path, changes, message):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        fastkl.sweep(small(**changes), folder)
    assert contents(folder) == before


def test_another_version_is_refused(tmp_path):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "fastkl": "0.0.1"}))
    with pytest.raises(ValueError, match=r"fastkl was '0\.0\.1', is"):
        fastkl.sweep(small(), folder)


def test_the_manifest_says_what_it_was_made_with(tmp_path):
    random_family = {"family": "random", "num": 50, "seed": 77}
    found = fastkl.sweep(small(families=[random_family]), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config_hash"] == found.config_hash
    assert manifest["seeds"] == [77]
    assert (manifest["candidates"], manifest["chunks"]) == (200, 2)
    (session,) = manifest["sessions"]
    assert session["versions"]["fastkl"] == fastkl.__version__
    assert {"numpy", "numba", "pyarrow"} <= session["versions"].keys()
    assert session["machine"]["cpus"] == os.cpu_count()


def test_another_arithmetic_is_warned_of(tmp_path, monkeypatch):
    """Chunks of another kind of processor are kept, and the warning and the manifest say which they are."""
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("fastkl.sweeps.evaluation.numerics", lambda backend: "numpy 0, elsewhere")
        with pytest.warns(
            UserWarning, match=r"other versions or on another kind of processor \(numpy 0, elsewhere"
        ):
            fastkl.sweep(small(), folder)  # as chunks from a worker
        with pytest.warns(UserWarning, match=r"sweep: some chunks were evaluated with other versions"):
            fastkl.sweep(small())
    for path in chunk_files(folder)[9:]:
        path.unlink()
    with pytest.warns(UserWarning, match=r"values may differ in their last bits"):
        found = fastkl.sweep(small(), folder)
    assert found.evaluated_now == 1500
    said = [pq.read_schema(path).metadata[b"fastkl.numerics"].decode() for path in chunk_files(folder)]
    sessions = json.loads((folder / "manifest.json").read_text())["sessions"]
    assert said == ["numpy 0, elsewhere"] * 9 + [sessions[-1]["numerics"]] * 15
    assert sessions[-1]["numerics"].startswith(f"numpy {np.__version__}, numba ")


def test_two_processes_on_one_folder(tmp_path, undisturbed):
    """The second is refused, names the first, and harms nothing; once the first is gone the folder is free."""
    folder = tmp_path / "out"
    first = start(folder)
    while not chunk_files(folder):
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # so that it is still at work
    with pytest.raises(
        BlockingIOError, match=rf"another sweep is writing to this folder \(process {first.pid}\)"
    ):
        fastkl.sweep(LARGE, folder)
    first.send_signal(signal.SIGCONT)
    status, evaluated, err = finished(first)
    assert (status, evaluated, err) == (0, str(EACH * CHUNKS), "")
    assert contents(folder) == undisturbed
    assert fastkl.sweep(LARGE, folder).evaluated_now == 0


def resumes(folder, error, before):
    """The message says how far it came; what is there is whole; the next run ends like an undisturbed one."""
    written = len(chunk_files(folder))
    assert f"{written} of 24 chunks are written, and the same call goes on from there" in str(error)
    assert not list(folder.rglob("*.part"))
    found = fastkl.sweep(small(), folder)
    assert found.damaged == ()
    assert found.evaluated_now == 100 * (24 - written)
    assert contents(folder) == before
    return written


def test_a_full_disk_in_the_middle(tmp_path, undisturbed_small, monkeypatch):
    """The write of the sixth chunk fails half-way, as a full disk makes it."""
    folder = tmp_path / "out"
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 12:  # manifest and five chunks, each with its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        fastkl.sweep(small(), folder, num_threads=1)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert resumes(folder, caught.value, undisturbed_small) == 5


def test_files_that_may_not_grow(tmp_path, undisturbed_small):
    """A limit on the size of files, which the system enforces like a full disk; chunks of this sweep do not fit."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + RUN
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, json.dumps(small()), str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    status, _, err = finished(process)
    assert status == 1
    assert "File too large; 0 of 24 chunks are written, and the same call goes on from there" in err
    assert resumes(tmp_path / "out", err, undisturbed_small) == 0


def mounted(*arguments):
    """Whether this process may mount file systems, and has done it."""
    return (
        shutil.which("mount") is not None
        and subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0
    )


def test_a_full_file_system(tmp_path, undisturbed_small):
    """A file system of 150 kB where this process may mount one, else the limit on files above is all there is."""
    place = tmp_path / "small"
    place.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=150k", "tmpfs", place):
        assert os.geteuid() != 0 or "CAP_SYS_ADMIN is missing"
        return
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            fastkl.sweep(small(), place / "out", num_threads=1)
        subprocess.run(["mount", "-o", "remount,size=10m", place], check=True)
        assert 0 < resumes(place / "out", caught.value, undisturbed_small) < 24
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_target(tmp_path, undisturbed_small):
    """A file in the folder's place; and a read-only mount, where this process may mount one."""
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        fastkl.sweep(small(), tmp_path / "file")
    with pytest.raises(NotADirectoryError, match=r"Not a directory; 0 of 24 chunks are written: '"):
        fastkl.sweep(small(), tmp_path / "file" / "out")
    place = tmp_path / "place"
    place.mkdir()
    fastkl.sweep(small(), place / "out")
    for path in chunk_files(place / "out")[5:]:
        path.unlink()
    if not mounted("--bind", place, place):
        return
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            fastkl.sweep(small(), place / "new")
        with pytest.raises(OSError, match="Read-only file system"):
            fastkl.sweep(small(), place / "out")
    finally:
        subprocess.run(["umount", place], check=True)
    assert fastkl.sweep(small(), place / "out").evaluated_now == 1900
    assert contents(place / "out") == undisturbed_small


def test_an_error_in_a_chunk_leaves_the_others(tmp_path, undisturbed_small, monkeypatch):
    real = fastkl.sweeps.running.chunk_bytes

    def failing(plan, number):
        if number == 9:
            raise MemoryError("no memory for chunk 9")
        return real(plan, number)

    monkeypatch.setattr("fastkl.sweeps.running.chunk_bytes", failing)
    with pytest.raises(MemoryError, match="chunk 9"):
        fastkl.sweep(small(), tmp_path / "out", num_threads=1)
    monkeypatch.undo()
    assert len(chunk_files(tmp_path / "out")) == 9
    fastkl.sweep(small(), tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed_small


def test_chunks_say_which_they_are(tmp_path):
    fastkl.sweep(small(), tmp_path / "out")
    plan = plan_of(small())
    for number, path in enumerate(chunk_files(tmp_path / "out")):
        said = pq.read_schema(path).metadata
        _, begin, end = plan.chunk_range(number)
        assert (int(said[b"fastkl.chunk"]), int(said[b"fastkl.first"]), int(said[b"fastkl.last"])) == (
            number, begin, end - 1,
        )  # fmt: skip
