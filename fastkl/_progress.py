"""Reports of progress on long work: none, a bar in a terminal (rich, the extra `cli`), or calls of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "ProgressOption", "check_progress", "reporting"]

ProgressOption = bool | Callable[[int, int | None], object]
Advance = Callable[[int], None]


def check_progress(progress: object) -> None:
    """Raise unless `progress` is False, True with rich installed, or a callable."""
    if callable(progress) or progress is False:
        return
    if progress is not True:
        raise TypeError(
            f"progress: must be True, False or a callable(done, total), got {progress!r} "
            f"({type(progress).__name__})"
        )
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        raise ImportError(
            "progress=True draws its bar with rich: pip install 'fastkl[cli]', or pass a callable(done, total)"
        ) from None


@contextmanager
def reporting(progress: ProgressOption, what: str, total: int | None) -> Iterator[Advance]:
    """Within the context, what is yielded takes amounts of work done; `total` is None where it is not known.

    `progress` is as `check_progress` allows. A bar appears on standard error, and only if that is a terminal.
    """
    if progress is False:
        yield _ignore
    elif progress is True:
        with _bar(what, total) as advance:
            yield advance
    else:
        done = 0

        def advance_callable(amount: int) -> None:
            nonlocal done
            done += amount
            progress(done, total)

        yield advance_callable


def _ignore(amount: int) -> None:
    """Do nothing."""


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)
