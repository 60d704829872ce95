"""`targets calibrate`: costs of a device fitted to a user's own measurements, with the error before and after."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fsrp_edge.bench.results import BenchResults, Latency, Measurement
from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.files import sha256_file
from fsrp_edge.progress import log
from fsrp_edge.targets.calibration import Measured, Normal, fit_group
from fsrp_edge.targets.coefficients import FEWEST, Group, Pool
from fsrp_edge.targets.costs import device_costs, pool, speed_of, unit_of
from fsrp_edge.targets.graph_cost import read_graph
from fsrp_edge.targets.profile import Target
from fsrp_edge.targets.work import COSTS, TILE, Unit, Work, quantities

Statistic = Literal["p50", "min"]
PROGRAMS = {"tflite-benchmark": "litert", "benchncnn": "ncnn"}
"""Programs that time a runtime which profiles know by another name."""
TILES = (0.0, 4.0, TILE)
"""Tried for `work.TILE`: kernels that lay channels out in blocks, as on x86, lose little on narrow layers."""
ROOM = 0.15
"""Added to the variance of each log cost: what published runtimes for CPUs differ by, since a user's may be none of
them. Twelve networks on an x86 server, each left out once, are estimated slightly better with it than with 0.02."""


@dataclass(frozen=True)
class Fitted:
    """Costs of one runtime with so many threads in one precision.

    Args:
        group: the costs; `group.mape` is the error on networks that were left out of the fit one by one.
        before: mean absolute error of the estimate before, as a fraction; None where there was none.
        after: the same with the new costs, on the networks that they were fitted to.
    """

    group: Group
    before: float | None
    after: float


@dataclass(frozen=True)
class _Row:
    """One measurement of a network whose operators are known."""

    latency: Latency
    precision: Precision
    work: Work


def calibrate(
    target: Target, results: Sequence[Path], folders: Sequence[Path], statistic: Statistic = "p50"
) -> tuple[Fitted, ...]:
    """Fit costs to files of `fsrp-edge bench --out`.

    Args:
        target: the profile of the device that was measured.
        results: the files.
        folders: where the measured .onnx files are, beside the folders of `results`; they are known by their digest.
            For any other file the .onnx file of the same network has to lie beside it (`x-fp32.onnx` for
            `x-int8.tflite`).
        statistic: what is estimated afterwards. The minimum stands for an undisturbed device.

    Returns:
        One fit for each runtime, number of threads and precision that was measured on enough networks.

    Raises:
        BadInputError: a measured file is not found, nothing was measured on enough networks, or several devices were.
    """
    measurements = [each for path in results for each in BenchResults.load(path).measurements]
    _require_one_device(measurements)
    latencies = _of_its_runtimes(target, [_as_profiled(target, each.latency) for each in measurements])
    rows = list(_rows(latencies, [*folders, *(path.parent for path in results)], statistic))
    grouped: dict[tuple[str, int, Precision], list[_Row]] = defaultdict(list)
    for row in rows:
        grouped[row.latency.runtime, row.latency.threads, row.precision].append(row)
    fits = []
    for (runtime, threads, precision), members in grouped.items():
        networks = len({row.latency.sha256 for row in members})
        if networks < FEWEST:
            what = f"{runtime}, {threads} threads, {precision}"
            log(f"left out: {what}: {networks} networks; at least {FEWEST} are needed")
            continue
        fits.append(_fit(target, members, statistic))
    if not fits:
        disturbed = sum(not each.valid for each in latencies) if statistic != "min" else 0
        hint = f" ({disturbed} disturbed ones left out; --statistic min takes them too)" if disturbed else ""
        raise BadInputError(
            f"nothing was measured on {FEWEST} networks or more with one runtime, number of threads and precision"
            f"{hint}; measure more, of several kinds: fsrp-edge bench a.onnx b.onnx c.onnx --out bench.json"
        )
    return tuple(fits)


def _require_one_device(measurements: Iterable[Measurement]) -> None:
    """One fit of a slow device and a fast one is the estimate of neither."""
    # By what they are, too: two boards that each measured themselves are both "local".
    devices = list(dict.fromkeys(each.latency.device for each in measurements))
    if len(devices) > 1:
        raise BadInputError(
            f"the results hold measurements of {len(devices)} devices ({'; '.join(devices)}); a target is fitted "
            "to one: measure each into a file of its own: fsrp-edge bench … --device ADDRESS --out bench.json"
        )
    cores = list(dict.fromkeys(each.latency.affinity or "any" for each in measurements))
    if len(cores) > 1:
        raise BadInputError(
            f"the results were measured on several sets of cores ({', '.join(cores)}); a target is fitted to one: "
            "give those of one --affinity"
        )


def _of_its_runtimes(target: Target, latencies: Sequence[Latency]) -> list[Latency]:
    """Without those of runtimes that the profile lacks, which no estimate takes."""
    known = [each.name for each in target.runtimes]
    strange = sorted({each.runtime for each in latencies} - {*known})
    told = f"{target.name} has no runtime {', '.join(strange)}; it has {', '.join(known)}"
    if strange and all(each.runtime in strange for each in latencies):
        raise BadInputError(f"{told}: measure with `bench --runtime`, or add it in a profile of your own")
    if strange:
        log(f"left out: {told}")
    return [each for each in latencies if each.runtime in known]


def _as_profiled(target: Target, latency: Latency) -> Latency:
    """Under the runtime that profiles know, and with 0 threads where they don't matter, as in `Group`."""
    runtime = PROGRAMS.get(latency.runtime, latency.runtime)
    threads = latency.threads if unit_of(target, runtime).kind == "cpu" else 0
    return latency.model_copy(update={"runtime": runtime, "threads": threads})


def _rows(latencies: Iterable[Latency], folders: Sequence[Path], statistic: Statistic) -> Iterator[_Row]:
    files = {
        sha256_file(path): path
        for folder in dict.fromkeys(folders)
        for suffix in ("*.onnx", "*.tflite", "*.ncnn")
        for path in sorted(folder.glob(suffix))
    }
    for latency in latencies:
        if not latency.valid and statistic != "min":
            log(f"left out: {latency.model}: {'; '.join(latency.invalid_because)}")
            continue
        path = files.get(latency.sha256)
        if path is None:
            raise BadInputError(
                f"the measured file {latency.model} ({latency.sha256[:12]}…) is in none of "
                f"{', '.join(map(str, dict.fromkeys(folders)))}; name its folder with --models"
            )
        if path.stem.endswith("-int8-dynamic"):
            log(f"left out: {latency.model}: nothing is estimated for int8-dynamic")
            continue
        graph = read_graph(_graph_file(path))
        half = graph.half and path.suffix == ".onnx"  # of any other file the graph is its fp32 twin's
        precision: Precision = "int8" if graph.quantized else "fp16" if half else _precision_of(path)
        yield _Row(latency, precision, Work.of(graph.operators))


def _graph_file(path: Path) -> Path:
    """The ONNX file that tells the operators."""
    if path.suffix == ".onnx":
        return path
    network = path.stem
    for precision in ("fp32", "fp16", "int8-dynamic", "int8"):
        network = network.removesuffix(f"-{precision}")
    for twin in (path.with_name(f"{network}-fp32.onnx"), path.with_name(f"{network}.onnx")):
        if twin.is_file():
            return twin
    raise BadInputError(f"{path} needs {network}-fp32.onnx beside it, to tell its operators")


def _precision_of(path: Path) -> Precision:
    named: tuple[Precision, ...] = ("fp16", "int8")
    return next((precision for precision in named if path.stem.endswith(f"-{precision}")), "fp32")


def _fit(target: Target, rows: Sequence[_Row], statistic: Statistic) -> Fitted:
    latency, precision = rows[0].latency, rows[0].precision
    seen = np.array([getattr(row.latency, f"{statistic}_ms") for row in rows])
    unit = unit_of(target, latency.runtime)
    published = pool(latency.runtime, precision, unit)
    best = min(
        (_fit_with(tile, rows, seen, unit, published) for tile in TILES),
        key=lambda fit: _error(fit.left_out, seen),
    )
    group = Group(
        target=target.name,
        runtime=latency.runtime,
        version=latency.runtime_version,
        backend=unit.kind,
        threads=latency.threads,
        precision=precision,
        statistic=f"{statistic} of fsrp-edge bench",
        costs={name: float(f"{cost:.4g}") for name, cost in zip(COSTS, best.costs, strict=True)},
        tile=best.tile,
        measurements=len(rows),
        networks=len({row.latency.sha256 for row in rows}),
        validation="each network left out once, which also chose the tile",
        mape=round(_error(best.left_out, seen), 4),
        factor_90=round(float(np.exp(np.quantile(np.abs(np.log(best.left_out / seen)), 0.9))), 4),
        origin="your own",
        speed=speed_of(target, unit.kind),
    )
    return Fitted(group, _error_before(target, rows, seen), _error(best.estimates, seen))


@dataclass(frozen=True)
class _Fit:
    tile: float
    costs: np.ndarray
    estimates: np.ndarray
    """Milliseconds of what was measured."""
    left_out: np.ndarray
    """The same by fits that did not see the network."""


def _fit_with(tile: float, rows: Sequence[_Row], seen: np.ndarray, unit: Unit, published: Pool) -> _Fit:
    asked = np.stack([quantities(row.work, row.precision, unit, tile).sum(0) for row in rows])
    costs = _costs(Measured("", asked, seen * 1e6), published)
    left_out = np.zeros(len(rows))
    networks = np.array([row.latency.sha256 for row in rows])
    for network in dict.fromkeys(networks.tolist()):
        own = networks == network
        left_out[own] = asked[own] @ _costs(Measured("", asked[~own], seen[~own] * 1e6), published) * 1e-6
    return _Fit(tile, costs, asked @ costs * 1e-6, left_out)


def _costs(measured: Measured, published: Pool) -> np.ndarray:
    """Nanoseconds: the published proportions, moved to the device's speed and then to its measurements."""
    mean, covariance = np.array(published.mean), np.array(published.covariance)
    speed = np.median(np.log(measured.nanoseconds / (measured.quantities @ np.exp(mean))))
    prior = Normal(mean + speed, covariance + ROOM * np.eye(len(COSTS)))
    costs: np.ndarray = np.exp(fit_group(measured, prior).mean)
    return costs


def _error_before(target: Target, rows: Sequence[_Row], seen: np.ndarray) -> float | None:
    latency = rows[0].latency
    try:
        device = device_costs(target, rows[0].precision, runtime=latency.runtime, threads=latency.threads)
    except BadInputError:
        return None
    return _error(np.array([device.milliseconds(row.work).sum() for row in rows]), seen)


def _error(estimates: np.ndarray, seen: np.ndarray) -> float:
    return float(np.abs(estimates / seen - 1).mean())
