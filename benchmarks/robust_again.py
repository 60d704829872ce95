"""By how much does a network differ that is made again, on another machine, with the same seed?

Other machines add up in another order, so that the same seed trains another network. Cells of
`benchmarks.robust_pruning` that were made twice tell what such a draw is worth: less than that no two criteria can be
told apart by one run each. Those made twice on one kind of machine are listed and not counted: they come out the same.
Nor are those that are compensated, as compensation had changed in between.
The first argument is the folder of the cells as they were before.

git worktree add ../before b12cd46
python -m benchmarks.robust_again ../before/benchmarks/results/robust_pruning_cells
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.common import parser_of, save
from benchmarks.robust_cells import Cell, on_disk

ATTACKS = {"clean": "clean", "margin": "cw-20"}


def draw(result: dict[str, Any]) -> dict[str, Any]:
    """What one making of a network came to, in percent of all test images, and where."""
    machine = result["provenance"]["made"]["machine"]
    accuracies = {name: 100 * result["results"][attack]["accuracy"] for name, attack in ATTACKS.items()}
    return {"machine": machine["gpu"] or machine["cpu"], **accuracies}


def pairs(before: Path) -> dict[Cell, tuple[dict[str, Any], dict[str, Any]]]:
    """First and second draw of every cell that was made twice and judged both times."""
    today, found = on_disk(), {}
    for cell, first in on_disk(before).items():
        both = (first, today.get(cell, first))
        made = {each["provenance"]["made"]["started_at"] for each in both}
        if len(made) == 2 and all({*ATTACKS.values()} <= each["results"].keys() for each in both):
            found[cell] = (draw(both[0]), draw(both[1]))
    return found


def deviation_of_a_draw(differences: list[float]) -> float:
    """Standard deviation of one draw, from differences of two."""
    return math.sqrt(sum(each**2 for each in differences) / len(differences) / 2)


def main() -> None:
    """Compare, and write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("before", type=Path, metavar="CELLS")
    both = pairs(parser.parse_args().before)
    if not both:
        parser.error("no cell there was made again here")
    rows: list[list[str]] = []
    differences: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, (first, again) in both.items():
        rows.append(
            [cell.name, first["machine"], again["machine"]]
            + [f"{first[each]:.1f} → {again[each]:.1f} ({again[each] - first[each]:+.1f})" for each in ATTACKS]
        )
        if first["machine"] != again["machine"] and "compensated" not in cell.name:
            for each in ATTACKS:
                differences[cell.network][each].append(again[each] - first[each])
    deviations = {
        network: {each: deviation_of_a_draw(values) for each, values in found.items()}
        for network, found in differences.items()
    }
    rows += [
        [
            f"**{network}**, a draw on another machine, standard deviation",
            *("", ""),
            *(f"{each:.1f}" for each in of.values()),
        ]
        for network, of in deviations.items()
    ]
    results = {"cells": {cell.name: {"first": first, "again": again} for cell, (first, again) in both.items()}}
    header = ("cell", "first on", "again on", *(f"{each} %" for each in ATTACKS))
    save("robust_again", results | {"deviation_of_a_draw": deviations}, header, rows)


if __name__ == "__main__":
    main()
