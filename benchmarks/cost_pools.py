"""The distributions that costs of groups of measurements are drawn from, estimated from the groups.

Empirical Bayes, by rounds of expectation-maximization: groups are fitted under their pool's distribution, which is then
estimated from them; pools shrink to what all pools have in common.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fsrp_edge.targets.calibration import Measured, Normal, fit_group
from fsrp_edge.targets.work import COSTS

ROUNDS = 8
BORROWED = 20.0
"""Groups' worth of the covariance common to all pools that is mixed into a pool's own."""
_START = {
    "winograd": 0.05, "pointwise": 0.1, "depthwise": 0.3, "convolution": 0.1, "attention": 0.1, "pooling": 0.5,
    "activations": 0.3, "passes": 0.3, "weights": 0.3, "streamed": 200.0, "operator": 2e4, "group": 2e3,
}  # fmt: skip
_JITTER = 1e-3 * np.eye(len(COSTS))


def fit_all(groups: Mapping[str, Measured], spread: float) -> tuple[dict[str, Normal], dict[str, Normal], Normal]:
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
    total: np.ndarray = np.sum([np.outer(fit.mean - mean, fit.mean - mean) + fit.covariance for fit in fits], axis=0)
    return total
