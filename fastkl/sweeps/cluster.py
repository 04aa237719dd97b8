"""The same chunks on a Dask cluster: scheduling, retries and the loss of workers are Dask's."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any
from uuid import uuid4

from fastkl.moments import SpectrumMoments
from fastkl.sweeps.evaluation import chunk_bytes
from fastkl.sweeps.plan import Plan
from fastkl.sweeps.sources import chunk_moments, tree_sum

__all__ = ["check_client", "cluster_moments", "run_on_cluster"]

AHEAD = 4  # chunks a thread of the cluster that are submitted before others are done
RETRIES = 3  # of a chunk whose computation failed; a lost worker is not counted here


def check_client(client: Any) -> None:
    """Raise unless `client` is a synchronous client of dask.distributed."""
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("client=... needs dask.distributed: pip install 'fastkl[dask]'") from None
    if not isinstance(client, Client) or client.asynchronous:
        raise TypeError(f"client: must be a synchronous dask.distributed.Client, got {type(client).__name__}")


def run_on_cluster(
    client: Any, plan: Plan, numbers: Iterator[int], finished: Callable[[int, bytes], None]
) -> None:
    """Evaluate chunks on the workers and hand their files to `finished`, in the order in which they are done.

    The plan, with its spectra, is sent once; workers get it from each other. Few chunks are submitted ahead of those
    that are done, so that neither the scheduler nor this process holds more of them, however many there are.
    """
    from distributed import as_completed

    name = f"fastkl-{plan.config_hash[:16]}-{uuid4().hex}"
    shared = sent(client, plan, f"{name}-plan")

    def submit(number: int) -> Any:
        future = client.submit(
            chunk_bytes, shared, number, key=f"{name}-{number}", retries=RETRIES, pure=False
        )
        waiting[future.key] = number
        return future

    waiting: dict[str, int] = {}
    window = AHEAD * max(1, sum(client.nthreads().values()))
    running = as_completed([submit(number) for number in islice(numbers, window)], loop=client.loop)
    try:
        for future in running:
            finished(waiting.pop(future.key), future.result())
            future.release()
            for number in islice(numbers, 1):
                running.add(submit(number))
    finally:
        running.clear()  # what is still submitted is let go


def sent(client: Any, plan: Plan, key: str) -> Any:
    """Return a future of the plan.

    It is the result of a task, not scattered data: where all workers that hold it are lost, Dask computes it again, and
    a cluster that scales from no workers at all sees that there is work.
    """
    import dask

    # a spectrum of a million eigenvalues is more than Dask expects a task to carry
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        return client.submit(itself, plan, key=key, pure=False)


def itself(plan: Plan) -> Plan:
    """Return the plan."""
    return plan


def cluster_moments(client: Any, parts: list[Any]) -> SpectrumMoments:
    """Return the moments of a spectrum whose parts the workers read, added up in pairs on the workers."""
    taken = [client.submit(chunk_moments, part, pure=False, retries=RETRIES) for part in parts]
    total = tree_sum(taken, lambda a, b: client.submit(operator.add, a, b, pure=False, retries=RETRIES))
    moments: SpectrumMoments = total.result()
    return moments
