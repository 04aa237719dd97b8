"""Spectra of samples for tests: expects the warning about missing rank where it is due, and only there."""

import contextlib
import math

import numpy as np
import pytest

from fastkl import RankDeficientWarning, Spectrum


def spectrum_of(x, *args, **kwargs):
    """Spectrum.from_samples of an array, which must warn if and only if there are no more samples than features."""
    n, d = len(x), math.prod(np.shape(x)[1:])
    with expect_warning(n, d):
        return Spectrum.from_samples(x, *args, **kwargs)


def expect_warning(n, d):
    """Context in which a spectrum of n samples of d features must be made, with the warning that it deserves."""
    if n > d:
        return contextlib.nullcontext()
    return pytest.warns(
        RankDeficientWarning, match=rf"^n = {n} samples of d = {d} .* {d - n + 1} eigenvalues? "
    )
