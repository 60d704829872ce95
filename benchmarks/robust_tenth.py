"""How robust is the tenth of a network that the tool makes? As a user would: train, score, prune, recover, evaluate.

Every step is one of the tool's commands. It is skipped where its file is there already, and goes on where it stopped;
recoveries by other methods, and from other teachers, share all steps before them. On an H100 a step takes minutes; on
a CPU, a day. What comes out is kept in results/robust_tenth_networks, to be attacked without any training.

python -m benchmarks.robust_tenth --data cifar-10-batches-bin
python -m benchmarks.robust_tenth --data cifar-10-batches-bin --network resnet18 --method trades
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import RESULTS, parser_of, save
from benchmarks.robust_cells import ALL_IMAGES, NETWORKS
from benchmarks.robust_tables import PUBLISHED
from fsrp_edge.evaluation.statistics import wilson_interval
from fsrp_edge.files import read_json, write_json, write_text
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.size import measure_size

DENSE: dict[str, Any] = {"ema_decay": 0.999}
RECOVERY: dict[str, Any] = {"learning_rate": 0.1, "attack_steps": 5, "ema_decay": 0.999}
KEPT = RESULTS / "robust_tenth_networks"
PUBLISHED_PLACE = {"resnet18": 2, "vgg16": 5}
"""Of 90 % of the parameters in the rows of `PUBLISHED`."""
AUTOATTACK_DENSE = 1000
"""Images; the recovered network is given more."""
ATTACKS = ("clean", "pgd-20", "cw-20", "autoattack")
MARGIN = "-margin"
"""Ends the name of the verdicts on all images by what costs little: how much easier were those AutoAttack was given?"""


def main() -> None:
    """Work on what is missing, then write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--network", choices=PUBLISHED_PLACE, default="vgg16")
    parser.add_argument("--work", type=Path, help="for checkpoints; runs/robust_tenth/NETWORK if not given")
    parser.add_argument("--params", default="0.1", help="share of the parameters that is kept")
    parser.add_argument("--dense-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=60, help="of recovery")
    parser.add_argument("--batch-size", type=int, default=256, help="of recovery")
    parser.add_argument("--method", default="rslad", help="of recovery; all but trades learn from a teacher")
    parser.add_argument("--teacher", type=Path, help="the dense network if not given")
    parser.add_argument("--images", type=int, default=10_000, help="that AutoAttack is given")
    parser.add_argument("--table", action="store_true", help="write the table of what is there and stop")
    arguments = parser.parse_args()
    work: Path = arguments.work or Path("runs/robust_tenth") / arguments.network
    work.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        recover_and_judge(arguments, work)
    write(arguments.network, work)


def recover_and_judge(arguments: argparse.Namespace, work: Path) -> None:
    """From an architecture to verdicts on the tenth of it, and on what it came from where that was made here."""
    data, method = ("--data", arguments.data), arguments.method
    from_other = f"-{arguments.teacher.stem}" if arguments.teacher else ""
    recovered = KEPT / f"{arguments.network}-{method}{from_other}.safetensors"
    if not recovered.exists():
        recover(arguments, work, recovered)
    judged = ("--attack", "pgd-20", "--attack", "autoattack", "--images")
    make(recovered.with_suffix(".json"), "evaluate", recovered, *data, *judged, arguments.images)
    make(_margin_of(recovered), "evaluate", recovered, *data, "--attack", "cw-20", "--images", ALL_IMAGES)
    for before in (work / "dense.safetensors", work / "pruned.safetensors"):
        if before.exists():
            make(before.with_suffix(".json"), "evaluate", before, *data, *judged, AUTOATTACK_DENSE)


def recover(arguments: argparse.Namespace, work: Path, recovered: Path) -> None:
    """From an architecture to the tenth of it."""
    data, method = ("--data", arguments.data), arguments.method
    dense, scores, pruned = (work / name for name in ("dense.safetensors", "scores.json", "pruned.safetensors"))
    for name, recipe in (("dense", DENSE), ("recovery", RECOVERY)):
        write_text(work / f"{name}.yaml", yaml.safe_dump(recipe))
    make(dense, "train", "--arch", NETWORKS[arguments.network], *data, "--epochs", arguments.dense_epochs,
         "--recipe", work / "dense.yaml")  # fmt: skip
    make(scores, "score", dense, *data, "--criterion", "fsrp-reconstruction")
    make(pruned, "prune", dense, "--scores", scores, *data, "--params", arguments.params, "--compensate")
    teacher = () if method == "trades" else ("--teacher", arguments.teacher or dense)
    KEPT.mkdir(exist_ok=True)
    make(recovered, "recover", pruned, *data, *teacher, "--recover-method", method, "--recover-epochs",
         arguments.epochs, "--batch-size", arguments.batch_size, "--recipe", work / "recovery.yaml")  # fmt: skip


def make(file: Path, *command: object) -> None:
    """Run a command of the tool unless what it makes is there; its seconds are kept beside that."""
    if file.exists():
        return
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fsrp_edge", *map(str, command), "--out", str(file)], check=True)
    write_json(file.with_name(f"{file.name}.seconds"), {"seconds": time.perf_counter() - started})


def write(network: str, work: Path) -> None:
    """The table of every network that was judged."""
    found: dict[str, Any] = {}
    for weights in (*sorted(work.glob("*.safetensors")), *sorted(KEPT.glob(f"{network}-*.safetensors"))):
        judged = [file for file in (weights.with_suffix(".json"), _margin_of(weights)) if file.exists()]
        if judged:
            found[weights.stem] = {
                "evaluations": [each for file in judged for each in read_json(file)["evaluations"]],
                "size": measure_size(load_classifier(weights)).model_dump(),
                "bytes": weights.stat().st_size,
            }
    rows: list[Sequence[object]] = []
    for name, each in found.items():
        standing = {
            evaluation["result"]["attack"]: evaluation["standing"]
            for evaluation in sorted(each["evaluations"], key=lambda other: len(other["standing"]))
        }
        size = each["size"]
        for images in sorted({len(stands) for stands in standing.values()}):
            rows.append([
                name if name.startswith(network) else f"{network}, {name}",
                f"{images:,}",
                *(_accuracy(standing.get(attack, ""), images) for attack in ATTACKS),
                f"{size['macs'] / 1e6:.0f}", f"{size['parameters'] / 1e6:.2f}", f"{each['bytes'] / 1e6:.1f}",
            ])  # fmt: skip
    for name, accuracies in PUBLISHED.items():
        clean, attacked = accuracies[PUBLISHED_PLACE[network]].split("/")
        row = [f"{name} (published, 90 % fewer parameters)", f"{ALL_IMAGES:,}", clean, "–", "–", attacked]
        rows.append([*row, "–", "–", "–"])
    times = (*sorted(work.glob("*.seconds")), *sorted(KEPT.glob(f"{network}-*.seconds")))
    seconds = {file.name: read_json(file)["seconds"] for file in times}
    header = ("network", "first images", "clean %", "PGD-20 %", "CW-20 %", "AutoAttack %", "M MACs",
              "M parameters", "MB")  # fmt: skip
    save(f"robust_tenth_{network}", {"networks": found, "seconds": seconds}, header, rows)


def _margin_of(weights: Path) -> Path:
    return weights.with_name(f"{weights.stem}{MARGIN}.json")


def _accuracy(standing: str, images: int) -> str:
    """Of the first images; an attack that was given fewer has none."""
    if len(standing) < images:
        return "–"
    correct = standing[:images].count("1")
    low, high = wilson_interval(correct, images)
    return f"{100 * correct / images:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
