"""Reference for every DDIM divergence: scalar loops in textbook order, importing nothing of fastkl.

The same code runs in float64 (digits=None) and in arithmetic of any number of digits (mpmath, 40 guard
digits, in a context of its own, so that the caller's precision is neither used nor changed). The data are
N(mu, lambda) along one direction, the coordinates y = x / alpha, so that a noisy datum has variance
lambda + sigma^2. Equations:

(1) one step    y' = y (lambda + s s') / (lambda + s^2): Song et al., DDIM (arXiv 2010.02502), eq. 12 with
                eta = 0 and the exact denoiser y lambda / (lambda + s^2)
(2) prior       v_0 = 1 + s_0^2 (vp), s_0^2 (ve), (1 + s_0)^2 (flow), lambda + s_0^2 (exact)
(3) variance    v_{k+1} = v_k ((lambda + s_k s_{k+1}) / (lambda + s_k^2))^2
                target t = lambda + s_N^2, ratio r = v_N / t
(4) limit       s_0 = inf: v_1 = s_1^2 for every prior, and the gain of a finite mean is 0
(5) kl          KL(data || output) = (1/r - 1 + log r) / 2 + e_N^2 / (2 v_N)
(6) reverse_kl  KL(output || data) = (r - 1 - log r) / 2 + e_N^2 / (2 t)
(7) jeffreys    (5) + (6)
(8) w2          squared 2-Wasserstein distance = (sqrt(v_N) - sqrt(t))^2 + e_N^2
(9) mean        the prior has mean 0, so e_0 = -mu and e_N = -G mu, G the product of the factors in (1)
"""

import math
from types import SimpleNamespace

import mpmath

FLOAT64 = SimpleNamespace(number=float, sqrt=math.sqrt, log=math.log)


def arithmetic(digits):
    """The number type and its functions: float64 for None, else mpmath with `digits` + 40 digits."""
    if digits is None:
        return FLOAT64
    context = mpmath.MPContext()
    context.dps = digits + 40

    def number(value):
        return context.mpf(
            value.item() if hasattr(value, "item") else value
        )  # .item(): numpy scalar to Python

    return SimpleNamespace(number=number, sqrt=context.sqrt, log=context.log)


def initial_variance(eigenvalue, sigma, prior):
    """Equation (2), for a finite first level."""
    if prior == "vp":
        return 1 + sigma * sigma
    if prior == "ve":
        return sigma * sigma
    if prior == "flow":
        return (1 + sigma) * (1 + sigma)
    if prior == "exact":
        return eigenvalue + sigma * sigma
    raise ValueError(f"unknown prior {prior!r}")


def step_gain(eigenvalue, sigma, next_sigma):
    """Equation (1), the factor of y; the limit 0 at sigma = inf."""
    if sigma == math.inf:
        return 0 * next_sigma
    return (eigenvalue + sigma * next_sigma) / (eigenvalue + sigma * sigma)


def trajectory(eigenvalue, sigmas, prior="vp", arith=FLOAT64):
    """Variance of y at each of the N+1 levels: equations (2), (3), (4)."""
    eigenvalue = arith.number(eigenvalue)
    sigmas = [arith.number(sigma) for sigma in sigmas]
    if sigmas[0] == math.inf:
        variances = [sigmas[0], sigmas[1] * sigmas[1]]
    else:
        variances = [initial_variance(eigenvalue, sigmas[0], prior)]
    for k in range(len(variances) - 1, len(sigmas) - 1):
        factor = step_gain(eigenvalue, sigmas[k], sigmas[k + 1])
        variances.append(variances[k] * factor * factor)
    return variances


def output_variance(eigenvalue, sigmas, prior="vp", arith=FLOAT64):
    """Variance v_N of y at the last level: equation (3)."""
    return trajectory(eigenvalue, sigmas, prior, arith)[-1]


def gain(eigenvalue, sigmas, arith=FLOAT64):
    """The product G of the factors of equation (1); 0 when the first level is inf."""
    eigenvalue = arith.number(eigenvalue)
    sigmas = [arith.number(sigma) for sigma in sigmas]
    product = arith.number(1)
    for k in range(len(sigmas) - 1):
        product = product * step_gain(eigenvalue, sigmas[k], sigmas[k + 1])
    return product


def gaussian_kl(mean_error, variance, reference_variance, arith):
    """KL(N(0, variance) || N(mean_error, reference_variance)): equations (5) and (6)."""
    if variance == 0 or reference_variance == 0:
        return arith.number(math.inf)
    ratio = variance / reference_variance
    return (ratio - 1 - arith.log(ratio)) / 2 + mean_error * mean_error / (2 * reference_variance)


def direction_divergence(eigenvalue, sigmas, metric, prior, mean, arith):
    """Equations (5) to (9) for one direction."""
    eigenvalue, last = arith.number(eigenvalue), arith.number(sigmas[-1])
    output = output_variance(eigenvalue, sigmas, prior, arith)
    target = eigenvalue + last * last
    error = -gain(eigenvalue, sigmas, arith) * arith.number(mean) if mean else arith.number(0)
    if metric == "w2":
        return (arith.sqrt(output) - arith.sqrt(target)) ** 2 + error * error
    if target == 0:
        raise ValueError("eigenvalue 0 with a last level of 0: only w2 is defined")
    forward = gaussian_kl(error, target, output, arith)
    backward = gaussian_kl(error, output, target, arith)
    return {"kl": forward, "reverse_kl": backward, "jeffreys": forward + backward}[metric]


def divergence(eigenvalues, sigmas, metric="kl", prior="vp", counts=None, mean=None, digits=50):
    """The sum over all directions; entry i stands for counts[i] directions, each with mean mean[i].

    Numbers may be floats (converted exactly), ints, mpf or decimal strings. The result is an mpf right to
    `digits` digits, or a float for digits=None, where the textbook order may lose digits to cancellation.
    """
    arith = arithmetic(digits)
    total = arith.number(0)
    for i, eigenvalue in enumerate(eigenvalues):
        count = 1 if counts is None else counts[i]
        mu = 0 if mean is None else mean[i]
        value = direction_divergence(eigenvalue, sigmas, metric, prior, mu, arith)
        total = total + arith.number(count) * value
    return total
