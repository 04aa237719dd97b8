"""Draw the README's picture: what 10 steps keep of Gaussian data, with the best levels and with usual ones.

Run as `python benchmarks/picture.py`; writes benchmarks/picture.png.
"""

from pathlib import Path

from matplotlib.figure import Figure

import fastkl
from fastkl import discretize, plots

STEPS = 10


def main() -> None:
    """Draw and write."""
    spectrum = fastkl.Spectrum.preset("mnist")
    schedule = fastkl.NoiseSchedule.scaled_linear()
    best = fastkl.search(spectrum, schedule, STEPS, metric="w2")
    usual = {
        "uniform, leading": discretize.uniform(schedule, STEPS, "leading"),
        "uniform, trailing": discretize.uniform(schedule, STEPS, "trailing"),
        "Karras": discretize.snap(schedule, discretize.karras(schedule, STEPS)),
    }
    figure = Figure(figsize=(10.0, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    named = {"best for w2, proved": best.sigmas, **usual}
    labels = {
        f"{name}: w2 {fastkl.divergence(spectrum, levels, 'w2'):.3g}": levels
        for name, levels in named.items()
    }
    plots.levels(labels, left).get_legend().remove()
    plots.ratios(spectrum, labels, ax=right)
    right.set_ylim(1e-3, 1.5)
    left.set_title(f"The {STEPS} noise levels a sampler visits", fontsize="medium")
    right.set_title("What is left of the data's variance (1: all)", fontsize="medium")
    figure.savefig(Path(__file__).with_name("picture.png"), dpi=100)


if __name__ == "__main__":
    main()
