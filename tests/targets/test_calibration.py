import numpy as np

from benchmarks.cost_pools import fit_all
from fsrp_edge.targets.calibration import Measured, fit_group
from fsrp_edge.targets.work import COSTS

TRUE = np.array([0.05, 0.1, 0.3, 0.1, 0.1, 0.5, 0.3, 0.3, 0.3, 1.0, 2e4, 2e3])


def networks(rng: np.random.Generator, count: int) -> np.ndarray:
    scale = np.array([5e8, 5e8, 5e7, 2e8, 1e7, 1e7, 2e7, 1e6, 1e7, 1e6, 60, 20])
    return scale * rng.lognormal(0, 1, (count, len(COSTS)))


def devices(rng: np.random.Generator, count: int, rows: int) -> dict[str, Measured]:
    groups = {}
    for index in range(count):
        costs = TRUE * rng.lognormal(0, 0.5) * rng.lognormal(0, 0.1, len(COSTS))
        work = networks(rng, rows)
        groups[f"device {index}"] = Measured("cpu", work, work @ costs * rng.lognormal(0, 0.02, rows))
    return groups


def test_networks_left_out_are_estimated_from_few_measurements() -> None:
    rng = np.random.default_rng(0)
    groups = devices(rng, 12, 10)
    fits, pools, _ = fit_all(groups, 0.15)
    costs = TRUE * 3
    work = networks(rng, 30)
    few = Measured("cpu", work[:4], work[:4] @ costs)
    fitted = np.exp(fit_group(few, pools["cpu"]).mean)
    errors = np.abs(work[4:] @ fitted / (work[4:] @ costs) - 1)
    assert errors.mean() < 0.08
    assert set(fits) == set(groups)


def test_one_wild_measurement_moves_little() -> None:
    rng = np.random.default_rng(1)
    groups = devices(rng, 12, 12)
    _, pools, _ = fit_all(groups, 0.15)
    work = networks(rng, 12)
    times = work @ TRUE
    times[0] *= 10
    fitted = np.exp(fit_group(Measured("cpu", work, times), pools["cpu"]).mean)
    assert np.abs(work[1:] @ fitted / times[1:] - 1).max() < 0.15


def test_without_measurements_that_tell_a_cost_it_stays_at_the_pools() -> None:
    rng = np.random.default_rng(2)
    _, pools, _ = fit_all(devices(rng, 8, 12), 0.15)
    attention = COSTS.index("attention")
    work = networks(rng, 10)
    work[:, attention] = 0
    fitted = fit_group(Measured("cpu", work, work @ TRUE), pools["cpu"])
    # Nothing measures it, so it only follows the device's other costs, with the pool's own spread left open.
    assert abs(fitted.mean[attention] - np.log(TRUE[attention])) < 0.5
    assert fitted.covariance[attention, attention] > fitted.covariance[0, 0]
