"""Fit the costs of the latency model to measurements.

A group is what one set of costs describes: device, runtime, version, threads, precision. A few measurements
cannot determine ten costs, so the log costs of a group are drawn from a normal distribution that all groups of
its pool (runtime, backend, precision) share and that is itself estimated from them (empirical Bayes, rounds of
expectation-maximization). Pools shrink to what all pools have in common. A group with many
measurements moves to where they are; one with none keeps the pool's mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fsrp_edge.targets.work import COSTS

NOISE = 0.08
"""Relative scatter of a measurement that the model does not chase."""
TAIL = 4.0
"""Degrees of freedom of Student's t: a measurement several times NOISE away counts less."""
ROUNDS = 8
BORROWED = 20.0
"""Groups' worth of the covariance common to all pools that is mixed into a pool's own."""
_START = {
    "winograd": 0.05, "pointwise": 0.1, "depthwise": 0.3, "convolution": 0.1, "attention": 0.1, "pooling": 0.5,
    "activations": 0.3, "passes": 0.3, "weights": 0.3, "streamed": 200.0, "operator": 2e4, "group": 2e3,
}  # fmt: skip
_JITTER = 1e-3 * np.eye(len(COSTS))


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


def _residual(
    measured: Measured, logs: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log errors, the share of each cost in each time (which is the derivative), and robust weights."""
    parts = measured.quantities * np.exp(costs)
    time = parts.sum(1)
    residual = logs - np.log(time)
    return residual, parts / time[:, None], (TAIL + 1) / (TAIL + (residual / NOISE) ** 2)


def _loss(residual: np.ndarray, moved: np.ndarray, precision: np.ndarray) -> float:
    fit = (TAIL + 1) * np.log1p((residual / NOISE) ** 2 / TAIL).sum()
    return float(fit + moved @ precision @ moved) / 2


def fit_all(
    groups: Mapping[str, Measured], spread: float
) -> tuple[dict[str, Normal], dict[str, Normal], Normal]:
    """Fit every group and the distributions they come from.

    Args:
        groups: by name.
        spread: variance of each log cost between pools, beside what they share, before any measurement.

    Returns:
        Costs by group, distribution by pool, and the distribution of pools' means (for a pool never seen).
    """
    wide = np.full((len(COSTS), len(COSTS)), 0.8) + spread * np.eye(len(COSTS))
    parent = Normal(np.log([_START[name] for name in COSTS]), wide)
    members: dict[str, list[str]] = {}
    for name, measured in groups.items():
        members.setdefault(measured.pool, []).append(name)
    pools = dict.fromkeys(members, parent)
    fits: dict[str, Normal] = {}
    for _ in range(ROUNDS):
        fits = {
            name: fit_group(measured, pools[measured.pool], fits[name].mean if name in fits else None)
            for name, measured in groups.items()
        }
        pools, parent = _update({pool: [fits[name] for name in names] for pool, names in members.items()},
                                pools, parent)  # fmt: skip
    return fits, pools, parent


def _update(
    fits: Mapping[str, Sequence[Normal]], pools: Mapping[str, Normal], parent: Normal
) -> tuple[dict[str, Normal], Normal]:
    count = sum(len(each) for each in fits.values())
    common = sum(_spread(each, pools[pool].mean) for pool, each in fits.items()) / count + _JITTER
    updated = {}
    above = np.linalg.inv(parent.covariance)
    for pool, each in fits.items():
        own = np.linalg.inv(pools[pool].covariance)
        total = own @ sum(fit.mean for fit in each) + above @ parent.mean
        mean = np.linalg.solve(len(each) * own + above, total)
        covariance = (_spread(each, mean) + BORROWED * common) / (len(each) + BORROWED) + _JITTER
        updated[pool] = Normal(mean, covariance)
    means = np.stack([each.mean for each in updated.values()])
    away = means - means.mean(0)
    between = (away.T @ away + 8 * (common + 50 * _JITTER)) / (len(means) + 8)
    return updated, Normal(means.mean(0), between)


def _spread(fits: Sequence[Normal], mean: np.ndarray) -> np.ndarray:
    total: np.ndarray = np.sum(
        [np.outer(fit.mean - mean, fit.mean - mean) + fit.covariance for fit in fits], axis=0
    )
    return total
