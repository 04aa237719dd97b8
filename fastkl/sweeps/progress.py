"""Progress of a sweep: a bar with rate and time left in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastkl._progress import ProgressOption

__all__ = ["reporting"]

BETWEEN_LINES = 10.0  # seconds


@contextmanager
def reporting(progress: ProgressOption, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yield advance(candidates), which may be called by any thread; `done` were there before."""
    if progress is False:
        yield lambda amount: None
    elif progress is not True:
        yield Counted(total, done, lambda counted, rate: progress(counted, total))
    elif sys.stderr.isatty() and has_rich():
        with bar(total, done) as advance:
            yield advance
    else:
        yield Counted(total, done, Lines(total))


def has_rich() -> bool:
    """Whether rich is installed."""
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        return False
    return True


class Counted:
    """Calls report(done, rate) after each amount, one thread at a time; the rate is that of this run."""

    def __init__(self, total: int, done: int, report: Callable[[int, float], object]) -> None:
        self._done, self._before, self._report = done, done, report
        self._lock, self._began = threading.Lock(), time.perf_counter()
        report(done, 0.0)

    def __call__(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            seconds = time.perf_counter() - self._began
            self._report(self._done, (self._done - self._before) / max(seconds, 1e-9))


class Lines:
    """Prints a line at the beginning, at the end, and every few seconds between."""

    def __init__(self, total: int) -> None:
        self._total, self._next = total, 0.0

    def __call__(self, done: int, rate: float) -> None:
        now = time.perf_counter()
        if now < self._next and done < self._total:
            return
        self._next = now + BETWEEN_LINES
        left = f", {rate:,.0f}/s, {duration((self._total - done) / rate)} left" if rate else ""
        print(f"{done:,} of {self._total:,} candidates{left}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@contextmanager
def bar(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on standard error."""
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("candidates"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(elapsed_when_finished=True),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as drawn:
        task = drawn.add_task("", total=total, completed=done, rate="")
        yield Counted(
            total,
            done,
            lambda counted, rate: drawn.update(
                task, completed=counted, rate=f"{rate:,.0f}/s" if rate else ""
            ),
        )
