"""How a Spectrum is made from data: the class methods `from_*`, each a thin front of a module that does the work."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from fastkl._latents import LatentSources
from fastkl._progress import ProgressOption
from fastkl._spectrum_arrays import eigenvalue_array
from fastkl._validation import real_number

if TYPE_CHECKING:
    from fastkl.spectrum import Spectrum

__all__ = ["SpectrumSources"]


class SpectrumSources(LatentSources):
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
    def from_samples(  # type: ignore[misc]
        cls: type[Spectrum],
        x: ArrayLike | Iterable[ArrayLike],
        floor: float = 0.0,
        *,
        method: str = "auto",
        shrinkage: str | float | None = None,
        probes: int = 16,
        steps: int = 50,
        seed: int = 0,
        progress: ProgressOption = False,
    ) -> Spectrum:
        r"""Spectrum and mean of samples, largest eigenvalue first.

        The eigenvalues are those of the centred covariance with the factor 1/n,
        :math:`C = \frac1n \sum_k (x_k - m)(x_k - m)^T`, :math:`m = \frac1n \sum_k x_k`: the covariance of the
        samples taken as the whole distribution. (Multiply by n/(n - 1) for the unbiased estimate.)

        Parameters
        ----------
        x : array_like, shape (n, ...), or iterable of array_like, shape (n_k, ...)
            At least two samples along the first axis, of any real dtype; each is flattened to d features.
            Magnitudes up to 1e15. A NumPy array or memory map is read in blocks. An iterator, a generator or
            another iterable, such as a data loader, gives batches of any lengths (lists and tuples are arrays).
        floor : float
            Variance to add to every eigenvalue, as `floored` does, after the shrinkage.
        method : {"auto", "covariance", "gram", "lanczos"}
            ``covariance``: the d x d matrix, in one pass. ``gram``: the n x n matrix of the samples' products,
            which has the same non-zero eigenvalues; for arrays with n <= d, in two passes. ``lanczos``: nodes
            and counts that stand for the eigenvalues, in ``steps + 1`` passes (twice as many if n <= d, which
            needs an array). ``auto``: gram for arrays with n <= d and n <= 12,000, else covariance for
            d <= 12,000, else lanczos.
        shrinkage : {"ledoit_wolf", "oas"} or float, optional
            Draw the eigenvalues to their mean, :math:`(1 - a) \lambda_i + a \bar\lambda`, by a = this number
            within [0, 1] or a coefficient estimated for few samples: Ledoit and Wolf's (by scikit-learn, the
            extra ``shrinkage``; of an array in memory, of which it makes copies) or the oracle-approximating
            one (from the eigenvalues; not with ``lanczos``).
        probes, steps, seed : int
            Of ``lanczos`` alone: number of random vectors (at least 2), number of products with each (at least
            2), and the seed of the vectors.
        progress : bool or callable
            True shows a bar where standard error is a terminal (needs the extra ``cli``); a callable is called
            with what is done and the total (None if not known), in samples read or, for ``gram``, features;
            ``lanczos`` counts anew once it knows the mean.

        Returns
        -------
        Spectrum
            `d` eigenvalues in descending order, and in `mean` the sample mean's projection on each
            eigenvector, taken with the sign that makes it non-negative. The directions of eigenvalue 0 are
            turned so that the first of them carries all of the mean that lies among them. By ``lanczos``: up to
            ``(probes + 1) * steps`` nodes, counts that sum to d, the mean's share of each node, and an estimate
            in `rtol` of the relative error of divergences.

        Raises
        ------
        ValueError
            For fewer than two samples, no features, a 1-D array, batches of different shapes, an element not
            finite or too large, a number out of its range, a method or shrinkage that the samples do not
            allow, or samples that differ from pass to pass.
        TypeError
            If `x` is neither an array of real numbers nor an iterable of them.
        ImportError
            If an option needs a package that is not installed.

        Warns
        -----
        RankDeficientWarning
            If n <= d and `shrinkage` is None: the last d - n + 1 eigenvalues are 0 then, whatever the true ones
            are.

        Notes
        -----
        Sums are in float64 and relative to the first sample, so a mean much larger than the deviations costs no
        digits. Time is O(n d m + m**3) and memory two m x m matrices with m = d (covariance) or n (gram), and a
        block of 16 MiB; no copy of `x` is made, and the pages of a read-only memory map are let go when read.
        Eigenvalues within m * eps times the largest of zero, which are rounding errors of the solver, become
        exactly 0. However samples are cut into batches, the result has the same bits.

        ``lanczos``: with p = ``(probes + 1) * steps``, 4 n d p operations for the products, O(min(n, d) p**2)
        beside them, p vectors of length min(n, d) in memory and blocks of at least 64 samples. Zeros for lack
        of samples and from features that never change are counted exactly, and so are the eigenvalues that
        nodes have converged to, of images usually the largest hundreds; the random vectors speak for the
        others. `rtol` is half the 99.7 % interval of their mean (Student's t) plus twice the change in the last
        quarter of the steps, for the worst of a family of functions of an eigenvalue that rise and fall as fast
        as divergences do. It is an estimate, not a bound, and on the careful side: about 1 or more says that the
        smallest eigenvalues, which decide ``kl`` where there is no floor, are not resolved; ``w2``, which the
        largest decide, may be good then. A `floor`, more `steps` and more `probes` lower it.

        References
        ----------
        Chan, Golub and LeVeque, "Algorithms for computing the sample variance: analysis and recommendations",
        The American Statistician 37 (1983), 242-247: how blocks are merged. Ubaru, Chen and Saad, "Fast
        estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM Journal on Matrix Analysis and
        Applications 38 (2017), 1075-1099. Ledoit and Wolf, "A well-conditioned estimator for large-dimensional
        covariance matrices", Journal of Multivariate Analysis 88 (2004), 365-411. Chen, Wiesel, Eldar and Hero,
        "Shrinkage algorithms for MMSE covariance estimation", IEEE Transactions on Signal Processing 58 (2010).

        Examples
        --------
        >>> from fastkl import Spectrum
        >>> spectrum = Spectrum.from_samples([[0, 1], [2, 1], [4, 1]])
        >>> [round(v, 6) for v in spectrum.eigenvalues.tolist()]
        [2.666667, 0.0]
        >>> [round(v, 6) for v in spectrum.mean.tolist()]
        [2.0, 1.0]
        >>> Spectrum.from_samples([[k, 1], [k + 2, 1]] for k in (0, 2)) == Spectrum.from_samples(
        ...     [[0, 1], [2, 1], [2, 1], [4, 1]]
        ... )
        True
        """
        from fastkl._lanczos import Options
        from fastkl._rank import warn_of_missing_rank
        from fastkl._samples import spectrum_of_samples

        floor = real_number("floor", floor, at_least=0.0)
        options = Options(probes, steps, seed)
        found = spectrum_of_samples(x, floor, method, shrinkage, options, progress)
        values = eigenvalue_array("eigenvalues of x", found.eigenvalues)
        spectrum = cls._trusted(values, found.counts, found.mean, found.rtol).floored(floor)
        if found.missing and shrinkage is None:
            samples = f"n = {found.n} samples of d = {found.d} dimensions"
            warn_of_missing_rank(samples, found.missing, floor, "more samples, a floor= or shrinkage=")
        return spectrum

    @classmethod
    def from_images(  # type: ignore[misc]
        cls: type[Spectrum],
        x: ArrayLike | Iterable[ArrayLike],
        floor: float = 0.0,
        *,
        progress: ProgressOption = False,
    ) -> Spectrum:
        r"""Spectrum of images under the stationary model: the power at every spatial frequency.

        If the statistics of images are the same everywhere (and go on periodically), their covariance is diagonal
        in the Fourier basis but for the channels. With :math:`F_k(f)` the two-dimensional discrete Fourier
        transform of image k less m, one level for each channel, the eigenvalues are, at every frequency f, those of

        .. math:: P(f) = \frac1{n H W} \sum_k F_k(f) F_k(f)^*,

        the C x C cross-spectrum of the channels, which for grey images is the mean power.

        Parameters
        ----------
        x : array_like, shape (n, H, W) or (n, H, W, C), or iterable of such batches
            At least two images of one size, channels *last*; any real dtype, in memory, a memory map or batches
            as in `from_samples`.
        floor : float
            Variance to add to every eigenvalue, as `floored` does.
        progress : bool or callable
            As in `from_samples`, counted in images.

        Returns
        -------
        Spectrum
            C eigenvalues for each of H (W // 2 + 1) frequencies, in descending order, with counts that sum to
            H W C: 2 where a frequency stands for its opposite, too, else 1. In `mean`, m is on the C entries of
            frequency 0: sqrt(H W) m along their eigenvectors.

        Raises
        ------
        ValueError
            As `from_samples`, for samples that are not images, and for images at most 4 high of more than 4
            channels, which have their channels first.
        TypeError
            As `from_samples`.

        Warns
        -----
        RankDeficientWarning
            If n <= C and C > 1: too few images for all eigenvalues of the channels' matrices.

        Notes
        -----
        Centring is by m, the mean over all images and pixels of a channel, not by a mean image: the variance of
        the pixels about m is the total variance, exactly. Stationarity makes n images count for many: a
        frequency's eigenvalue has a relative standard error of about n**-0.5, whatever the size. What images are
        not (periodic, or the same at the border and in the middle) the model leaves out: compare `from_samples`.
        Time is O(n d (log d + C)), memory C**2 complex numbers a frequency and a few blocks of 16 MiB. Eigenvalues
        that rounding cannot tell from 0 become exactly 0.

        References
        ----------
        Field, "Relations between the statistics of natural images and the response properties of cortical
        cells", Journal of the Optical Society of America A 4 (1987), 2379-2394: power spectra of images.

        Examples
        --------
        >>> from fastkl import Spectrum
        >>> spectrum = Spectrum.from_images([[[0, 2], [0, 2]], [[3, 1], [3, 1]]])
        >>> spectrum.eigenvalues.round(6)
        array([4., 1., 0., 0.])
        >>> spectrum.mean.round(6)
        array([0., 3., 0., 0.])
        """
        from fastkl._images import spectrum_of_images
        from fastkl._rank import warn_of_missing_rank

        floor = real_number("floor", floor, at_least=0.0)
        found = spectrum_of_images(x, progress)
        values = eigenvalue_array("eigenvalues of x", found.eigenvalues)
        spectrum = cls._trusted(values, found.counts, found.mean).floored(floor)
        if found.missing:
            images = f"n = {found.n} images of {found.channels} channels"
            warn_of_missing_rank(images, found.missing, floor, "more images or a floor=")
        return spectrum

    @classmethod
    def from_denoising_errors(  # type: ignore[misc]
        cls: type[Spectrum],
        sigmas: ArrayLike,
        errors: ArrayLike,
        dim: int,
        floor: float = 0.0,
        *,
        noise: ArrayLike = 0.02,
        mean_of: Spectrum | None = None,
    ) -> Spectrum:
        r"""Effective spectrum of a trained model: the Gaussian with the model's denoising errors.

        The non-negative counts :math:`c_i` of a fine grid of variances :math:`\lambda_i` are fitted to

        .. math:: E(\sigma) = \sum_i c_i \frac{\lambda_i \sigma^2}{\lambda_i + \sigma^2}, \qquad
                  \sum_i c_i \le \mathrm{dim},

        the error that the exact denoiser of a Gaussian makes at noise level :math:`\sigma`.

        Parameters
        ----------
        sigmas : array_like, shape (K,)
            At least 3 distinct noise levels in any order, within [1e-10, 1e10] (data units). They should
            reach from below the levels that are to be chosen to above them.
        errors : array_like, shape (K,)
            The model's expected squared error in predicting x from x + sigma * noise, *summed* over the
            dimensions and averaged over samples (squared data units), within [1e-25, 1e30].
        dim : int
            Number of dimensions of the data, at least 1.
        floor : float
            Variance to add to every eigenvalue, as `floored` does.
        noise : array_like, shape () or (K,)
            Relative standard error of `errors`, within [1e-6, 0.3].
        mean_of : Spectrum, optional
            The data's covariance spectrum, whose mean the result gets (by rank, see
            `fastkl.fit_denoising_errors`); give it where the first level is searched too (``free_start``).

        Returns
        -------
        Spectrum
            A few eigenvalues in descending order with real counts that add up to `dim`.

        Raises
        ------
        ValueError
            If an argument is out of its range, or no Gaussian has such errors: they must not exceed
            sigma**2 * dim, must not fall as sigma grows, and errors / sigma**2 must not grow. Each error is
            allowed to be off by 3 times its noise.
        TypeError
            If an argument is of the wrong kind.

        Warns
        -----
        PoorFitWarning
            If the root mean square of the residual exceeds 2.5 times the noise (5 % by default).

        Notes
        -----
        `fastkl.fit_denoising_errors` does the same and returns the residual too; its notes say how the fit
        is weighted and which variances the errors determine. Dimensions that the errors do not show to
        vary get eigenvalue 0, for which ``kl`` is not finite: give a floor or use ``w2``. A network may be of no
        use at its extreme levels, worse than leaving the noise in (``sigma**2 * dim``) or than the data's mean (the
        total variance): leave those levels out. Some milliseconds.

        References
        ----------
        Lawson and Hanson, "Solving Least Squares Problems", chapter 23 (non-negative least squares).

        Examples
        --------
        >>> import numpy as np
        >>> from fastkl import Spectrum
        >>> sigmas = np.geomspace(0.01, 50.0, 30)
        >>> errors = 2.0 * sigmas**2 / (2.0 + sigmas**2)  # one direction of variance 2, out of 10
        >>> Spectrum.from_denoising_errors(sigmas, errors, dim=10, floor=0.01).eigenvalues.round(3)
        array([2.01, 0.01])
        """
        from fastkl._denoising import PoorFitWarning, fit_denoising_errors

        fit = fit_denoising_errors(sigmas, errors, dim, floor, noise=noise, mean_of=mean_of)
        if fit.rms_in_noise > 2.5:
            warnings.warn(
                f"the errors are not those of a Gaussian: the best fit is off by {fit.rms:.2g} (relative RMS) and at "
                f"most {fit.worst:.2g}, {fit.rms_in_noise:.2g} times the stated noise; see fastkl.fit_denoising_errors",
                PoorFitWarning,
                stacklevel=2,
            )
        return fit.spectrum
