"""Fit the costs of the latency model to measurements.

A group is what one set of costs describes: device, runtime, version, threads, precision. A few measurements
cannot determine twelve costs, so the log costs of a group are drawn from a normal distribution that all groups of
its pool (runtime, backend, precision) share, and that `benchmarks/cost_pools.py` estimated from them. A group with many
measurements moves to where they are; one with none keeps the pool's mean.
"""

from dataclasses import dataclass

import numpy as np

NOISE = 0.08
"""Relative scatter of a measurement that the model does not chase."""
TAIL = 4.0
"""Degrees of freedom of Student's t: a measurement several times NOISE away counts less."""


@dataclass(frozen=True)
class Normal:
    """A distribution of log costs; of a fitted group, what its measurements leave open."""

    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Measured:
    """The measurements of one group.

    Args:
        pool: whose distribution its costs come from.
        quantities: (networks, costs), summed over each network's operators.
        nanoseconds: (networks,).
    """

    pool: str
    quantities: np.ndarray
    nanoseconds: np.ndarray


def fit_group(measured: Measured, prior: Normal, start: np.ndarray | None = None) -> Normal:
    """The most probable log costs of one group, by damped Gauss-Newton with robust weights."""
    precision = np.linalg.inv(prior.covariance)
    logs = np.log(measured.nanoseconds)
    costs = prior.mean if start is None else start
    damping = 1e-3
    for _ in range(12 if start is None else 4):
        residual, shares, weights = _residual(measured, logs, costs)
        curvature = (shares.T * weights) @ shares / NOISE**2 + precision
        gradient = (shares.T * weights) @ residual / NOISE**2 - precision @ (costs - prior.mean)
        before = _loss(residual, costs - prior.mean, precision)
        for _ in range(6):
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient).clip(-1, 1)
            after = _loss(_residual(measured, logs, costs + step)[0], costs + step - prior.mean, precision)
            if after <= before:
                costs, damping = costs + step, max(damping / 4, 1e-6)
                break
            damping *= 6
    _, shares, weights = _residual(measured, logs, costs)
    return Normal(costs, np.linalg.inv((shares.T * weights) @ shares / NOISE**2 + precision))


def _residual(measured: Measured, logs: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log errors, the share of each cost in each time (which is the derivative), and robust weights."""
    parts = measured.quantities * np.exp(costs)
    time = parts.sum(1)
    residual = logs - np.log(time)
    return residual, parts / time[:, None], (TAIL + 1) / (TAIL + (residual / NOISE) ** 2)


def _loss(residual: np.ndarray, moved: np.ndarray, precision: np.ndarray) -> float:
    fit = (TAIL + 1) * np.log1p((residual / NOISE) ** 2 / TAIL).sum()
    return float(fit + moved @ precision @ moved) / 2
