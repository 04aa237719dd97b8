"""What every noise schedule can do: evaluate, invert, compare and pickle itself.

The kinds of schedule are the classmethods of `fastkl.NoiseSchedule`.
"""

from __future__ import annotations

from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastkl._schedule_maps import MAPS, table_sigmas, table_times
from fastkl._validation import check_all, read_only, real_array

__all__ = ["ScheduleBase", "check_elements"]

Floats = NDArray[np.float64]

_GAP_RULE = (
    "lies between the last finite level and the infinite one (zero terminal SNR), where no level is defined"
)


class ScheduleBase:
    """Immutable map between times and noise levels; see `fastkl.NoiseSchedule`."""

    __slots__ = ("_alphas_cumprod", "_parameters", "_sigmas", "name", "prior")

    name: str
    prior: str
    _parameters: tuple[tuple[str, float], ...]
    _sigmas: Floats | None
    _alphas_cumprod: Floats | None

    @classmethod
    def _build(
        cls,
        name: str,
        prior: str,
        parameters: tuple[tuple[str, float], ...],
        sigmas: Floats | None = None,
        alphas_cumprod: Floats | None = None,
    ) -> Self:
        self = object.__new__(cls)
        tables = [None if table is None else read_only(table) for table in (alphas_cumprod, sigmas)]
        values = (tables[0], parameters, tables[1], name, prior)
        for slot, value in zip(ScheduleBase.__slots__, values, strict=True):
            object.__setattr__(self, slot, value)
        return self

    @property
    def is_discrete(self) -> bool:
        """Whether the schedule is a table over timesteps 0..T-1."""
        return self._sigmas is not None

    @property
    def is_smooth(self) -> bool:
        """Whether the Euler-Maclaurin expansion in 1/N holds: True for `edm`, `flow` and `tangent`.

        Smooth means that theta(t) = arctan(sigma(t)/sqrt(lambda)) has bounded derivatives of every order on
        the closed interval [0, 1], for every lambda > 0. A table over timesteps is not smooth.
        """
        return self._sigmas is None

    @property
    def num_train_timesteps(self) -> int | None:
        """T, or None for a continuous schedule."""
        return None if self._sigmas is None else self._sigmas.size

    @property
    def alphas_cumprod(self) -> Floats:
        """The table abar_t, shape (T,), read-only; a continuous schedule has none (AttributeError)."""
        if self._alphas_cumprod is None:
            raise AttributeError(f"alphas_cumprod: {self!r} is continuous and has no table")
        return self._alphas_cumprod

    @property
    def sigma_min(self) -> float:
        """The level at the clean end, t = 0."""
        return float(self.sigmas(0.0))

    @property
    def sigma_max(self) -> float:
        """The level at the noisy end, t = T-1 (discrete) or t = 1 (continuous); it may be inf."""
        return float(self.sigmas(1.0 if self._sigmas is None else self._sigmas.size - 1))

    def sigmas(self, t: ArrayLike) -> Any:
        """Noise levels at timesteps or times: sigma(t) = sqrt((1 - abar_t)/abar_t).

        Parameters
        ----------
        t : array_like of real numbers, at most 2-D
            Discrete: timesteps in [0, T-1]; between two integers log sigma is linear, as in k-diffusion.
            Continuous: times in [0, 1].

        Returns
        -------
        float or ndarray of float64
            Shaped like `t`.

        Raises
        ------
        ValueError
            If a `t` is out of range, or lies between a finite and an infinite level.

        Notes
        -----
        Table values are looked up. Otherwise a level is good to about 1e-15 relative for the `t` given; near
        t = 1 the spacing of floats in t limits how finely large levels of `flow` and `tangent` differ.

        Examples
        --------
        >>> from fastkl import NoiseSchedule
        >>> NoiseSchedule.ddpm_linear().sigmas([0, 999]).round(4).tolist()
        [0.01, 157.4073]
        """
        points = real_array("t", t, ndim=(0, 1, 2)).reshape(np.shape(t))
        last = 1 if self._sigmas is None else self._sigmas.size - 1
        kind = "times" if self._sigmas is None else "timesteps"
        check_elements(
            "t",
            points,
            (points >= 0) & (points <= last),
            f"must be in [0, {last}], the {kind} of {self.name}",
        )
        if self._sigmas is None:
            with np.errstate(divide="ignore", over="ignore", under="ignore"):
                return _like(MAPS[self.name][0](points, **dict(self._parameters)))
        check_elements("t", points, (points == last) | (not self._has_gap) | (points <= last - 1), _GAP_RULE)
        return _like(table_sigmas(self._sigmas, points))

    def times(self, sigmas: ArrayLike) -> Any:
        """The inverse of `sigmas`: t with sigma(t) = sigma.

        Parameters
        ----------
        sigmas : array_like of real numbers, at most 2-D
            Levels in [sigma_min, sigma_max]. 0, which samplers append, has no time in a discrete schedule or
            in `edm`; leave it out.

        Returns
        -------
        float or ndarray of float64
            Shaped like `sigmas`. Discrete: fractional timesteps, exact integers for levels of the table.
            Continuous: times in [0, 1].

        Raises
        ------
        ValueError
            If a level is out of range, or lies between a finite and an infinite level.

        Examples
        --------
        >>> from fastkl import NoiseSchedule
        >>> NoiseSchedule.flow().times([1.0, 0.25]).tolist()
        [0.5, 0.2]
        """
        levels = self._levels(sigmas)
        if self._sigmas is None:
            with np.errstate(divide="ignore", over="ignore", under="ignore"):
                return _like(MAPS[self.name][1](levels, **dict(self._parameters)))
        inside = (not self._has_gap) | (levels == np.inf) | (levels <= self._sigmas[-2:][0])
        check_elements("sigmas", levels, inside, _GAP_RULE)
        return _like(table_times(self._sigmas, levels))

    def timesteps(self, sigmas: ArrayLike) -> Any:
        """Nearest timesteps of a discrete schedule, nearest in log sigma.

        Parameters
        ----------
        sigmas : array_like of real numbers, at most 2-D
            Levels in [sigma_min, sigma_max]; drop the 0 that samplers append.

        Returns
        -------
        int or ndarray of int64
            Shaped like `sigmas`, in 0..T-1. Two levels may share a timestep; `fastkl.discretize.snap` keeps
            them apart.

        Raises
        ------
        ValueError
            If the schedule is continuous or a level out of range.

        Examples
        --------
        >>> from fastkl import NoiseSchedule
        >>> NoiseSchedule.ddpm_linear().timesteps([10.0, 1.0]).tolist()
        [674, 258]
        """
        if self._sigmas is None:
            raise ValueError(f"timesteps: {self!r} is continuous and has no timesteps; use times(sigmas)")
        nearest = np.rint(table_times(self._sigmas, self._levels(sigmas))).astype(np.int64)
        return nearest if nearest.ndim else int(nearest)

    @property
    def _has_gap(self) -> bool:
        """Whether the last level is infinite, so that no level lies between the last two timesteps."""
        return self._sigmas is not None and bool(np.isinf(self._sigmas[-1]))

    def _levels(self, sigmas: ArrayLike) -> Floats:
        levels = real_array("sigmas", sigmas, ndim=(0, 1, 2)).reshape(np.shape(sigmas))
        if self.sigma_min > 0.0:
            rule = f"the clean end that samplers append has no time in {self.name}; leave it out"
            check_elements("sigmas", levels, levels != 0.0, rule)
        low, high = self.sigma_min, self.sigma_max
        rule = f"must be in [{low!r}, {high!r}], the levels of {self.name}"
        check_elements("sigmas", levels, (levels >= low) & (levels <= high), rule)
        return levels

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: a NoiseSchedule is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: a NoiseSchedule is immutable")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._build, (
            self.name,
            self.prior,
            self._parameters,
            self._sigmas,
            self._alphas_cumprod,
        )

    def _key(self) -> tuple[Any, ...]:
        return self.name, self._parameters, None if self._sigmas is None else self._sigmas.tobytes()

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, ScheduleBase) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self._parameters)
        if not inside:
            inside = (
                f"<{self.num_train_timesteps} timesteps, sigma {self.sigma_min:.4g} to {self.sigma_max:.4g}>"
            )
        return f"NoiseSchedule.{self.name}({inside})"


def check_elements(name: str, array: Floats, valid: NDArray[np.bool_], rule: str) -> None:
    """Raise about the first element where `valid` is False; a scalar is named without an index."""
    if array.ndim == 0 and not valid:
        raise ValueError(f"{name} = {array.item()!r}: {rule}")
    check_all(name, array, valid, rule)


def _like(values: Floats) -> Any:
    """A 0-d result as a float."""
    return values if values.ndim else values.item()
