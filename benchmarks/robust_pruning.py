"""Does FSRP keep more robust accuracy than other criteria? The same budget, the same recovery, image by image.

Every cell (network, criterion, budget, seed, length of recovery) is a file in results/robust_pruning_cells and is
worked on once; training, recovery and attacks resume within a cell too, and the same call may run several times side by
side. The plan is printed first, with hours as far as
cells of the same network were measured. The headline (90 % of the parameters) comes first. Networks of the first seed
that lost 90 % and are no larger than a megabyte are kept in results/robust_pruning_networks, so that anyone can attack
them without training, and an attack that a cell lacks, or had on fewer images (`--autoattack-images 0` leaves
AutoAttack for later), is run on what is kept.

python -m benchmarks.robust_pruning --data cifar-10-batches-bin --plan
python -m benchmarks.robust_pruning --data cifar-10-batches-bin --only 'vgg16-w0.25 * 0.9 parameters *'
python -m benchmarks.robust_pruning --data cifar-10-batches-bin --dense vgg16=vgg16-cifar10-nfgsm.safetensors
"""

import fcntl
import fnmatch
import functools
import itertools
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, bits, mean_lead, parser_of, provenance_now, random_network, save
from fsrp_edge import compute
from fsrp_edge.attacks import PGD
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import ArraySource, Dataset, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.files import read_json, write_json
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import save_classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import named_graph
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.stepwise import plan_by_strategy
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.reconstruction import Reconstruction
from fsrp_edge.scoring.rivals import Rival
from fsrp_edge.scoring.score import Criterion, score
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.targets.estimate import estimate
from fsrp_edge.targets.load import load_target
from fsrp_edge.training.dense import train_dense
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import recover

CELLS = RESULTS / "robust_pruning_cells"
TARGET, RUNTIME = "raspberry-pi-4", "litert"
KEPT, KEPT_BYTES = RESULTS / "robust_pruning_networks", 1_000_000
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
SCORE_IMAGES, SEEDS = 512, (0, 1, 2)
FSRP_FORMS: dict[str, tuple[Criterion, dict[str, Any]]] = {
    "fsrp": (FSRP(), {}),
    "fsrp sequential": (FSRP(), {"strategy": "sequential"}),
    "fsrp global": (FSRP(), {"allocation": "global"}),
    "fsrp clean examples": (FSRP(attack=PGD(eps=0)), {}),
    "fsrp r=0.25": (FSRP(radius=0.25), {}),
    "fsrp r=0.5": (FSRP(radius=0.5), {}),
    "fsrp-reconstruction": (Reconstruction(), {}),
    "fsrp after the activation": (FSRP(read_at="activation", radius=0.25), {}),
}
RIVALS = ("l1", "fpgm", "batch-norm-scale", "taylor", "random")
COMPENSATED = ", compensated"
"""What stays is fitted to the dense network's layers (`pruning.compensation`), before the same recovery."""
OURS = f"fsrp-reconstruction{COMPENSATED}"
MAIN = (
    OURS,
    *(f"{name}{COMPENSATED}" for name in ("fsrp", "l1", "random")),
    "fsrp",
    "fsrp sequential",
    *RIVALS,
)
PUBLISHED = {
    "R-ADMM": ("79.27/42.68", "78.81/40.79", "70.53/37.30", "74.58/39.67", "70.51/37.74", "58.58/31.79"),
    "HARP": ("77.38/42.73", "80.06/42.09", "77.88/41.59", "76.70/40.01", "73.61/39.14", "66.45/35.62"),
    "PwoA": ("83.44/44.79", "81.77/37.85", "76.41/28.56", "66.33/30.15", "63.36/24.91", "57.71/18.39"),
    "TwinRep": ("79.90/45.58", "79.37/45.21", "78.41/44.30", "77.65/43.13", "77.58/42.77", "76.26/42.14"),
}
"""AdversarialPruningBenchmark, structured, clean/AutoAttack at 8/255 on 10,000 images: ResNet18, then VGG16, at 50, 75
and 90 % of the parameters."""


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
        recipe = DENSE if self.criterion == "dense" else RECOVERY
        return recipe.model_copy(update={"epochs": self.epochs}) if self.epochs else None

    @property
    def path(self) -> Path:
        """Where its result is."""
        return CELLS / f"{self.name.replace(' ', '_')}.json"

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

    def add(network: str, criteria: Iterable[str], budget: tuple[float, str], length: int, seed: int) -> None:
        found.append(Cell(network, "dense", 0, "parameters", dense_epochs, 0))
        found.extend(Cell(network, criterion, *budget, length, seed) for criterion in criteria)

    for budget, network in itertools.product(budgets[:2], networks):
        add(network, MAIN, budget, epochs, 0)
    small = [network for network in networks if network in SMALL]
    for seed, network in itertools.product(SEEDS[1:], small):
        for budget in budgets[:2]:
            add(network, MAIN, budget, epochs, seed)
    for budget, network in itertools.product(budgets[2:], networks):
        for seed in SEEDS if network in SMALL else SEEDS[:1]:
            add(network, MAIN, budget, epochs, seed)
    for network in small:  # ablations: length of recovery, then forms of the criterion
        for length in (0, 30):
            add(network, ("fsrp", "l1", "random"), budgets[0], length, 0)
        add(network, [form for form in FSRP_FORMS if form not in MAIN], budgets[0], epochs, 0)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Bench:
    """Where the data and the checkpoints are, and how much is judged."""

    data: str
    work: Path
    given: dict[str, Path]
    pgd_images: int
    autoattack_images: int

    def dense(self, cell: Cell) -> Classifier:
        """The network that is cut: given as a file, or trained here once."""
        path = self.dense_file(cell.network)
        if not path.exists():
            raise SystemExit(f"{path} is missing: run the cell '{cell.network} dense …' first")
        return _ready(load_classifier(path))

    def dense_file(self, network: str) -> Path:
        """Where that is."""
        return self.given.get(network) or self.work / f"{network}.safetensors"

    def train(self, cell: Cell) -> Classifier:
        """The dense network of a cell, kept in the work folder."""
        path = self.dense_file(cell.network)
        if not path.exists() and cell.network not in self.given:
            assert cell.recipe is not None, "a dense network is trained"
            trained = train_dense(
                NETWORKS[cell.network], self.data, cell.recipe,
                classes=10, input_size=None, seed=cell.seed, checkpoint=path.with_suffix(".unfinished.pt"),
            )  # fmt: skip
            save_classifier(trained.classifier, path)
        return self.dense(cell)

    def prune(self, cell: Cell, dense: Classifier, dataset: Dataset) -> Classifier:
        """Cut by the cell's criterion."""
        criterion, options = _criterion(cell.criterion)
        images = dataset.train.sample(SCORE_IMAGES, cell.seed)

        def scorer(network: Classifier) -> FilterScores:
            return score(_ready(network), images, criterion, seed=cell.seed)

        scores = scorer(dense)
        wanted = PlanOptions(ratio=cell.ratio, ratio_of=cell.ratio_of, **options)
        plan = plan_by_strategy(dense, make_plan(dense, scores, wanted), wanted, scorer)
        if not cell.criterion.endswith(COMPENSATED):
            return apply_plan(dense, plan)
        fitting = dataset.train.sample(most_images(dense.spec), cell.seed)
        return apply_plan(dense, plan, DenseOutputs(dense, fitting))

    def run(self, cell: Cell) -> None:
        """Make the network of a cell unless it is there, then judge it by the attacks that its result lacks."""
        # A network that is made again, on a GPU, is another one: it is not judged half by what the first one did.
        result = read_json(cell.path) if cell.path.exists() and self.file(cell).exists() else {}
        started = time.perf_counter()
        network = self.train(cell) if cell.criterion == "dense" else self.recovered(cell)
        result = result or self.described(cell, network, seconds=time.perf_counter() - started)
        dataset = open_dataset(self.data, network.spec, seed=cell.seed)
        for attack in self.missing(cell, result):
            judged = time.perf_counter()
            found = self.judged(cell, attack, network, dataset)
            result["results"][attack] = found.result.model_dump(mode="json")
            result["standing"][attack] = bits(found.standing)
            result["seconds"][attack] = time.perf_counter() - judged
            result["provenance"][attack] = provenance_now()
            write_json(cell.path, result)

    def described(self, cell: Cell, network: Classifier, *, seconds: float) -> dict[str, Any]:
        """A cell's result before it is judged."""
        trained_here = cell.recipe if cell.criterion != "dense" or cell.network not in self.given else None
        dense = cell.criterion == "dense"
        return {
            "cell": asdict(cell),
            "recipe": trained_here and trained_here.model_dump(mode="json"),
            "criterion": None if dense else _criterion(cell.criterion)[0].model_dump(mode="json"),
            "size": measure_size(network).model_dump(),
            "bytes": self.file(cell).stat().st_size,
            "results": {},
            "standing": {},
            "seconds": {"made": seconds},
            "provenance": {"made": provenance_now()},
        }

    def missing(self, cell: Cell, result: dict[str, Any]) -> list[str]:
        """The attacks that are wanted of a cell and not in its result."""
        found = result.get("results", {})
        return [
            attack for attack, images in self.attacks(cell).items()
            if attack not in found or found[attack]["images"] < (images or 0)
        ]  # fmt: skip

    def attacks(self, cell: Cell) -> dict[str, int | None]:
        """Number of images each attack gets, the first of the test set; None for all of them."""
        wanted: dict[str, int | None] = {"clean": None, "pgd-20": self.pgd_images, "cw-20": self.pgd_images}
        if cell.attacked_by_autoattack and self.autoattack_images:
            wanted["autoattack"] = self.autoattack_images
        return wanted

    def file(self, cell: Cell) -> Path:
        """Checkpoint of a cell."""
        if cell.criterion == "dense":
            return self.dense_file(cell.network)
        kept = KEPT / f"{cell.path.stem}.safetensors"
        return kept if kept.exists() else self.work / kept.name

    def recovered(self, cell: Cell) -> Classifier:
        """Prune and recover, unless that was done; then the dense network is not needed."""
        path = self.file(cell)
        if not path.exists():
            dense = self.dense(cell)
            dataset = open_dataset(self.data, dense.spec, seed=cell.seed)
            pruned = _ready(self.prune(cell, dense, dataset))
            unfinished = path.with_suffix(".unfinished.pt")
            result = recover(pruned, dataset.train, cell.recipe, seed=cell.seed, checkpoint=unfinished)
            save_classifier(result.classifier, path)
            unfinished.unlink(missing_ok=True)
            worth_keeping = cell.epochs and cell.seed == 0 and cell.ratio >= 0.9
            if worth_keeping and path.stat().st_size <= KEPT_BYTES:
                KEPT.mkdir(exist_ok=True)
                shutil.move(path, KEPT)
        return _ready(load_classifier(self.file(cell)))

    def judged(self, cell: Cell, attack: str, network: Classifier, dataset: Dataset) -> Evaluation:
        """Clean or under one attack, image by image."""
        images = self.attacks(cell)[attack]
        chosen = dataset.evaluation if images is None else dataset.evaluation.first(images)
        if attack == "clean":
            return clean_accuracy(network, chosen)
        unfinished = self.work / f"{cell.path.stem}-{attack}.unfinished.json"
        on_gpu = compute.device_of(network).type == "cuda"
        plan = EvaluationPlan(attacks=(attack,), batch_size=None if on_gpu else 128)
        return evaluate(network, chosen, plan, unfinished=unfinished)[1]


def _ready(classifier: Classifier) -> Classifier:
    compute.to_fast_layout(classifier, compute.default_device())
    return classifier


def _criterion(name: str) -> tuple[Criterion, dict[str, Any]]:
    name = name.removesuffix(COMPENSATED)
    if name in FSRP_FORMS:
        return FSRP_FORMS[name]
    return Rival.model_validate({"name": name}), {}


def on_disk() -> dict[Cell, dict[str, Any]]:
    """Every cell that was worked on, by whatever call."""
    results = [read_json(path) for path in sorted(CELLS.glob("*.json"))]
    return {Cell(**result["cell"]): result for result in results}


def hours(cell: Cell, attacks: Iterable[str], known: dict[Cell, dict[str, Any]]) -> float | None:
    """What is left of a cell, from those of the same network; None where something was not measured."""
    alike = [
        (other, result["seconds"])
        for other, result in known.items()
        if other.network == cell.network and (other.criterion == "dense") == (cell.criterion == "dense")
    ]
    left = [[seconds[attack] for _, seconds in alike if attack in seconds] for attack in attacks]
    if cell not in known:
        per_epoch = [seconds["made"] / other.epochs for other, seconds in alike if other.epochs]
        left.append([cell.epochs * seconds for seconds in per_epoch])
    return sum(map(statistics.mean, left)) / 3600 if all(left) else None


def print_plan(chosen: Sequence[Cell], bench: "Bench") -> None:
    """What is done, what is left, and how long that takes."""
    known = on_disk()
    total, unknown, done = 0.0, 0, 0
    for cell in chosen:
        missing = bench.missing(cell, known.get(cell, {}))
        if not missing:
            done += 1
            state = f"done in {sum(known[cell]['seconds'].values()) / 3600:.2f} h"
        else:
            estimate = hours(cell, missing, known)
            unknown += estimate is None
            total += estimate or 0
            state = "not measured yet" if estimate is None else f"about {estimate:.2f} h"
            state += f" for {', '.join(missing)}" if cell in known else ""
        print(f"{cell.name:<70} {state}")
    print(
        f"{done} of {len(chosen)} cells done; {total:.1f} h left for those measured, {unknown} not measured"
    )


def rows() -> Iterator[list[str]]:
    """One row a network, budget, length and criterion: means over seeds, and leads, paired image by image."""
    done = on_disk()
    groups: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for cell, result in done.items():
        key = (cell.network, cell.ratio, cell.ratio_of, cell.epochs, cell.criterion)
        groups.setdefault(key, {})[cell.seed] = result
    for key, by_seed in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1:4], item[0][4])):
        leaders = [groups.get((*key[:4], name), {}) for name in ("fsrp", OURS)]
        network, ratio, ratio_of, epochs, criterion = key
        first = next(iter(by_seed.values()))
        yield [
            network, f"{ratio:.0%} {ratio_of}" if ratio else "–", str(epochs), criterion, str(len(by_seed)),
            *(_mean(by_seed, attack) for attack in ("clean", "pgd-20", "cw-20", "autoattack")),
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


def _mean(by_seed: dict[int, dict[str, Any]], attack: str) -> str:
    values = [100 * r["results"][attack]["accuracy"] for r in by_seed.values() if attack in r["results"]]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _lead(leader: dict[int, dict[str, Any]], rival: dict[int, dict[str, Any]], attack: str) -> str:
    """Points by which one is ahead, a mean over the seeds that both have."""
    seeds = [
        seed
        for seed in leader
        if seed in rival and all(attack in side[seed]["standing"] for side in (leader, rival))
    ]
    if not seeds:
        return "–"
    ours, theirs = ([side[seed]["standing"][attack] for seed in seeds] for side in (leader, rival))
    if {len(row) for row in ours} != {len(row) for row in theirs}:
        return "–"
    return mean_lead(ours, theirs)


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


def main() -> None:
    """Print the plan, work on what is missing, write the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", default=",".join(SMALL), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument(
        "--dense", action="append", default=[], metavar="NETWORK=FILE", help="not to be trained here"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/robust_pruning"), help="for checkpoints")
    parser.add_argument(
        "--only", default="*", help="pattern of cell names; the dense networks to train come along"
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--table", action="store_true", help="write tables and figure from the finished cells and stop"
    )
    parser.add_argument("--dense-epochs", type=int, default=DENSE.epochs)
    parser.add_argument("--epochs", type=int, default=RECOVERY.epochs, help="of recovery")
    parser.add_argument("--pgd-images", type=int, default=10_000)
    parser.add_argument("--autoattack-images", type=int, default=1000, help="0: leave AutoAttack for later")
    arguments = parser.parse_args()
    networks = arguments.networks.split(",")
    if unknown := set(networks) - set(NETWORKS):
        parser.error(f"unknown networks {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    everything = cells(networks, arguments.dense_epochs, arguments.epochs)
    wanted = [cell for cell in everything if fnmatch.fnmatch(cell.name, arguments.only)]
    given = {name: Path(file) for name, _, file in (entry.partition("=") for entry in arguments.dense)}
    bench = Bench(
        data=arguments.data,
        work=arguments.work,
        given=given,
        pgd_images=arguments.pgd_images,
        autoattack_images=arguments.autoattack_images,
    )
    needed = {cell.network for cell in wanted if cell.network not in given and not bench.file(cell).exists()}
    chosen = [
        cell for cell in everything
        if cell in wanted or (cell.criterion == "dense" and cell.network in needed)
    ]  # fmt: skip
    print_plan(chosen, bench)
    if arguments.plan:
        return
    for cell in [] if arguments.table else chosen:
        with claimed(arguments.work / f"{cell.path.stem}.lock") as mine:
            if mine and bench.missing(cell, on_disk().get(cell, {})):
                print(f"== {cell.name}", flush=True)
                with show_progress():
                    bench.run(cell)
                print_plan(chosen, bench)
    write_tables()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether no other process works inside a block of the same path; one that is killed gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
            path.unlink(missing_ok=True)


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


if __name__ == "__main__":
    main()
