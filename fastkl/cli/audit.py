"""``fastkl audit``: what a diffusers scheduler does to the data as it ships."""

from __future__ import annotations

import argparse
from typing import Any

from fastkl import __version__
from fastkl.cli.errors import InputError
from fastkl.cli.options import add_json, add_spectrum, positive_integer
from fastkl.cli.pictures import add_plot, check_picture, new_figure, save
from fastkl.cli.printing import digits, line, print_json, require_rich, table
from fastkl.cli.search_tables import pasted
from fastkl.cli.spectra import check_finite, read_spectrum
from fastkl.evaluate import METRICS

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "say what a diffusers scheduler does to the data as it ships"
DESCRIPTION = (
    "Reads a scheduler_config.json of diffusers, predicts the exact variance of the samples along every eigenvalue, "
    "lists what is wrong with numbers (wasted steps, timesteps that are not those of the levels visited, wrong table "
    "entries, a wrong prior, lost or added variance), and says what the best schedule of the same cost would give. "
    "A latent model needs the spectrum of its latents (fastkl.Spectrum.from_latents); the default is that of MNIST's "
    'pixels. Needs the extra "diffusers".'
)

ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `audit`."""
    parser.add_argument("config", metavar="FILE", help="scheduler_config.json")
    text = "num_inference_steps (default: %(default)s)"
    parser.add_argument("--steps", type=positive_integer, default=10, metavar="N", help=text)
    add_spectrum(parser)
    parser.add_argument("--metric", choices=METRICS, default="w2", help="divergence (default: %(default)s)")
    text = "shift of schedulers with use_dynamic_shifting, as the pipeline computes it"
    parser.add_argument("--mu", type=float, metavar="NUMBER", help=text)
    parser.add_argument(
        "--eta", type=float, default=0.0, metavar="NUMBER", help="of DDIM's step (default: 0)"
    )
    add_plot(parser, "levels and variances, as shipped and best")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Audit, and print what was found."""
    if not arguments.json:
        require_rich()
    check_picture(arguments.plot)
    spectrum = read_spectrum(arguments.spectrum, arguments.floor)
    check_finite(arguments.spectrum, spectrum, arguments.metric)
    from fastkl.integrations.audit import audit

    try:
        report = audit(
            arguments.config, arguments.steps, spectrum, arguments.metric, mu=arguments.mu, eta=arguments.eta
        )
    except ImportError as error:
        raise InputError(str(error)) from None
    if arguments.plot is not None:
        draw(arguments.plot, report)
    if arguments.json:
        print_json({"fastkl": __version__, "spectrum": arguments.spectrum, **report.as_dict()})
    else:
        print_report(arguments.config, arguments.spectrum, report)
    return 0


def print_report(file: str, spectrum: str, report: Any) -> None:
    """Print what the scheduler is, the variances of some eigenvalues, the findings, and the best schedule."""
    reading, best = report.reading, report.best
    line(
        f"{file}: {reading.name}, {reading.spacing} spacing, {report.evaluations} evaluations of the network"
    )
    line(f"{reading.schedule!r}, prior {reading.prior}, last step {reading.last_step}")
    line(f"timesteps = {report.path.timesteps.tolist()}")
    line(f"sigmas = {pasted(report.path.levels.tolist())}")
    line(f"spectrum {spectrum} (a latent model needs that of its latents: fastkl.Spectrum.from_latents)")
    line()
    columns = [("eigenvalue", "right"), ("as shipped", "right"), ("best", "right")]
    table(f"Variance of samples over that of {spectrum}", columns, rows(report))
    line()
    line("Findings" if report.findings else "Nothing found")
    for finding in report.findings:
        line(f"- {finding.code}: {finding.message}")
    line()
    line(f"{report.metric} as shipped {digits(report.value)}")
    if best is not None:
        line(f"{report.metric} of the best schedule of as many evaluations {digits(best.value)}")
        if has_memory(report.sampler):
            where = "fastkl.search" if best.arguments is None else "optimize"
            line(
                "This sampler reuses earlier outputs. Best steps may be neighbours, where float32 leaves few digits,"
            )
            line(
                f"or make errors cancel that a network does not make: {where}(..., min_spacing=) keeps them apart."
            )
        if best.arguments is not None:
            line(f"pipe(..., {report.as_dict()['best']['call']})")
        else:
            line(f"sigmas = {pasted(best.sigmas.tolist())}")
            line(best.reason)


def has_memory(sampler: Any) -> bool:
    """Return whether a sampler extrapolates from outputs of the network at earlier levels."""
    reusing = ("multistep", "singlestep", "unipc", "deis", "lms", "plms", "prk")
    return sampler.name in reusing and (sampler.order or 2) > 1


def rows(report: Any) -> list[tuple[str, ...]]:
    """Return some eigenvalues, the largest first, and their ratios."""
    order = (-report.eigenvalues).argsort(kind="stable")
    order = order[report.eigenvalues[order] > 0.0]
    picked = dict.fromkeys(order[round(i * (len(order) - 1) / (ROWS - 1))] for i in range(ROWS))
    best = report.best
    return [
        (digits(float(report.eigenvalues[i])), digits(float(report.ratio[i])),
         "-" if best is None else digits(float(best.variance[i] / report.eigenvalues[i])))
        for i in picked
    ]  # fmt: skip


def draw(name: str, report: Any) -> None:
    """Draw levels, where they fall, and the ratio of variances."""
    from fastkl import plots

    figure, (left, right) = new_figure(2)
    known = {"as shipped": report.path.levels}
    if report.best is not None:
        known["best"] = report.best.sigmas
    plots.visited(known, left)
    order = report.eigenvalues.argsort()
    order = order[report.eigenvalues[order] > 0.0]
    values = report.eigenvalues[order]
    plots.draw_ratio(right, values, report.variance[order] / values, "as shipped", 0)
    if report.best is not None:
        plots.draw_ratio(right, values, report.best.variance[order] / values, "best", 1)
    plots.finish_ratios(right)
    save(name, figure)
