"""The warning about covariances that lack rank because there are fewer samples than dimensions."""

from __future__ import annotations

import warnings

__all__ = ["RankDeficientWarning", "warn_of_missing_rank"]


class RankDeficientWarning(UserWarning):
    r"""There are too few samples for a covariance of full rank.

    `n` samples of `d` dimensions leave at least ``d - n + 1`` eigenvalues of exactly 0, whatever the true ones are:
    ``kl``, ``reverse_kl`` and ``jeffreys`` down to a last level of 0 are not finite then. The eigenvalues that are
    not 0 spread, too: if all true ones are 1, the others cover the interval of Marchenko and Pastur,
    :math:`(1 \pm \sqrt{d/n})^2`, so small ones come out too small and large ones too large; hardly so only for
    n many times d.

    Remedies: more samples; a `floor` (`Spectrum.floored`), which makes the divergences finite but leaves the bias;
    `shrinkage` (`Spectrum.from_samples`), which does both to some extent.

    References
    ----------
    Marchenko and Pastur, "Distribution of eigenvalues for some sets of random matrices", Mathematics of the
    USSR-Sbornik 1 (1967), 457-483.
    """


def warn_of_missing_rank(samples: str, zeros: int, floor: float, remedies: str) -> None:
    """Warn the caller of the public method that calls this: `zeros` eigenvalues are 0 for lack of samples."""
    effect = (
        "so kl down to a last level of 0 is not finite"
        if floor == 0.0
        else f"for which the floor of {floor:g} alone stands"
    )
    count = "eigenvalue is" if zeros == 1 else "eigenvalues are"
    warnings.warn(
        f"{samples}: {zeros} {count} 0 for lack of samples, {effect}, and the small ones among the others are "
        f"too small (Marchenko-Pastur). Take {remedies}",
        RankDeficientWarning,
        stacklevel=3,
    )
