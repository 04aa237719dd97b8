"""The folder of a sweep: a manifest, a lock, and one file for each finished chunk, whole or not there at all.

A chunk's file has its number and the start of its SHA-256 in its name, so that a damaged one is noticed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastkl import __version__
from fastkl.sweeps.plan import Plan, flattened

__all__ = ["Store", "write_whole"]

FORMAT = 1
NAME = re.compile(r"chunk-(\d{9,})\.([0-9a-f]{32})\.parquet")
PART = ".part"  # end of the names of files that are being written
PACKAGES = ("fastkl", "numpy", "scipy", "numba", "llvmlite", "pyarrow", "pydantic")
MOST_SHOWN = 5  # keys of a changed configuration


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that has its name only once all of it is on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


class Store:
    """An output folder, while this process holds its lock."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self._plan = folder, plan
        self.chunks = folder / "chunks"
        self._hash = plan.config_hash
        self.found: dict[int, Path] = {}
        self.damaged: list[str] = []

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Lock the folder, check that it belongs to this configuration, and look at what is there."""
        with told_of_resuming(self):
            self.chunks.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "lock"):
                self._check_manifest()
                self._look()
                yield self

    def _check_manifest(self) -> None:
        """Write the manifest of a new folder; raise unless that of an old one has the same configuration."""
        path = self.folder / "manifest.json"
        if not path.exists():
            self._refuse_strangers()
            sessions = [self._session()]
        else:
            old = self._read_manifest(path)
            refuse_changes(self.folder, old, self._plan)
            sessions = [*old["sessions"], self._session()]
        plan = self._plan
        manifest = {
            "format": FORMAT,
            "fastkl": __version__,
            "config_hash": self._hash,
            "config": plan.canonical(),
            "candidates": plan.size,
            "chunks": plan.chunks,
            "seeds": plan.seeds(),
            "sessions": sessions,
        }
        write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())

    def _refuse_strangers(self) -> None:
        """Raise if a folder without a manifest holds anything that this did not begin."""
        allowed = {"chunks", "lock"}
        others = [
            p.name for p in self.folder.iterdir() if p.name not in allowed and not p.name.endswith(PART)
        ]
        others += [p.name for p in self.chunks.iterdir() if not p.name.endswith(PART)]
        if others:
            raise ValueError(f"{self.folder}: holds {min(others)} but no manifest.json; choose a new folder")

    def _read_manifest(self, path: Path) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            _ = manifest["sessions"], manifest["config"], manifest["fastkl"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a manifest of this version of fastkl ({error})") from None
        return manifest

    def _session(self) -> dict[str, Any]:
        """Describe this run: when, where and with what."""
        return {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {
                "cpu": cpu_name(),
                "cpus": os.cpu_count(),
                "system": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
            },
            "versions": {name: version(name) for name in PACKAGES},
        }

    def _look(self) -> None:
        """Find the chunks that are whole; remove what was left half-written, and damaged files."""
        for folder in (self.folder, self.chunks):
            for path in folder.glob(f".*{PART}"):
                path.unlink()
        for path in sorted(self.chunks.iterdir()):
            name = NAME.fullmatch(path.name)
            if name is None:
                raise ValueError(f"{path}: does not belong to a sweep; remove it")
            number = int(name[1])
            if self._whole(path, number, name[2]):
                self.found[number] = path
            else:
                self.damaged.append(path.name)
                path.unlink()

    def _whole(self, path: Path, number: int, checksum: str) -> bool:
        """Whether a file is what was written for this sweep's chunk of that number."""
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] != checksum:
            return False
        said = pq.read_schema(pa.BufferReader(content)).metadata
        return (said[b"fastkl.config_hash"], said[b"fastkl.chunk"]) == (
            self._hash.encode(),
            str(number).encode(),
        )

    def missing(self) -> Iterator[int]:
        """Yield the numbers of the chunks that are not there now."""
        before = frozenset(self.found)
        return (number for number in range(self._plan.chunks) if number not in before)

    def write(self, number: int, content: bytes) -> None:
        """Keep a finished chunk."""
        checksum = hashlib.sha256(content).hexdigest()[:32]
        path = self.chunks / f"chunk-{number:09d}.{checksum}.parquet"
        write_whole(path, content)
        self.found[number] = path

    def tables(self) -> Iterator[pa.Table]:
        """Yield the chunks in order."""
        for number in sorted(self.found):
            yield pq.read_table(self.found[number], partitioning=None)

    def left_out(self) -> int:
        """Return how many candidates could not be evaluated."""
        schemas = (pq.read_schema(path) for path in self.found.values())
        return sum(int(schema.metadata[b"fastkl.left_out"]) for schema in schemas)


@contextmanager
def told_of_resuming(store: Store) -> Iterator[None]:
    """Say what is safe when a file cannot be written."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename or store.folder
        done = f"{len(store.found)} of {store._plan.chunks} chunks are written"
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}; {done}, and the same call goes on from there",
            str(place),
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when the process ends, however it ends."""
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                f"another sweep is writing to this folder (process {owner})",
                str(path.parent),
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def refuse_changes(folder: Path, old: dict[str, Any], plan: Plan) -> None:
    """Raise if the configuration differs from that of the chunks that are there, and say where."""
    new = json.loads(json.dumps(plan.canonical()))
    before, now = (
        {**flattened(c), "fastkl": v} for c, v in ((old["config"], old["fastkl"]), (new, __version__))
    )
    keys = [key for key in {**before, **now} if before.get(key, "absent") != now.get(key, "absent")]
    if not keys:
        return
    lines = [f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}" for key in keys]
    more = f"; and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else ""
    raise ValueError(
        f"{folder}: was begun with another configuration: {'; '.join(lines[:MOST_SHOWN])}{more}; "
        "choose a new folder, or restore the configuration"
    )


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
