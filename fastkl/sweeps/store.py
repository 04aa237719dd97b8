"""The folder of a sweep: a manifest, a lock, and one file for each finished chunk, whole or not there at all.

A chunk's file has its number and the start of its SHA-256 in its name, and says in its metadata which sweep it belongs
to, so that a damaged one is noticed and a lost manifest can be written again. A folder is looked at before anything in
it is touched, and once more under the lock.
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

from fastkl._machine import cpu_name
from fastkl.sweeps.manifest import MANIFEST, Contradiction, manifest, manifest_of, refuse_changes
from fastkl.sweeps.numerics import numerics, warn_of_others
from fastkl.sweeps.plan import Plan
from fastkl.sweeps.tables import LEFT_OUT, NUMERICS, chunk_schema

__all__ = ["LOCK", "TOP", "Store", "write_whole"]

LOCK, TOP = ".fastkl-sweep.lock", "top.parquet"
NAME = re.compile(r"chunk-(\d{9,})\.([0-9a-f]{32})\.parquet")
PART = ".part"  # end of the names of files that are being written
PARTS = re.compile(rf"\.({NAME.pattern}|manifest\.json|top\.parquet)\.\d+\.part")
IGNORED = (".DS_Store",)  # which file managers leave in any folder
PACKAGES = ("fastkl", "numpy", "scipy", "numba", "llvmlite", "pyarrow", "pydantic")
# after these the same call can go on, once there is room
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


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
        self.found: dict[int, Path] = {}
        self.damaged: list[str] = []
        self._numerics: set[str] = set()  # of the chunks

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """Check that the folder is new or this configuration's, lock it, and look at what is there."""
        with told_of_resuming(self):
            self._earlier_sessions()  # before anything is made in a folder that is refused
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / LOCK):
                sessions, lost = self._earlier_sessions()
                self.damaged += lost
                self.chunks.mkdir(exist_ok=True)
                self._write_manifest(sessions)
                self._look()
                self._warn(set())
                known = set(self._numerics)
                yield self
                self._warn(known)

    def _earlier_sessions(self) -> tuple[list[Any], list[str]]:
        """Return the runs before this one, and the manifest's name if it must be written again; touch nothing.

        Raise if the folder holds something else: another configuration, or files that no sweep wrote.
        """
        path = self.folder / MANIFEST
        if not path.exists():
            refuse_strangers(self.folder)
        chunks = chunk_files(self.chunks)
        if not path.exists():
            fault = "is missing"
        else:
            try:
                old = manifest_of(path)
                refuse_changes(self.folder, old, self._plan)
                return old["sessions"], []
            except Contradiction as error:
                fault = str(error)
        others = [path.name for number, path in chunks if not self._whole(path, number)]
        if others and not path.exists():
            raise ValueError(f"{self.folder}: holds {others[0]} but no {MANIFEST}; choose a new folder")
        if path.exists() and (others or not chunks):
            raise ValueError(f"{path}: not a manifest of this version of fastkl ({fault})")
        return [], [MANIFEST] if chunks else []

    def _write_manifest(self, sessions: list[Any]) -> None:
        """Write the manifest, with this run added to those before it."""
        said = manifest(self._plan, [*sessions, self._session()])
        write_whole(self.folder / MANIFEST, (json.dumps(said, indent=1) + "\n").encode())

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
            "numerics": numerics(self._plan.config.backend),
        }

    def _look(self) -> None:
        """Find the chunks that are whole; remove what was left half-written, and damaged files."""
        damaged = []
        for number, path in chunk_files(self.chunks):
            said = self._whole(path, number)
            if said is None:
                damaged.append(path)
                continue
            if number in self.found:
                other = self.found[number].name
                raise ValueError(f"{path}: is chunk {number}, as {other} is; remove one of them")
            self.found[number] = path
            self._numerics.add(said[NUMERICS].decode())
        for path in damaged:
            self.damaged.append(path.name)
            path.unlink()
        for folder in (self.folder, self.chunks):
            for path in folder.iterdir():
                if PARTS.fullmatch(path.name):
                    path.unlink()

    def _whole(self, path: Path, number: int) -> dict[bytes, bytes] | None:
        """Return the metadata of a file if it is what was written for this sweep's chunk of that number."""
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: is not a file; remove it")
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # a link to nothing
            return None
        return self._said(content, path.name, number)

    def _said(self, content: bytes, name: str, number: int) -> dict[bytes, bytes] | None:
        """Return the metadata in a file's content if all of it is this sweep's chunk of that number."""
        if hashlib.sha256(content).hexdigest()[:32] != name.split(".")[1] or number >= self._plan.chunks:
            return None
        try:
            schema = pq.read_schema(pa.BufferReader(content))
        except pa.ArrowException:
            return None
        said: dict[bytes, bytes] = schema.metadata or {}
        _, begin, end = self._plan.chunk_range(number)
        wanted = chunk_schema(self._plan, chunk=number, first=begin, last=end - 1)
        same = all(said.get(key) == value for key, value in wanted.metadata.items())
        told = NUMERICS in said and said.get(LEFT_OUT, b"").isdigit()
        return said if same and told and schema.names == wanted.names else None

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
        """Yield the chunks in order; raise if one is no longer what was written."""
        for number in sorted(self.found):
            path = self.found[number]
            content = path.read_bytes() if path.is_file() else b""
            said = self._said(content, path.name, number)
            if said is None:
                del self.found[number]
                raise OSError(errno.EIO, "was damaged during the run", str(path))
            self._numerics.add(said[NUMERICS].decode())
            yield pq.read_table(pa.BufferReader(content))

    def _warn(self, known: set[str]) -> None:
        """Warn of chunks whose arithmetic is neither this process's nor known."""
        here = numerics(self._plan.config.backend)
        warn_of_others(str(self.folder), self._numerics - known, here)


def chunk_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the numbers and files of chunks; raise about a file that no sweep wrote."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        name = NAME.fullmatch(path.name)
        if name is not None:
            found.append((int(name[1]), path))
        elif not path.name.startswith("."):  # hidden files are the system's, or half-written
            raise ValueError(f"{path}: does not belong to a sweep; remove it")
    return found


def refuse_strangers(folder: Path) -> None:
    """Raise if a folder without a manifest holds anything that a sweep did not begin."""
    if not folder.exists():
        return
    names, allowed = [path.name for path in folder.iterdir()], {LOCK, *IGNORED}
    if (folder / "chunks").is_dir():
        inside = [path.name for path in (folder / "chunks").iterdir()]
        chunks = {name for name in inside if NAME.fullmatch(name)}
        names += [name for name in inside if name not in chunks]
        allowed |= {"chunks", TOP} if chunks else {"chunks"}
    others = [name for name in names if name not in allowed and not PARTS.fullmatch(name)]
    if others:
        raise ValueError(f"{folder}: holds {min(others)} but no {MANIFEST}; choose a new folder")


@contextmanager
def told_of_resuming(store: Store) -> Iterator[None]:
    """Say how far a run came that cannot write a file or is stopped, and whether the same call can go on."""

    def done() -> str:
        return f"{len(store.found)} of {store._plan.chunks} chunks are written"

    goes_on = "and the same call goes on from there"
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"{done()}, {goes_on}")
        raise
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename or store.folder
        reason = error.strerror or os.strerror(error.errno)
        rest = f", {goes_on}" if error.errno in PASSING else ""
        raise OSError(error.errno, f"{reason}; {done()}{rest}", str(place)) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with open(descriptor, "r+", encoding="ascii", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
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
