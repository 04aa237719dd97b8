"""A noise schedule from its name and key=value options."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from fastkl.cli.errors import InputError
from fastkl.cli.files import number
from fastkl.schedule import NoiseSchedule

__all__ = ["NAMES", "add_schedule", "build_schedule"]

NAMES = ("ddpm_linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow", "tangent")


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """Add --schedule and --schedule-option."""
    text = "the model's noise schedule (default: %(default)s)"
    parser.add_argument("--schedule", choices=NAMES, default="ddpm_linear", help=text)
    parser.add_argument(
        "--schedule-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a number for the schedule, such as beta_end=0.03 or shift=3; may be repeated",
    )


def build_schedule(name: str, options: Sequence[str]) -> NoiseSchedule:
    """Return NoiseSchedule.<name>(**options)."""
    make = getattr(NoiseSchedule, name)
    parameters = inspect.signature(make).parameters
    values: dict[str, float] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"--schedule-option {option!r}: must look like KEY=VALUE")
        if key not in parameters:
            raise InputError(f"--schedule-option {option!r}: {name} has {', '.join(parameters)}, no {key!r}")
        if key in values:
            raise InputError(f"--schedule-option {option!r}: {key} is given twice")
        values[key] = _number(option, text)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise InputError(f"--schedule {name}: needs --schedule-option {key}=VALUE")
    schedule: NoiseSchedule = make(**values)
    return schedule


def _number(option: str, text: str) -> float:
    try:
        value = number(text)
        return int(text) if text.lstrip("+-").isdecimal() else value
    except ValueError as error:
        raise InputError(f"--schedule-option {option!r}: {error}") from None
