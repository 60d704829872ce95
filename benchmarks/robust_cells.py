"""The cells of `benchmarks.robust_pruning`: networks, criteria, budgets and seeds, and where their results are."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from fsrp_edge.attacks import PGD
from fsrp_edge.files import read_json
from fsrp_edge.pruning.budgets import BudgetKind
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import Criterion
from fsrp_edge.training.recipe import Recipe

CELLS = RESULTS / "robust_pruning_cells"
NETWORKS = {
    "vgg16-w0.25": "cifar:vgg16_bn-w0.25",
    "resnet20": "cifar:resnet20-a",
    "vgg16": "cifar:vgg16_bn",
    "resnet18": "cifar:resnet18",
}
SMALL = ("vgg16-w0.25", "resnet20")
AUGMENTED: dict[str, Any] = {"method": "n-fgsm", "flip": True, "crop_padding": 4}
DENSE = Recipe(**AUGMENTED, epochs=10, learning_rate=0.1, ema_decay=0.999)
RECOVERY = Recipe(**AUGMENTED, epochs=5, learning_rate=0.05, ema_decay=0.999)
"""Without distillation: a dense teacher costs a CPU several times the pruned network's own steps."""
SEEDS = (0, 1, 2)
FIRST_IMAGES, ALL_IMAGES = 1_000, 10_000
"""Of the test set: what AutoAttack gets unless more are asked for, and all there are."""
COMPENSATED = ", compensated"
"""What stays is fitted to the dense network's layers (`pruning.compensation`), before the same recovery."""
FSRP_FORMS: dict[str, tuple[Criterion, dict[str, Any]]] = {
    "fsrp": (FSRP(), {}),
    "fsrp sequential": (FSRP(), {"strategy": "sequential"}),
    "fsrp global": (FSRP(), {"allocation": "global"}),
    "fsrp clean examples": (FSRP(attack=PGD(eps=0)), {}),
    "fsrp r=0.25": (FSRP(radius=0.25), {}),
    "fsrp r=0.5": (FSRP(radius=0.5), {}),
    "fsrp-reconstruction": (Reconstruction(), {}),
    "fsrp-reconstruction without sizes": (Reconstruction(explained=1), {}),
    "fsrp-reconstruction by bare weights": (Reconstruction(explained=1, through_batch_norm=False), {}),
    "fsrp after the activation": (FSRP(read_at="activation", radius=0.25), {}),
}
_WITHIN: dict[str, tuple[BudgetKind, ...]] = {
    "by knapsack": ("parameters",),
    "by knapsack, same MACs": ("parameters", "macs"),
}
KNAPSACK = {
    f"{name} {within}{COMPENSATED}": kinds
    for name in ("fsrp-reconstruction", "l1")
    for within, kinds in _WITHIN.items()
}
"""Ratios that differ from layer to layer, within what the network with a common ratio has."""
BY = ", recovered by "
RECOVERIES = {
    "n-fgsm, taught": RECOVERY.model_copy(update={"distillation": 0.5}),
    **{
        method: Recipe.model_validate({**RECOVERY.model_dump(), "method": method, "attack_steps": 5})
        for method in ("pgd", "trades", "rslad")
    },
}
"""Other ways to recover than the one all criteria share. They take longer: more passes a step, or the teacher's."""
RIVALS = ("l1", "fpgm", "batch-norm-scale", "taylor", "random")
OURS = f"fsrp-reconstruction{COMPENSATED}"
CONTROLS = tuple(f"{name}{COMPENSATED}" for name in ("fsrp-reconstruction without sizes", "fsrp", "l1", "random"))
"""Whether it is the choice of filters that tells, or what stays being fitted."""
MAIN = (OURS, *CONTROLS, "fsrp", "fsrp sequential", *RIVALS)
BARE = "fsrp-reconstruction"
"""What our choice of filters is worth by itself: run with the first seed only."""
CLOSEST = (OURS, f"l1{COMPENSATED}", f"random{COMPENSATED}")
"""What is closest, so run with every seed where it takes long, too: chance in training is more than their distance."""


@dataclass(frozen=True)
class Cell:
    """One network that is made and judged; criterion `dense` is the network that the others are cut from."""

    network: str
    criterion: str
    ratio: float
    ratio_of: str
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """As `--only` sees it."""
        budget = f"{self.ratio:g} {self.ratio_of} " if self.ratio else ""
        return f"{self.network} {self.criterion} {budget}{self.epochs} epochs seed {self.seed}"

    @property
    def recipe(self) -> Recipe | None:
        """Of the dense network's training, or of the recovery; None where the cell is not trained."""
        recipe = DENSE if self.criterion == "dense" else RECOVERIES.get(self.criterion.partition(BY)[2], RECOVERY)
        return recipe.model_copy(update={"epochs": self.epochs}) if self.epochs else None

    @property
    def compensated(self) -> bool:
        """Whether what stays is fitted to the dense network before it is recovered."""
        return self.criterion.partition(BY)[0].endswith(COMPENSATED)

    @property
    def path(self) -> Path:
        """Where its result is."""
        return CELLS / f"{self.name.replace(' ', '_')}.json"

    @property
    def result(self) -> dict[str, Any]:
        """What is known of it; empty where nothing is."""
        found: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        return found

    @property
    def attacked_by_autoattack(self) -> bool:
        """At 90 % with every seed, elsewhere with the first."""
        return self.seed == 0 or self.ratio >= 0.9


def cells(networks: Sequence[str], dense_epochs: int, epochs: int) -> list[Cell]:
    """All of them, those that decide most first; each dense network stands before what is cut from it.

    All seeds of a network are cut from the same dense one: they tell what scoring, fitting and recovery vary by.
    """
    budgets = ((0.9, "parameters"), (0.9, "channels"), (0.75, "parameters"), (0.5, "parameters"))
    found: list[Cell] = []

    def main(budget: tuple[float, str]) -> list[str]:
        """All controls where the main claim is made, fewer where others are."""
        kept = {budgets[0]: MAIN, budgets[1]: CLOSEST}.get(budget, CLOSEST[:2])
        return [name for name in MAIN if name not in CONTROLS or name in kept]

    def add(network: str, criteria: Iterable[str], budget: tuple[float, str], length: int, seed: int) -> None:
        found.append(Cell(network, "dense", 0, "parameters", dense_epochs, 0))
        found.extend(Cell(network, criterion, *budget, length, seed) for criterion in criteria)

    for budget, network in itertools.product(budgets[:2], networks):
        add(network, (*main(budget), BARE), budget, epochs, 0)
    small = [network for network in networks if network in SMALL]
    for seed, network, budget in itertools.product(SEEDS[1:], networks, budgets[:2]):
        dear = network not in small and budget == budgets[0]
        add(network, CLOSEST if dear else main(budget), budget, epochs, seed)
    for budget, network in itertools.product(budgets[2:], networks):
        for seed in SEEDS if network in SMALL else SEEDS[:1]:
            add(network, main(budget), budget, epochs, seed)
    for network in small:  # ablations: length of recovery, forms of the criterion, ratios, other recoveries
        for length in (0, 30):
            add(network, ("fsrp", "l1", "random"), budgets[0], length, 0)
        add(network, [form for form in FSRP_FORMS if form not in MAIN], budgets[0], epochs, 0)
        add(network, KNAPSACK, budgets[0], epochs, 0)
        add(network, [f"{OURS}{BY}{recovery}" for recovery in RECOVERIES], budgets[0], epochs, 0)
    return list(dict.fromkeys(found))


def criterion_of(name: str) -> tuple[Criterion, dict[str, Any]]:
    """The criterion behind a cell's name for it, and the options of its plan."""
    name = name.partition(BY)[0].removesuffix(COMPENSATED).partition(" by knapsack")[0]
    if name in FSRP_FORMS:
        return FSRP_FORMS[name]
    return Rival.model_validate({"name": name}), {}


def on_disk(folder: Path = CELLS) -> dict[Cell, dict[str, Any]]:
    """Every cell that was worked on, by whatever call."""
    results = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return {Cell(**result["cell"]): result for result in results}
