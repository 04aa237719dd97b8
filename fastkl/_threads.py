"""The library's own threads: started for one call, gone after it, so that forks and concurrent callers are safe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from threading import Lock
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


def run_all(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Call function(*task) for every task, on `threads` threads; after an error no task is begun."""
    tasks = iter(tasks)
    head = list(islice(tasks, 2))
    remaining = chain(head, tasks)
    if threads == 1 or len(head) < 2:
        for task in remaining:
            function(*task)
        return
    lock, stopped = Lock(), False

    def work() -> None:
        while not stopped:
            with lock:
                task = next(remaining, None)
            if task is None:
                return
            function(*task)

    with ThreadPoolExecutor(threads, thread_name_prefix="fastkl") as pool:
        try:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
        finally:
            stopped = True
