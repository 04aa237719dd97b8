"""What a sweep found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._validation import integer

__all__ = ["SweepResult"]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What `sweep` found.

    Parameters
    ----------
    top : pyarrow.Table
        The best candidates of each group, by rank: value, family, parameters, sigmas, timesteps. Units and the hash of
        the configuration are in the schema's metadata.
    folder : pathlib.Path or None
        Where the results are: ``top.parquet``, ``chunks/`` and ``manifest.json``; None where nothing was written.
    config_hash : str
        SHA-256 of all that decides the result.
    candidates : int
        How many candidates and searches the sweep has.
    evaluated_now : int
        How many of them were evaluated by this call; the others were there from a run before.
    left_out : int
        How many have no value: their levels coincide in float64, or leave the schedule's range.
    damaged : tuple of str
        Files of an earlier run that were damaged and whose chunks were evaluated again.
    seconds : float
        Time that this call took.
    plan : object
        The numbered product; `sigmas` asks it.
    """

    top: Any
    folder: Path | None
    config_hash: str
    candidates: int
    evaluated_now: int
    left_out: int
    damaged: tuple[str, ...]
    seconds: float
    plan: Any = field(repr=False)

    def sigmas(self, index: int) -> NDArray[np.float64]:
        """Return the levels of the candidate of an index, whether or not it is among the best.

        Parameters
        ----------
        index : int
            Number of a candidate of a family, as in the column ``index``.

        Returns
        -------
        ndarray, shape (N+1,)
            Its levels.

        Raises
        ------
        ValueError
            If there is no such candidate, or it is a search, whose levels are in its row of results.

        Examples
        --------
        >>> import fastkl
        >>> config = {"spectra": [[1.0, 0.1]], "schedules": ["edm"], "steps": 3, "families": [{"family": "karras"}]}
        >>> fastkl.sweep(config).sigmas(0).round(3).tolist()
        [80.0, 2.515, 0.002, 0.0]
        """
        from fastkl.sweeps.config import Search
        from fastkl.sweeps.evaluation import cell_levels

        index = integer("index", index, minimum=0, maximum=self.candidates - 1)
        part = self.plan.part_of(index)
        cell, place = part.product.locate(index - part.first_index)
        if isinstance(self.plan.generator(part, cell), Search):
            raise ValueError(
                f"index = {index}: is a search; its levels are in the column sigmas of the results"
            )
        levels: NDArray[np.float64] = cell_levels(self.plan, part, cell, np.array([place]))[0][0]
        return levels

    def to_pandas(self) -> Any:
        """Return the best candidates as a pandas frame.

        Returns
        -------
        pandas.DataFrame
            `top`, with sigmas as arrays.

        Examples
        --------
        >>> import fastkl
        >>> config = {"spectra": ["digits"], "schedules": ["edm"], "steps": 4,
        ...           "families": [{"family": "karras", "rho": [3.0, 7.0]}]}
        >>> fastkl.sweep(config).to_pandas()["rho"].tolist()
        [7.0, 3.0]
        """
        return self.top.to_pandas()

    def to_polars(self) -> Any:
        """Return the best candidates as a polars frame.

        Returns
        -------
        polars.DataFrame
            `top`, with sigmas as lists.

        Examples
        --------
        >>> import fastkl
        >>> config = {"spectra": ["digits"], "schedules": ["edm"], "steps": 4,
        ...           "families": [{"family": "karras", "rho": [3.0, 7.0]}]}
        >>> fastkl.sweep(config).to_polars()["rank"].to_list()
        [1, 2]
        """
        import polars

        return polars.from_arrow(self.top)
