"""How a Spectrum is made from data: the class methods `from_*`, each a thin front of a module that does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from fastkl._spectrum_arrays import eigenvalue_array
from fastkl._validation import real_number

if TYPE_CHECKING:
    from fastkl.spectrum import Spectrum

__all__ = ["SpectrumSources"]


class SpectrumSources:
    """Base class of `Spectrum` that holds its constructors from data."""

    __slots__ = ()

    @classmethod
    def from_covariance(cls: type[Spectrum], c: ArrayLike, floor: float = 0.0) -> Spectrum:  # type: ignore[misc]
        """Eigenvalues of a covariance matrix, largest first.

        Parameters
        ----------
        c : array_like, shape (d, d)
            Symmetric positive semi-definite matrix (squared data units).
        floor : float
            Variance to add to every eigenvalue, as `floored` does.

        Returns
        -------
        Spectrum
            `d` eigenvalues in descending order, no mean.

        Raises
        ------
        ValueError
            If `c` is not square or not finite, differs from its transpose by more than sqrt(eps) times its
            largest element, or has an eigenvalue below -d * eps times its largest one.
        TypeError
            If `c` is not an array of real numbers.

        Notes
        -----
        eps is the rounding error of `c`'s float type, at least that of float64. Eigenvalues that lie within
        d * eps times the largest of zero, positive or negative, are rounding errors of the solver and become
        exactly 0. Only the lower triangle is used once it has been compared. O(d**3) time.

        Examples
        --------
        >>> from fastkl import Spectrum
        >>> Spectrum.from_covariance([[2.0, 0.0], [0.0, 3.0]]).eigenvalues
        array([3., 2.])
        """
        from fastkl._covariance import eigenvalues_of_matrix

        floor = real_number("floor", floor, at_least=0.0)
        values = eigenvalue_array("eigenvalues of c", eigenvalues_of_matrix(c))
        return cls._trusted(values, None, None).floored(floor)

    @classmethod
    def from_samples(cls: type[Spectrum], x: ArrayLike, floor: float = 0.0) -> Spectrum:  # type: ignore[misc]
        r"""Spectrum and mean of samples, largest eigenvalue first.

        The eigenvalues are those of the centred covariance with the factor 1/n,
        :math:`C = \frac1n \sum_k (x_k - m)(x_k - m)^T`, :math:`m = \frac1n \sum_k x_k`: the covariance of the
        samples taken as the whole distribution. (Multiply by n/(n - 1) for the unbiased estimate.)

        Parameters
        ----------
        x : array_like, shape (n, ...)
            At least two samples along the first axis, any real dtype, in memory or a memmap; each is
            flattened to d features. Magnitudes up to 1e15.
        floor : float
            Variance to add to every eigenvalue, as `floored` does.

        Returns
        -------
        Spectrum
            `d` eigenvalues in descending order, and in `mean` the sample mean's projection on each
            eigenvector, taken with the sign that makes it non-negative. The directions of eigenvalue 0 are
            turned so that the first of them carries all of the mean that lies among them.

        Raises
        ------
        ValueError
            For fewer than two samples, no features, a 1-D array, or an element not finite or too large.
        TypeError
            If `x` is not an array of real numbers.

        Notes
        -----
        Sums are in float64, over blocks of `x`, so no float64 copy of all of it is made. With m = min(n, d)
        the time is O(n d m + m**3) and the memory a few m x m matrices (for n <= d the n x n Gram matrix is
        used). Eigenvalues within m * eps times the largest of zero, which are rounding errors of the solver,
        become exactly 0, and so do the last d - n + 1 if n <= d.

        Examples
        --------
        >>> from fastkl import Spectrum
        >>> spectrum = Spectrum.from_samples([[0, 1], [2, 1], [4, 1]])
        >>> [round(v, 6) for v in spectrum.eigenvalues.tolist()]
        [2.666667, 0.0]
        >>> [round(v, 6) for v in spectrum.mean.tolist()]
        [2.0, 1.0]
        """
        from fastkl._covariance import eigenvalues_of_samples

        floor = real_number("floor", floor, at_least=0.0)
        values, mean = eigenvalues_of_samples(x)
        return cls._trusted(eigenvalue_array("eigenvalues of x", values), None, mean).floored(floor)
