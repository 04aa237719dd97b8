"""Losses of the steps against pairs: two ways to the deviation 1/r - 1 that share no formula."""

import math

import numpy as np
import pytest
from cases import PRIORS

from fastkl import _cpu
from fastkl.kernels import ddim_compensated, ddim_horner, ddim_losses
from fastkl.kernels.ddim_horner import TILE

INF = math.inf


def both_deviations(x, levels, prior):
    """1/r - 1 from the steps' losses, and in pairs; and in how many elements the former is in doubt."""
    x, levels, code = _cpu.read_only(x), _cpu.read_only(levels), ddim_horner.PRIORS[prior]
    length = _cpu.chunk_degree(levels.size - 1, 12.0, 2)
    loss, base = np.full((2, math.ceil((levels.size - 1) / length), 2 * length + 1), np.nan)
    ddim_losses.expand_losses(levels, loss, base)
    a, b, q, by_losses = np.full((4, TILE), np.nan)
    doubtful = ddim_losses.deviation_by_losses(x, levels, code, loss, base, a, b, q, by_losses)
    np.testing.assert_allclose(q[: x.size], 1 + by_losses[: x.size], rtol=1e-12, atol=1e-15)
    top, bottom, ratio = np.full((3, 2, TILE), np.nan)
    by_pairs = np.full(TILE, np.nan)
    ddim_compensated.deviation_by_pairs(x, levels, code, top, bottom, ratio, by_pairs)
    return by_losses[: x.size], by_pairs[: x.size], doubtful


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 16, 17, 100, 1000])
def test_losses_agree_with_pairs(rng, prior, steps):
    compared = 0
    for _ in range(20):
        low = 10 ** rng.uniform(-3, 3)
        levels = np.geomspace(low * (1 + 10 ** rng.uniform(-6, 4)), low, steps + 1)
        levels[-1] = 0.0 if rng.random() < 0.3 else levels[-1]
        levels[0] = INF if rng.random() < 0.3 else levels[0]
        if steps == 1 and levels[-1] == 0.0:
            continue
        by_losses, by_pairs, doubtful = both_deviations(10 ** rng.uniform(-12, 12, 5), levels, prior)
        assert doubtful == 0 or prior in ("vp", "flow")
        if doubtful == 0:
            compared += 1
            rtol = 2e-11 if prior in ("vp", "flow") else 1e-12
            np.testing.assert_allclose(by_losses, by_pairs, rtol=rtol, atol=1e-28)  # pairs end at 1e-32 or so
    assert compared >= 5


@pytest.mark.parametrize(("prior", "none"), [("vp", 1.0), ("flow", 1 + 2 * 0.5)])
def test_losses_are_in_doubt_where_the_prior_cancels_them(prior, none):
    levels = np.geomspace(
        0.5, 0.4, 9
    )  # an eigenvalue a little below `none` loses what the prior has too much
    x = none * np.linspace(0.9, 1.0, 1000)
    by_losses, by_pairs, doubtful = both_deviations(x, levels, prior)
    assert 0 < doubtful < 1000
    assert (by_pairs > 0).any()
    assert (by_pairs < 0).any()
    np.testing.assert_allclose(by_losses, by_pairs, rtol=0, atol=1e-14)
