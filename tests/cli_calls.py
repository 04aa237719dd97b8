"""How the tests call the command line."""

import json
import subprocess
import sys

import pytest

from fastkl.cli import main

FEW = ("--spectrum", "digits", "--candidates-per-family", "12")  # a quick `rank`


def run(capsys, *arguments):
    """Exit status, stdout and stderr of a command run in this process."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def document(capsys, *arguments):
    """The JSON document that a command prints."""
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(out, parse_constant=pytest.fail)  # no NaN or Infinity, which are not JSON


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False, **options
    )
