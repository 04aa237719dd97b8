"""What a sweep finds in its folder: damage is mended or named, and nothing of the user's is touched."""

import hashlib
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sweeps import chunk_files, contents, small

import fastkl
from fastkl.sweeps import store


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "renamed"])
def test_a_damaged_chunk_is_found_named_and_the_only_one_redone(tmp_path, damage, monkeypatch):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    before = contents(folder)
    victim = chunk_files(folder)[7]
    content = bytearray(victim.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[:-9])
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "other":  # whole, but of another sweep
        fastkl.sweep(small(top=8), tmp_path / "other")
        victim.unlink()
        victim = folder / "chunks" / chunk_files(tmp_path / "other")[7].name
        shutil.copy(chunk_files(tmp_path / "other")[7], victim)
    else:  # whole, under another's number
        wrong = victim.with_name(victim.name.replace("000000007", "000000008"))
        chunk_files(folder)[8].unlink()
        victim = victim.rename(wrong)
    done = []
    real = store.Store.write
    monkeypatch.setattr(store.Store, "write", lambda self, n, data: (done.append(n), real(self, n, data)))
    found = fastkl.sweep(small(), folder)
    assert found.damaged == (victim.name,)
    assert sorted(done) == ([7, 8] if damage == "renamed" else [7])
    assert contents(folder) == before


@pytest.mark.parametrize("where", ["", "chunks/"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, where):
    folder = tmp_path / "out"
    (folder / "chunks").mkdir(parents=True)
    (folder / f"{where}mine.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds mine\.txt but no manifest\.json; choose a new folder"):
        fastkl.sweep(small(), folder)
    assert (folder / f"{where}mine.txt").read_text() == "precious"
    assert sorted(path.name for path in folder.rglob("*")) == ["chunks", "mine.txt"]


@pytest.mark.parametrize("name", ["lock", ".mine.part", "top.parquet", "manifest.json.1.part", "chunks"])
def test_a_file_of_the_users_is_never_overwritten(tmp_path, name):
    """Whatever its name is: not even one that looks like a lock or a half-written file."""
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=rf"holds {re.escape(name)} but no manifest\.json"):
        fastkl.sweep(small(), tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path, undisturbed_small):
    folder = tmp_path / "out"
    (folder / "chunks").mkdir(parents=True)
    own = [
        ".manifest.json.17.part",
        ".top.parquet.17.part",
        f"chunks/.chunk-000000003.{'0a' * 16}.parquet.17.part",
    ]
    for name in (*own, "chunks/.DS_Store", "chunks/.mine.part"):
        (folder / name).write_text("precious")
    with pytest.raises(ValueError, match=r"holds \.mine\.part but no manifest"):
        fastkl.sweep(small(), folder)
    (folder / "chunks" / ".mine.part").unlink()
    fastkl.sweep(small(), folder)
    (folder / "chunks" / ".mine.part").write_text("precious")
    fastkl.sweep(small(), folder)
    assert not any((folder / name).exists() for name in own)
    assert (folder / "chunks" / ".DS_Store").read_text() == "precious"
    assert (folder / "chunks" / ".mine.part").read_text() == "precious"
    assert contents(folder) == undisturbed_small


def test_the_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / store.LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links; 0 of 24 chunks are written"):
        fastkl.sweep(small(), tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"


def test_two_files_of_one_chunk_are_refused(tmp_path, monkeypatch):
    """Both whole, but not the same: values of another processor, say."""
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    victim = chunk_files(folder)[3]
    table = pq.read_table(victim, partitioning=None)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"more": b"x"}), tmp_path / "other"
    )
    content = (tmp_path / "other").read_bytes()
    name = f"chunk-000000003.{hashlib.sha256(content).hexdigest()[:32]}.parquet"
    (folder / "chunks" / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"is chunk 3, as .* is; remove one of them"):
        fastkl.sweep(small(), folder)
    assert victim.exists()
    assert (folder / "chunks" / name).exists()


@pytest.mark.parametrize("content", ["text", "table"])
def test_wrong_content_under_the_right_checksum_is_damage(tmp_path, content, undisturbed_small):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    chunk_files(folder)[3].unlink()
    written = tmp_path / "other"
    if content == "text":
        written.write_text("no Parquet")
    else:
        pq.write_table(pa.table({"index": [1, 2]}), written)
    name = f"chunk-000000003.{hashlib.sha256(written.read_bytes()).hexdigest()[:32]}.parquet"
    shutil.copy(written, folder / "chunks" / name)
    found = fastkl.sweep(small(), folder)
    assert (found.damaged, found.evaluated_now) == ((name,), 100)
    assert contents(folder) == undisturbed_small


def test_a_link_to_nothing_is_damage_and_a_folder_is_refused(tmp_path, undisturbed_small):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    victim = chunk_files(folder)[3]
    victim.unlink()
    victim.symlink_to("nothing")
    assert fastkl.sweep(small(), folder).damaged == (victim.name,)
    assert contents(folder) == undisturbed_small
    victim.unlink()
    victim.mkdir()
    with pytest.raises(ValueError, match=rf"{victim.name}: is not a file; remove it"):
        fastkl.sweep(small(), folder)


def test_a_chunk_damaged_during_the_run_is_named(tmp_path, undisturbed_small):
    folder = tmp_path / "out"

    def spoil(done, total):
        if done == total:
            chunk_files(folder)[5].write_bytes(b"spoiled")

    with pytest.raises(
        OSError, match="was damaged during the run; 23 of 24 chunks are written, and the same call"
    ):
        fastkl.sweep(small(), folder, progress=spoil, num_threads=1)
    assert fastkl.sweep(small(), folder).evaluated_now == 100
    assert contents(folder) == undisturbed_small


def test_a_stranger_among_the_chunks_is_named(tmp_path):
    fastkl.sweep(small(), tmp_path / "out")
    (tmp_path / "out" / "chunks" / "mine.parquet").write_text("precious")
    with pytest.raises(ValueError, match=r"mine\.parquet: does not belong to a sweep; remove it"):
        fastkl.sweep(small(), tmp_path / "out")


def damage(folder, **changes):
    """Change the manifest of a folder."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BROKEN = ["", "{}", '{"format": 0}', "[1]", "[" * 100_000, None]
CHANGES = [
    {"sessions": 3}, {"sessions": [3]}, {"candidates": 7}, {"chunks": 9}, {"config_hash": "0" * 64}, {"config": {}},
    {"format": 2},
]  # fmt: skip


@pytest.mark.parametrize("broken", [*BROKEN, *CHANGES], ids=lambda value: str(value)[:30])
def test_a_damaged_manifest_is_written_again_where_all_chunks_are_this_sweeps(
    tmp_path, undisturbed_small, broken
):
    folder = tmp_path / "out"
    fastkl.sweep(small(), folder)
    if broken is None:
        (folder / "manifest.json").unlink()
    elif isinstance(broken, str):
        (folder / "manifest.json").write_text(broken)
    else:
        damage(folder, **broken)
    found = fastkl.sweep(small(), folder)
    assert (found.damaged, found.evaluated_now) == (("manifest.json",), 0)
    assert contents(folder) == undisturbed_small
    assert fastkl.sweep(small(), folder).damaged == ()


@pytest.mark.parametrize("broken", ["", '{"sessions": 3}', None])
def test_a_damaged_manifest_is_refused_where_chunks_are_of_another_sweep(tmp_path, broken):
    folder = tmp_path / "out"
    fastkl.sweep(small(top=8), folder)
    if broken is None:
        (folder / "manifest.json").unlink()
        message = r"holds chunk-000000000\.\w+\.parquet but no manifest\.json"
    else:
        (folder / "manifest.json").write_text(broken)
        message = r"manifest\.json: not a manifest of this version"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        fastkl.sweep(small(), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_manifest_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "an extension"}')
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest of this version of fastkl"):
        fastkl.sweep(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert (tmp_path / "manifest.json").read_text() == '{"name": "an extension"}'
