"""A sweep as a numbered product: which candidate has which index, and which indices make up which chunk."""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from fastkl._sampler_base import Sampler
from fastkl._stand_in import COMPRESSION, NODES, PASS, SHARE
from fastkl.evaluate import PRIORS
from fastkl.schedule import NoiseSchedule
from fastkl.spectrum import Spectrum
from fastkl.sweeps.config import FAMILIES, Family, Geodesic, Random, Search, SweepConfig

__all__ = ["Cell", "Plan", "Product", "flattened", "hashed"]

MOST = 2**62  # candidates: their indices are 64-bit integers
CHUNK_WORK = 1 << 29  # (eigenvalue, step) pairs of a chunk, about a second of one thread
LARGEST_CHUNK, LARGEST_FULL_CHUNK, SLOW_CHUNK = 1 << 20, 1 << 18, 16
CHUNKS_WANTED = 64  # of a sweep that is large enough, so that all cores have work
SMALLEST_CHUNK = 1 << 12
SAMPLER_COST = 16  # of other samplers than DDIM, in its units


class Cell(NamedTuple):
    """All coordinates of a candidate but its place in the grid of its family; numbers index the plan's lists."""

    schedule: int
    budget: int
    sampler: int
    generator: int
    spectrum: int
    metric: int
    prior: int


@dataclass(frozen=True)
class Product:
    """A part of the sweep: the product of all lists and of the grids of some generators (families or searches).

    The order of indices: schedule, budget (steps or evaluations), sampler, generator, spectrum, metric, prior, place
    in the grid; the last varies fastest. Neighbouring cells share their levels.
    """

    schedules: int
    budgets: int
    samplers: int
    sizes: tuple[int, ...]  # of the generators' grids
    spectra: int
    metrics: int
    priors: int

    @property
    def _inner(self) -> int:
        return self.spectra * self.metrics * self.priors

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return self.schedules * self.budgets * self.samplers * self._inner * sum(self.sizes)

    def locate(self, index: int) -> tuple[Cell, int]:
        """Return the cell of an index and its place in the grid."""
        outer, rest = divmod(index, self._inner * sum(self.sizes))
        ends = list(accumulate(size * self._inner for size in self.sizes))
        generator = bisect_right(ends, rest)
        inner, place = divmod(rest - (ends[generator - 1] if generator else 0), self.sizes[generator])
        inner, prior = divmod(inner, self.priors)
        spectrum, metric = divmod(inner, self.metrics)
        outer, sampler = divmod(outer, self.samplers)
        schedule, budget = divmod(outer, self.budgets)
        return Cell(schedule, budget, sampler, generator, spectrum, metric, prior), place

    def segments(self, begin: int, end: int) -> Iterator[tuple[Cell, int, int, int]]:
        """Yield the cells of indices begin to end: cell, first index, first place, last place + 1."""
        while begin < end:
            cell, place = self.locate(begin)
            length = min(self.sizes[cell.generator] - place, end - begin)
            yield cell, begin, place, place + length
            begin += length


class Part(NamedTuple):
    """A product, what its candidates are made by, and where its indices and chunks begin."""

    product: Product
    generators: tuple[Any, ...]
    paths: tuple[str, ...]  # of the generators in the configuration
    length: int  # of its chunks
    first_index: int
    first_chunk: int

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return math.ceil(self.product.size / self.length)


class Plan:
    """A resolved configuration: everything that a chunk's values depend on; it can be pickled."""

    def __init__(
        self,
        config: SweepConfig,
        spectra: dict[str, Spectrum],
        schedules: dict[str, NoiseSchedule],
        samplers: dict[str, Sampler],
    ) -> None:
        self.config = config
        self.spectrum_names, self.spectra = list(spectra), list(spectra.values())
        self.schedule_names, self.schedules = list(schedules), list(schedules.values())
        self.sampler_names, self.samplers = list(samplers), list(samplers.values())
        self.metrics, self.priors = config.metrics, config.priors
        self.budgets = config.steps or config.nfe or []
        self.parts = self._parts()
        self.size = sum(part.product.size for part in self.parts)
        if self.size > MOST:
            raise ValueError(f"configuration: {self.size} candidates; one sweep can have 2**62")

    def _parts(self) -> tuple[Part, ...]:
        """Cut the sweep: grids, geodesics and searches, whose candidates cost so differently."""
        families = [(f, f"families[{i}]") for i, f in enumerate(self.config.families)]
        grids = [pair for pair in families if not isinstance(pair[0], Geodesic)]
        geodesics = [pair for pair in families if isinstance(pair[0], Geodesic)]
        searches = [(search, f"searches[{i}]") for i, search in enumerate(self.config.searches)]
        parts: list[Part] = []
        for made, samplers in ((grids, len(self.samplers)), (geodesics, len(self.samplers)), (searches, 1)):
            generators, paths = tuple(g for g, _ in made), tuple(path for _, path in made)
            sizes = tuple(1 if isinstance(g, Search) else g.size() for g in generators)
            product = Product(len(self.schedules), len(self.budgets), samplers, sizes, len(self.spectra),
                              len(self.metrics), len(self.priors))  # fmt: skip
            length = self._chunk_length(product.size) if made is grids else SLOW_CHUNK
            first = (parts[-1].first_index + parts[-1].product.size) if parts else 0
            chunk = (parts[-1].first_chunk + parts[-1].chunks) if parts else 0
            parts.append(Part(product, generators, paths, length, first, chunk))
        return tuple(part for part in parts if part.product.size)

    @cached_property
    def compresses(self) -> list[bool]:
        """For each spectrum, whether its compression is evaluated in its place."""
        return [self._pays(spectrum) for spectrum in self.spectra]

    def _pays(self, spectrum: Spectrum) -> bool:
        """Whether compressing a spectrum saves more than it costs, over all its candidates."""
        from fastkl._compression import LEAST_RTOL  # with which the kernels are loaded

        if self.config.rtol < SHARE * LEAST_RTOL or len(spectrum) < 2 * NODES or not self.parts:
            return False
        candidates = self.parts[0].product.size // len(self.spectra)
        saved = (len(spectrum) - NODES) * candidates * min(self.budgets)
        return saved > COMPRESSION + PASS * len(spectrum)

    def _chunk_length(self, candidates: int) -> int:
        """Return how many candidates of grids make a chunk, by what they cost; 1 at least."""
        if self.config.chunk is not None:
            return self.config.chunk
        entries = max(len(s) if self.config.rtol == 0.0 else min(len(s), NODES) for s in self.spectra)
        cost = 1 if all(s.is_ddim for s in self.samplers) else SAMPLER_COST
        most = LARGEST_FULL_CHUNK if self.config.full else LARGEST_CHUNK
        by_work = CHUNK_WORK // (entries * max(self.budgets) * cost)
        wanted = max(candidates // CHUNKS_WANTED, SMALLEST_CHUNK)
        return max(1, min(most, by_work, wanted))

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return self.parts[-1].first_chunk + self.parts[-1].chunks

    def chunk_range(self, number: int) -> tuple[Part, int, int]:
        """Return the part that a chunk belongs to, and its first index and last index + 1 in the whole sweep."""
        part = next(part for part in reversed(self.parts) if part.first_chunk <= number)
        begin = (number - part.first_chunk) * part.length
        end = min(begin + part.length, part.product.size)
        return part, part.first_index + begin, part.first_index + end

    def part_of(self, index: int) -> Part:
        """Return the part that an index belongs to."""
        return next(part for part in reversed(self.parts) if part.first_index <= index)

    def generator(self, part: Part, cell: Cell) -> Family | Search:
        """Return what makes the candidates of a cell."""
        found: Family | Search = part.generators[cell.generator]
        return found

    def sampler_of(self, part: Part, cell: Cell) -> tuple[str, Sampler]:
        """Return name and sampler of a cell; searches are for DDIM."""
        place = self.sampler_place(part, cell)
        if place == len(self.samplers):
            from fastkl.samplers import get

            return "ddim", get("ddim")
        return self.sampler_names[place], self.samplers[place]

    def sampler_place(self, part: Part, cell: Cell) -> int:
        """Return the number of a cell's sampler; a search's is that of DDIM, one more than there are if none is."""
        if not isinstance(self.generator(part, cell), Search):
            return cell.sampler
        places = (i for i, sampler in enumerate(self.samplers) if sampler.is_ddim)
        return next(places, len(self.samplers))

    def path_of(self, part: Part, cell: Cell) -> str:
        """Return where in the configuration a cell's family or search is: families[0] or searches[0]."""
        return part.paths[cell.generator]

    def steps(self, part: Part, cell: Cell) -> int:
        """Return the number of steps of a cell."""
        budget = self.budgets[cell.budget]
        return budget if self.config.nfe is None else self.sampler_of(part, cell)[1].steps_for(budget)

    def prior(self, cell: Cell) -> str:
        """Return the prior of a cell."""
        prior = self.priors[cell.prior]
        return self.schedules[cell.schedule].prior if prior == "schedule" else prior

    def group(self, part: Part, cell: Cell) -> tuple[int, ...]:
        """Return what the best candidates of a cell are compared within, in numbers that put groups in order."""
        family = self.generator(part, cell)
        searched = isinstance(family, Search)
        places = {
            "spectrum": cell.spectrum,
            "schedule": cell.schedule,
            "sampler": self.sampler_place(part, cell),
            "family": len(FAMILIES) if searched else FAMILIES.index(family.family),  # type: ignore[union-attr]
            "steps": cell.budget,
            "metric": cell.metric,
            "prior": PRIORS.index(self.prior(cell)),
        }
        return tuple(places[key] for key in self.config.per)

    def seeds(self) -> list[int]:
        """Return the seeds of random candidates."""
        return [family.seed for family in self.config.families if isinstance(family, Random)]

    def canonical(self) -> dict[str, Any]:
        """Return all that decides the result, in plain values: contents stand in place of the names of files."""
        from fastkl.sweeps.sources import digest

        config = self.config
        plain = {key: getattr(config, key) for key in
                 ("steps", "nfe", "metrics", "priors", "rtol", "top", "per", "distinct", "full", "chunk")}  # fmt: skip
        return {
            **plain,
            "spectra": [
                {"name": name, "sha256": digest(s.eigenvalues, s.counts, s.mean, s.rtol)}
                for name, s in zip(self.spectrum_names, self.spectra, strict=True)
            ],
            "schedules": [
                {"name": name, "kind": s.name, "prior": s.prior, "parameters": dict(s._parameters),
                 "sha256": digest(s._sigmas)}
                for name, s in zip(self.schedule_names, self.schedules, strict=True)
            ],
            "samplers": [
                {"name": name, "sampler": repr(s)}
                for name, s in zip(self.sampler_names, self.samplers, strict=True)
            ],
            "families": [family.canonical() for family in config.families],
            "searches": [search.canonical() for search in config.searches],
        }  # fmt: skip

    @cached_property
    def config_hash(self) -> str:
        """Return the digest of the canonical configuration."""
        return hashed(self.canonical())


def hashed(canonical: dict[str, Any]) -> str:
    """Return the digest of a canonical configuration, whether or not it has been written as JSON and read back."""
    text = json.dumps(canonical, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their paths."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    if not items:
        return {path: value}
    return {where: leaf for key, item in items for where, leaf in flattened(item, key).items()}
