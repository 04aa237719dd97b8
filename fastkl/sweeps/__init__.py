"""Sweeps: products of spectra, schedules, discretizations and samplers, evaluated in chunks that are never lost.

The function is `fastkl.sweep`; pydantic and pyarrow, the extra ``sweep``, are loaded when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from fastkl._progress import ProgressOption

if TYPE_CHECKING:
    from fastkl.sweeps.result import SweepResult

__all__ = ["sweep"]


def sweep(
    config: Mapping[str, Any] | str | PathLike[str],
    output: str | PathLike[str] | None = None,
    *,
    client: Any = None,
    progress: ProgressOption = False,
    num_threads: int | None = None,
) -> SweepResult:
    r"""Evaluate every candidate of a product of spectra, schedules, families of levels, samplers and metrics.

    .. math:: \text{schedules} \times \text{steps} \times \text{samplers} \times \text{families' grids}
              \times \text{spectra} \times \text{metrics} \times \text{priors}

    streamed in chunks, so that billions of candidates need no more memory than thousands. A run that was killed goes
    on where it was when it is called again with the same folder.

    Parameters
    ----------
    config : dict, str or path-like
        The configuration: the path of a TOML file, to whose folder its paths are relative, or the same as a dict, in
        which spectra, schedules and samplers may be live objects. Its keys are below.
    output : str or path-like, optional
        Folder for the results, new or of an earlier run of the same configuration. Default: nothing is written, only
        the best are kept, and nothing can be resumed.
    client : dask.distributed.Client, optional
        Cluster to evaluate the chunks on (the extra ``dask``). Results are written by this process. Default: threads of
        this process.
    progress : bool or callable
        True shows progress on standard error: a bar in a terminal with rich, the extra ``cli``, else lines. A callable
        is called with the candidates done and their number.
    num_threads : int, optional
        Threads of this process to use. Default: FASTKL_NUM_THREADS, else all CPUs the process may use.

    Returns
    -------
    SweepResult
        The best candidates, and where all results are. With the same versions on processors of one kind they have the
        same bits whatever the number of threads or workers, and whatever was interrupted.

    Raises
    ------
    ValueError
        If the configuration breaks a rule (the message has the key's path), before any work; or if the folder belongs
        to another configuration (the message says which key changed).
    TypeError
        If an argument is of the wrong kind.
    BlockingIOError
        If another process is writing to the folder.
    OSError
        If a file cannot be read or written. What is written stays; after a full or read-only disk the same call goes on
        from there, as it does after Ctrl-C.
    ImportError
        If pydantic and pyarrow, or dask.distributed where it is needed, are not installed.

    Notes
    -----
    Keys of the configuration; a list may be a single value where that is a name, a number or an object:

    - ``spectra``: presets' names, or tables with one of ``preset``, ``file`` (as `fastkl rank` takes it, or a pattern
      such as ``"spectra/*.npz"`` for many), ``power_law`` (``dim``, ``exponent`` and ``mean_variance``; several
      exponents are several spectra), ``chunks`` (.npy files or a pattern, arrays, or a Dask array: one spectrum too
      large for memory, of which the moments are taken) or ``spectrum`` (an object), and with ``name`` and ``floor``.
    - ``schedules``: kinds such as ``"ddpm_linear"``, or tables with ``kind``, its parameters and ``name``, or
      with ``schedule`` (an object) and ``name``.
    - ``steps`` or ``nfe``: numbers of steps, or of evaluations of the network.
    - ``families``: tables with ``family`` and its parameters, each a number, a list, or a range ``{start, stop, num,
      spacing = "linear" or "log"}``; their product is the family's grid. ``uniform`` (``spacing``), ``quadratic``,
      ``power_uniform`` (``power``), ``karras`` (``rho``, ``sigma_min``, ``sigma_max``), ``exponential``,
      ``tangent`` (``gamma``, ...), ``geodesic``, and ``random`` (``num`` draws of a ``seed``: independent levels,
      uniform in the logarithm, sorted). ``snap``: whether levels are moved to timesteps; default: where a schedule is
      discrete.
    - ``searches``: tables with ``prove``, ``free_start``, ``grid``, ``min_spacing``, ``refine``: `fastkl.search` for
      each spectrum, schedule, number of steps, metric and prior, for DDIM.
    - ``samplers`` (names, or tables such as ``{function = "ddim", eta = 0.5}``; default DDIM), ``metrics`` (default
      ``kl``), ``priors`` (default ``"schedule"``, the schedule's own).
    - ``rtol`` (1e-8, 0.1 at most): error allowed to the values of candidates, as in `divergence`. The best are
      evaluated again with none.
    - ``top`` (100): how many of the best are kept of each group; ``per`` (``["spectrum", "metric", "steps"]``; also
      schedule, sampler, family, prior): what makes a group; ``distinct`` (true): whether only the first of
      candidates with the same levels counts.
    - ``full`` (false): whether all rows are written, or of each chunk those that may be among the best.
    - ``chunk``: candidates a chunk; default: about a second's work.

    Cost: about a microsecond of one thread for a candidate of 10 steps, whatever the spectrum, once it is compressed; a
    search takes 10 to 300 ms. Memory: some 250 MB with two threads, 350 MB if all rows are written, whatever the number
    of candidates. The top is right as far as `rtol` is: a candidate is excluded only if its value to `rtol` is beyond
    the last of the best by more than four times that. Equal values are in order of index, the number of a candidate in
    the product above (the last list varies fastest), after all grids the geodesics and after these the searches. The
    column ``generator`` says which family or search a row is of: ``families[0]``, ``searches[1]``.

    Chunks say with which versions of NumPy and numba they were evaluated, and with what arithmetic: NumPy's functions
    differ in the last bit between kinds of processors. Where a folder or a cluster mixes them, a warning says so, and
    the chunks are used: values then agree to some 1e-12 instead of to the last bit. A damaged chunk is evaluated
    again, and a damaged or lost manifest written again if every chunk is of this configuration and version. In a folder
    that holds anything else nothing is touched.

    References
    ----------
    Sun, Poor and Zhang, "An Elementary Approach to Scheduling in Generative Diffusion Models", arXiv 2601.13602: the KL
    divergence as the measure that compares discretizations. Rocklin, "Dask: Parallel Computation with Blocked
    algorithms and Task Scheduling", 2015.

    Examples
    --------
    >>> import fastkl
    >>> found = fastkl.sweep({
    ...     "spectra": ["mnist"],
    ...     "schedules": ["ddpm_linear"],
    ...     "steps": 10,
    ...     "families": [{"family": "tangent", "sigma_min": 0.0,
    ...                   "gamma": {"start": 1e-3, "stop": 10.0, "num": 1000, "spacing": "log"}}],
    ...     "top": 3,
    ... })
    >>> found.candidates, found.top["rank"].to_pylist()
    (1000, [1, 2, 3])
    """
    try:
        import pyarrow  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError as error:
        raise ImportError(f"fastkl.sweep needs {error.name}: pip install 'fastkl[sweep]'") from None
    from fastkl.sweeps.running import run

    return run(config, output, client, progress, num_threads)
