"""Result files that grow cell by cell: a cell that is there is not computed again, and a killed run loses none."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[1]))

import machine

RESULTS = pathlib.Path(__file__).parent / "results"


def rows_in(path: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a result file; none where there is no file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


def check_about(path: pathlib.Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    """End where a file was made from something else than what would now be added to it or taken from it."""
    for key in found | about:
        if found.get(key) != about.get(key):
            raise SystemExit(
                f"{path.name} was made from something else: its {key!r} is {found.get(key)!r}, here it is "
                f"{about.get(key)!r}; give another --out or remove the file"
            )


class Store:
    """One JSON file: `runs` says on what machine rows were made, `rows` are the results."""

    def __init__(
        self, path: pathlib.Path, keys: tuple[str, ...], about: dict[str, Any], packages: tuple[str, ...]
    ):
        self.path, self.keys = path, keys
        found = (
            json.loads(path.read_text(encoding="utf-8"))
            if path.exists()
            else about | {"runs": [], "rows": []}
        )
        self.runs, self.rows, self.about = found.pop("runs"), found.pop("rows"), about
        check_about(path, found, about)
        description = machine.description()
        description["versions"] |= {name: machine.version(name) for name in packages}  # type: ignore[operator]
        if description not in self.runs:
            self.runs.append(description)
        self.run = self.runs.index(description)

    def key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        """What tells a cell from another."""
        return tuple(row[key] for key in self.keys)

    def missing(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The cells without a row."""
        there = {self.key(row) for row in self.rows}
        return [cell for cell in cells if self.key(cell) not in there]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row and write the file: a row to a line, into a new file that takes the old one's place."""
        self.rows.append(row | {"run": self.run})
        self.rows.sort(key=lambda row: [str(value).rjust(40) for value in self.key(row)])
        head = json.dumps(self.about | {"runs": self.runs}, indent=1)[:-2]
        lines = ",\n".join(json.dumps(row) for row in self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(f'{head},\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
        os.replace(new, self.path)
