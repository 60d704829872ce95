"""The figure of `benchmarks.robust_pruning`: robust accuracy against MACs, one line a criterion."""

import statistics
from typing import Any

import numpy as np

from benchmarks.common import RESULTS
from benchmarks.robust_cells import ALL_IMAGES, MAIN, OURS
from benchmarks.robust_tables import AUTOATTACK, AUTOATTACK_ON_ALL, MARGIN, Groups, Judged, accuracies
from fsrp_edge.plots import pyplot, save_png

FIGURE = RESULTS.parents[1] / "docs" / "pictures" / "robust_pruning.png"
COMPENSATED_LINE = {"linestyle": "--", "markerfacecolor": "white"}
STYLES: dict[str, dict[str, Any]] = {
    "dense": {"color": "black", "marker": "*", "markersize": 11},
    OURS: {"color": "black", "linewidth": 2.5, "marker": "D"},
    "fsrp": {"color": "tab:red"},
    "fsrp, compensated": {"color": "tab:red", **COMPENSATED_LINE},
    "fsrp sequential": {"color": "tab:red", "linestyle": ":", "marker": "v"},
    "l1": {"color": "tab:blue"},
    "l1, compensated": {"color": "tab:blue", **COMPENSATED_LINE},
    "random": {"color": "tab:gray"},
    "random, compensated": {"color": "tab:gray", **COMPENSATED_LINE},
    "fpgm": {"color": "tab:green"},
    "batch-norm-scale": {"color": "tab:orange"},
    "taylor": {"color": "tab:purple"},
}


def draw(found: Groups) -> None:
    """A column a network, AutoAttack above the attack on the margin, means over seeds."""
    networks = list(dict.fromkeys(setting[0] for setting, criterion in found if criterion != "dense"))
    if not networks:
        return
    drawing, axes = pyplot().subplots(2, len(networks), figsize=(4.5 * len(networks), 7.5), squeeze=False)
    for column, network in enumerate(networks):
        mine = _of_one_length(found, network)
        for axis, name, judged in zip(
            axes[:, column], ("AutoAttack", "CW-20"), (_autoattack(mine), MARGIN), strict=True
        ):
            _panel(axis, mine, judged)
            axis.set_title(f"{network}, {'all' if judged[1] == ALL_IMAGES else 'first'} {judged[1]:,} images")
            axis.set_ylabel(f"{name} accuracy, %")
            axis.set_visible(axis.has_data())
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    shown = [name for name in STYLES if name in lines]
    drawing.legend([lines[name] for name in shown], shown, loc="lower center", ncols=4)
    drawing.tight_layout(rect=(0, 0.1, 1, 1))
    save_png(drawing, FIGURE)


def _of_one_length(found: Groups, network: str) -> Groups:
    """A network's cells of the length of recovery that most of them had, and the dense one."""
    mine = {key: group for key, group in found.items() if key[0][0] == network and key[1] in ("dense", *MAIN)}
    epochs = statistics.mode(setting[3] for setting, criterion in mine if criterion != "dense")
    return {key: group for key, group in mine.items() if key[1] == "dense" or key[0][3] == epochs}


def _autoattack(mine: Groups) -> Judged:
    """On all images where no cell had fewer: the first of them are easier, so the two are not to be mixed."""
    met = [group for group in mine.values() if accuracies(group, AUTOATTACK)]
    on_all = all(accuracies(group, AUTOATTACK_ON_ALL) for group in met)
    return AUTOATTACK_ON_ALL if on_all else AUTOATTACK


def _panel(axis: Any, mine: Groups, judged: Judged) -> None:
    """One network under one attack."""
    from matplotlib.ticker import LogLocator

    for name, style in STYLES.items():
        points = sorted(
            (next(iter(group.values()))["size"]["macs"] / 1e6, statistics.mean(values))
            for (_, criterion), group in mine.items()
            if criterion == name and (values := accuracies(group, judged))
        )
        if points:
            axis.plot(*np.array(points).T, label=name, **{"marker": "o", "markersize": 4} | style)
    axis.set(xlabel="million MACs", xscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3)
