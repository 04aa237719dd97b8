"""Pictures: levels, variances, divergences, spectra and search fronts on Matplotlib's axes (the extra ``plot``).

Every function draws on `ax`, or on a new figure's axes, and returns the axes, so that all of Matplotlib can go on from
there. Colours are those of Okabe and Ito, which people of all kinds of colour vision tell apart; markers and dashes
differ too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._plot_parts import COLOURS, DASHES, axes, checked_mapping, look, named_levels, whole_numbers
from fastkl._sampler_base import Sampler
from fastkl._validation import choice, integer
from fastkl.evaluate import METRICS, divergence, output_variance
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["convergence", "front", "levels", "ratios", "spectrum"]

Array = NDArray[np.float64]

UNITS = {"kl": "KL(data || samples) (nats)", "reverse_kl": "KL(samples || data) (nats)",
         "jeffreys": "Jeffreys divergence (nats)", "w2": "squared 2-Wasserstein distance (data units squared)",
}  # fmt: skip
SIGMA = "noise level sigma (noise-to-signal ratio)"


def levels(schedules: Mapping[str, ArrayLike], ax: Any = None) -> Any:
    """Draw the levels of several schedules against the step; 0 and inf are marked on the frame.

    Parameters
    ----------
    schedules : mapping of str to array_like, shape (N+1,)
        Names and levels, as `fastkl.divergence` takes them.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or the new axes.

    Raises
    ------
    TypeError, ValueError
        If `schedules` is not a mapping, is empty, or a schedule is not one that `fastkl.divergence` takes.
    ImportError
        If Matplotlib is not installed.

    Examples
    --------
    >>> from fastkl import plots
    >>> plots.levels({"mine": [80.0, 5.0, 1.0, 0.0]}).get_yscale()
    'log'
    """
    return visited(named_levels(schedules), axes(ax))


def visited(named: Mapping[str, Array], ax: Any) -> Any:
    """Draw levels that need not fall: what a scheduler really visits."""
    ax.set_yscale("log")
    frame = ax.get_xaxis_transform()  # x in steps, y from 0 at the bottom to 1 at the top
    for i, (name, sigmas) in enumerate(named.items()):
        steps = np.arange(len(sigmas))
        inside = np.isfinite(sigmas) & (sigmas > 0.0)
        style = look(i)
        ax.plot(steps[inside], sigmas[inside], label=name, **style)
        ends = {"color": style["color"], "clip_on": False, "linestyle": "none", "markersize": 7, "zorder": 5,
                "in_layout": False}  # fmt: skip
        for place, marker, there in ((0.0, "v", sigmas == 0.0), (1.0, "^", np.isinf(sigmas))):
            ax.plot(steps[there], np.full(there.sum(), place), transform=frame, marker=marker, **ends)
    whole_numbers(ax)
    ax.set_xlabel("step")
    ax.set_ylabel(SIGMA)
    marks = [("0", any((s == 0.0).any() for s in named.values()), "bottom"),
             ("infinity", any(np.isinf(s).any() for s in named.values()), "top")]  # fmt: skip
    notes = [f"{where} edge: {what}" for what, there, where in marks if there]
    ax.set_title(
        "Noise levels" + (f" (triangles on the {', '.join(notes)})" if notes else ""), fontsize="medium"
    )
    ax.legend(fontsize="small")
    return ax


def ratios(
    spectrum: Spectrum | ArrayLike,
    schedules: Mapping[str, ArrayLike],
    sampler: str | Sampler = "ddim",
    prior: str = "vp",
    ax: Any = None,
) -> Any:
    r"""Draw r, the variance of a sampler's output over that of the data, against the eigenvalue.

    .. math:: r_i = v_i/(\lambda_i + s_N^2)

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units); those of 0 are left out.
    schedules : mapping of str to array_like, shape (N+1,)
        Names and levels.
    sampler : str or Sampler
        The update rule, as in `fastkl.output_variance`.
    prior : {"vp", "ve", "flow", "exact"}
        Variance of the first state, as in `fastkl.output_variance`.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or the new axes.

    Raises
    ------
    TypeError, ValueError
        As `fastkl.output_variance`, or if no eigenvalue is above 0.
    ImportError
        If Matplotlib is not installed.

    Examples
    --------
    >>> from fastkl import plots
    >>> plots.ratios([4.0, 1.0, 0.25], {"mine": [80.0, 5.0, 1.0, 0.0]}).get_xscale()
    'log'
    """
    data, named = as_spectrum("spectrum", spectrum), named_levels(schedules)
    eigenvalues = np.unique(data.eigenvalues[data.eigenvalues > 0.0])
    if eigenvalues.size == 0:
        raise ValueError("spectrum: must have an eigenvalue above 0, whose ratio can be drawn")
    ax = axes(ax)
    for i, (name, sigmas) in enumerate(named.items()):
        variance = output_variance(eigenvalues, sigmas, sampler, prior)
        draw_ratio(ax, eigenvalues, variance / (eigenvalues + sigmas[-1] ** 2), name, i)
    finish_ratios(ax)
    return ax


def draw_ratio(ax: Any, eigenvalues: Array, ratio: Array, name: str, index: int) -> None:
    """Draw one line of ratios; the markers of few eigenvalues show where they are."""
    style = look(index)
    if len(eigenvalues) > 1:
        style["markevery"] = max(1, len(eigenvalues) // 12)
    ax.plot(eigenvalues, ratio, label=name, **style)


def finish_ratios(ax: Any) -> None:
    """Label axes of ratios, and mark where the output has the variance of the data."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.axhline(1.0, color="0.4", linewidth=0.8, zorder=0)
    ax.set_xlabel("eigenvalue (variance, data units squared)")
    ax.set_ylabel("r = variance of samples / of data")
    ax.set_title("Variance that the sampler returns (1: right)", fontsize="medium")
    ax.legend(fontsize="small")


def convergence(
    spectrum: Spectrum | ArrayLike,
    schedule: NoiseSchedule,
    steps: Iterable[int] = (4, 8, 16, 32, 64, 128),
    found: Sequence[Any] = (),
    ax: Any = None,
) -> Any:
    r"""Draw kl against N for evenly spaced times of a smooth schedule, with its expansion and the best levels.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units).
    schedule : NoiseSchedule
        A smooth one (`is_smooth`), for which the expansion in 1/N holds.
    steps : iterable of int
        Numbers of steps N, at least 2 each.
    found : sequence of SearchResult
        Results of `fastkl.search` with ``metric="kl"``, drawn with their lower bounds.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or the new axes.

    Raises
    ------
    TypeError, ValueError
        If `schedule` has no expansion, a number of steps is below 2, or a result is not of `kl`.
    ImportError
        If Matplotlib is not installed.

    Examples
    --------
    >>> import fastkl
    >>> from fastkl import plots
    >>> plots.convergence([1.0, 0.1], fastkl.NoiseSchedule.tangent(0.3), [4, 8]).get_xlabel()
    'steps N'
    """
    from fastkl.theory import expansion

    data = as_spectrum("spectrum", spectrum)
    numbers = np.array([integer(f"steps[{i}]", n, minimum=2) for i, n in enumerate(steps)])
    for i, best in enumerate(found):
        choice(f"found[{i}].metric", best.metric, ("kl",))
    coefficients = expansion(data, schedule, order=4, prior=None)
    exact = [
        divergence(data, schedule.sigmas(1.0 - np.arange(n + 1) / n), prior=schedule.prior) for n in numbers
    ]
    ax = axes(ax)
    ax.plot(numbers, exact, label=f"{schedule.name}, even times", **look(0))
    dense = np.geomspace(numbers.min(), numbers.max(), 200)
    for i, order in enumerate((2, 4), 1):
        value = np.polynomial.polynomial.polyval(1.0 / dense, coefficients[: order + 1])
        ax.plot(dense, np.where(value > 0.0, value, np.nan), label=f"its expansion to N^-{order}",
                color=COLOURS[i], linestyle=DASHES[i], linewidth=1.5)  # fmt: skip
    if len(found):
        draw_found(ax, "best levels", found, 3, [best.steps for best in found])
    finish_counts(ax, "steps N", "kl")
    ax.set_xscale("log")
    ax.set_xticks(numbers, labels=[str(n) for n in numbers])
    ax.minorticks_off()
    return ax


def spectrum(spectrum: Spectrum | ArrayLike, rtol: float | None = 1e-10, ax: Any = None) -> Any:
    """Draw a spectrum by rank, and the nodes of its compression.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum, or its eigenvalues (squared data units); those of 0 are left out.
    rtol : float or None
        Error of the compression, as in `Spectrum.compress`; None draws none.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or the new axes.

    Raises
    ------
    TypeError, ValueError
        As `Spectrum.compress`, or if no eigenvalue is above 0.
    ImportError
        If Matplotlib is not installed.

    Notes
    -----
    A node is drawn at the middle of the ranks that it stands for; the area of its disc grows with their number.

    Examples
    --------
    >>> import fastkl
    >>> from fastkl import plots
    >>> plots.spectrum(fastkl.Spectrum.power_law(1000, 1.5)).get_ylabel()
    'eigenvalue (variance, data units squared)'
    """
    data = as_spectrum("spectrum", spectrum)
    ranks, values, _ = by_rank(data)
    ax = axes(ax)
    ax.step(np.append(0.5, ranks), np.append(values, values[-1]), where="post", color=COLOURS[0],
            label=f"{len(data):,} entries, dim {data.dim:,.10g}")  # fmt: skip
    if rtol is not None:
        small = data.compress(rtol)
        last, nodes, counts = by_rank(small)
        area = 12.0 + 80.0 * np.sqrt(counts / counts.max())
        ax.scatter(np.maximum(last - counts / 2.0, 0.5), nodes, s=area, facecolors="none", edgecolors=COLOURS[1],
                   linewidths=1.2, zorder=3,
                   label=f"compression: {len(small)} nodes, relative error {small.rtol:.1e}")  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("rank (number of directions)")
    ax.set_ylabel("eigenvalue (variance, data units squared)")
    ax.set_title("Covariance spectrum", fontsize="medium")
    ax.legend(fontsize="small")
    return ax


def by_rank(data: Spectrum) -> tuple[Array, Array, Array]:
    """Return the last rank, the value and the count of the entries above 0, the largest first."""
    order = np.argsort(-data.eigenvalues, kind="stable")
    values = data.eigenvalues[order]
    counts = np.ones(len(values)) if data.counts is None else data.counts[order]
    kept = (values > 0.0) & (counts > 1e-9 * counts.max())  # nodes of the mean have counts of 1e-20
    if not kept.any():
        raise ValueError("spectrum: must have an eigenvalue above 0, which a logarithmic axis can show")
    return np.cumsum(counts[kept]), values[kept], counts[kept]


def front(results: Mapping[str, Sequence[Any]], ax: Any = None) -> Any:
    """Draw what searches found against the evaluations of the network, with their lower bounds.

    Parameters
    ----------
    results : mapping of str to sequence of SearchResult
        Names and results of `fastkl.search`, all of one metric.
    ax : matplotlib.axes.Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        `ax`, or the new axes.

    Raises
    ------
    TypeError, ValueError
        If `results` is not a mapping, is empty or mixes metrics.
    ImportError
        If Matplotlib is not installed.

    Examples
    --------
    >>> import fastkl
    >>> from fastkl import plots
    >>> found = fastkl.search([1.0, 0.1], fastkl.NoiseSchedule.ddpm_linear(), range(2, 5))
    >>> plots.front({"ddim": found}).get_xlabel()
    'evaluations of the network'
    """
    from fastkl import samplers

    checked_mapping("results", results)
    metrics = {best.metric for found in results.values() for best in found}
    if len(metrics) != 1:
        raise ValueError(
            f"results: must hold results of one metric, got {', '.join(sorted(metrics)) or 'none'}"
        )
    ax = axes(ax)
    for i, (name, found) in enumerate(results.items()):
        draw_found(ax, name, found, i, [samplers.nfe(best.sampler, best.steps) for best in found])
    finish_counts(ax, "evaluations of the network", metrics.pop())
    return ax


def draw_found(ax: Any, name: str, found: Sequence[Any], index: int, counts: Sequence[int]) -> None:
    """Draw results, those that are proved with filled markers, and the lower bounds of the others."""
    style = look(index)
    values = [best.value for best in found]
    proved = [best.proved_optimal for best in found]
    ax.plot(counts, values, **style, markerfacecolor="none",
            label=f"{name}, proved optimal" if all(proved) else name)  # fmt: skip
    style["linestyle"] = "none"
    where = [(n, value) for n, value, sure in zip(counts, values, proved, strict=True) if sure]
    if where:
        ax.plot(*zip(*where, strict=True), **style)
    open_ones = [(n, best.lower_bound) for n, best in zip(counts, found, strict=True)
                 if best.lower_bound is not None and best.lower_bound > 0.0 and not best.proved_optimal]  # fmt: skip
    if open_ones:
        style.update(marker="_", markersize=12)
        ax.plot(*zip(*open_ones, strict=True), **style, label=f"{name}, proved lower bound")


def finish_counts(ax: Any, counted: str, metric: str) -> None:
    """Label axes of a divergence against a number of steps."""
    ax.set_yscale("log")
    whole_numbers(ax)
    ax.set_xlabel(counted)
    ax.set_ylabel(UNITS[choice("metric", metric, METRICS)])
    ax.legend(fontsize="small")
