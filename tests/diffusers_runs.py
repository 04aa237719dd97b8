"""The real schedulers' own step code, run with the exact network of Gaussian data, one pixel for each eigenvalue.

Row 0 of the batch starts from the standard deviation of the scheduler's noise in every pixel, the others from 0; the
k-th fresh noise is 1 in row k and 0 in the others. All is linear: the sum of the squares of the rows is the variance.
Of data with a mean row 0 from 0, without noise, is the mean.
"""

import contextlib
import copy
import sys
from unittest import mock

import numpy as np
import torch

ROWS = 64  # at least one more than the noises that are drawn


class Network:
    """What the exact network answers: it takes its input to have the level of the timestep that it is told."""

    def __init__(self, scheduler, eigenvalues, mean=0.0):
        self.scheduler, self.config = scheduler, scheduler.config
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.eigenvalues = torch.tensor(eigenvalues, dtype=torch.float64)
        name = type(scheduler).__name__
        self.edm = name.startswith("EDM")
        self.flow = name.startswith("FlowMatch") or self.config.get("use_flow_sigmas", False)

    def level(self, t):
        """alpha and sigma of a timestep; between two, log(sigma/alpha) is linear; -1 is the table's last entry."""
        if self.flow:
            return 1.0 - t / self.config.num_train_timesteps, t / self.config.num_train_timesteps
        table = self.scheduler.alphas_cumprod.double()
        if t == int(t):
            alpha = float(table[int(t)])
            return alpha**0.5, (1.0 - alpha) ** 0.5
        ratios = ((1.0 - table) / table).sqrt().numpy()
        ratio = np.exp(np.interp(t, np.arange(len(ratios)), np.log(ratios)))
        return 1.0 / np.hypot(1.0, ratio), ratio / np.hypot(1.0, ratio)

    def __call__(self, x, t):
        x = x.double()
        if self.edm:
            return self.preconditioned(x, float(torch.exp(4.0 * torch.as_tensor(t))))
        alpha, sigma = self.level(float(t))
        total = alpha**2 * self.eigenvalues + sigma**2
        centred = x - alpha * self.mean
        noise, data = centred * sigma / total, self.mean + centred * alpha * self.eigenvalues / total
        if self.flow:
            return noise - data
        return {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - sigma * data}[
            self.config.prediction_type
        ]

    def preconditioned(self, scaled, sigma):
        """EDM's network, whose answer the scheduler turns into the denoised one."""
        s = self.config.sigma_data
        x = scaled * (sigma**2 + s**2) ** 0.5
        denoised = self.mean + (x - self.mean) * self.eigenvalues / (self.eigenvalues + sigma**2)
        out = sigma * s / (sigma**2 + s**2) ** 0.5
        sign = -1.0 if self.config.prediction_type == "v_prediction" else 1.0
        return (denoised - x * s**2 / (sigma**2 + s**2)) / (sign * out)


@contextlib.contextmanager
def impulses(scheduler):
    """The k-th noise that the scheduler draws is 1 in row k."""
    count = 0

    def impulse(shape, dtype=None):
        nonlocal count
        count += 1
        noise = torch.zeros(tuple(shape), dtype=dtype or torch.float64)
        noise[count] = 1.0
        return noise

    def drawn(shape, generator=None, device=None, dtype=None, layout=None):
        return impulse(shape, dtype)

    module = sys.modules[type(scheduler).__module__]
    with contextlib.ExitStack() as stack:
        if hasattr(module, "randn_tensor"):
            stack.enter_context(mock.patch.object(module, "randn_tensor", drawn))
        stack.enter_context(mock.patch.object(torch, "randn_like", lambda x: impulse(x.shape, x.dtype)))
        yield


def output_variance(scheduler, eigenvalues, start_std=None, **step_options):
    """Variance of the last x of a scheduler whose timesteps are set."""
    start = float(getattr(scheduler, "init_noise_sigma", 1.0)) if start_std is None else start_std
    rows = last_x(scheduler, Network(scheduler, eigenvalues), start, **step_options)
    return rows.square().sum(dim=0).flatten().numpy()


def output_w2(scheduler, spectrum):
    """w2 between data with a mean and what a scheduler returns whose timesteps are set, starting as it says itself."""
    fresh = copy.deepcopy(scheduler)  # a scheduler runs once
    deviations = np.sqrt(output_variance(scheduler, spectrum.eigenvalues))
    mean = last_x(fresh, Network(fresh, spectrum.eigenvalues, spectrum.mean), 0.0)[0].flatten().numpy()
    return np.square(deviations - np.sqrt(spectrum.eigenvalues)).sum() + np.square(mean - spectrum.mean).sum()


def last_x(scheduler, network, start, **step_options):
    """Last x in all rows, of which row 0 is `start` at first."""
    x = torch.zeros((ROWS, 1, 1, len(network.eigenvalues)), dtype=torch.float64)
    x[0] = start
    with impulses(scheduler):
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(scaled, t), t, x, **step_options).prev_sample
    return x.double()
