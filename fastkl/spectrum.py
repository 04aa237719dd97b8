"""The covariance spectrum of a data set: variances along its principal directions."""

from __future__ import annotations

import importlib.resources
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._spectrum_arrays import (
    check_counts,
    check_range,
    count_array,
    eigenvalue_array,
    mean_array,
    same,
    whole,
)
from fastkl._spectrum_sources import SpectrumSources
from fastkl._validation import choice, integer, read_only, real_array, real_number

__all__ = ["Spectrum", "as_spectrum"]

_Array = NDArray[np.float64]
_MOST_KEPT = 8  # compressions of one spectrum


class Spectrum(SpectrumSources):
    r"""Covariance spectrum of a data set, an immutable value.

    The data is modelled as a Gaussian whose covariance has the eigenvalues :math:`\lambda_i`, each shared by
    :math:`c_i` directions, with the mean :math:`\mu_i` along each of them. Entries keep the order given.

    Parameters
    ----------
    eigenvalues : array_like, shape (d,)
        Variances (squared data units) along the principal directions: each 0 or within [1e-30, 1e30], the
        range in which the kernels cannot overflow.
    counts : array_like, shape (d,), optional
        How many directions share each eigenvalue: reals within [1e-30, 1e30], whole or not. Default:
        one each.
    mean : array_like, shape (d,), optional
        Mean of the data along the directions (data units), at most 1e15 in magnitude. With `counts`, *each*
        of the ``counts[i]`` directions has the mean ``mean[i]``. Default: no mean, which counts as 0; `search` warns
        of it where the mean matters, and takes zeros as the statement that it is 0.

    Raises
    ------
    ValueError
        For a value outside its range, an empty or not 1-D array, or lengths that differ.
    TypeError
        For anything but arrays of real numbers.

    Notes
    -----
    The arrays are copied, as float64, and read-only. Checking and copying are a few vectorised passes.

    Examples
    --------
    >>> spectrum = Spectrum([2.0, 0.5], counts=[1, 3])
    >>> spectrum.dim, spectrum.total_variance
    (4, 3.5)
    """

    __slots__ = ("_compressed", "_counts", "_eigenvalues", "_mean", "_rtol")

    _eigenvalues: _Array
    _counts: _Array | None
    _mean: _Array | None
    _rtol: float
    _compressed: dict[float, Spectrum]  # what `compress` returned for each rtol

    def __init__(
        self, eigenvalues: ArrayLike, counts: ArrayLike | None = None, mean: ArrayLike | None = None
    ) -> None:
        self._eigenvalues = read_only(eigenvalue_array("eigenvalues", eigenvalues))
        self._counts = None if counts is None else read_only(count_array(counts, len(self)))
        self._mean = None if mean is None else read_only(mean_array(mean, len(self)))
        self._rtol = 0.0
        self._compressed = {}

    @classmethod
    def _trusted(
        cls, eigenvalues: _Array, counts: _Array | None, mean: _Array | None, rtol: float = 0.0
    ) -> Spectrum:
        """Take ownership of arrays that are known to be valid: no copy, no checks."""
        spectrum = cls.__new__(cls)
        spectrum._eigenvalues = read_only(eigenvalues)
        spectrum._counts = None if counts is None else read_only(counts)
        spectrum._mean = None if mean is None else read_only(mean)
        spectrum._rtol = rtol
        spectrum._compressed = {}
        return spectrum

    @property
    def eigenvalues(self) -> _Array:
        """Variances along the principal directions, shape (d,), read-only."""
        return self._eigenvalues

    @property
    def counts(self) -> _Array | None:
        """How many directions share each eigenvalue, shape (d,), read-only; None for one each."""
        return self._counts

    @property
    def mean(self) -> _Array | None:
        """Mean along each direction, shape (d,), read-only; None for a zero mean."""
        return self._mean

    @property
    def rtol(self) -> float:
        """Relative error that this spectrum's nodes may add to a divergence; 0 unless they stand for others."""
        return self._rtol

    @property
    def dim(self) -> int | float:
        """Number of directions: the sum of the counts, an int where that is whole."""
        if self._counts is None:
            return len(self)
        return whole(float(self._counts.sum()))

    @property
    def total_variance(self) -> float:
        """Sum of the eigenvalues times their counts (the mean is no part of it)."""
        if self._counts is None:
            return float(self._eigenvalues.sum())
        return float((self._eigenvalues * self._counts).sum())

    def __len__(self) -> int:
        """Return the number of entries, whatever their counts."""
        return len(self._eigenvalues)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same entries in the same order; no counts equal ones, and no mean equals zeros."""
        if not isinstance(other, Spectrum):
            return NotImplemented
        return (
            np.array_equal(self._eigenvalues, other._eigenvalues)
            and same(self._counts, other._counts, 1.0)
            and same(self._mean, other._mean, 0.0)
        )

    def __hash__(self) -> int:
        return hash((len(self), self.total_variance))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._trusted, (self._eigenvalues, self._counts, self._mean, self._rtol)

    def __repr__(self) -> str:
        zeros = len(self) - int(np.count_nonzero(self._eigenvalues))
        parts = [
            f"{len(self)} entries",
            f"dim={self.dim:.10g}",
            f"total_variance={self.total_variance:.6g}",
            f"largest={self._eigenvalues.max():.6g}",
            f"smallest={self._eigenvalues.min():.6g}",
        ]
        parts += [f"{zeros} zero"] if zeros else []
        parts += ["with mean"] if self._mean is not None else []
        parts += [f"rtol={self._rtol:.2g}"] if self._rtol else []
        return f"<Spectrum: {', '.join(parts)}>"

    def merged(self) -> Spectrum:
        """Merge entries whose eigenvalue and mean are equal (to the last bit), adding their counts.

        Returns
        -------
        Spectrum
            The distinct entries in order of first appearance (one sort); itself if no two are equal.

        Raises
        ------
        ValueError
            If a sum of counts exceeds 1e30.

        Examples
        --------
        >>> Spectrum([3.0, 1.0, 3.0]).merged().counts
        array([2., 1.])
        """
        values = self._eigenvalues
        keys = (values,) if self._mean is None else (self._mean, values)
        order = np.lexsort(keys)  # stable: within a run of equal entries the first to appear comes first
        changes = np.logical_or.reduce([np.diff(key[order]) != 0 for key in keys])
        starts = np.append(0, np.flatnonzero(changes) + 1)
        if len(starts) == len(self):
            return self
        counts = np.ones(len(self)) if self._counts is None else self._counts[order]
        first = order[starts]
        appearance = np.argsort(first)
        first = first[appearance]
        mean = None if self._mean is None else self._mean[first]
        counts = np.add.reduceat(counts, starts)[appearance]
        check_counts("merged counts", counts)
        return self._trusted(values[first], counts, mean, self._rtol)

    def floored(self, floor: float) -> Spectrum:
        """Add isotropic noise of variance `floor` to the data: every eigenvalue grows by it.

        This is dequantization: data rounded to a grid of spacing h has no density; noise of the variance of
        the rounding, h**2/12, gives it one. With a floor above 0 every divergence is finite.

        Parameters
        ----------
        floor : float
            Variance of the noise (squared data units), at least 0.

        Returns
        -------
        Spectrum
            The same entries with ``eigenvalues + floor``; itself if `floor` is 0.

        Raises
        ------
        ValueError
            If `floor` is negative or not finite, or an eigenvalue leaves [1e-30, 1e30].

        Examples
        --------
        >>> Spectrum([1.0, 0.0]).floored(0.25).eigenvalues
        array([1.25, 0.25])
        """
        floor = real_number("floor", floor, at_least=0.0)
        if floor == 0.0:
            return self
        eigenvalues = self._eigenvalues + floor
        check_range("eigenvalues + floor", eigenvalues)
        return self._trusted(eigenvalues, self._counts, self._mean, self._rtol)

    def compress(self, rtol: float = 1e-10) -> Spectrum:
        r"""Spectrum of few nodes that has the same divergences.

        As a function of :math:`u = \log\lambda` the divergence is analytic for :math:`|\mathrm{Im}\,u| < \pi`, so a
        Gauss rule of some dozens of nodes sums it up over any number of eigenvalues.

        Parameters
        ----------
        rtol : float
            Relative error that a divergence may have because of it, within [1e-12, 1).

        Returns
        -------
        Spectrum
            Nodes in ascending order with positive counts of the same sum, after an entry for the eigenvalues of 0. The
            mean has nodes of its own, with counts of 1e-20 of all. Where there are no more distinct entries than nodes
            it is `merged`, exact. `Spectrum.rtol` says what was reached. Where `rtol` cannot be reached, for a cluster
            of nearly equal eigenvalues that outweighs the rest or a mean of 1e9 deviations, it is the spectrum itself.

        Raises
        ------
        ValueError
            If `rtol` is out of its range.
        TypeError
            If `rtol` is not a real number.

        Notes
        -----
        Valid for every candidate, of any number of steps and any levels, for all metrics and priors of `ddim`.
        The error is a verified estimate, not a proven bound: the worst relative error over a family of functions
        that has the extreme cases of small losses (a theorem, see ``fastkl/_worst_case.py``) and stands for the rest,
        times 10. Searches for counter-examples came to a twelfth of what is stated. Where a prior's mismatch and the
        losses of the steps cancel each other, the error is relative to what each of them alone would cost;
        `divergence` with ``rtol`` sees that and evaluates such candidates exactly.

        About 5 ns an eigenvalue and thread, and 10 to 40 ms. The result is kept with the spectrum.

        References
        ----------
        Golub and Meurant, "Matrices, Moments and Quadrature with Applications", 2010: Gauss rules by Lanczos' method.

        Examples
        --------
        >>> spectrum = Spectrum.power_law(100_000, 1.5)
        >>> small = spectrum.compress(1e-10)
        >>> len(small) < 64, small.dim
        (True, 100000)
        """
        from fastkl._compression import LEAST_RTOL, compressed

        rtol = real_number("rtol", rtol, at_least=LEAST_RTOL, below=1.0)
        small = self._compressed.get(rtol)
        if small is None:
            small = compressed(self, rtol)
            if len(self._compressed) >= _MOST_KEPT:
                self._compressed.clear()
            self._compressed[rtol] = small
        return small

    @classmethod
    def power_law(cls, dim: int, exponent: float, mean_variance: float = 1.0) -> Spectrum:
        """Eigenvalues proportional to ``i**-exponent``, i = 1..dim: images have exponents around 1 to 2.

        Parameters
        ----------
        dim : int
            Number of eigenvalues, at least 1.
        exponent : float
            How fast they fall; 0 makes all equal. ``dim**abs(exponent)`` must not exceed 1e60.
        mean_variance : float
            Mean of the eigenvalues (squared data units), above 0.

        Returns
        -------
        Spectrum
            `dim` eigenvalues in descending order (for a positive exponent), no mean.

        Raises
        ------
        ValueError
            For an argument out of its range, or eigenvalues that would leave [1e-30, 1e30].
        TypeError
            If `dim` is not an integer or the others are not real numbers.

        Examples
        --------
        >>> Spectrum.power_law(3, 1.0).eigenvalues.round(4)
        array([1.6364, 0.8182, 0.5455])
        """
        dim = integer("dim", dim, minimum=1)
        exponent = real_number("exponent", exponent)
        mean_variance = real_number("mean_variance", mean_variance, above=0.0)
        if abs(exponent) * math.log10(dim) > 60:
            raise ValueError(
                f"exponent = {exponent!r}: dim**abs(exponent) must not exceed 1e60, dim is {dim}"
            )
        eigenvalues = np.arange(1, dim + 1, dtype=np.float64) ** -exponent
        eigenvalues *= mean_variance / eigenvalues.mean()
        return cls(eigenvalues)

    @classmethod
    def preset(cls, name: str, floor: float | None = None) -> Spectrum:
        """Load the spectrum, with mean, of real data that ships with the package.

        Parameters
        ----------
        name : str
            One of `presets`: ``"mnist"`` (28x28 digits), ``"digits"`` (8x8 digits), ``"photographs"`` (16x16
            colour patches), all scaled to [-1, 1], and ``"breast_cancer"`` (a standardised table of 30
            columns). Sources and licences: ``fastkl/data/README.md``.
        floor : float, optional
            Variance to add to every eigenvalue, as `floored` does. Default: the preset's own, for images the
            variance of rounding to their grey levels, (2/255)**2/12 for 8-bit images in [-1, 1] (0 for the
            table). 0 gives the raw spectrum, in which eigenvalues may be exactly 0.

        Returns
        -------
        Spectrum
            Eigenvalues in descending order.

        Raises
        ------
        ValueError
            For an unknown name (the message lists the names) or a bad floor.
        TypeError
            If `name` is not a string or `floor` not a real number.

        Examples
        --------
        >>> Spectrum.preset("mnist", floor=0).dim
        784
        """
        name = choice("name", name, cls.presets())
        if floor is not None:
            floor = real_number("floor", floor, at_least=0.0)
        resource = importlib.resources.files("fastkl").joinpath("data", f"{name}.npz")
        with resource.open("rb") as file, np.load(file, allow_pickle=False) as data:
            spectrum = cls(data["eigenvalues"], mean=data["mean"])
            own_floor = float(data["floor"])
        return spectrum.floored(own_floor if floor is None else floor)

    @staticmethod
    def presets() -> list[str]:
        """List the names that `preset` loads, in alphabetical order.

        Returns
        -------
        list of str

        Examples
        --------
        >>> Spectrum.presets()
        ['breast_cancer', 'digits', 'mnist', 'photographs']
        """
        files = importlib.resources.files("fastkl").joinpath("data").iterdir()
        return sorted(file.name.removesuffix(".npz") for file in files if file.name.endswith(".npz"))


def as_spectrum(name: str, value: Spectrum | ArrayLike) -> Spectrum:
    """Return a Spectrum as it is, a 1-D array as the Spectrum of those eigenvalues; errors name `name`."""
    if isinstance(value, Spectrum):
        return value
    eigenvalues = real_array(name, value)
    check_range(name, eigenvalues)
    return Spectrum._trusted(eigenvalues.view(), None, None)  # no copy: it lives as long as the call
