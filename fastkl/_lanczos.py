"""Block Lanczos quadrature: nodes and counts that stand for the eigenvalues of a matrix known by its products.

Random probes span the first block; the matrix projected on the Krylov space that grows from it has the nodes for
eigenvalues, and a probe's component along each gives that node's count, as in stochastic Lanczos quadrature. Nodes
that have converged to single eigenvalues (of images, the largest some hundred) count exactly 1, and the probes speak
for the others only: deflation that costs no product more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.special import stdtrit

from fastkl._validation import integer

__all__ = ["Operator", "Options", "Rule", "quadrature"]

_EPS = float(np.finfo(np.float64).eps)
_ISOLATED = 1e3  # gaps so many times the residuals set a group of nodes apart
_CONFIDENCE = 0.99865  # one-sided, as three standard deviations of a normal distribution
_CHANGES = 2.0  # by the last quarter of the steps; what is still to come was less wherever it was tried
_DEPENDENT = 1e-10  # length of what a start vector of length 1 or more has of its own, if that is rounding
_SCALES = 40  # of the functions that the error is estimated for

_Array = NDArray[np.float64]


class Operator(Protocol):
    """A positive semi-definite matrix, of which only products are known."""

    rank: int  # dimension of the space that the probes fill
    extra: _Array  # one more vector, shape (p,), not a random one, to join the probes in the first block

    def __call__(self, vectors: _Array) -> _Array:
        """Return the matrix times vectors, shape (p, b)."""

    def probes(self, rng: np.random.Generator, number: int) -> _Array:
        """Return random vectors of that space, shape (p, number), whose directions are uniformly distributed."""

    def energy(self, nodes: _Array, squares: _Array) -> _Array:
        """Return the energy on the nodes of what `extra` stands for, given its squared components along them."""


@dataclass(frozen=True)
class Options:
    """Size of a quadrature: random vectors, products with each, and the seed that the vectors come from."""

    probes: int
    steps: int
    seed: int

    def __post_init__(self) -> None:
        integer("probes", self.probes, minimum=2)
        integer("steps", self.steps, minimum=2)
        integer("seed", self.seed, minimum=0)


@dataclass(frozen=True)
class Rule:
    """Nodes (k,), counts that each probe gives them (probes, k), and energy of the extra on them (k,).

    `plain` are the counts on average before single eigenvalues were counted as such (k,): by more steps, sums with
    these change only as far as the nodes do.
    """

    nodes: _Array
    counts: _Array
    energy: _Array
    plain: _Array


@dataclass(frozen=True)
class _Krylov:
    """A matrix projected on a Krylov space."""

    start: _Array  # coordinates of the start vectors in the first block
    projected: _Array
    outside: _Array  # inner products of what the last block's image has outside the space
    exhausted: bool  # whether nothing is outside


def quadrature(operator: Operator, options: Options, floor: float) -> tuple[Rule, float]:
    """Return the rule of an operator, and the relative error estimated for divergences by it, with a floor added."""
    start = operator.probes(np.random.default_rng(options.seed), min(options.probes, operator.rank))
    number, length = start.shape[1], float(np.linalg.norm(operator.extra))
    if length > 0.0:
        start = np.column_stack([start, operator.extra / length])
    before, whole = _grow(operator, start, options.steps)
    rule = _rule(operator, whole, number, length)
    if len(rule.nodes) == operator.rank:  # all eigenvalues
        return rule, 0.0
    earlier = rule if whole.exhausted else _rule(operator, before, number, length)
    return rule, _relative_error(rule, earlier, floor)


def _grow(operator: Operator, start: _Array, steps: int) -> tuple[_Krylov, _Krylov]:
    """Grow a basis by `steps` blocks, with full reorthogonalisation; return it at three quarters and at the end."""
    room = min(operator.rank, start.shape[1] * steps)
    basis = np.empty((len(start), room), order="F")
    projected = np.zeros((room, room))
    block = _independent(start, basis[:, :0], _DEPENDENT, room)
    coordinates, used = block.T @ start, 0
    states: list[_Krylov] = []
    for step in range(1, steps + 1):
        begin, used = used, used + block.shape[1]
        basis[:, begin:used] = block
        known, image = basis[:, :used], operator(block)
        coupling = known.T @ image
        projected[:used, begin:used] = coupling
        projected[begin:used, :used] = coupling.T
        image -= known @ coupling
        image -= known @ (known.T @ image)
        scale = float(np.abs(np.diagonal(projected)).max())
        block = _independent(image, known, len(start) * _EPS * scale, room - used)
        ended = block.shape[1] == 0
        if ended or step in (3 * steps // 4, steps):
            exhausted = ended and (used == operator.rank or used < room)
            states.append(_Krylov(coordinates, projected[:used, :used].copy(), image.T @ image, exhausted))
        if ended:
            break
    return states[0], states[-1]


def _independent(vectors: _Array, known: _Array, cutoff: float, most: int) -> _Array:
    """Return an orthonormal basis of what vectors span outside a known orthonormal basis, up to a cutoff."""
    q, r, _ = scipy.linalg.qr(vectors, mode="economic", pivoting=True, check_finite=False)
    count = min(most, int(np.count_nonzero(np.abs(np.diagonal(r)) > cutoff)))
    q = q[:, :count]
    q -= known @ (known.T @ q)  # what cancellation has left in the directions of small vectors
    return np.asarray(np.linalg.qr(q)[0])


def _rule(operator: Operator, krylov: _Krylov, number: int, length: float) -> Rule:
    """Return the rule of a Krylov space that grew from `number` probes and, if its length is not 0, the extra."""
    rank, projected, (first, columns) = operator.rank, krylov.projected, krylov.start.shape
    values, vectors = scipy.linalg.eigh((projected + projected.T) / 2.0, check_finite=False)
    components = np.square(krylov.start.T @ vectors[:first])
    tail = vectors[len(values) - len(krylov.outside) :]
    residuals = np.sqrt(np.maximum(np.einsum("ik,ij,jk->k", tail, krylov.outside, tail), 0.0))
    single = _isolated(values, residuals, number) if len(values) < rank else np.ones(rank, dtype=np.bool_)
    plain = components[:number] * (rank / components[:number].sum(axis=1, keepdims=True))
    counts = np.where(single, 0.0, plain)
    left = rank - int(np.count_nonzero(single))
    if left:
        counts *= left / counts.sum(axis=1, keepdims=True)
    counts[:, single] = 1.0
    nodes = np.where(values > rank * _EPS * values[-1], values, 0.0)
    squares = components[number] * length**2 if columns > number else np.zeros(len(values))
    return Rule(nodes, counts, operator.energy(nodes, squares), plain.mean(axis=0))


def _isolated(values: _Array, residuals: _Array, number: int) -> NDArray[np.bool_]:
    """Whether nodes (ascending) belong to groups that have converged and show the whole multiplicity.

    A node lies within its residual of an eigenvalue. Of an eigenvalue that has at least as many directions as there
    are probes the space holds no more copies than probes, so that such a group does not show how many there are.
    """
    residuals = np.maximum(residuals, 8.0 * _EPS * np.abs(values).max())  # the rounding of the solver
    joined = np.diff(values) <= _ISOLATED * np.maximum(residuals[1:], residuals[:-1])
    group = np.append(0, np.cumsum(~joined))
    return np.asarray(np.bincount(group)[group] < number)


def _relative_error(rule: Rule, earlier: Rule, floor: float) -> float:
    """Spread over the probes, and twice the last change by more steps, for the worst of a family of functions."""
    positive = rule.nodes[rule.nodes > 0.0]
    if len(positive) == 0 or np.isinf(floor):
        return 0.0
    scales = np.geomspace((positive[0] + floor) / 10.0, (positive[-1] + floor) * 10.0, _SCALES)
    shares, shares_before = (_family(each.nodes, scales, floor) for each in (rule, earlier))
    sums = shares @ rule.counts.T
    number = sums.shape[1]
    spread = stdtrit(number - 1, _CONFIDENCE) * sums.std(axis=1, ddof=1) / np.sqrt(number)
    change = _CHANGES * np.abs(shares @ rule.plain - shares_before @ earlier.plain)
    value = sums.mean(axis=1)
    error = float(np.max((spread + change) / value))
    # The mean adds its energy times a gain to `w2`; the last two functions are that gain and the share beside it.
    gains, gains_before = shares[-_SCALES:], shares_before[-_SCALES:]
    kept = gains @ rule.energy
    lost = _CHANGES * np.abs(kept - gains_before @ earlier.energy)
    return max(error, float(np.max(lost / (kept + value[-2 * _SCALES : -_SCALES]))))


def _family(nodes: _Array, scales: _Array, floor: float) -> _Array:
    """Values at the nodes of functions like a direction's share in a divergence, for variances s^2 of noise: (f, k).

    With one last step from s to 0 the share is h(S), S = log(1 + s^2/lambda): for `kl`, `reverse_kl` and `w2` their
    own h; S itself and (lambda/(lambda + s^2))^2, the squared gain, rise as slowly and as fast as the shares do where
    many steps or the prior decide. Their slopes in log lambda are -2 to 2. Nodes of 0 with no floor have no share.
    """
    variances = nodes + floor
    ratio = scales[:, None] / np.where(variances > 0.0, variances, np.inf)
    s = np.log1p(ratio)
    shares = (
        s,
        (ratio - s) / 2.0,
        (np.expm1(-s) + s) / 2.0,
        variances * np.square(np.expm1(-s / 2.0)),
        np.where(variances > 0.0, 1.0 / np.square(1.0 + ratio), 0.0),
    )
    return np.concatenate(shares)
