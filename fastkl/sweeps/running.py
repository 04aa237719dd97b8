"""One sweep from its configuration to its result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fastkl._progress import ProgressOption, check_progress
from fastkl._threads import run_all, thread_count
from fastkl.sweeps.checks import check
from fastkl.sweeps.config import load
from fastkl.sweeps.evaluation import chunk_bytes
from fastkl.sweeps.merging import Merger
from fastkl.sweeps.numerics import numerics, warn_of_others
from fastkl.sweeps.plan import Plan
from fastkl.sweeps.progress import reporting
from fastkl.sweeps.result import SweepResult
from fastkl.sweeps.sources import (
    local_moments,
    resolved_samplers,
    resolved_schedules,
    resolved_spectra,
)
from fastkl.sweeps.store import TOP, Store, write_whole
from fastkl.sweeps.tables import serialised

__all__ = ["plan_of", "run"]


def plan_of(config: Mapping[str, Any] | str | PathLike[str], client: Any = None) -> Plan:
    """Return the validated plan of a configuration; moments of large spectra are taken on the cluster, if any."""
    checked, folder = load(config)
    moments = local_moments
    if client is not None:
        from functools import partial

        from fastkl.sweeps.cluster import cluster_moments

        moments = partial(cluster_moments, client)
    schedules = resolved_schedules(checked.schedules)
    samplers = resolved_samplers(checked.samplers)
    spectra = resolved_spectra(checked.spectra, folder, checked.rtol, moments)
    plan = Plan(checked, spectra, schedules, samplers)
    check(plan)
    return plan


def run(
    config: Mapping[str, Any] | str | PathLike[str],
    output: str | PathLike[str] | None,
    client: Any,
    progress: ProgressOption,
    num_threads: int | None,
) -> SweepResult:
    """Run a sweep; see `fastkl.sweep`."""
    began = time.perf_counter()
    threads = thread_count(num_threads)
    if progress is not True:
        check_progress(progress)
    if client is not None:
        from fastkl.sweeps.cluster import check_client

        check_client(client)
    plan = plan_of(config, client)
    if output is not None:
        return on_disk(plan, Path(output), client, progress, threads, began)
    if plan.config.full:
        raise ValueError("configuration: full: must be false where there is no output folder for all rows")
    return in_memory(plan, client, progress, threads, began)


def on_disk(
    plan: Plan, folder: Path, client: Any, progress: ProgressOption, threads: int, began: float
) -> SweepResult:
    """Run a sweep, or what is left of it, whose chunks are kept in a folder."""
    with Store(folder, plan).opened() as store:
        before = sum(length(plan, number) for number in store.found)
        with reporting(progress, plan.size, before) as advance:

            def finished(number: int, content: bytes) -> None:
                store.write(number, content)
                advance(length(plan, number))

            run_chunks(plan, store.missing(), finished, client, threads)
        merger = Merger(plan)
        for table in store.tables():
            merger.take(table)
        top = merger.top()
        write_whole(folder / TOP, serialised(top))
        return SweepResult(
            top=top,
            folder=folder,
            config_hash=plan.config_hash,
            candidates=plan.size,
            evaluated_now=plan.size - before,
            left_out=merger.left_out,
            damaged=tuple(store.damaged),
            seconds=time.perf_counter() - began,
            plan=plan,
        )


def in_memory(plan: Plan, client: Any, progress: ProgressOption, threads: int, began: float) -> SweepResult:
    """Run a sweep of which only the best are kept."""
    merger = Merger(plan)
    with reporting(progress, plan.size, 0) as advance:

        def finished(number: int, content: bytes) -> None:
            merger.take(pq.read_table(pa.BufferReader(content)))
            advance(length(plan, number))

        run_chunks(plan, iter(range(plan.chunks)), finished, client, threads)
    warn_of_others("sweep", merger.numerics, numerics(plan.config.backend))
    return SweepResult(
        top=merger.top(),
        folder=None,
        config_hash=plan.config_hash,
        candidates=plan.size,
        evaluated_now=plan.size,
        left_out=merger.left_out,
        damaged=(),
        seconds=time.perf_counter() - began,
        plan=plan,
    )


def run_chunks(plan: Plan, numbers: Iterator[int], finished: Any, client: Any, threads: int) -> None:
    """Evaluate chunks on a cluster or on this machine's threads."""
    if client is not None:
        from fastkl.sweeps.cluster import run_on_cluster

        run_on_cluster(client, plan, numbers, finished)
        return

    def task(number: int) -> None:
        finished(number, chunk_bytes(plan, number))

    run_all(task, ((number,) for number in numbers), threads)


def length(plan: Plan, number: int) -> int:
    """Return how many candidates a chunk has."""
    _, begin, end = plan.chunk_range(number)
    return end - begin
