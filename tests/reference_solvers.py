"""Reference for the DPM-Solvers and UniPC: equations (11) to (14) of tests/reference_samplers.py, in the same style."""

import math

from reference_samplers import multistep_order, start


def residual(model, kind, q, h, s, t, E, H, F1, F2, solver, flipped):
    """What (11) and (12) add to the first-order step: `F1`, and `F2` of third order."""
    if kind == "data":
        if solver == "midpoint":
            return ((1 - E) / 2) * F1
        out = ((E - 1) / H + 1) * F1
        half = model.number(-1 if flipped else 1) / 2
        return out if F2 is None else out + ((1 - E - H) / H**2 + half) * F2
    if solver == "midpoint":
        return (-(s - t) / 2) * F1
    out = (-t * ((1 / q - 1) / h - 1)) * F1
    return out if F2 is None else out - (t * ((1 / q - 1 - h) / h**2 - model.number(1) / 2)) * F2


def solver_step(model, y, f, s, t, kind, eta, sde):
    """First-order part of (11), (12) with its noise, from base y with f = D or e; E and H."""
    q = t / s
    eta = model.number(eta)
    if kind == "data":
        E = q * q if eta == 1 else q ** (1 + eta)
        out = (t * q**eta if s == math.inf else E) * y + (1 - E) * f
        if eta != 0:
            out = out + (t * model.sqrt(1 - (q * q) ** eta)) * model.z()
        return out, E, (1 + eta) * (model.log(s / t) if t != 0 else 0)
    out = t * y if s == math.inf else y - ((2 if sde else 1) * (s - t)) * f
    if sde:
        out = out + model.sqrt(s * s - t * t) * model.z()
    return out, None, None


def multistep(model, s, kind="data", order=2, solver="midpoint", eta=0, sde=False, flipped=False,
              lower_order_final=True, euler_at_final=False, second=None):  # fmt: skip
    ys, fs, n = [start(model)], [], len(s) - 1
    for k in range(n):
        y, here, there = ys[-1], s[k], s[k + 1]
        fs.insert(0, model.D(y, here) if kind == "data" else model.e(y, here))
        p = multistep_order(k, n, order, lower_order_final and n < 15, there == 0 or euler_at_final)
        out, E, H = solver_step(model, y, fs[0], here, there, kind, eta, sde)
        if p > 1:
            h, q = model.log(here / there), there / here
            r0 = model.log(s[k - 1] / here) / h
            E1 = (1 / r0) * (fs[0] - fs[1])
            F1, F2, type_ = E1, None, solver
            if p == 2 and order == 3 and second is not None:
                type_ = second
            if p == 3:
                r1 = model.log(s[k - 2] / s[k - 1]) / h
                E2 = (1 / r1) * (fs[1] - fs[2])
                F1 = E1 + (r0 / (r0 + r1)) * (E1 - E2)
                F2, type_ = (1 / (r0 + r1)) * (E1 - E2), "heun"
            more = residual(model, kind, q, h, here, there, E, H, F1, F2, type_, flipped)
            out = out + (2 if sde and kind == "noise" else 1) * more
        ys.append(out)
    return ys


def singlestep_orders(n, order, lower_order_final, to_zero):
    if not (lower_order_final or n % order or to_zero):
        orders = (list(range(1, order + 1)) * n)[:n]
    elif order == 1:
        orders = [1] * n
    elif order == 2:
        orders = [1, 2] * (n // 2) + [1] if n % 2 else [1, 2] * (n // 2 - 1) + [1, 1]
    elif n % 3 == 0:
        orders = [1, 2, 3] * (n // 3 - 1) + [1, 2, 1]
    else:
        orders = [1, 2, 3] * (n // 3) + ([1] if n % 3 == 1 else [1, 2])
    return [*orders[:-1], 1] if to_zero else orders


def singlestep(
    model, s, kind="data", order=2, solver="midpoint", eta=0, flipped=False, lower_order_final=False
):
    ys, n = [start(model)], len(s) - 1
    orders = singlestep_orders(n, order, lower_order_final, s[-1] == 0)
    for k in range(n):
        p = orders[k]
        f = [
            model.D(ys[k - j], s[k - j]) if kind == "data" else model.e(ys[k - j], s[k - j]) for j in range(p)
        ]
        base, here, there = ys[k - p + 1], s[k - p + 1], s[k + 1]
        out, E, H = solver_step(model, base, f[-1], here, there, kind, eta, False)
        if p > 1:
            h, q = model.log(here / there), there / here
            r1 = model.log(here / s[k - p + 2]) / h  # of the first inner node
            F1, F2 = (1 / r1) * (f[-2] - f[-1]), None
            if p == 3:
                r0 = model.log(here / s[k]) / h
                G0, G1 = (1 / r0) * (f[0] - f[2]), F1
                F1, F2 = (1 / (r0 - r1)) * (r0 * G1 - r1 * G0), (2 / (r0 - r1)) * (G0 - G1)
                if solver == "midpoint":
                    F1, F2 = G0, None
            type_ = "heun" if p == 3 else solver
            out = out + residual(model, kind, q, h, here, there, E, H, F1, F2, type_, flipped)
        ys.append(out)
    return ys


# UniPC


def solve(matrix, right):
    """Gaussian elimination with pivoting."""
    rows = [list(row) + [b] for row, b in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    x = [None] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][k] * x[k] for k in range(i + 1, n))) / rows[i][i]
    return x


def unipc_parts(model, s, k, p, variant, kind):
    """B and b_i, r_j and the leading factors of the step from level k to k + 1, of order p."""
    here, there = s[k], s[k + 1]
    h = model.log(here / there)
    hh = -h if kind == "data" else h
    f1 = there / here - 1 if kind == "data" else here / there - 1
    B = f1 if variant == "bh2" else hh
    g, factorial, b = f1 / hh - 1, model.number(1), []
    for i in range(1, p + 1):
        factorial = factorial * i
        b.append(factorial * g / B)
        g = g / hh - 1 / (factorial * (i + 1))
    r = [model.log(here / s[k - j]) / h for j in range(1, p)] + [model.number(1)]
    return B, b, r


def unipc_update(model, y, m, s, k, p, variant, kind, new=None):
    """(14): the prediction from `y`, or the correction if `new`, the value at the predicted state, is given."""
    here, there = s[k], s[k + 1]
    lead = (there / here) * y + (1 - there / here) * m[0] if kind == "data" else y - (here - there) * m[0]
    if there == 0 or (p == 1 and new is None):
        return lead
    B, b, r = unipc_parts(model, s, k, p, variant, kind)
    size = p if new is not None else p - 1
    R = [[r[j] ** i for j in range(size)] for i in range(size)]
    rho = [model.number(1) / 2] if (p == 1 or (p == 2 and new is None)) else solve(R, b[:size])
    scale = B if kind == "data" else there * B
    for j in range(p - 1):
        lead = lead - (scale * rho[j] / r[j]) * (m[j + 1] - m[0])
    return lead if new is None else lead - (scale * rho[-1]) * (new - m[0])


def unipc(model, s, order=2, variant="bh2", kind="data"):
    ys, m, n = [start(model)], [], len(s) - 1
    y, last = ys[0], None
    for k in range(n):
        value = model.D(ys[-1], s[k]) if kind == "data" else model.e(ys[-1], s[k])
        if k > 0:
            y = unipc_update(model, y, m, s, k - 1, last, variant, kind, new=value)
        m.insert(0, value)
        last = min(order, n - k, k + 1)
        ys.append(unipc_update(model, y, m, s, k, last, variant, kind))
    return ys
