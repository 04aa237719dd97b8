"""Spectra made to break a compression: gaps, clusters, edges, outliers, few distinct values, wide ranges."""

import numpy as np

from fastkl import Spectrum


def log_normal():
    return Spectrum(np.exp(np.random.default_rng(1).normal(0, 2, 100_000)))


def log_uniform():
    return Spectrum(10.0 ** np.random.default_rng(2).uniform(-12, 12, 20_000))


def marchenko_pastur():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((404, 400))
    return Spectrum(np.maximum(np.linalg.eigvalsh(x.T @ x / 404), 1e-9))


def two_atoms():
    return Spectrum([1e-6, 1e6])


def one():
    return Spectrum([0.7])


def equal():
    return Spectrum(np.full(1000, 1.3))


def three_values():
    return Spectrum(np.tile([3.0, 0.2, 1e-4], 5000))


def cluster_and_outliers():
    rng = np.random.default_rng(4)
    return Spectrum(np.concatenate([1 + 1e-3 * rng.random(20_000), np.exp(rng.normal(0, 4, 20))]))


def clusters():
    rng = np.random.default_rng(5)
    return Spectrum(np.concatenate([centre * (1 + width * rng.random(2000)) for centre, width in
                                    ((1e-9, 1e-1), (1e-3, 1e-3), (1.0, 0.5), (1e6, 1e-2))]))  # fmt: skip


def near_one():
    """Where the priors vp and flow cancel what steps lose."""
    return Spectrum(1 + 0.2 * np.random.default_rng(6).normal(size=3000).clip(-3, 3))


def shallow_power_law():
    return Spectrum.power_law(50_000, 0.7)


def steep_power_law():
    return Spectrum.power_law(50_000, 3.0)


def photographs():
    return Spectrum(Spectrum.preset("photographs").eigenvalues)


def mnist():
    return Spectrum(Spectrum.preset("mnist").eigenvalues)


def digits():
    return Spectrum(Spectrum.preset("digits").eigenvalues)


SPECTRA = {
    make.__name__: make
    for make in (
        *(
            log_normal,
            log_uniform,
            marchenko_pastur,
            two_atoms,
            one,
            equal,
            three_values,
            cluster_and_outliers,
        ),
        *(clusters, near_one, shallow_power_law, steep_power_law, photographs, mnist, digits),
    )
}
