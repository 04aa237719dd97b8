"""The argument parser: one subcommand for each command module."""

from __future__ import annotations

import argparse
from typing import NoReturn

from fastkl import __version__
from fastkl.cli import audit, doctor, rank, score, search, spectrum, sweep, warmup

__all__ = ["build_parser"]

COMMANDS = (rank, search, sweep, score, spectrum, audit, doctor, warmup)


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fastkl: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; parsed arguments have `run`, the command's function."""
    parser = _Parser(
        prog="fastkl",
        description="Which noise levels should a diffusion sampler visit? Exact divergences of discretizations.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastkl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
