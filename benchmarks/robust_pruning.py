"""Does FSRP keep more robust accuracy than other criteria? The same budget, the same recovery, image by image.

Every cell (network, criterion, budget, seed, length of recovery) is a file in results/robust_pruning_cells and is
worked on once; training, recovery and attacks resume within a cell too, and the same call may run several times side by
side. The plan is printed first, with hours as far as cells of the same network were measured. The headline (90 % of the
parameters) comes first. Small networks, dense or of the first seed, are kept in results/robust_pruning_networks, so
that anyone can cut and attack them without training, and an attack that a cell lacks, or had on fewer images
(`--autoattack-images 0` leaves AutoAttack for later), is run on what is kept.

python -m benchmarks.robust_pruning --data cifar-10-batches-bin --plan
python -m benchmarks.robust_pruning --data cifar-10-batches-bin --only 'vgg16-w0.25 * 0.9 parameters *'
python -m benchmarks.robust_pruning --data cifar-10-batches-bin --dense vgg16=vgg16-cifar10-nfgsm.safetensors
"""

import fcntl
import fnmatch
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, bits, parser_of, provenance_now
from benchmarks.robust_cells import (
    ALL_IMAGES,
    DENSE,
    FIRST_IMAGES,
    KNAPSACK,
    NETWORKS,
    RECOVERY,
    SMALL,
    Cell,
    cells,
    criterion_of,
    on_disk,
)
from benchmarks.robust_figure import draw
from benchmarks.robust_summary import write_summary
from benchmarks.robust_tables import groups, write_tables
from fsrp_edge import compute
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import Dataset
from fsrp_edge.data.open import open_dataset
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.evaluation.results import Evaluation
from fsrp_edge.evaluation.standing import discard_verdicts
from fsrp_edge.files import write_json
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import save_classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pruning.budgets import BudgetKind, Budgets, Limit
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.refinement import Gauge, Planner, probe_images
from fsrp_edge.pruning.stepwise import plan_by_strategy
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.score import score
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.training.dense import train_dense
from fsrp_edge.training.recovery import recover

KEPT = RESULTS / "robust_pruning_networks"
KEPT_BYTES, KEPT_DENSE_BYTES = 700_000, 4_000_000
SCORE_IMAGES = 512


@dataclass(frozen=True)
class Bench:
    """Where the data and the checkpoints are, and how much is judged."""

    data: str
    work: Path
    given: dict[str, Path]
    autoattack_images: int

    def dense(self, cell: Cell) -> Classifier:
        """The network that is cut: given as a file, or trained here once."""
        path = self.dense_file(cell.network)
        if not path.exists():
            raise SystemExit(f"{path} is missing: run the cell '{cell.network} dense …' first")
        return _ready(load_classifier(path))

    def dense_file(self, network: str) -> Path:
        """Where that is."""
        return self.given.get(network) or self._checkpoint(f"{network}_dense")

    def _checkpoint(self, name: str) -> Path:
        """Where a network is that is made here: among those kept, or in the work folder."""
        kept = KEPT / f"{name}.safetensors"
        return kept if kept.exists() else self.work / kept.name

    def train(self, cell: Cell) -> Classifier:
        """The dense network of a cell."""
        path = self.dense_file(cell.network)
        if not path.exists() and cell.network not in self.given:
            assert cell.recipe is not None, "a dense network is trained"
            trained = train_dense(
                NETWORKS[cell.network], self.data, cell.recipe,
                classes=10, input_size=None, seed=cell.seed, checkpoint=path.with_suffix(".unfinished.pt"),
            )  # fmt: skip
            save_classifier(trained.classifier, path)
            _keep(path, KEPT_DENSE_BYTES)
        return self.dense(cell)

    def prune(self, cell: Cell, dense: Classifier, dataset: Dataset) -> Classifier:
        """Cut by the cell's criterion."""
        criterion, options = criterion_of(cell.criterion)
        images = dataset.train.sample(SCORE_IMAGES, cell.seed)

        def scorer(network: Classifier) -> FilterScores:
            return score(_ready(network), images, criterion, seed=cell.seed)

        scores = scorer(dense)
        wanted = PlanOptions(ratio=cell.ratio, ratio_of=cell.ratio_of, **options)
        plan = plan_by_strategy(dense, make_plan(dense, scores, wanted), wanted, scorer)
        if kinds := KNAPSACK.get(cell.criterion):
            plan = self.allocated(cell, scores, apply_plan(dense, plan), kinds, dense, dataset)
        if not cell.compensated:
            return apply_plan(dense, plan)
        fitting = dataset.train.sample(most_images(dense.spec), cell.seed)
        return apply_plan(dense, plan, DenseOutputs(dense, fitting, trained_after=cell.epochs > 0))

    def allocated(
        self, cell: Cell, scores: FilterScores, uniform: Classifier, kinds: Iterable[BudgetKind],
        dense: Classifier, dataset: Dataset,
    ) -> PruningPlan:  # fmt: skip
        """A plan by the knapsack that costs no more than a network does which lost the same share everywhere."""
        size = measure_size(uniform)
        limits = {kind: Limit(amount=getattr(size, kind)) for kind in kinds}
        gauge = Gauge(
            dense, dataset.train.sample(probe_images(dense.spec), cell.seed),
            compensated=cell.compensated,
        )  # fmt: skip
        return Planner(gauge, scores).plan(PlanOptions(budgets=Budgets(**limits)), None)

    def run(self, cell: Cell) -> None:
        """Make the network of a cell unless it is there, then judge it by the attacks that its result lacks."""
        # A network that is made again, on a GPU, is another one: it is not judged half by what the first one did.
        result = cell.result if self.file(cell).exists() else {}
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
            discard_verdicts(self.unfinished(cell, attack))

    def described(self, cell: Cell, network: Classifier, *, seconds: float) -> dict[str, Any]:
        """A cell's result before it is judged."""
        trained_here = cell.recipe if cell.criterion != "dense" or cell.network not in self.given else None
        dense = cell.criterion == "dense"
        return {
            "cell": asdict(cell),
            "recipe": trained_here and trained_here.model_dump(mode="json"),
            "criterion": None if dense else criterion_of(cell.criterion)[0].model_dump(mode="json"),
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
            if attack not in found or found[attack]["images"] < images
        ]  # fmt: skip

    def attacks(self, cell: Cell) -> dict[str, int]:
        """Number of images each attack gets, the first of the test set."""
        wanted = dict.fromkeys(("clean", "pgd-20", "cw-20"), ALL_IMAGES)
        if cell.attacked_by_autoattack and self.autoattack_images:
            wanted["autoattack"] = self.autoattack_images
        return wanted

    def file(self, cell: Cell) -> Path:
        """Checkpoint of a cell."""
        return self.dense_file(cell.network) if cell.criterion == "dense" else self._checkpoint(cell.path.stem)

    def unfinished(self, cell: Cell, attack: str) -> Path:
        """Verdicts of an attack on a cell as long as its result is not saved."""
        return self.work / f"{cell.path.stem}-{attack}.unfinished.json"

    def recovered(self, cell: Cell) -> Classifier:
        """Prune and recover, unless that was done; then the dense network is not needed."""
        path = self.file(cell)
        if not path.exists():
            dense = self.dense(cell)
            dataset = open_dataset(self.data, dense.spec, seed=cell.seed)
            pruned = _ready(self.prune(cell, dense, dataset))
            unfinished = path.with_suffix(".unfinished.pt")
            teacher = dense if cell.recipe is not None and cell.recipe.needs_teacher else None
            result = recover(pruned, dataset.train, cell.recipe, seed=cell.seed, teacher=teacher, checkpoint=unfinished)
            save_classifier(result.classifier, path)
            unfinished.unlink(missing_ok=True)
            if cell.epochs and cell.seed == 0:
                _keep(path, KEPT_BYTES)
        return _ready(load_classifier(self.file(cell)))

    def judged(self, cell: Cell, attack: str, network: Classifier, dataset: Dataset) -> Evaluation:
        """Clean or under one attack, image by image."""
        chosen = dataset.evaluation.first(self.attacks(cell)[attack])
        if attack == "clean":
            return clean_accuracy(network, chosen)
        on_gpu = compute.device_of(network).type == "cuda"
        plan = EvaluationPlan(attacks=(attack,), batch_size=None if on_gpu else 128)
        return evaluate(network, chosen, plan, unfinished=self.unfinished(cell, attack))[1]


def _keep(path: Path, most: int) -> None:
    """For good, if it has no more bytes than that."""
    if path.stat().st_size <= most:
        KEPT.mkdir(exist_ok=True)
        shutil.move(path, KEPT)


def _ready(classifier: Classifier) -> Classifier:
    classifier.to_fast_layout(compute.default_device())
    return classifier


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
    return sum(map(statistics.median, left)) / 3600 if all(left) else None


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
    print(f"{done} of {len(chosen)} cells done; {total:.1f} h left for those measured, {unknown} not measured")


def main() -> None:
    """Print the plan, work on what is missing, write the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", default=",".join(SMALL), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--dense", action="append", default=[], metavar="NETWORK=FILE", help="not to be trained here")
    parser.add_argument("--work", type=Path, default=Path("runs/robust_pruning"), help="for checkpoints")
    parser.add_argument("--only", default="*", help="pattern of cell names; the dense networks to train come along")
    parser.add_argument("--plan", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--table",
        action="store_true",
        help="write tables and figure from the finished cells, those of docs/robustness.md too, and stop",
    )
    parser.add_argument("--dense-epochs", type=int, default=DENSE.epochs)
    parser.add_argument("--epochs", type=int, default=RECOVERY.epochs, help="of recovery")
    parser.add_argument(
        "--autoattack-images", type=int, choices=(0, FIRST_IMAGES, ALL_IMAGES), default=FIRST_IMAGES,
        help="the first of the test set; 0: leave AutoAttack for later",
    )  # fmt: skip
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
            if mine and bench.missing(cell, cell.result):
                print(f"== {cell.name}", flush=True)
                with show_progress():
                    bench.run(cell)
                print_plan(chosen, bench)
    found = groups()
    write_tables(found)
    draw(found)
    write_summary(found)


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


if __name__ == "__main__":
    main()
