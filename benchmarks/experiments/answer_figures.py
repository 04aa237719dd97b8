"""Pictures of the comparison, from results/answer.json alone.

    python benchmarks/experiments/answer_figures.py

figures/samples_distance.png      distance over the least one against NFE, a panel for each setup
figures/samples_correlation.png   rank correlation of every predictor with the distance
figures/samples_forecast.png      w2 on the two spectra against the measured distance of the pixels
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import answer_text
import matplotlib.pyplot as plt
import numpy as np

HERE = Path(__file__).resolve().parent
LINES = {
    "karras-7": ("Karras, rho 7", "C1"),
    "exponential": ("exponential", "C5"),
    "beta": ("beta", "C7"),
    "tan-1-min": ("tan, gamma 1, to sigma_min", "C8"),
    "trajectory-dp": ("trajectories (searched on samples)", "C4"),
    "search-kl-cov-0.01": ("best kl, floor 0.01", "C3"),
    "search-kl-eff-0.1": ("best kl, effective, floor 0.1", "C6"),
    "tangent-w2-eff-free": ("tangent, gamma and first level by w2, effective", "C9"),
    "search-w2-cov-0": ("best w2, covariance", "C0"),
    "search-w2-eff-0": ("best w2, effective", "C2"),
    "search-w2-eff-free": ("best w2, effective, first level too", "black"),
    "search-w2-eff-free-ddim-low": ("best w2 of DDIM, one fewer, then the least level", "magenta"),
    "tan-2-to0-from20": ("tan, gamma 2, from sigma 20", "gold"),
    "karras-3-from20": ("Karras, rho 3, from sigma 20", "limegreen"),
}
SHOWN = (4, 6, 10)
SPECTRA = {"cov": ("covariance", "C0"), "eff": ("effective", "C2")}


def panels(count: int, height: float = 4.0) -> tuple[Any, Any]:
    """Panels in rows of three."""
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (4.8 * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, axes.flatten()[:count]


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend of what any panel has."""
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    named = {label: handle for handle, label in reversed(pairs)}
    figure.legend(
        list(reversed(named.values())),
        list(reversed(named)),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def distance_figure(setups: dict[str, Any]) -> Any:
    """Distance over the least one."""
    figure, axes = panels(len(setups), 5.2)
    for axis, (name, setup) in zip(axes, setups.items(), strict=True):
        nfe = [int(key) for key in setup["survey"]]
        for strategy, (label, colour) in LINES.items():
            ratios = [answer_text.ratios(part).get(strategy, np.nan) for part in setup["survey"].values()]
            if not np.all(np.isnan(ratios)):
                ours = "w2" in strategy
                axis.plot(nfe, ratios, color=colour, label=label, lw=2.2 if ours else 1.2, marker="o", ms=3.5)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=name)
        axis.set_xticks(nfe, [str(n) for n in nfe])
        axis.minorticks_off()
        axis.set_yticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
        axis.grid(alpha=0.3)
        axis.set_ylabel("Frechet distance of features / least of all")
    legend_below(figure, axes, 4)
    return figure


def correlation_figure(setups: dict[str, Any]) -> Any:
    """A matrix for each setup."""
    figure, axes = panels(len(setups), 8.0)
    for axis, (name, setup) in zip(axes, setups.items(), strict=True):
        survey = setup["survey"]
        predictors = list(next(iter(survey.values()))["correlation"])
        values = np.array(
            [[part["correlation"][key]["fd_features"] for part in survey.values()] for key in predictors],
            dtype=float,
        )
        picture = axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.65 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(survey)), list(survey))
        axis.set_yticks(range(len(predictors)), predictors, fontsize=7)
        axis.set(xlabel="network evaluations", title=name)
    figure.colorbar(picture, ax=axes, label="Spearman's rank correlation with the distance", shrink=0.6)
    return figure


def forecast_figure(setups: dict[str, Any]) -> Any:
    """Predicted against measured w2 of the pixels."""
    figure, axes = panels(len(setups))
    for axis, (name, setup) in zip(axes, setups.items(), strict=True):
        low, high = np.inf, 0.0
        for marker, nfe in zip("o^s", SHOWN, strict=True):
            part = setup["survey"].get(str(nfe))
            if part is None:
                continue
            measured = np.array(list(part["distances"]["fd_pixels"].values()))
            low, high = min(low, float(measured.min())), max(high, float(measured.max()))
            for spectrum, forecast in part["w2"].items():
                title, colour = SPECTRA[spectrum]
                label = f"{title}, NFE {nfe}"
                axis.scatter(forecast, measured, s=14, marker=marker, color=colour, alpha=0.6, label=label)
        axis.set(xscale="log", yscale="log", xlabel="w2 predicted", title=name)
        axis.plot([low, high], [low, high], color="black", lw=0.8, ls="--")
        axis.grid(alpha=0.3)
        axis.set_ylabel("Frechet distance of pixels, measured")
    legend_below(figure, axes, 6)
    return figure


def main() -> None:
    setups = json.loads((HERE / "results" / "answer.json").read_text(encoding="utf-8"))["setups"]
    figures = HERE / "figures"
    figures.mkdir(exist_ok=True)
    for name, draw in (
        ("distance", distance_figure),
        ("correlation", correlation_figure),
        ("forecast", forecast_figure),
    ):
        draw(setups).savefig(figures / f"samples_{name}.png", dpi=110)


if __name__ == "__main__":
    main()
