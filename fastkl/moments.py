"""Spectra too large to hold: what one pass over them leaves behind, a small table that adds across machines."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._dispatch import GUARD
from fastkl._mapped import let_go, read_only_map
from fastkl._progress import Advance, ProgressOption, check_progress, reporting
from fastkl._spectrum_arrays import check_counts, check_mean, check_range, whole
from fastkl._threads import thread_count
from fastkl._validation import real_array, real_number
from fastkl.spectrum import Spectrum

__all__ = ["SpectrumMoments"]

Array = NDArray[np.float64]

CHECKS = {"eigenvalues": check_range, "counts": check_counts, "mean": check_mean}


class SpectrumMoments:
    r"""Moments of a spectrum of any size, in 150 kB.

    The logarithmic axis of eigenvalues is cut into 800 cells, four to an octave. Each holds the first twelve moments

    .. math:: \sum_{i \in cell} c_i T_k(t_i), \quad k = 0..11,

    of the eigenvalues in it, t their place within the cell: all that any divergence needs to know of them, to about
    13 digits. Moments of parts add up to the moments of the whole, on one machine or on many.

    The moments have 16 digits: of a cluster of eigenvalues that differ by 1e-4 of themselves they tell the variance to
    about 1e-8 of it. That matters for divergences that vanish within such a cluster; `spectrum` then states a larger
    error than it was asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import fastkl
    >>> moments = fastkl.SpectrumMoments()
    >>> for seed in range(4):  # chunks from anywhere
    ...     moments.add(np.random.default_rng(seed).lognormal(size=10_000))
    >>> moments.dim
    40000
    >>> spectrum = moments.spectrum(rtol=1e-10)
    >>> len(spectrum) < 40
    True
    """

    __slots__ = ("_counts", "_lock", "_mean", "_zeros", "_zeros_mean")

    def __init__(self) -> None:
        self._counts: Array | None = None  # tables are made when there is something to put in
        self._mean: Array | None = None
        self._zeros = 0.0
        self._zeros_mean = 0.0
        self._lock = Lock()

    @classmethod
    def from_chunks(
        cls,
        chunks: ArrayLike | Spectrum | Iterable[ArrayLike | Spectrum],
        *,
        progress: ProgressOption = False,
        num_threads: int | None = None,
    ) -> SpectrumMoments:
        """Moments of an array, or of all chunks of an iterable.

        Parameters
        ----------
        chunks : array_like, Spectrum, or an iterable of these
            1-D arrays of eigenvalues (a memory map is read block by block and not kept in memory) or spectra, whose
            counts and mean are taken too. A list of numbers is one chunk, a list of arrays is many.
        progress : bool or callable
            True draws a progress bar in a terminal (needs rich, the extra ``cli``); a callable is called with the
            eigenvalues taken so far and their number, or None where that is not known.
        num_threads : int, optional
            Threads to use. Default: FASTKL_NUM_THREADS, else all CPUs the process may use.

        Returns
        -------
        SpectrumMoments

        Raises
        ------
        ValueError, TypeError
            As `add`; the message names the chunk.

        Examples
        --------
        >>> import fastkl
        >>> fastkl.SpectrumMoments.from_chunks([[1.0, 2.0], [3.0]]).dim
        3
        """
        check_progress(progress)
        threads, moments = thread_count(num_threads), cls()
        single = isinstance(chunks, np.ndarray | Spectrum) or is_numbers(chunks)
        if not single and (not isinstance(chunks, Iterable) or isinstance(chunks, str | bytes)):
            raise TypeError(f"chunks: must be an array or an iterable of arrays, got {type(chunks).__name__}")
        total = len(chunks) if single else None
        with reporting(progress, "eigenvalues", total) as advance:
            for number, chunk in enumerate([chunks] if single else chunks):
                try:
                    moments._absorb(moments_of(chunk, None, None, threads, advance))
                except (ValueError, TypeError) as error:
                    raise type(error)(str(error) if single else f"chunks[{number}]: {error}") from None
        return moments

    def add(
        self,
        eigenvalues: ArrayLike | Spectrum,
        counts: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        *,
        num_threads: int | None = None,
    ) -> None:
        """Add eigenvalues to the moments.

        Parameters
        ----------
        eigenvalues : array_like, shape (d,), or Spectrum
            Variances (squared data units), each 0 or within [1e-30, 1e30]. Any real dtype; memory maps are read in
            blocks of 2 million. A Spectrum brings its own counts and mean.
        counts : array_like, shape (d,), optional
            How many directions share each eigenvalue, within [1e-30, 1e30].
        mean : array_like, shape (d,), optional
            Mean of the data along the directions (data units), at most 1e15 in magnitude.
        num_threads : int, optional
            Threads to use. The result has the same bits for any number.

        Raises
        ------
        ValueError
            For a value outside its range or lengths that differ; nothing has been added then.
        TypeError
            For anything but arrays of real numbers.

        Notes
        -----
        About 5 ns an eigenvalue and thread. May be called from several threads at once.

        Examples
        --------
        >>> import fastkl
        >>> moments = fastkl.SpectrumMoments()
        >>> moments.add([0.5, 0.0, 2.0], counts=[1, 5, 1])
        >>> moments.dim
        7
        """
        part = moments_of(eigenvalues, counts, mean, thread_count(num_threads), lambda taken: None)
        with self._lock:
            self._absorb(part)

    def _add_block(self, eigenvalues: Array, counts: Array | None, mean: Array | None, threads: int) -> None:
        """Add checked float64 arrays."""
        from fastkl._cell_tables import add_eigenvalues, empty_table

        if self._counts is None:
            self._counts = empty_table()
        self._zeros += add_eigenvalues(self._counts, eigenvalues, counts, threads)
        if mean is not None and mean.any():
            if self._mean is None:
                self._mean = empty_table()
            energy = np.square(mean) if counts is None else counts * np.square(mean)
            self._zeros_mean += add_eigenvalues(self._mean, eigenvalues, energy, threads)

    def _absorb(self, other: SpectrumMoments) -> None:
        """Add another's sums to these."""
        self._counts = added(self._counts, other._counts)
        self._mean = added(self._mean, other._mean)
        self._zeros += other._zeros
        self._zeros_mean += other._zeros_mean

    def __add__(self, other: object) -> SpectrumMoments:
        """Return the moments of both spectra together; the order changes them by rounding only."""
        if not isinstance(other, SpectrumMoments):
            return NotImplemented
        total = SpectrumMoments()
        total._absorb(self)
        total._absorb(other)
        return total

    def __getstate__(self) -> tuple[Any, ...]:
        return self._counts, self._mean, self._zeros, self._zeros_mean

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._counts, self._mean, self._zeros, self._zeros_mean = state
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<SpectrumMoments: dim={self.dim:.10g}>"

    @property
    def dim(self) -> int | float:
        """Number of directions so far: the sum of the counts, an int where that is whole."""
        return whole(self._zeros + (0.0 if self._counts is None else float(self._counts[:, 0].sum())))

    def spectrum(self, rtol: float = 1e-10) -> Spectrum:
        """Return a spectrum of few nodes that stands for all eigenvalues added so far.

        Parameters
        ----------
        rtol : float
            Relative error that a divergence may have because of it, within [1e-12, 1); see `Spectrum.compress`.

        Returns
        -------
        Spectrum
            Nodes in ascending order, with counts; `Spectrum.rtol` says what was reached.

        Raises
        ------
        ValueError
            If nothing has been added, or `rtol` is out of its range.

        Notes
        -----
        10 to 40 ms for most spectra, whatever their size.

        Examples
        --------
        >>> import fastkl
        >>> fastkl.SpectrumMoments.from_chunks([2.0, 2.0, 0.5]).spectrum().counts
        array([1., 2.])
        """
        from fastkl._compression import LEAST_RTOL, spectrum_arrays

        rtol = real_number("rtol", rtol, at_least=LEAST_RTOL, below=1.0)
        if self.dim == 0:
            raise ValueError("moments: must hold at least one eigenvalue, nothing has been added")
        assert self._counts is not None
        zero = (self._zeros, self._zeros_mean)
        return Spectrum._trusted(*spectrum_arrays(self._counts, self._mean, zero, rtol))


def moments_of(
    eigenvalues: ArrayLike | Spectrum,
    counts: ArrayLike | None,
    mean: ArrayLike | None,
    threads: int,
    advance: Advance,
) -> SpectrumMoments:
    """Return the moments of one array, read block by block."""
    with GUARD.importing:
        from fastkl._cell_tables import BATCH

    if isinstance(eigenvalues, Spectrum):
        if counts is not None or mean is not None:
            raise ValueError("counts and mean: must be left out where eigenvalues is a Spectrum")
        eigenvalues, counts, mean = eigenvalues.eigenvalues, eigenvalues.counts, eigenvalues.mean
    columns = {"eigenvalues": column("eigenvalues", eigenvalues)}
    for name, value in (("counts", counts), ("mean", mean)):
        if value is not None:
            columns[name] = column(name, value)
    length = len(columns["eigenvalues"])
    for name, array in columns.items():
        if len(array) != length:
            raise ValueError(f"{name}: must have shape ({length},) like eigenvalues, got shape {array.shape}")
    part, maps = SpectrumMoments(), [read_only_map(array) for array in columns.values()]
    for begin in range(0, length, BATCH):
        end = min(begin + BATCH, length)
        values, shares, means = (block(columns, name, begin, end) for name in CHECKS)
        assert values is not None
        part._add_block(values, shares, means, threads)
        for mapped in maps:
            let_go(mapped)
        advance(end - begin)
    return part


def added(a: Array | None, b: Array | None) -> Array | None:
    """Return the sum of two tables, where None stands for an empty one; never one of the arguments."""
    if a is None or b is None:
        table = b if a is None else a
        return None if table is None else table.copy()
    return a + b


def is_numbers(value: Any) -> bool:
    """Whether a list or tuple begins with a number, and so is one array and not several."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Real)


def column(name: str, value: Any) -> NDArray[Any]:
    """Return a 1-D array as it is, its values unchecked, and anything else array_like as a float64 array; or raise."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and not isinstance(value, np.ma.MaskedArray):
        real_array(name, value[:1], min_size=0)
        return value
    return real_array(name, value, min_size=0)


def block(columns: dict[str, NDArray[Any]], name: str, begin: int, end: int) -> Array | None:
    """Return elements begin to end of a column as float64 if they are valid, or raise; None if there is no column."""
    if name not in columns:
        return None
    array = real_array(name, columns[name][begin:end])
    CHECKS[name](name, array, begin)
    return array
