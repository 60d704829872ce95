"""Fit the latency estimate on published measurements, and check it on families of networks left out.

Reads benchmarks/data/published.csv (figures of others, each with its source) and benchmarks/data/latency_graphs.json;
writes the coefficients that the package ships, results/latency_estimate.json (every row with its two estimates) and
results/latency_estimate.md.

python -m benchmarks.latency_estimate
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.common import parser_of, provenance_now
from benchmarks.cost_pools import fit_all
from benchmarks.latency_graphs import load_table
from fsrp_edge.exporting.artifact import Precision
from fsrp_edge.files import write_json, write_text
from fsrp_edge.targets.calibration import Measured, Normal
from fsrp_edge.targets.coefficients import COEFFICIENTS, Coefficients, Group, Pool
from fsrp_edge.targets.costs import pool_name, unit_of
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.profile import Runtime
from fsrp_edge.targets.work import COSTS, Unit, Work, quantities

HERE = Path(__file__).parent
PUBLISHED = HERE / "data" / "published.csv"
PRECISIONS: dict[str, Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "fp16-auto": "fp16",
    "int8": "int8",
    "int8-inferred": "int8",
}
SAME_GRAPH = {
    "inception_v1": "googlenet_torchvision",
    "resnet_v1_101": "resnet101",
    "resnet_v1_152": "resnet152",
    "resnet_v2_50": "resnetv2_50",
    "resnet_v2_101": "resnetv2_101",
    "resnet_v2_152": "resnetv2_152",
    "resnet152_v2": "resnetv2_152",
}
FAMILIES = (
    "inception_resnet",
    "googlenet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "resnet",
    "vgg",
    "densenet",
    "squeezenet",
)
TARGETS = {
    "raspberry-pi-4b": "raspberry-pi-4",
    "phone-pixel-3": "pixel-3",
    "coral-usb-accelerator": "coral-usb",
}
RUNTIMES = {"tflite": "litert", "tflite-edgetpu": "litert"}
IMPOSSIBLE = {
    (
        "roc-rk3588s-pc",
        "vulkan",
    ): "impossible: a vision transformer of 13 G MACs in 0.32 ms on a Mali-G610"
}
"""By device and backend."""
CORES = {"raspberry-pi-4b": 4, "raspberry-pi-3b-plus": 4, "jetson-agx-xavier": 8, "phone-pixel-3": 4}
"""For rows that say only `all`, `multi` or nothing."""
MANY = 8
CPUS_DIFFER, ACCELERATORS_DIFFER = 0.15, 0.5
"""Variance of each log cost between runtimes before any measurement, beside what all costs share."""
EDGE_TPU = unit_of(load_target("coral-dev-board"), "litert")
GROUP_KEYS = ("device", "soc", "runtime", "runtime_version", "backend", "threads", "precision", "stat")


@dataclass(frozen=True)
class Row:
    """One published measurement whose network could be rebuilt."""

    source: dict[str, str]
    group: str
    pool: str
    family: str
    quantities: np.ndarray

    @property
    def milliseconds(self) -> float:
        """As published."""
        return float(self.source["latency_ms"])

    @property
    def swept(self) -> bool:
        """Whether it is one of MLPerf's MobileNets at several widths and resolutions."""
        return self.source["stat"].startswith("mean (MLPerf")


def read_rows() -> tuple[list[Row], Counter[str]]:
    """The rows that can be used, and how many others there are by reason."""
    table, left, rows, known = load_table(), Counter[str](), [], {}
    with PUBLISHED.open(encoding="utf-8") as stream:
        for source in csv.DictReader(stream):
            precision = PRECISIONS.get(source["precision"])
            if precision is None or source["backend"].startswith("NPU"):
                left[f"other arithmetic ({source['precision']}, {source['backend'].partition(' ')[0]})"] += 1
                continue
            impossible = IMPOSSIBLE.get((source["device"], source["backend"]))
            if impossible:
                left[impossible] += 1
                continue
            graph = SAME_GRAPH.get(source["model"], source["model"]) + "@" + source["input"].partition("x")[0]
            if source["runtime"] == "pytorch":  # torchvision's GoogLeNet is Inception v1 with 3×3 for 5×5
                graph = graph.replace("googlenet@", "googlenet_torchvision@")
            if source["runtime"] == "ncnn" and f"{graph}/ncnn" in table:
                graph += "/ncnn"
            if graph not in table:
                left[f"not rebuilt: {source['model']} at {source['input'] or 'an unstated resolution'}"] += 1
                continue
            unit = _unit(source["backend"])
            if (graph, precision, unit) not in known:
                work = Work.of(table[graph].operators)
                known[graph, precision, unit] = quantities(work, precision, unit).sum(0)
            backend = source["backend"] if unit.kind != "cpu" else "cpu"
            rows.append(
                Row(
                    source,
                    "|".join(source[key] for key in GROUP_KEYS),
                    f"{RUNTIMES.get(source['runtime'], source['runtime'])} {backend} {precision}",
                    _family(source["model"]),
                    known[graph, precision, unit],
                )
            )
    return rows, left


def _unit(backend: str) -> Unit:
    if backend == "edgetpu":
        return EDGE_TPU
    return Unit("cpu" if backend.startswith("cpu") else "gpu")


def _family(model: str) -> str:
    model = SAME_GRAPH.get(model, model).replace("resnext", "resnet")
    return next((family for family in FAMILIES if model.startswith(family)), model)


def by_group(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return groups


Fitted = tuple[dict[str, Normal], dict[str, Normal], dict[bool, Normal]]
"""Costs by group, the distributions they come from by pool, and those of CPUs' pools (True) and accelerators'."""


def fit(rows: Iterable[Row]) -> Fitted:
    """CPUs and accelerators share nothing."""
    parts: dict[bool, dict[str, Measured]] = defaultdict(dict)
    for name, members in by_group(rows).items():
        parts[" cpu " in members[0].pool][name] = Measured(
            members[0].pool,
            np.stack([row.quantities for row in members]),
            np.array([row.milliseconds * 1e6 for row in members]),
        )
    fits: dict[str, Normal] = {}
    pools: dict[str, Normal] = {}
    parents: dict[bool, Normal] = {}
    for cpu, groups in parts.items():
        found = fit_all(groups, CPUS_DIFFER if cpu else ACCELERATORS_DIFFER)
        fits, pools, parents[cpu] = fits | found[0], pools | found[1], found[2]
    return fits, pools, parents


def predict(rows: Sequence[Row], fitted: Fitted) -> np.ndarray:
    groups, pools, parents = fitted
    costs = [(groups.get(row.group) or pools.get(row.pool) or parents[" cpu " in row.pool]).mean for row in rows]
    return np.array([row.quantities @ np.exp(each) for row, each in zip(rows, costs, strict=True)]) * 1e-6


def left_out(rows: Sequence[Row]) -> np.ndarray:
    """Each family estimated by a fit that never saw it, on any device."""
    estimates = np.zeros(len(rows))
    for family in sorted({row.family for row in rows}):
        held = [index for index, row in enumerate(rows) if row.family == family]
        estimates[held] = predict([rows[index] for index in held], fit(r for r in rows if r.family != family))
    return estimates


def statistics(rows: Sequence[Row], estimates: np.ndarray) -> dict[str, float]:
    """How far estimates are from what was published."""
    published = np.array([row.milliseconds for row in rows])
    errors = np.abs(estimates / published - 1)
    return {
        "rows": len(rows),
        "mape": float(errors.mean()),
        "median": float(np.median(errors)),
        "within_10": float((errors <= 0.1).mean()),
        "within_20": float((errors <= 0.2).mean()),
        "spearman": _spearman(published, estimates),
    }


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic) if len(first) > 2 else float("nan")


def effective_parameters(fitted: Fitted, rows: Sequence[Row]) -> float:
    """Costs that measurements decided, summed over groups; what the pool's distribution decided counts 0."""
    fits, pools, _ = fitted
    pool_of = {row.group: row.pool for row in rows}
    return float(
        sum(
            len(COSTS) - np.trace(np.linalg.solve(pools[pool_of[name]].covariance, fit_.covariance))
            for name, fit_ in fits.items()
        )
    )


def select(rows: Sequence[Row], keep: np.ndarray, estimates: np.ndarray) -> dict[str, float]:
    return statistics([row for row, kept in zip(rows, keep, strict=True) if kept], estimates[keep])


def write_coefficients(
    rows: Sequence[Row],
    held: np.ndarray,
    predictable: np.ndarray,
    fitted: Fitted,
) -> None:
    fits, pools, _ = fitted
    logs = np.abs(np.log(held / np.array([row.milliseconds for row in rows])))
    errors = np.abs(held / np.array([row.milliseconds for row in rows]) - 1)
    groups = []
    for name, members in by_group(rows).items():
        source = members[0].source
        runtime = RUNTIMES.get(source["runtime"], source["runtime"])
        if source["backend"] not in ("cpu", "cpu-big-cores", "gpu-tensorrt", "gpu", "edgetpu"):
            continue
        inside = np.array([row.group == name for row in rows]) & predictable
        own = inside.sum() >= MANY
        if not own:
            inside = np.array([row.pool == members[0].pool for row in rows]) & predictable
        if not inside.any():
            continue
        validation = "its own rows" if own else "the rows of all devices with this runtime and precision"
        groups.append(
            Group(
                target=_target(source),
                runtime=runtime,
                version=source["runtime_version"].partition(" [")[0],
                backend=source["backend"],
                threads=_threads(source),
                precision=PRECISIONS[source["precision"]],
                statistic=source["stat"],
                costs={cost: float(f"{value:.4g}") for cost, value in zip(COSTS, np.exp(fits[name].mean), strict=True)},
                measurements=len(members),
                networks=len({row.source["model"] for row in members}),
                validation=f"families of networks left out; {validation}",
                mape=round(float(errors[inside].mean()), 4),
                factor_90=round(float(np.exp(np.quantile(logs[inside], 0.9))), 4),
            )
        )
    reached = {
        pool_name(pools, runtime, precision, Unit(kind))
        for runtime in get_args(Runtime.model_fields["name"].annotation)
        for kind in get_args(Runtime.model_fields["runs_on"].annotation)
        for precision in PRECISIONS.values()
    }
    packed = Coefficients(
        groups=tuple(sorted(groups, key=lambda g: (g.target, g.runtime, g.version, g.precision, g.threads))),
        pools={
            name: Pool(
                mean=tuple(np.round(pool.mean, 5).tolist()),
                covariance=tuple(tuple(row) for row in np.round(pool.covariance, 6).tolist()),
            )
            for name, pool in sorted(pools.items())
            if name in reached  # by some profile
        },
    )
    write_text(COEFFICIENTS, packed.model_dump_json() + "\n")


def _target(source: dict[str, str]) -> str:
    name = TARGETS.get(source["device"], source["device"])
    slow = name == "raspberry-pi-4" and re.search(r"1500 MHz|1\.5GHz", source["soc"])
    return f"{name}@1.5GHz" if slow else name


def _threads(source: dict[str, str]) -> int:
    if not source["backend"].startswith("cpu"):
        return 0
    return int(source["threads"]) if source["threads"].isdigit() else CORES.get(source["device"], 1)


def main() -> None:
    parser_of(__doc__).parse_args()
    rows, left = read_rows()
    fitted = fit(rows)
    inside, held = predict(rows, fitted), left_out(rows)
    models: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        models[row.group].add(row.source["model"])
    many = np.array([len(models[row.group]) >= MANY for row in rows])
    cpu = np.array([" cpu " in row.pool for row in rows])
    # The only network of matrix products over many rows: without it nothing tells their rate.
    attention = np.array([row.family.startswith("vit") for row in rows])
    swept = np.array([row.swept for row in rows])
    predictable = ~attention
    write_coefficients(rows, held, predictable, fitted)
    parts = {
        f"groups with {MANY} or more networks, CPU": many & cpu,
        f"groups with {MANY} or more networks, CPU, without the vision transformer": many & cpu & predictable,
        f"groups with {MANY} or more networks, GPUs and other accelerators": many & ~cpu,
        f"groups with {MANY} or more networks, all": many,
        f"groups with {MANY} or more networks, all, without the vision transformer": many & predictable,
        "MLPerf's MobileNets over widths and resolutions": swept & many,
        "all groups, CPU": cpu,
        "all rows": many | ~many,
    }
    by_device = {
        device: np.array([row.source["device"] == device for row in rows]) & many & cpu & predictable
        for device in sorted({row.source["device"] for row in rows})
    }
    by_pool = {
        pool: np.array([row.pool == pool for row in rows]) & predictable for pool in sorted({r.pool for r in rows})
    }
    families = {
        family: np.array([row.family == family for row in rows]) & many & cpu
        for family in sorted({row.family for row in rows})
    }
    tables = {"part": parts, "family left out": families, "device": by_device, "runtime": by_pool}
    summary = {
        title: {
            name: {"in_fit": select(rows, keep, inside), "left_out": select(rows, keep, held)}
            for name, keep in table.items()
            if keep.sum() > 2
        }
        for title, table in tables.items()
    }
    within_groups = [
        _spearman(*(np.array(each) for each in zip(*pairs, strict=True)))
        for pairs in (
            [(r.milliseconds, e) for r, e in zip(rows, inside, strict=True) if r.group == group]
            for group in {r.group for r, keep in zip(rows, many & cpu, strict=True) if keep}
        )
    ]
    worst = sorted(np.flatnonzero(many & cpu & predictable), key=lambda i: -abs(np.log(held[i] / rows[i].milliseconds)))
    result = {
        "provenance": provenance_now(),
        "groups": len(models),
        "effective_parameters": effective_parameters(fitted, rows),
        "left": dict(left.most_common()),
        "spearman_within_groups": float(np.mean(within_groups)),
        "summary": summary,
        "rows": [
            {key: row.source[key] for key in (*GROUP_KEYS, "model", "input", "latency_ms", "source")}
            | {"in_fit_ms": round(float(a), 4), "left_out_ms": round(float(b), 4)}
            for row, a, b in zip(rows, inside, held, strict=True)
        ],
    }
    write_json(HERE / "results" / "latency_estimate.json", _finite(result))
    write_text(HERE / "results" / "latency_estimate.md", _markdown(result, [(rows[i], held[i]) for i in worst[:15]]))
    print((HERE / "results" / "latency_estimate.md").read_text())


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _markdown(result: dict, worst: Sequence[tuple[Row, float]]) -> str:  # type: ignore[type-arg]
    lines = [
        "# Latency estimates against published measurements",
        "",
        "`left out`: the network's whole family was left out of the fit, on every device. "
        f"{len(result['rows'])} rows in {result['groups']} groups (device, runtime, version, threads, precision); "
        f"{sum(result['left'].values())} rows could not be used:",
        "",
        *(f"- {count}: {reason}" for reason, count in result["left"].items()),
        "",
        "TILE, NOISE and the form of the model were chosen on these left-out errors, among about 75 variants, so that "
        "they are somewhat too good; so are the intervals that the package shows, which come from them.",
        "",
        f"The measurements decide {result['effective_parameters']:.0f} parameters (the trace of prior to posterior), "
        f"{result['effective_parameters'] / result['groups']:.1f} a group; the rest is shared.",
        "",
        f"Rank correlation (Spearman) within a group of {MANY} or more networks, in the fit: "
        f"{result['spearman_within_groups']:.3f} on average.",
    ]
    for title, table in result["summary"].items():
        columns = "rows | in fit: MAPE | Spearman | left out: MAPE | median | ±10 % | ±20 % | Spearman"
        lines += ["", f"| {title} | {columns} |", "|---|---|---|---|---|---|---|---|---|"]
        for name, both in table.items():
            a, b = both["in_fit"], both["left_out"]
            lines.append(
                f"| {name} | {b['rows']} | {a['mape']:.1%} | {a['spearman']:.3f} | {b['mape']:.1%} | {b['median']:.1%} "
                f"| {b['within_10']:.0%} | {b['within_20']:.0%} | {b['spearman']:.3f} |"
            )
    lines += ["", "Worst cases, left out (CPU, without the vision transformer):", "",
              "| device | runtime | threads | precision | network | published ms | estimate ms |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {r.source['device']} | {r.source['runtime']} | {r.source['threads']} | {r.source['precision']} "
        f"| {r.source['model']} | {r.milliseconds:g} | {e:.1f} |"
        for r, e in worst
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
