"""The schema of a sweep's configuration: what may be written, and what is said about what may not."""

from __future__ import annotations

import math
import numbers
import tomllib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fastkl._sampler_base import Sampler
from fastkl.moments import SpectrumMoments
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum
from fastkl.sweeps.axes import Listed, Ranged

__all__ = ["AXES", "FAMILIES", "Family", "Geodesic", "Random", "Search", "SweepConfig", "Uniform", "load"]

AXES = ("spectrum", "schedule", "sampler", "family", "steps", "metric", "prior")  # what `per` may name
MOST_SHOWN = 5  # errors of one configuration
LARGEST_GRID = 10**15  # values of an axis: indices and shares are exact in float64


class Model(BaseModel):
    """A table: no key that is not listed, no value that is not of the type it should have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True)


class RangeTable(Model):
    """A range of numbers."""

    start: float = Field(allow_inf_nan=False)
    stop: float = Field(allow_inf_nan=False)
    num: int = Field(ge=1, le=LARGEST_GRID)
    spacing: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _both_ends(self) -> RangeTable:
        if self.spacing == "log" and not (self.start > 0.0 and self.stop > 0.0):
            raise ValueError("a range with spacing = 'log' must begin and end above 0")
        if not math.isfinite(self.stop - self.start):
            raise ValueError("a range must not be longer than the largest number")
        if self.num == 1 and self.start != self.stop:
            raise ValueError("a range of one value must begin and end with it")
        return self


def refuse(rule: str, where: str = "") -> PydanticCustomError:
    """Return an error about a key below the one that is being validated."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "where": where})


def axis(value: Any) -> Listed | Ranged:
    """Return a number, a list of numbers or a range as an axis."""
    if isinstance(value, Listed | Ranged):
        return value
    if isinstance(value, Mapping):
        try:
            table = RangeTable.model_validate(dict(value))
        except ValidationError as error:
            first = error.errors()[0]
            raise refuse(rule_of(first), path_of(first["loc"])) from None
        return Ranged(table.start, table.stop, table.num, table.spacing)
    if not hasattr(value, "__iter__") or isinstance(value, str):
        return Listed((number(value, ""),))
    items = list(value)
    if not items:
        raise refuse("must hold at least one number")
    return Listed(tuple(number(item, f"[{i}]") for i, item in enumerate(items)))


def number(value: Any, where: str) -> float:
    """Return a finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise refuse(
            f"must be a number, a list of numbers or a table of start, stop, num (got {value!r})", where
        )
    try:
        found = float(value)
    except OverflowError:
        raise refuse("must be finite (got a number above 1e308)", where) from None
    if not math.isfinite(found):
        raise refuse(f"must be finite (got {value!r})", where)
    return found


def positive_axis(value: Any) -> Listed | Ranged:
    """Return an axis whose values are above 0."""
    found = axis(value)
    if found.bounds()[0] <= 0.0:
        raise refuse(f"must be above 0 (got {found.bounds()[0]!r})")
    return found


def level_axis(value: Any) -> Listed | Ranged:
    """Return an axis whose values are at least 0."""
    found = axis(value)
    if found.bounds()[0] < 0.0:
        raise refuse(f"must be at least 0 (got {found.bounds()[0]!r})")
    return found


def as_list(value: Any) -> Any:
    """Let one value stand for a list of one, and a tuple, a range or an array of integers for a list."""
    if isinstance(value, str | int | Spectrum | SpectrumMoments | NoiseSchedule | Sampler):
        return [value]
    if isinstance(value, tuple | range) or (isinstance(value, np.ndarray) and value.dtype.kind in "iu"):
        return plain(list(value))
    return value


def plain(value: Any) -> Any:
    """Return tables and lists with Python's numbers in place of NumPy's; anything else as it is."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.number | np.bool_) else value


Positive = Annotated[Any, BeforeValidator(positive_axis)]
Level = Annotated[Any, BeforeValidator(level_axis)]


class Family(Model):
    """What the families share: their parameters in the order of the grid, the last varying fastest."""

    snap: bool | None = None

    def axes(self) -> dict[str, Any]:
        """Return the axes of the parameters by name."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Listed | Ranged)
        }

    def size(self) -> int:
        """Return how many candidates the grid holds."""
        return math.prod(found.size for found in self.axes().values())

    def canonical(self) -> dict[str, Any]:
        """Return what the configuration's hash sees."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {k: v.canonical() if isinstance(v, Listed | Ranged) else v for k, v in values.items()}


class Uniform(Family):
    """`fastkl.discretize.uniform`."""

    family: Literal["uniform"]
    spacing: Annotated[
        list[Literal["linspace", "leading", "trailing"]], BeforeValidator(as_list), Field(min_length=1)
    ] = ["linspace"]

    def size(self) -> int:
        """Return the number of spacings."""
        return len(self.spacing)


class Quadratic(Family):
    """`fastkl.discretize.quadratic`."""

    family: Literal["quadratic"]


class PowerUniform(Family):
    """`fastkl.discretize.power_uniform`."""

    family: Literal["power_uniform"]
    power: Positive


class Karras(Family):
    """`fastkl.discretize.karras`."""

    family: Literal["karras"]
    rho: Positive = Listed((7.0,))
    sigma_min: Level | None = None
    sigma_max: Positive | None = None


class Exponential(Family):
    """`fastkl.discretize.exponential`."""

    family: Literal["exponential"]
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None


class Tangent(Family):
    """`fastkl.discretize.tangent`."""

    family: Literal["tangent"]
    gamma: Positive = Listed((1.0,))
    sigma_min: Level | None = None
    sigma_max: Positive | None = None


class Random(Family):
    """Levels drawn independently, uniformly in the logarithm between the two ends, and sorted."""

    family: Literal["random"]
    num: int = Field(ge=1, le=LARGEST_GRID)
    seed: int = Field(ge=0, lt=2**64)
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None

    @field_validator("sigma_min", "sigma_max")
    @classmethod
    def _one_value(cls, value: Any) -> Any:
        if value is not None and value.size != 1:
            raise refuse("must be one number: candidate i of every grid is draw i of the seed")
        return value

    def size(self) -> int:
        """Return the number of draws."""
        return self.num


class Geodesic(Family):
    """`fastkl.discretize.geodesic`, one candidate for each spectrum."""

    family: Literal["geodesic"]


AnyFamily = Annotated[
    Uniform | Quadratic | PowerUniform | Karras | Exponential | Tangent | Random | Geodesic,
    Field(discriminator="family"),
]
FAMILIES: tuple[str, ...] = tuple(
    get_args(kind.model_fields["family"].annotation)[0] for kind in get_args(get_args(AnyFamily)[0])
)


class Search(Model):
    """`fastkl.search` for every spectrum, schedule, number of steps, metric and prior."""

    prove: bool = True
    free_start: bool = False
    grid: int = Field(default=1000, ge=2, le=10**6)
    min_spacing: int = Field(default=1, ge=1)
    refine: bool = True

    def canonical(self) -> dict[str, Any]:
        """Return what the configuration's hash sees."""
        return self.model_dump()


Metric = Literal["kl", "reverse_kl", "jeffreys", "w2"]
Prior = Literal["schedule", "vp", "ve", "flow", "exact"]
Counts = Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(min_length=1)]


class SweepConfig(Model):
    """A sweep: the product of its lists, and searches."""

    spectra: Annotated[list[Any], BeforeValidator(as_list), Field(min_length=1)]
    schedules: Annotated[list[Any], BeforeValidator(as_list), Field(min_length=1)]
    families: list[AnyFamily] = []
    searches: list[Search] = []
    steps: Annotated[Counts | None, BeforeValidator(as_list)] = None
    nfe: Annotated[Counts | None, BeforeValidator(as_list)] = None
    samplers: Annotated[list[Any], BeforeValidator(as_list), Field(min_length=1)] = ["ddim"]
    metrics: Annotated[list[Metric], BeforeValidator(as_list), Field(min_length=1)] = ["kl"]
    priors: Annotated[list[Prior], BeforeValidator(as_list), Field(min_length=1)] = ["schedule"]
    rtol: float = Field(default=1e-8, ge=0.0, le=0.1)
    backend: Literal["auto", "cpu", "gpu"] = "auto"
    top: int = Field(default=100, ge=1, le=100_000)
    per: Annotated[list[Literal[AXES]], BeforeValidator(as_list)] = ["spectrum", "metric", "steps"]
    distinct: bool = True
    full: bool = False
    chunk: int | None = Field(default=None, ge=1, le=10**8)

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if (self.steps is None) == (self.nfe is None):
            raise refuse("one of the two keys steps and nfe must be given", "steps")
        if not self.families and not self.searches:
            raise refuse("there must be at least one family or one search", "families")
        for key in ("steps", "nfe", "metrics", "priors", "per"):
            values = getattr(self, key) or []
            for i, value in enumerate(values):
                if value in values[:i]:
                    raise refuse(f"must not be given twice (got {value!r})", f"{key}[{i}]")
        return self


def load(config: Mapping[str, Any] | str | PathLike[str]) -> tuple[SweepConfig, Path]:
    """Return a validated configuration, from a dict or a TOML file, and the folder that its paths are relative to."""
    if isinstance(config, Mapping):
        return validated(dict(config)), Path()
    if not isinstance(config, str | PathLike):
        raise TypeError(f"config: must be a dict or the path of a TOML file, got {type(config).__name__}")
    path = Path(config)
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML ({error})") from None
    return validated(table), path.parent


def validated(table: dict[str, Any]) -> SweepConfig:
    """Return the configuration, or raise one ValueError about the first few keys that break a rule."""
    try:
        return SweepConfig.model_validate(plain(table))
    except ValidationError as error:
        found = error.errors()
    lines = [f"{path_of(e['loc'], e.get('ctx', {}).get('where', ''))}: {rule_of(e)}" for e in found]
    more = f"; and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
    raise ValueError(f"configuration: {'; '.join(lines[:MOST_SHOWN])}{more}") from None


def path_of(loc: tuple[int | str, ...], where: str = "") -> str:
    """Return the path of a key as one would write it: families[0].rho.num."""
    text = ""
    for i, part in enumerate(loc):
        if part in FAMILIES and i == 2 and loc[0] == "families":
            continue  # the tag of the union, which is no key
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text + (where if where.startswith("[") or not text else f".{where}" if where else "")


def rule_of(error: Any) -> str:
    """Return the rule that was broken, and the value."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "rule":
        return str(context["rule"])
    if kind == "extra_forbidden":
        return "no such key"
    if kind == "too_short":
        return f"must hold at least {context['min_length']} (got {short(error['input'])})"
    if kind == "missing":
        return "must be given"
    if kind.startswith("union_tag"):
        return f"family must be one of {', '.join(FAMILIES)}"
    message = (
        error["msg"].removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("a valid ")
    )
    rule = message if kind == "value_error" else f"must be {message}"
    return f"{rule} (got {short(error['input'])})"


def short(value: Any) -> str:
    """Return a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
