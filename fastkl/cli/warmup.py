"""``fastkl warmup``: compile the kernels now rather than in the first call."""

from __future__ import annotations

import argparse
import sys

from fastkl import __version__
from fastkl.cli.options import add_json
from fastkl.cli.printing import line, print_json

__all__ = ["DESCRIPTION", "SUMMARY", "add_arguments", "run"]

SUMMARY = "compile the kernels now, not in the first call"
DESCRIPTION = (
    "Compiles all CPU kernels, or with --gpu those of the GPU, or loads them if they are in the cache, and says how "
    "long it took."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `warmup`."""
    parser.add_argument(
        "--gpu", action="store_true", help="the kernels of the GPU backend instead of the CPU's"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compile, and print the seconds."""
    import fastkl

    print("compiling or loading kernels ...", file=sys.stderr)
    backend = "gpu" if arguments.gpu else "cpu"
    try:
        seconds = fastkl.warmup(backend=backend)
    except RuntimeError as error:
        if not arguments.gpu:
            raise
        print(f"fastkl warmup: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print_json({"fastkl": __version__, "backend": backend, "seconds": seconds})
    else:
        line(f"kernels ready after {seconds:.2f} s")
    return 0
