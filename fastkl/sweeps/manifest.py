"""The manifest of a sweep's folder: read back with distrust, and compared with the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastkl import __version__
from fastkl.sweeps.plan import Plan, flattened, hashed

__all__ = ["MANIFEST", "Contradiction", "manifest", "manifest_of", "refuse_changes"]

FORMAT = 1
MANIFEST = "manifest.json"
KINDS = {
    "format": int,
    "fastkl": str,
    "config_hash": str,
    "config": dict,
    "candidates": int,
    "chunks": int,
    "seeds": list,
    "sessions": list,
}
MOST_SHOWN = 5  # keys of a changed configuration


class Contradiction(ValueError):
    """A manifest does not hold what a sweep writes."""


def manifest(plan: Plan, sessions: list[Any]) -> dict[str, Any]:
    """Return what the manifest says."""
    return {
        "format": FORMAT,
        "fastkl": __version__,
        "config_hash": plan.config_hash,
        "config": plan.canonical(),
        "candidates": plan.size,
        "chunks": plan.chunks,
        "seeds": plan.seeds(),
        "sessions": sessions,
    }


def manifest_of(path: Path) -> dict[str, Any]:
    """Return what is in a manifest, or raise a Contradiction if a sweep cannot have written it."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Contradiction(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Contradiction("is not a table")
    for key, kind in KINDS.items():
        if not isinstance(found.get(key), kind):
            raise Contradiction(f"{key} is missing or of the wrong kind")
    if found["format"] != FORMAT:
        raise Contradiction(f"format is {found['format']}")
    if not all(isinstance(session, dict) for session in found["sessions"]):
        raise Contradiction("sessions is of the wrong kind")
    try:
        if hashed(found["config"]) != found["config_hash"]:
            raise Contradiction("config_hash is not that of config")
    except ValueError as error:
        raise Contradiction(str(error)) from None
    return found


def refuse_changes(folder: Path, old: dict[str, Any], plan: Plan) -> None:
    """Raise if the configuration differs from that of the chunks that are there, and say where.

    Raise a Contradiction if it is the same, but what follows from it is not.
    """
    new = json.loads(json.dumps(plan.canonical()))
    before, now = (
        {**flattened(c), "fastkl": v} for c, v in ((old["config"], old["fastkl"]), (new, __version__))
    )
    keys = [key for key in {**before, **now} if before.get(key, "absent") != now.get(key, "absent")]
    if not keys:
        expected = manifest(plan, [])
        for key in ("config_hash", "candidates", "chunks", "seeds"):
            if old[key] != expected[key]:
                raise Contradiction(f"{key} does not follow from config")
        return
    lines = [f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}" for key in keys]
    more = f"; and {len(keys) - MOST_SHOWN} more" if len(keys) > MOST_SHOWN else ""
    raise ValueError(
        f"{folder}: was begun with another configuration: {'; '.join(lines[:MOST_SHOWN])}{more}; "
        "choose a new folder, or restore the configuration"
    )
