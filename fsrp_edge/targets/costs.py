"""What work costs a runtime on a device: as fitted, scaled from the nearest that was, or guessed from its peak."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.targets.coefficients import FEWEST, Group, Pool, calibrated_groups, load_coefficients
from fsrp_edge.targets.load import load_target, own_target_names, target_names
from fsrp_edge.targets.profile import Target
from fsrp_edge.targets.work import COSTS, CPU, TILE, Unit, Work, quantities

PEAK_FACTOR = 2.5
"""Half-width of the interval, as a factor, where only the device's peak is known."""
PEAK_EFFICIENCY = 0.35
"""Share of the theoretical peak that 1×1 convolutions are assumed to reach there."""
OTHER_RUNTIME_FACTOR = 2.0
"""Half-width added where only another runtime was measured on the device: of 196 pairs of published measurements
that differ in nothing else, nine of ten lie within it."""
THREAD_EXPONENT, THREAD_SPREAD = 0.62, 0.34
"""n times the threads make a network n to the power of 0.62 faster (the median of ncnn's published networks at
several numbers of threads; between 0.28 and 0.87 for eight of ten)."""


@dataclass(frozen=True)
class DeviceCosts:
    """What work costs a runtime on a device.

    Args:
        nanoseconds: by COSTS.
        computed_in: the precision that the runtime computes in.
        factor: nine of ten measurements lie within estimate ÷ and × this.
        calibrated: whether measurements of this device, runtime, threads and precision are known, of enough networks.
        basis: one line that says what an estimate rests on.
    """

    nanoseconds: np.ndarray
    computed_in: Precision
    factor: float
    calibrated: bool
    basis: str
    runtime: str
    threads: int
    unit: Unit = CPU
    tile: float = TILE

    def milliseconds(self, work: Work) -> np.ndarray:
        """Of each operator, (…, operators)."""
        times: np.ndarray = self.by_cost(work).sum(-1)
        return times

    def by_cost(self, work: Work) -> np.ndarray:
        """The same by COSTS, (…, operators, costs)."""
        times: np.ndarray = quantities(work, self.computed_in, self.unit, self.tile) * self.nanoseconds * 1e-6
        return times


def unit_of(target: Target, runtime: str) -> Unit:
    """What runs a runtime's operators on a device."""
    kinds = [each.runs_on for each in target.runtimes if each.name == runtime]
    unit = Unit(kinds[0]) if kinds else CPU
    on_chip = [each.on_chip_mib for each in target.accelerators if each.kind == unit.kind]
    return replace(unit, on_chip_bytes=on_chip[0].value * 2**20) if on_chip and on_chip[0] else unit


def device_costs(
    target: Target, precision: Precision, *, runtime: str | None = None, threads: int | None = None
) -> DeviceCosts:
    """The costs to estimate with: measured ones, else scaled from the nearest that were measured, else from the peak.

    Args:
        target: a device profile.
        precision: of the file; int8-dynamic is taken for int8, as nothing was published for it.
        runtime: one of the profile's; by default the first with known measurements in this precision.
        threads: at least 1 and at most the cores; by default the profile's.

    Raises:
        BadInputError: the runtime is not the target's, it has fewer cores than that, or nothing at all is known to
            estimate with.
    """
    precision = "int8" if precision == "int8-dynamic" else precision
    threads = threads or target.threads
    if target.cores is not None and threads > target.cores:
        raise BadInputError(
            f"saw {threads} threads on the {target.cores} cores of {target.name}; allowed: 1 to {target.cores}"
        )
    names = [each.name for each in target.runtimes]
    if runtime is not None and runtime not in names:
        raise BadInputError(f"{target.name} has no runtime {runtime!r}; allowed: {', '.join(names)}")
    choices = [
        found
        for order, name in enumerate([runtime] if runtime else names)
        for found in _candidates(target, name, threads, precision, order)
    ]
    if choices:
        _, group, name = min(choices, key=lambda each: each[0])
        return _from_group(target, precision, threads, group, name)
    name = runtime or names[0]
    return DeviceCosts(
        _peak_costs(target, name, threads, precision), precision, PEAK_FACTOR, False,
        "UNCALIBRATED: nothing published for this device, runtime, threads and precision; from its peak",
        name, threads, unit_of(target, name),
    )  # fmt: skip


def _candidates(
    target: Target, runtime: str, threads: int, precision: Precision, order: int
) -> Iterable[tuple[tuple[object, ...], Group, str]]:
    """Groups of this device that could stand for a runtime, each behind its rank; the best ranks least.

    Exact ones come first, the user's own before published ones, then the profile's order of runtimes, then the larger
    and newer; what has to be scaled comes after them. What stands in for a runtime that was not measured is the one
    measured most, whatever the threads.
    """
    base, unit = target.name.partition("@")[0], unit_of(target, runtime)
    listed = {each.name for each in target.runtimes}
    by_name = base in {*target_names(), *own_target_names()}
    fitting = [
        (group, same)
        for group in (*calibrated_groups(base), *load_coefficients().groups)
        if group.target.partition("@")[0] == base and group.unit == unit.kind
        for same in [group.runtime == runtime and group.precision in _arithmetic(runtime, precision)]
        if same or (unit.kind == "cpu" and group.precision == precision)
        # Between power modes figures are scaled by the speeds that profiles tell, and not every device has one.
        if group.target == target.name or group.speed or by_name
    ]
    for group, same in fitting:
        most = max(each.measurements for each, _ in fitting if each.runtime == group.runtime)
        away = abs(np.log(threads / group.threads)) if group.threads else 0.0
        exact = same and not away and group.target == target.name
        rank = (
            not exact, not same, group.origin != "your own", order, group.precision != precision,
            -most, group.runtime not in listed, group.runtime,
            away, group.target != target.name, -group.measurements, [-ord(letter) for letter in group.version],
        )  # fmt: skip
        yield rank, group, runtime


def _from_group(target: Target, precision: Precision, threads: int, group: Group, runtime: str) -> DeviceCosts:
    costs = np.array([group.costs[name] for name in COSTS])
    measurements = f"{group.measurements} {group.origin} measurement{'' if group.measurements == 1 else 's'}"
    basis = (
        f"{measurements} ({group.runtime}: {group.version}, {group.statistic}), "
        f"mean error {group.mape:.0%} on networks left out"
    )
    factor, doubts = group.factor_90, []
    if group.runtime != runtime:
        factor *= OTHER_RUNTIME_FACTOR
        doubts.append(f"{runtime} was not measured, {group.runtime} was")
    if group.threads not in (threads, 0):
        fewer = group.threads / threads
        costs, factor = costs * fewer ** _exponents(group), factor * max(fewer, 1 / fewer) ** THREAD_SPREAD
        doubts.append(f"from {group.threads} threads to {threads}")
    if group.target != target.name:
        there = group.speed or speed_of(load_target(group.target), group.unit)
        slower = there / speed_of(target, group.unit)
        # Memory does not slow down with the clock: the interval reaches to where nothing does.
        costs, factor = costs * slower, factor * max(slower, 1 / slower)
        doubts.append(f"from {group.target} by its speed, {slower:.2f} times the time")
    if group.networks < FEWEST:
        doubts.append(f"fewer than {FEWEST} networks were measured")
    if doubts:
        basis = f"UNCALIBRATED: {'; '.join(doubts)}; {basis}"
    if group.precision != precision:
        basis += f"; {group.runtime} computes {precision} files in {group.precision} here"
    return DeviceCosts(
        costs,
        group.precision,
        factor,
        not doubts,
        basis,
        runtime,
        threads,
        unit_of(target, runtime),
        group.tile,
    )


def _exponents(group: Group) -> np.ndarray:
    """How each cost falls with threads: from the same runtime with other numbers of them, where that was measured."""
    keys = ("target", "runtime", "version", "precision", "statistic")
    others = [
        each
        for each in load_coefficients().groups
        if all(getattr(each, key) == getattr(group, key) for key in keys)
        and each.threads != group.threads
        # Threads on the big cores and on all cores are not of one kind; one thread is the same on either.
        and (each.backend == group.backend or 1 in (each.threads, group.threads))
    ]
    if not others:
        return np.full(len(COSTS), THREAD_EXPONENT)
    other = min(others, key=lambda each: abs(np.log(each.threads / group.threads)))
    ratios = np.log([group.costs[name] / other.costs[name] for name in COSTS])
    exponents: np.ndarray = (ratios / np.log(other.threads / group.threads)).clip(0, 1)
    return exponents


def speed_of(target: Target, unit: str) -> float:
    """What a unit's time is in inverse proportion to between power modes: its peak, else its clock."""
    if unit == "cpu":
        clocks = [cluster.clock_ghz.value for cluster in target.cpu if cluster.clock_ghz]
        return max(clocks, default=1.0)
    for each in target.accelerators:
        if each.kind == unit and "fp32" in each.peak_gops:
            return each.peak_gops["fp32"].value
        if each.kind == unit and each.clock_ghz:
            return each.clock_ghz.value
    return 1.0


def _arithmetic(runtime: str, precision: Precision) -> tuple[Precision, ...]:
    """Precisions that a file may be computed in: ncnn takes fp32 files to fp16 where the cores can."""
    return ("fp32", "fp16") if runtime == "ncnn" and precision == "fp32" else (precision,)


def pool(runtime: str, precision: Precision, unit: Unit = CPU) -> Pool:
    """The pool of a runtime, or another's on the same kind of unit where nothing was published for it."""
    pools = load_coefficients().pools
    return pools[pool_name(pools, runtime, precision, unit)]


def pool_name(pools: Iterable[str], runtime: str, precision: Precision, unit: Unit = CPU) -> str:
    """Which of the pools that is."""
    backend = "edgetpu" if unit.kind == "npu" else unit.kind
    same = [name for name in pools if name.startswith(f"{runtime} {backend}") and name.endswith(precision)]
    others = {
        "cpu": f"ncnn cpu {precision}",
        "gpu": "tensorrt gpu-tensorrt fp16",
        "npu": "litert edgetpu int8",
    }
    return max(same, default=others[unit.kind])


def pool_costs(runtime: str, precision: Precision, unit: Unit = CPU) -> np.ndarray:
    """Mean costs of a pool in nanoseconds: their proportions, on no device in particular."""
    costs: np.ndarray = np.exp(np.array(pool(runtime, precision, unit).mean))
    return costs


def _peak_costs(target: Target, runtime: str, threads: int, precision: Precision) -> np.ndarray:
    """The pool's mean costs, moved together until 1×1 convolutions reach the usual share of the peak."""
    costs = pool_costs(runtime, precision, unit_of(target, runtime))
    pointwise = 2 / (PEAK_EFFICIENCY * _peak_gops(target, runtime, threads, precision))
    scaled: np.ndarray = costs * (pointwise / costs[COSTS.index("pointwise")])
    return scaled


def _peak_gops(target: Target, runtime: str, threads: int, precision: Precision) -> float:
    unit = unit_of(target, runtime).kind
    for accelerator in target.accelerators:
        best = accelerator.peak_gops.get(precision) or accelerator.peak_gops.get("fp32")
        if accelerator.kind == unit and best is not None:
            return best.value
    for cluster in target.cpu if unit == "cpu" else ():
        peak = cluster.peak_gops(precision) or cluster.peak_gops("fp32")
        if peak is not None:
            cores = cluster.cores.value
            return peak * min(threads, cores) / cores
    raise BadInputError(
        f"{target.name}: nothing was published for {runtime}, {threads} threads, {precision}, and the profile "
        "names no peak to estimate from; measure it with `fsrp-edge bench` and calibrate, or estimate another precision"
    )
