"""Output: JSON with the standard library, to a file too; tables and progress bars with rich (the extra `cli`)."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fastkl.cli.errors import InputError

__all__ = [
    "console",
    "digits",
    "line",
    "new_file",
    "plain_json",
    "print_json",
    "progress",
    "require_rich",
    "table",
]


def require_rich() -> None:
    """Raise unless rich is installed; call it before work whose result would be lost."""
    try:
        import rich  # noqa: F401
    except ImportError:
        raise InputError('tables need rich: pip install "fastkl[cli]", or use --json') from None


def print_json(document: Any) -> None:
    """Print one JSON document."""
    print(plain_json(document))


def plain_json(document: Any) -> str:
    """Return a JSON document; JSON has no infinity, so infinite numbers become the string "inf"."""
    return json.dumps(_plain(document), indent=2, allow_nan=False)


@contextmanager
def new_file(name: str, replace: bool) -> Iterator[TextIO]:
    """Open a text file that gets its name only when all has been written; enter before work that would be lost.

    A file of that name is an error, unless it is to be replaced.
    """
    path = Path(name).resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: must be a regular file")
    if path.exists() and not replace:
        raise InputError(f"{name}: exists; add --force to replace it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "x", encoding="utf-8") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not replace:
                path.touch(exist_ok=False)  # fails if there is one by now
            os.replace(part, path)
        except BaseException:
            part.unlink()
            raise


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def digits(value: Any) -> str:
    """A number as people read it: six significant digits; words stay as they are."""
    if isinstance(value, str) or value is None:
        return value or "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def console(*, stderr: bool = False) -> Any:
    """Return a rich console that reports a closed pipe to its caller."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with status 1
            raise  # the BrokenPipeError that is being handled

    return PlainConsole(stderr=stderr, highlight=False, markup=False, emoji=False)


def line(text: str = "") -> None:
    """Print a line of any length without breaking it."""
    print(text)


def table(title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns are (heading, "left" or "right")."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title, style="bold"), title_justify="left")
    for heading, justify in columns:
        grid.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console().print(grid)


@contextmanager
def progress(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr; yields advance(how many more candidates are done), 0 when the first one starts.

    `quiet`, for JSON, means: only where someone can be watching, and not at all without rich.
    """
    try:
        from rich import progress as bars
    except ImportError:
        yield lambda more: None
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    hidden = quiet and not sys.stderr.isatty()
    with bars.Progress(*columns, console=console(stderr=True), disable=hidden) as bar:
        task = bar.add_task("loading kernels", total=total, rate="")
        began, done = time.perf_counter(), 0

        def advance(more: int) -> None:
            nonlocal began, done
            if more == 0:
                began = time.perf_counter()
            done += more
            rate = f"{done / (time.perf_counter() - began):,.0f}/s" if done else ""
            bar.update(task, description="scoring candidates", advance=more, rate=rate)

        yield advance
