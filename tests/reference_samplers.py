"""Reference for every sampler: scalar loops in textbook order, importing nothing of fastkl.

The data are N(0, lam) along one direction; y = x/alpha, s = sigma/alpha. A state is a linear combination of y_0 and of
independent noises, kept as its coefficients, so that variances follow whatever is correlated with what. A sampler is a
function (model, sigmas, options) that returns the states at all levels. The arithmetic is that of tests/reference.py:
float64, or any number of digits. Equations, with ' for the next level, q = s'/s, h = log(s/s'):

(1)  denoiser      D = lam/(lam + s^2) y, e = (y - D)/s = s/(lam + s^2) y; at s = inf, y stands for y/s: D = 0, e = y
(2)  first order   y' = a y + (1-a) D + w z. DDIM: w^2 = eta^2 (s'^2/s^2) (s^2-s'^2), a s = sqrt(s'^2-w^2). DDPM: a =
q^2,
                   w^2 = s'^2 (1-q^2), or (1+s'^2)(s^2-s'^2)/(1+s^2) for fixed_large. Flow, stochastic: a = 0, w = s'
(3)  Heun          p = q y + (1-q) D_0, y' = q y + (1-q)((1-w) D_0 + w D(p, s')), w = s/(2 s');
                   flow: w = sg/(2 sg'), sg = s/(1+s)
(4)  dpm_2         y_m = y + (m-s) e_0, y' = y + (s'-s) e(y_m, m), m = sqrt(s s')
(5)  dpmpp_2s      y_m = (m/s) y + (1-m/s) D_0, y' = q y + (1-q) D(y_m, m)
(6)  dpmpp_sde     y_m = (m/s)^2 y + (1-(m/s)^2) D_0 + m sqrt(1-(m/s)^2) z1, y' = q^2 y + (1-q^2) D(y_m, m)
                   + s' sqrt(1-q^2) z2, corr(z1, z2) = sqrt((s-m)/(s-s')), or 0
(7)  LMS           y' = y + sum c_j e_j, c_j = int_s^s' L_j(t) dt, Lagrange on the last levels
(8)  PLMS          Euler, then trapezium; then Adams-Bashforth with the coefficients of equal steps
(9)  PRK           three classical Runge-Kutta steps with a middle level, then (8)
(10) DEIS          as (7) in log t
(11) ++ multistep  E = q^(1+eta), H = (1+eta) h, w = s' sqrt(1-q^(2 eta)), E1 = (D_0-D_1)/r0; 2: midpoint + (1-E)/2 E1,
                   heun + ((E-1)/H+1) E1; 3: + ((E-1)/H+1) F1 + ((1-E-H)/H^2 + 1/2) F2, the 1/2 with a minus as shipped
(12) noise form    y - (s-s') e_0, + residuals - (s-s')/2 E1, - s'((1/q-1)/h-1) F1, - s'((1/q-1-h)/h^2-1/2) F2;
                   SDE: all doubled, + sqrt(s^2-s'^2) z
(13) singlestep    steps restart from the block's base B; the noises of the inner steps act through D only
(14) UniPC         predict from the corrected state, evaluate there, correct

Sources: the papers that fastkl.samplers names for each; the published schedulers' formulas.
"""

import itertools
import math

from reference import FLOAT64, initial_variance


class State:
    """Coefficients of y_0 (key 0) and of the noises (keys 1, 2, ...)."""

    def __init__(self, parts):
        self.parts = parts

    def __add__(self, other):
        keys = self.parts.keys() | other.parts.keys()
        return State({key: self.parts.get(key, 0) + other.parts.get(key, 0) for key in keys})

    def __rmul__(self, factor):
        return State({key: factor * part for key, part in self.parts.items()})

    def __sub__(self, other):
        return self + (-1) * other


class Model:
    """The data along one direction, the arithmetic, and how many noises were drawn."""

    def __init__(self, eigenvalue, arith=FLOAT64):
        self.lam = arith.number(eigenvalue)
        self.number, self.sqrt, self.log = arith.number, arith.sqrt, arith.log
        self.drawn = 0

    def z(self):
        self.drawn += 1
        return State({self.drawn: self.number(1)})

    def D(self, y, s):  # (1)
        return 0 * y if s == math.inf else (self.lam / (self.lam + s * s)) * y

    def e(self, y, s):  # (1)
        return y if s == math.inf else (s / (self.lam + s * s)) * y

    def first_order(self, y, s, t, a_times_s=None, w=None):  # (2)
        a_times_s = t if a_times_s is None else a_times_s
        a = a_times_s / s
        result = (a_times_s if s == math.inf else a) * y + (1 - a) * self.D(y, s)
        return result if w is None else result + w * self.z()


def start(model):
    return State({0: model.number(1)})


# one call a step


def ddim(model, s, eta=0.0):
    ys, eta = [start(model)], model.number(eta)
    for here, there in itertools.pairwise(s):
        if eta == 0:
            ys.append(model.first_order(ys[-1], here, there))
            continue
        w = eta * there * model.sqrt(1 - (there / here) ** 2)
        ys.append(model.first_order(ys[-1], here, there, model.sqrt(there * there - w * w), w))
    return ys


def ddpm(model, s, variance="fixed_small", noise_at_last=False):
    ys, least = [start(model)], model.number(10) ** -20
    for k, (here, there) in enumerate(itertools.pairwise(s)):
        q = there / here
        if variance == "fixed_large":
            w = model.sqrt(1 + there**2) * (
                1 if here == math.inf else model.sqrt((here**2 - there**2) / (1 + here**2))
            )
        else:
            w = model.sqrt(max(there**2 * (1 - q * q), least * (1 + there**2)))
        quiet = k == len(s) - 2 and there == 0 and not noise_at_last
        ys.append(model.first_order(ys[-1], here, there, q * there, 0 * w if quiet else w))
    return ys


def flow_stochastic(model, s):
    ys = [start(model)]
    for here, there in itertools.pairwise(s):
        ys.append(model.first_order(ys[-1], here, there, 0 * there, there))
    return ys


# several calls a step


def heun(model, s, flow=False):
    ys = [start(model)]
    for here, there in itertools.pairwise(s):
        y = ys[-1]
        predicted = model.first_order(y, here, there)
        if there == 0:
            ys.append(predicted)
            continue
        q = there / here
        time = 1 if here == math.inf else here / (1 + here)
        w = time * (1 + there) / there / 2 if flow else here / (2 * there)
        D0, D1 = model.D(y, here), model.D(predicted, there)
        ys.append((there if here == math.inf else q) * y + (1 - q) * ((1 - w) * D0 + w * D1))
    return ys


def dpm_2(model, s):
    ys = [start(model)]
    for here, there in itertools.pairwise(s):
        y = ys[-1]
        if there == 0:
            ys.append(model.first_order(y, here, there))
            continue
        m = model.sqrt(here * there)
        y_m = y + (m - here) * model.e(y, here)
        ys.append(y + (there - here) * model.e(y_m, m))
    return ys


def dpmpp_2s(model, s):
    ys = [start(model)]
    for here, there in itertools.pairwise(s):
        y = ys[-1]
        if there == 0:
            ys.append(model.D(y, here))
            continue
        m, q = model.sqrt(here * there), there / here
        y_m = (m / here) * y + (1 - m / here) * model.D(y, here)
        ys.append(q * y + (1 - q) * model.D(y_m, m))
    return ys


def dpmpp_sde(model, s, brownian=True):
    ys = [start(model)]
    for here, there in itertools.pairwise(s):
        y = ys[-1]
        if there == 0:
            ys.append(model.D(y, here))
            continue
        m, q = model.sqrt(here * there), there / here
        p = (m / here) ** 2
        z1, fresh = model.z(), model.z()
        correlation = model.sqrt((here - m) / (here - there)) if brownian else 0
        z2 = correlation * z1 + model.sqrt(1 - model.number(correlation) ** 2) * fresh
        y_m = p * y + (1 - p) * model.D(y, here) + (m * model.sqrt(1 - p)) * z1
        ys.append(q * q * y + (1 - q * q) * model.D(y_m, m) + (there * model.sqrt(1 - q * q)) * z2)
    return ys


# Adams


def polynomial_product(a, b):
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def lagrange(nodes, j, one):
    """Coefficients, lowest power first, of the polynomial that is 1 at node j and 0 at the others."""
    result = [one]
    for i, node in enumerate(nodes):
        if i != j:
            result = polynomial_product(result, [-node / (nodes[j] - node), one / (nodes[j] - node)])
    return result


def lms(model, s, order=4):
    ys, es = [start(model)], []
    for k in range(len(s) - 1):
        es.insert(0, model.e(ys[-1], s[k]))
        nodes = [s[k - j] for j in range(min(k + 1, order))]
        y = ys[-1]
        for j in range(len(nodes)):
            basis = lagrange(nodes, j, model.number(1))
            c = sum(b * (s[k + 1] ** (i + 1) - s[k] ** (i + 1)) / (i + 1) for i, b in enumerate(basis))
            y = y + c * es[j]
        ys.append(y)
    return ys


def adams_bashforth(model, y, step, es):
    """(8), of the highest order that the history allows."""
    weights = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}[min(len(es), 4)]
    divisor = model.number(sum(weights))
    for weight, e in zip(weights, es, strict=False):
        y = y + (step * weight / divisor) * e
    return y


def plms(model, s):
    ys = [start(model)]
    es = [model.e(ys[0], s[0])]
    predicted = ys[0] + (s[1] - s[0]) * es[0]
    ys.append(ys[0] + ((s[1] - s[0]) / 2) * (es[0] + model.e(predicted, s[1])))
    for k in range(1, len(s) - 1):
        es.insert(0, model.e(ys[-1], s[k]))
        ys.append(adams_bashforth(model, ys[-1], s[k + 1] - s[k], es))
    return ys


def prk(model, s, middles=None):
    ys, es = [start(model)], []
    for k in range(len(s) - 1):
        y, here, there = ys[-1], s[k], s[k + 1]
        es.insert(0, model.e(y, here))
        if k >= 3:
            ys.append(adams_bashforth(model, y, there - here, es))
            continue
        m = model.sqrt(here * there) if middles is None else model.number(middles[k])
        e2 = model.e(y + (m - here) * es[0], m)
        e3 = model.e(y + (m - here) * e2, m)
        e4 = model.e(y + (there - here) * e3, there)
        ys.append(y + ((there - here) / 6) * (es[0] + 2 * e2 + 2 * e3 + e4))
    return ys


def deis(model, s, order=2, lower_order_final=True):
    ys, es = [start(model)], []
    n = len(s) - 1
    for k in range(n):
        es.insert(0, model.e(ys[-1], s[k]))
        p = multistep_order(k, n, order, lower_order_final and n < 15, False)
        nodes = [model.log(s[k - j]) for j in range(p)]
        y = ys[-1]
        for j in range(p):
            basis = lagrange(nodes, j, model.number(1))
            c = sum(
                b * (power_of_log(model, s[k + 1], i) - power_of_log(model, s[k], i))
                for i, b in enumerate(basis)
            )
            y = y + c * es[j]
        ys.append(y)
    return ys


def power_of_log(model, t, power):
    """The integral of (log t)^power."""
    if t == 0:
        return t
    x = model.log(t)
    return t * [1, x - 1, x * x - 2 * x + 2][power]


def multistep_order(k, n, order, lower, last_is_one):
    if k == n - 1 and (lower or last_is_one):
        return 1
    return min(k + 1, order, 2 if lower and k == n - 2 else order)


# what comes out


def states(sampler, eigenvalue, sigmas, arith=FLOAT64, **options):
    """The states at all levels."""
    return sampler(Model(eigenvalue, arith), [arith.number(s) for s in sigmas], **options)


def variance_of(state, v0):
    """Variance of a state whose y_0 has variance v0."""
    return sum((part * part * (v0 if key == 0 else 1) for key, part in state.parts.items()), 0 * v0)


def gain_and_variance(sampler, eigenvalue, sigmas, prior="vp", arith=FLOAT64, **options):
    """The factor of y_0 in the output, and the output's variance; s_0 = inf has y_0/s_0 of variance 1 in its place."""
    output = states(sampler, eigenvalue, sigmas, arith, **options)[-1]
    first = arith.number(sigmas[0])
    v0 = arith.number(1) if first == math.inf else initial_variance(arith.number(eigenvalue), first, prior)
    return output.parts.get(0, 0 * v0), variance_of(output, v0)
