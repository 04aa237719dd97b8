"""The command line of fastkl: ``fastkl rank | search | sweep | score | spectrum | audit | doctor | warmup``.

This module stays light, so that errors, Ctrl-C and a closed pipe are handled from the first import on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

INPUT_ERROR, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; `argv` is what follows the program's name."""
    if sys.stdout is None:  # the caller has closed it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone, as in `fastkl rank | head`
        _discard_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError as error:
        return _fail(f"not enough memory: {error}" if str(error) else "not enough memory")
    except OSError as error:
        if error.filename:
            return _fail(f"{error.filename}: {error.strerror}")
        _discard_stdout()  # which is what could not be written to, as on a full disk
        return _fail(str(error))
    except (TypeError, ValueError) as error:  # how the library reports bad input
        return _fail(str(error))


def _run(argv: Sequence[str] | None) -> int:
    from fastkl.cli.parser import build_parser

    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as finished:  # --help, --version or a bad argument, about which argparse has written
        return finished.code if isinstance(finished.code, int) else 0
    status: int = arguments.run(arguments)
    return status


def _fail(message: str) -> int:
    print("fastkl: error:", " ".join(message.split()), file=sys.stderr)
    return INPUT_ERROR


def _discard_stdout() -> None:
    """Let what is still buffered go nowhere, or Python would complain when it cannot write it as it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
