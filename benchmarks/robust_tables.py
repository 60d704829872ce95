"""Tables of `benchmarks.robust_pruning`, from the cells that are on disk, beside published rows."""

import functools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import mean_lead, random_network, save
from benchmarks.robust_cells import ALL_IMAGES, FIRST_IMAGES, NETWORKS, OURS, on_disk
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
Judged = tuple[str, int]
"""An attack, and on how many images, the first of the test set."""
CLEAN, PGD, MARGIN = (("clean", ALL_IMAGES), ("pgd-20", ALL_IMAGES), ("cw-20", ALL_IMAGES))
AUTOATTACK, AUTOATTACK_ON_ALL = ("autoattack", FIRST_IMAGES), ("autoattack", ALL_IMAGES)
ACCURACIES: dict[str, Judged] = {
    "clean %": CLEAN,
    "PGD-20 %": PGD,
    "CW-20 %": MARGIN,
    f"AutoAttack % of {FIRST_IMAGES:,}": AUTOATTACK,
    f"AutoAttack % of {ALL_IMAGES:,}": AUTOATTACK_ON_ALL,
}
LEADS: dict[str, Judged] = {
    "CW-20": MARGIN,
    f"AutoAttack on {FIRST_IMAGES:,}": AUTOATTACK,
    f"AutoAttack on {ALL_IMAGES:,}": AUTOATTACK_ON_ALL,
}
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
Groups = dict[tuple[Setting, str], Group]


def groups() -> Groups:
    """The cells of each setting and criterion."""
    found: Groups = {}
    for cell, result in on_disk().items():
        setting = (cell.network, cell.ratio, cell.ratio_of, cell.epochs)
        found.setdefault((setting, cell.criterion), {})[cell.seed] = result
    return found


def rows(found: Groups) -> Iterator[list[str]]:
    """One row a network, budget, length and criterion: means over seeds, and leads, paired image by image."""
    for (setting, criterion), by_seed in sorted(found.items(), key=lambda item: item[0]):
        leaders = [found.get((setting, name), {}) for name in ("fsrp", OURS)]
        network, ratio, ratio_of, epochs = setting
        first = next(iter(by_seed.values()))
        yield [
            network, f"{ratio:.0%} {ratio_of}" if ratio else "–", str(epochs), criterion, str(len(by_seed)),
            *(mean_accuracy(by_seed, judged) for judged in ACCURACIES.values()),
            *(
                lead_of(leader, by_seed, judged)
                for leader in leaders
                for judged in LEADS.values()
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


def mean_accuracy(by_seed: Group, judged: Judged) -> str:
    """Percent, over the seeds that were judged on so many images."""
    return mean_and_deviation(accuracies(by_seed, judged))


def mean_and_deviation(values: Sequence[float]) -> str:
    """`28.8 ± 0.6`; of one value alone it is the value, of none a dash."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def accuracies(by_seed: Group, judged: Judged) -> list[float]:
    """Percent of each seed that was judged on so many images."""
    return [100 * (row.count("1") / len(row)) for row in _rows(by_seed, judged).values()]


def lead_of(leader: Group, rival: Group, judged: Judged) -> str:
    """Points by which one is ahead, over the seeds that both have, paired by image; a dash against itself."""
    pairs = _pairs(leader, rival, judged)
    return mean_lead(*zip(*pairs, strict=True)) if pairs else "–"


def leads_by_seed(leader: Group, rival: Group, judged: Judged) -> str:
    """The points of each seed that both have: how much a lead owes to chance in scoring, fitting and recovery."""
    points = [100 * (ours.count("1") - theirs.count("1")) / len(ours) for ours, theirs in _pairs(leader, rival, judged)]
    return ", ".join(f"{lead:+.1f}" for lead in points) or "–"


def seeds_of_both(leader: Group, rival: Group, judged: Judged) -> int:
    """Over how many seeds a lead is; none of a group against itself."""
    return len(_pairs(leader, rival, judged))


def _pairs(leader: Group, rival: Group, judged: Judged) -> list[tuple[str, str]]:
    """Verdicts of both, by seed; none of a group and itself."""
    if leader is rival:
        return []
    ours, theirs = (_rows(by_seed, judged) for by_seed in (leader, rival))
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def _rows(by_seed: Group, judged: Judged) -> dict[int, str]:
    """Verdicts by seed, of those that got so many images; whoever got more was judged on these first."""
    attack, images = judged
    standing = {seed: result["standing"].get(attack, "") for seed, result in by_seed.items()}
    return {seed: row[:images] for seed, row in standing.items() if len(row) >= images}


def write_tables(found: Groups) -> None:
    """robust_pruning.md and .json."""
    header = (
        "network", "removed", "epochs", "criterion", "seeds", *ACCURACIES,
        *(f"{leader}'s lead, {attack}" for leader in ("FSRP", "reconstruction") for attack in LEADS),
        "M MACs", "k parameters", "kB", f"ms on {TARGET}, estimated",
    )  # fmt: skip
    lines = list(rows(found))
    names = [f"{network} {share} %" for network in ("ResNet18", "VGG16") for share in (50, 75, 90)]
    for method, values in PUBLISHED.items():
        for name, value in zip(names, values, strict=True):
            clean, attacked = value.split("/")
            network, share, _ = name.split()
            start = [
                network, f"{share}% parameters", "–", f"{method} (published)", "–", clean, "–", "–", "–", attacked
            ]  # fmt: skip
            lines.append([*start, *("–" for _ in header[len(start) :])])
    save("robust_pruning", {"rows": lines}, header, lines)
