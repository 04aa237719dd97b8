"""Exact divergence, output variance and trajectory of a sampler on Gaussian data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._candidates import candidate_levels
from fastkl._placement import (
    PRIORS,
    device_call,
    kernels_for,
    on_gpu,
    refuse_float32,
    run_on,
)
from fastkl._sampler_base import Sampler
from fastkl._sampler_dispatch import checked_sampler, sampler_kernels
from fastkl._stand_in import doubtful, stand_in
from fastkl._threads import thread_count
from fastkl._validation import choice, real_number
from fastkl.samplers import get
from fastkl.spectrum import Spectrum, as_spectrum

__all__ = ["METRICS", "PRECISIONS", "PRIORS", "divergence", "output_variance", "trajectory"]

METRICS = ("kl", "reverse_kl", "jeffreys", "w2")
PRECISIONS = ("float64", "float32")

Array = NDArray[np.float64]


def divergence(
    spectrum: Spectrum | ArrayLike,
    sigmas: ArrayLike,
    metric: str = "kl",
    sampler: str | Sampler = "ddim",
    prior: str = "vp",
    backend: str = "auto",
    rtol: float = 0.0,
    *,
    num_threads: int | None = None,
    precision: str = "float64",
) -> Any:
    r"""Divergence between Gaussian data and what a sampler makes of noise, for each candidate schedule of levels.

    With the eigenvalues :math:`\lambda_i`, counts :math:`c_i`, levels :math:`s_0 > \dots > s_N` and :math:`r_i` the
    output's variance over the target's, :math:`\lambda_i + s_N^2`, which for DDIM is

    .. math:: r_i = \frac{v_{0,i}}{\lambda_i + s_N^2}
              \prod_{k<N} \left(\frac{\lambda_i + s_k s_{k+1}}{\lambda_i + s_k^2}\right)^2

    the result is :math:`\sum_i c_i (1/r_i - 1 + \log r_i)/2` for ``kl`` = KL(data || output),
    :math:`\sum_i c_i (r_i - 1 - \log r_i)/2` for ``reverse_kl`` = KL(output || data), their sum for ``jeffreys``, and
    :math:`\sum_i c_i (\lambda_i + s_N^2) (\sqrt{r_i} - 1)^2` for ``w2``, the squared 2-Wasserstein distance (the
    Frechet distance of Gaussians, in squared data units).

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data; a 1-D array is taken as eigenvalues (squared data units).
    sigmas : array_like, shape (N+1,) or (M, N+1)
        Candidate schedules: noise-to-signal ratios sigma_t/alpha_t, strictly decreasing, non-zero ones within
        [1e-15, 1e15]; the first may be inf (zero terminal SNR), the last may be 0. A last level above 0 compares with
        data that carries that much noise.
    metric : {"kl", "reverse_kl", "jeffreys", "w2"}
        Which divergence.
    sampler : str or Sampler
        The update rule: a name of `fastkl.samplers.names()`, such as "ddim" (Euler's step on the probability-flow ODE
        in sigma), "heun", "dpmpp_2m", "unipc_2" or "euler_ancestral", or what a function of `fastkl.samplers`
        returns. Some need a finite first level, a last level above 0, or a few steps.
    prior : {"vp", "ve", "flow", "exact"}
        Variance v_0 of the first state y = x/alpha: ``vp`` 1 + s_0^2, ``ve`` s_0^2, ``flow`` (1 + s_0)^2, ``exact``
        lambda_i + s_0^2. At s_0 = inf all agree. Every prior has mean 0.
    backend : {"auto", "cpu", "gpu"}
        Where to compute. "auto" is where the arrays are: a GPU for CuPy arrays and others with
        ``__cuda_array_interface__`` or DLPack on a CUDA device, else the CPU, or a GPU if one is there whose costs were
        measured and the work repays the transfer. "gpu" takes arrays of the host there and back.
    rtol : float
        Relative error allowed, within [0, 1). 0 evaluates every eigenvalue. Above 0 the spectrum's compression
        (`Spectrum.compress`) is evaluated instead where that pays: for many candidates, or once it is there. It is kept
        with the Spectrum; for an array of eigenvalues it is made anew in each call. Candidates for which its error
        could be larger are evaluated exactly.
    num_threads : int, optional
        Threads for this call. Default: the environment variable FASTKL_NUM_THREADS, else all CPUs the process may use.
        The result has the same bits for any number; a GPU does not use them.
    precision : {"float64", "float32"}
        "float32" is for DDIM on GPUs with slow float64: relative error below 1e-5 where ``kl`` is at least 1e-3 a
        direction, for eigenvalues in [1e-12, 1e12] and non-zero sigmas in [1e-4, 1e5].

    Returns
    -------
    float or ndarray, shape (M,)
        The divergence of each candidate (in nats; for ``w2`` in squared data units); a float for one candidate. For
        arrays on a GPU a CuPy array, shape (M,) or (), with NaN where a value breaks the rules.

    Raises
    ------
    ValueError
        If an argument has a value or a shape outside the rules above, or an eigenvalue is 0 where the divergence is not
        finite: `metric` is not ``w2`` and a candidate ends at 0. Add a floor (`Spectrum.floored`) or end above 0. The
        values of arrays on a GPU are not waited for and never raise: see Returns and Notes.
    TypeError
        If an argument is of the wrong kind, or one array is on a GPU and the other is not.
    RuntimeError
        If `backend` is "gpu" and the package, the driver or the device is missing; the message says which.

    Notes
    -----
    Arrays on a GPU: all work is queued on CuPy's current stream and nothing is waited for, so their values cannot
    raise; a candidate or a spectrum that breaks the rules, or a candidate on which the sampler cannot run, gives NaN.
    A `Spectrum` (the way to give counts or a mean) is copied to the GPU in the first call and that copy kept with it,
    and so is what a sampler does in N steps. `rtol` plays no part. Other libraries' arrays must stay alive and
    unchanged until the stream's work is done: PyTorch's allocator, for one, does
    not know that CuPy's stream still reads them. First calls may wait for the whole device, because the driver loads
    kernels at their first use; `fastkl.warmup(backend="gpu")` does that at a time of your choice. If "auto" has chosen
    a GPU for arrays of the host and that fails, the CPU is taken, with one warning in a process.

    Cost: 2 d M N fused multiply-adds and about 20 more operations for each of the d M ratios; some three
    times as much where the divergence of an eigenvalue is so small that it needs more digits than that gives (about
    3e-8 at N = 10, 2e-6 at N = 100, 2e-4 at N = 1000). Other samplers than DDIM: a division and 2 to 10 multiply-adds
    for each of the d M evaluations of the network, four to seven times as much where more digits are needed, with the
    same bound on the error (a sampler that happens to cancel the prior's mismatch loses as many digits as that
    cancels). Memory beyond arguments and result: at most about 50 MB; on a GPU up to half of what is free there but
    at most 1 GiB, and the copies of a `Spectrum`, one for each of the four streams that used it last (one for which
    there is no room is copied piece by piece in each call). Relative error: below 1e-10 for eigenvalues in [1e-12,
    1e12], non-zero sigmas in [1e-4, 1e5] and N <= 1000, down to divergences of 1e-12 and less; below 1e-12 is usual. A
    non-zero mean of the data adds e^2/(2v), e^2/(2t), their sum, or e^2 (e the mean's error at the last level, v the
    output and t the target variance). A single step from inf to 0 returns no variance at all: inf, except for ``w2``.

    References
    ----------
    Sun, Poor and Zhang, "An Elementary Approach to Scheduling in Generative Diffusion Models", arXiv 2601.13602:
    closed-form evolution and KL divergence. Song, Meng and Ermon, "Denoising Diffusion Implicit Models", arXiv
    2010.02502, equation 12 (eta = 0).

    Examples
    --------
    >>> import fastkl
    >>> value = fastkl.divergence([4.0, 1.0, 0.25], [80.0, 10.0, 2.0, 0.5, 0.0])
    >>> round(value, 6)
    0.808473
    """
    choice("metric", metric, METRICS)
    choice("precision", precision, PRECISIONS)
    call = device_call(spectrum, sigmas, sampler, prior, backend, num_threads)
    rtol = real_number("rtol", rtol, at_least=0.0, below=1.0)
    if call is not None:
        refuse_float32(precision, None, get(sampler))
        return call.divergence(metric, sampler, prior, precision)
    data, levels, single, rule, threads = checked(spectrum, sigmas, sampler, prior, num_threads)
    if metric != "w2":
        refuse_zero_eigenvalue(data, levels, metric, isinstance(spectrum, Spectrum))
    kernels = kernels_for(backend, data, levels, rule, levels.shape[0], threads)
    refuse_float32(precision, kernels, rule)
    small = stand_in(data, levels, rtol) if rtol and rule.is_ddim and precision == "float64" else None

    def evaluate(kernels: Any) -> Array:
        values = evaluated(kernels, small or data, levels, metric, rule, prior, threads, precision)
        again = np.zeros(0, bool) if small is None else doubtful(small, levels, values, metric, prior)
        if again.any():
            values[again] = evaluated(kernels, data, levels[again], metric, rule, prior, threads)
        return values

    values = run_on(kernels, backend, evaluate)
    return float(values[0]) if single else values


def evaluated(
    kernels: Any,
    data: Spectrum,
    levels: Array,
    metric: str,
    rule: Sampler,
    prior: str,
    threads: int,
    precision: str = "float64",
) -> Array:
    """Return each candidate's divergence on every eigenvalue of `data`, with the mean's share."""
    if rule.is_ddim:
        # where "auto" falls back to the CPU there is float64 only, which keeps what float32 promises
        options = {"precision": precision} if precision == "float32" and on_gpu(kernels) else {}
        values: Array = kernels.divergence(
            data.eigenvalues, data.counts, levels, metric, prior, threads, **options
        )
        if data.mean is not None and data.mean.any():
            values += mean_share(kernels, data, levels, metric, prior, threads)
    else:
        values = sampler_kernels(kernels).divergence(data, levels, metric, rule, prior, threads)
    if metric != "w2" and levels.shape[1] == 2:
        values[np.isinf(levels[:, 0]) & (levels[:, 1] == 0.0)] = np.inf
    return values


def refuse_zero_eigenvalue(
    data: Spectrum, levels: Array, metric: str, named: bool, argument: str = "spectrum"
) -> None:
    """Raise if an entropy would not be finite: an eigenvalue of 0 and a last level of 0."""
    if data.eigenvalues.min() > 0.0 or levels[:, -1].min() > 0.0:
        return
    index, row = int(np.argmin(data.eigenvalues)), int(np.argmin(levels[:, -1]))
    where = f"{argument}.eigenvalues" if named else argument
    raise ValueError(
        f"{where}[{index}] = 0.0: must be above 0, because {metric} is not finite for an eigenvalue of 0 and a last "
        f"level of 0 (row {row} of sigmas); add a floor (Spectrum.floored) or end at a level above 0"
    )


def mean_share(kernels: Any, data: Spectrum, levels: Array, metric: str, prior: str, threads: int) -> Array:
    """Return what the mean of the data adds to each candidate's divergence; every prior has mean 0."""
    first = levels[:, 0]
    share = np.zeros(levels.shape[0])
    for term in ("kl", "reverse_kl") if metric == "jeffreys" else (metric,):
        if term == "kl" and prior != "exact":
            deviation = {"vp": np.hypot(1.0, first), "ve": first, "flow": 1.0 + first}[prior]
            share += squared_norm(data) / (2.0 * deviation * deviation)
        else:
            share += kernels.mean_term(data.eigenvalues, data.counts, data.mean, levels, term, prior, threads)
    share[np.isinf(first)] = 0.0  # an infinite first level forgets the mean
    return share


def squared_norm(data: Spectrum) -> float:
    """Return the squared length of the mean."""
    mean = data.mean
    assert mean is not None
    total = 0.0
    for begin in range(0, mean.size, 1 << 20):  # in blocks, to bound the memory
        square = np.square(mean[begin : begin + (1 << 20)])
        total += float(
            (square if data.counts is None else square * data.counts[begin : begin + (1 << 20)]).sum()
        )
    return total


def output_variance(
    spectrum: Spectrum | ArrayLike,
    sigmas: ArrayLike,
    sampler: str | Sampler = "ddim",
    prior: str = "vp",
    *,
    num_threads: int | None = None,
    backend: str = "auto",
) -> Any:
    r"""Variance of the sampler's output along every eigen-direction.

    .. math:: v_i = v_{0,i} \prod_{k<N} \left(\frac{\lambda_i + s_k s_{k+1}}{\lambda_i + s_k^2}\right)^2

    for DDIM, in the coordinates y = x/alpha of the last level; where the last level is 0, alpha is 1 and this is the
    variance of the samples. The target is lambda_i + s_N^2.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units).
    sigmas : array_like, shape (N+1,) or (M, N+1)
        Candidate schedules, as in `divergence`.
    sampler : str or Sampler
        The update rule, as in `divergence`.
    prior : {"vp", "ve", "flow", "exact"}
        Variance of the first state, as in `divergence`.
    num_threads : int, optional
        Threads for this call, as in `divergence`.
    backend : {"auto", "cpu", "gpu"}
        Where to compute, as in `divergence`.

    Returns
    -------
    ndarray, shape (d,) or (M, d)
        Variances in squared data units, one for each entry of the spectrum (counts play no part); a CuPy array for
        arrays on a GPU, with NaN for candidates that break the rules, and for all where an eigenvalue does.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As `divergence`.

    Notes
    -----
    Cost: 2 d M N fused multiply-adds; for other samplers as `divergence`. Relative error: below 1e-11
    within the ranges of `divergence`, for other samplers below 1e-10.

    References
    ----------
    Sun, Poor and Zhang, arXiv 2601.13602: closed-form evolution of the distribution.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.output_variance([4.0, 1.0], [80.0, 5.0, 1.0, 0.0]).round(4)
    array([1.5703, 0.3345])
    """
    call = device_call(spectrum, sigmas, sampler, prior, backend, num_threads)
    if call is not None:
        return call.output_variance(sampler, prior)
    return variances("output_variance", spectrum, sigmas, sampler, prior, num_threads, backend)


def trajectory(
    spectrum: Spectrum | ArrayLike,
    sigmas: ArrayLike,
    sampler: str | Sampler = "ddim",
    prior: str = "vp",
    *,
    num_threads: int | None = None,
    backend: str = "auto",
) -> Any:
    r"""Variance along every eigen-direction at every level of the reverse process.

    .. math:: v_{k+1,i} = v_{k,i} \left(\frac{\lambda_i + s_k s_{k+1}}{\lambda_i + s_k^2}\right)^2

    for DDIM, in the coordinates y = x/alpha; the true variance at level k is lambda_i + s_k^2.

    Parameters
    ----------
    spectrum : Spectrum or array_like, shape (d,)
        Covariance spectrum of the data, or its eigenvalues (squared data units).
    sigmas : array_like, shape (N+1,) or (M, N+1)
        Candidate schedules, as in `divergence`.
    sampler : str or Sampler
        The update rule, as in `divergence`.
    prior : {"vp", "ve", "flow", "exact"}
        Variance of the first state, as in `divergence`.
    num_threads : int, optional
        Threads for this call, as in `divergence`.
    backend : {"auto", "cpu", "gpu"}
        Where to compute, as in `divergence`.

    Returns
    -------
    ndarray, shape (N+1, d) or (M, N+1, d)
        Variances in squared data units, from the prior (inf where the first level is inf) to the output; a CuPy array
        for arrays on a GPU, with NaN for candidates that break the rules, and for all where an eigenvalue does.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As `divergence`.

    Notes
    -----
    Cost: d M N divisions; for samplers with noise other than DDIM's a pass for every level, that is d M N^2/2. Relative
    error: below 1e-11 for N <= 1000. For other samplers the last level is within 1e-10; at the levels before it the
    recursion runs in plain float64, and an unstable one (plms or prk over a few wide steps) may lose some digits.

    References
    ----------
    Sun, Poor and Zhang, arXiv 2601.13602: closed-form evolution of the distribution.

    Examples
    --------
    >>> import fastkl
    >>> fastkl.trajectory([1.0], [3.0, 1.0, 0.0], prior="exact").round(3)
    array([[10. ],
           [ 1.6],
           [ 0.4]])
    """
    call = device_call(spectrum, sigmas, sampler, prior, backend, num_threads)
    if call is not None:
        return call.trajectory(sampler, prior)
    return variances("trajectory", spectrum, sigmas, sampler, prior, num_threads, backend)


def variances(
    name: str, spectrum: Any, sigmas: Any, sampler: Any, prior: Any, num_threads: Any, backend: str
) -> Any:
    """Return `output_variance` or `trajectory`, by its name, of arguments on the host."""
    data, levels, single, rule, threads = checked(spectrum, sigmas, sampler, prior, num_threads)
    rows = levels.shape[0] if name == "output_variance" else levels.size

    def evaluate(kernels: Any) -> Array:
        if rule.is_ddim:
            values: Array = getattr(kernels, name)(data.eigenvalues, levels, prior, threads)
        else:
            values = getattr(sampler_kernels(kernels), name)(data, levels, rule, prior, threads)
        return values

    values = run_on(kernels_for(backend, data, levels, rule, rows * len(data), threads), backend, evaluate)
    return values[0] if single else values


def checked(
    spectrum: Any, sigmas: Any, sampler: Any, prior: Any, num_threads: Any
) -> tuple[Spectrum, Array, bool, Sampler, int]:
    """Return the validated spectrum, candidates, whether there is only one, the sampler, and the number of threads."""
    data = as_spectrum("spectrum", spectrum)
    levels, single = candidate_levels("sigmas", sigmas)
    rule = checked_sampler(sampler, levels)
    choice("prior", prior, PRIORS)
    return data, levels, single, rule, thread_count(num_threads)
