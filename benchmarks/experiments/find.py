"""Search levels on samples of a model (see searched.py), count what it costs, and keep them for the comparison.

    python benchmarks/experiments/find.py mnist-edm-ddim [--compile] [--cma 4 6 10] [--cma-free 4] [--cma-plain 4]

Writes results/found-<setup>.json; compare.py takes "trajectory-dp", "cma-fd", "cma-fd-free" and "cma-fd-free-plain"
from there. The last two move the first level too; "cma-fd-free" starts at fastkl's best choice, "cma-fd-free-plain"
at the tangent law with gamma = 1 from sigma = 20, which knows nothing of the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import measured
import numpy as np
import sampling
import scores
import searched
import strategies
import torch
from compare import NFE, PACKAGES
from numpy.typing import NDArray
from store import RESULTS, Store

from fastkl import discretize

Floats = NDArray[np.float64]
KEYS = ("strategy", "nfe")
BEST = {"ddim": "search-w2-{}-free", "dpmpp_2m": "search-w2-{}-free-ddim-low"}  # where cma-fd-free starts
PLAIN_START = 20.0


def keep(store: Store, strategy: str, nfe: int, found: searched.Found, s: strategies.Situation) -> None:
    """Write one choice of levels."""
    on_grid = strategies.levels(s, lambda _: np.array(found.sigmas), nfe)
    store.add(
        {"strategy": strategy, "nfe": nfe, "evaluations": found.evaluations, "sigmas": on_grid.tolist()}
    )
    print(
        f"{strategy}  NFE {nfe}  {found.evaluations} evaluations  {np.round(on_grid, 3).tolist()}", flush=True
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setup", choices=sampling.SETUPS)
    parser.add_argument("--cma", type=int, nargs="*", default=[4, 6, 10], help="NFE that CMA-ES searches")
    parser.add_argument(
        "--cma-free", type=int, nargs="*", default=[], help="NFE where it moves the first level"
    )
    parser.add_argument(
        "--cma-plain", type=int, nargs="*", default=[], help="the same without a start of fastkl"
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def starts(
    s: strategies.Situation, arguments: argparse.Namespace
) -> Iterator[tuple[str, int, Callable[[], Floats], float | None]]:
    """Of every search by CMA-ES its name, number of evaluations, first choice, and most of a first level that moves."""
    high = s.schedule.sigma_max
    best = strategies.all_of(s)[BEST[s.sampler].format("cov" if s.effective is None else "eff")]
    tangent = partial(discretize.tangent, s.schedule, gamma=1.0, sigma_min=0.0)
    for nfe in arguments.cma:
        yield "cma-fd", nfe, partial(tangent, steps=nfe), None
    for nfe in arguments.cma_free:
        yield "cma-fd-free", nfe, partial(best, nfe), high
    for nfe in arguments.cma_plain:
        yield "cma-fd-free-plain", nfe, partial(tangent, steps=nfe, sigma_max=PLAIN_START), high


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    setup = sampling.SETUPS[arguments.setup]
    images = setup.images()
    s = measured.situation(setup, RESULTS, arguments.device)
    store = Store(RESULTS / f"found-{setup.name}.json", KEYS, {"setup": setup.name}, (*PACKAGES, "cma"))
    shape = images.training.shape[1:]
    if store.missing([{"strategy": "trajectory-dp", "nfe": nfe} for nfe in NFE]):
        exact = sampling.denoiser(
            sampling.ready(setup, device=arguments.device, exact=True), arguments.device
        )
        for (strategy, nfe), found in searched.trajectory_dp(
            exact, setup.schedule, shape, list(NFE), arguments.device
        ).items():
            keep(store, strategy, nfe, found, s)
    model = sampling.ready(setup, device=arguments.device, compiled=arguments.compile)
    run, scorer = sampling.runner(setup, model, arguments.device), scores.Scorer(images)

    def distance(sigmas: Floats) -> float:
        levels = strategies.levels(s, lambda _: sigmas, len(sigmas) - 1)
        drawn = sampling.samples(run, levels, shape, searched.DRAWN, searched.SEED, arguments.device)
        return scorer.quick(drawn)

    for strategy, nfe, start, most in starts(s, arguments):
        if store.missing([{"strategy": strategy, "nfe": nfe}]):
            keep(store, strategy, nfe, searched.cma_fd(distance, start(), most), s)


if __name__ == "__main__":
    main()
