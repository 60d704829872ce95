"""Tables and figure of `benchmarks.robust_pruning`, from the cells that are on disk, beside published rows."""

import functools
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, mean_lead, random_network, save
from benchmarks.robust_cells import MAIN, NETWORKS, OURS, on_disk
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import named_graph
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import score
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.load import load_target

TARGET, RUNTIME = "raspberry-pi-4", "litert"
ALL_IMAGES = 10_000
PUBLISHED = {
    "R-ADMM": ("79.27/42.68", "78.81/40.79", "70.53/37.30", "74.58/39.67", "70.51/37.74", "58.58/31.79"),
    "HARP": ("77.38/42.73", "80.06/42.09", "77.88/41.59", "76.70/40.01", "73.61/39.14", "66.45/35.62"),
    "PwoA": ("83.44/44.79", "81.77/37.85", "76.41/28.56", "66.33/30.15", "63.36/24.91", "57.71/18.39"),
    "TwinRep": ("79.90/45.58", "79.37/45.21", "78.41/44.30", "77.65/43.13", "77.58/42.77", "76.26/42.14"),
}
"""AdversarialPruningBenchmark, structured, clean/AutoAttack at 8/255 on 10,000 images: ResNet18, then VGG16, at 50, 75
and 90 % of the parameters."""


Setting = tuple[str, float, str, int]
"""Network, ratio, what it is of, epochs."""
Group = dict[int, dict[str, Any]]
"""Results by seed."""


def groups() -> dict[tuple[Setting, str], Group]:
    """The cells of each setting and criterion."""
    found: dict[tuple[Setting, str], Group] = {}
    for cell, result in on_disk().items():
        setting = (cell.network, cell.ratio, cell.ratio_of, cell.epochs)
        found.setdefault((setting, cell.criterion), {})[cell.seed] = result
    return found


def rows() -> Iterator[list[str]]:
    """One row a network, budget, length and criterion: means over seeds, and leads, paired image by image."""
    found = groups()
    for (setting, criterion), by_seed in sorted(found.items(), key=lambda item: item[0]):
        leaders = [found.get((setting, name), {}) for name in ("fsrp", OURS)]
        network, ratio, ratio_of, epochs = setting
        first = next(iter(by_seed.values()))
        yield [
            network, f"{ratio:.0%} {ratio_of}" if ratio else "–", str(epochs), criterion, str(len(by_seed)),
            *(mean_accuracy(by_seed, attack) for attack in ("clean", "pgd-20", "cw-20", "autoattack")),
            *(
                "–" if by_seed is leader else _lead(leader, by_seed, attack)
                for leader in leaders
                for attack in ("cw-20", "autoattack")
            ),
            f"{first['size']['macs'] / 1e6:.1f}", f"{first['size']['parameters'] / 1e3:.0f}",
            f"{first['bytes'] / 1e3:.0f}", _latency(network, ratio, ratio_of, first["size"]["macs"]),
        ]  # fmt: skip


def _latency(network: str, ratio: float, ratio_of: str, macs: int) -> str:
    """Milliseconds as estimated for the target; a dash where the channels left are not those of the common ratio."""
    try:
        counted, milliseconds = _estimated(network, ratio, ratio_of)
    except ToolFailedError:  # no exporters on this machine
        return "–"
    return f"{milliseconds:.1f}" if counted == macs else "–"


@functools.cache
def _estimated(network: str, ratio: float, ratio_of: str) -> tuple[int, float]:
    """MACs and estimated milliseconds of a network that lost the same share everywhere: weights don't matter."""
    classifier = random_network(NETWORKS[network])
    if ratio:
        nothing = ImageSet.of("none", ArraySource(np.zeros((1, 3, 32, 32), np.uint8)), torch.zeros(1))
        scores = score(classifier, nothing, Rival(name="l1"), seed=0)
        plan = make_plan(classifier, scores, PlanOptions(ratio=ratio, ratio_of=ratio_of))
        classifier = apply_plan(classifier, plan)
    graph = named_graph(classifier)
    return measure_size(classifier).macs, estimate(graph, load_target(TARGET), runtime=RUNTIME).milliseconds


def mean_accuracy(by_seed: Group, attack: str) -> str:
    """Of the seeds that were attacked, on the images that all of them were judged on; their number where it is less."""
    rows = _shared(
        [result["standing"][attack] for result in by_seed.values() if attack in result["standing"]]
    )
    if not rows:
        return "–"
    values = [100 * (row.count("1") / len(row)) for row in rows]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    fewer = f" (n={len(rows[0]):,})" if len(rows[0]) < ALL_IMAGES else ""
    return f"{statistics.mean(values):.1f}{spread}{fewer}"


def _lead(leader: Group, rival: Group, attack: str) -> str:
    """Points by which one is ahead, a mean over the seeds that both have, on the images that both were judged on."""
    seeds = [
        seed
        for seed in leader
        if seed in rival and all(attack in side[seed]["standing"] for side in (leader, rival))
    ]
    if not seeds:
        return "–"
    rows = _shared([side[seed]["standing"][attack] for side in (leader, rival) for seed in seeds])
    return mean_lead(rows[: len(seeds)], rows[len(seeds) :])


def _shared(rows: list[str]) -> list[str]:
    """Rows of `bits` as far as the shortest goes: whoever was judged on fewer images was so on the first of the set."""
    return [row[: min(map(len, rows))] for row in rows]


def figure() -> None:
    """AutoAttack against MACs, one line a criterion, one panel a network; at the length of most of its cells."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    done = {cell: r for cell, r in on_disk().items() if cell.seed == 0 and "autoattack" in r["results"]}
    networks = list(dict.fromkeys(cell.network for cell in done if cell.criterion != "dense"))
    if not networks:
        return
    drawing, panels = pyplot.subplots(1, len(networks), figsize=(5 * len(networks), 4), squeeze=False)
    for panel, network in zip(panels[0], networks, strict=True):
        mine = {cell: r for cell, r in done.items() if cell.network == network}
        epochs = statistics.mode(cell.epochs for cell in mine if cell.criterion != "dense")
        for criterion in ("dense", *MAIN):
            points = sorted(
                (r["size"]["macs"] / 1e6, 100 * r["results"]["autoattack"]["accuracy"])
                for cell, r in mine.items()
                if cell.criterion == criterion and (criterion == "dense" or cell.epochs == epochs)
            )
            if points:
                panel.plot(*np.array(points).T, marker="o", label=criterion)
        panel.set(title=network, xlabel="million MACs", ylabel="AutoAttack accuracy, %", xscale="log")
        panel.legend()
    drawing.tight_layout()
    drawing.savefig(RESULTS / "robust_pruning.svg")


def write_tables() -> None:
    """robust_pruning.md and .json, and the figure."""
    header = (
        "network", "removed", "epochs", "criterion", "seeds", "clean %", "PGD-20 %", "CW-20 %", "AutoAttack %",
        "FSRP's lead, CW-20", "FSRP's lead, AutoAttack", "reconstruction's lead, CW-20",
        "reconstruction's lead, AutoAttack", "M MACs", "k parameters", "kB", f"ms on {TARGET}, estimated",
    )  # fmt: skip
    lines = list(rows())
    names = [f"{network} {share} %" for network in ("ResNet18", "VGG16") for share in (50, 75, 90)]
    for method, values in PUBLISHED.items():
        for name, value in zip(names, values, strict=True):
            clean, attacked = value.split("/")
            network, share, _ = name.split()
            lines.append([network, f"{share}% parameters", "–", f"{method} (published)", "–", clean, "–", "–", attacked,
                          *"––––––––"])  # fmt: skip
    save("robust_pruning", {"rows": lines}, header, lines)
    figure()
