"""The library's own threads: started for one call, gone after it, so that forks and concurrent callers are safe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

from fastkl._validation import integer

__all__ = ["run_all", "thread_count"]


def thread_count(num_threads: int | None) -> int:
    """Return how many threads to use: the argument, else FASTKL_NUM_THREADS, else the CPUs this process may use."""
    if num_threads is not None:
        return integer("num_threads", num_threads)
    setting = os.environ.get("FASTKL_NUM_THREADS", "").strip()
    if setting:
        if not setting.isdecimal() or int(setting) < 1:
            raise ValueError(f"FASTKL_NUM_THREADS = {setting!r}: must be a positive integer")
        return int(setting)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Work:
    """Tasks that several threads take one by one; after an error no task is begun."""

    def __init__(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> None:
        self._function = function
        self._tasks = iter(tasks)
        self._lock = Lock()
        self._next = next(self._tasks, None)
        self.errors: list[BaseException] = []

    def left(self) -> bool:
        """Return whether a task is left to begin."""
        return self._next is not None and not self.errors

    def _take(self) -> tuple[Any, ...] | None:
        with self._lock:
            task = self._next
            if task is not None:
                self._next = next(self._tasks, None)
            return task

    def __call__(self) -> None:
        """Run tasks until none is left."""
        try:
            while not self.errors and (task := self._take()) is not None:
                self._function(*task)
        except BaseException as error:
            self.errors.append(error)


def run_all(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Call function(*task) for every task, on `threads` threads of which the caller's is one.

    Another thread is started only while tasks are left, and where the system refuses one (as it does once the
    interpreter is shutting down) those that there are do the work. Threads of the standard library's executors
    could not be used then.
    """
    work = Work(function, tasks)
    helpers: list[Thread] = []
    try:
        while len(helpers) + 1 < threads and work.left():
            helper = Thread(target=work, name="fastkl", daemon=True)
            try:
                helper.start()
            except RuntimeError:
                break
            helpers.append(helper)
        work()
        for helper in helpers:
            helper.join()
    except BaseException as error:  # Ctrl-C: let the helpers finish the tasks they are in
        work.errors.append(error)
        for helper in helpers:
            helper.join()
    if work.errors:
        raise work.errors[0]
