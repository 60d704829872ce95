"""How robust is the tenth of a VGG16 that the tool makes? As a user would: train, score, prune, recover, evaluate.

Every step is one of the tool's commands. It is skipped where its file is there already, and goes on where it stopped.
On an H100 all of them take minutes; on a CPU, days.

python -m benchmarks.robust_vgg16 --data cifar-10-batches-bin
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import parser_of, save
from benchmarks.robust_pruning import PUBLISHED
from fsrp_edge.files import read_json, write_text
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.size import measure_size

DENSE: dict[str, Any] = {"method": "n-fgsm", "ema_decay": 0.999}
RECOVERY: dict[str, Any] = {"method": "pgd", "attack_steps": 5, "ema_decay": 0.999, "distillation": 0.7,
                            "batch_size": 256, "crop_padding": 4, "flip": True}  # fmt: skip


def main() -> None:
    """Work on what is missing, then write the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/robust_vgg16"))
    parser.add_argument("--arch", default="cifar:vgg16_bn")
    parser.add_argument("--params", default="0.1", help="share of the parameters that is kept")
    parser.add_argument("--dense-epochs", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=60, help="of recovery")
    parser.add_argument("--images", type=int, default=10_000, help="that AutoAttack is given")
    arguments = parser.parse_args()
    work, data = arguments.work, ("--data", arguments.data)
    work.mkdir(parents=True, exist_ok=True)
    for name, recipe in (("dense", DENSE), ("recovery", RECOVERY)):
        write_text(work / f"{name}.yaml", yaml.safe_dump(recipe))
    dense, scores, pruned, recovered = (
        work / name
        for name in ("dense.safetensors", "scores.json", "pruned.safetensors", "recovered.safetensors")
    )
    seconds = {
        "train": tool(dense, "train", "--arch", arguments.arch, *data, "--epochs", arguments.dense_epochs,
                      "--recipe", work / "dense.yaml"),
        "score": tool(scores, "score", dense, *data, "--criterion", "fsrp-reconstruction"),
        "prune": tool(pruned, "prune", dense, "--scores", scores, *data, "--params", arguments.params,
                      "--compensate"),
        "recover": tool(recovered, "recover", pruned, *data, "--teacher", dense, "--recover-epochs",
                        arguments.epochs, "--recipe", work / "recovery.yaml"),
    }  # fmt: skip
    networks = {"dense": dense, "pruned": pruned, "recovered": recovered}
    found: dict[str, Any] = {}
    for name in ("recovered", "dense", "pruned"):
        images = arguments.images if name == "recovered" else 1000
        attacks = (
            ("--attack", "pgd-20", "--attack", "autoattack")
            if name == "recovered"
            else ("--attack", "pgd-20")
        )
        judged = work / f"{name}.json"
        seconds[f"evaluate {name}"] = tool(
            judged, "evaluate", networks[name], *data, *attacks, "--images", images
        )
        found[name] = {
            "evaluations": read_json(judged)["evaluations"],
            "size": measure_size(load_classifier(networks[name])).model_dump(),
            "bytes": networks[name].stat().st_size,
        }
        write(found, seconds)


def tool(made: Path, *command: object) -> float:
    """Seconds of one command of the tool, 0 where what it makes is there."""
    if made.exists():
        return 0.0
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fsrp_edge", *map(str, command), "--out", str(made)], check=True)
    return time.perf_counter() - started


def write(found: dict[str, Any], seconds: dict[str, float]) -> None:
    """The table as far as it is known."""
    rows: list[Sequence[object]] = []
    for name, network in found.items():
        results = [each["result"] for each in network["evaluations"]]
        by_attack = {result["attack"]: result for result in results}
        size = network["size"]
        rows.append([
            f"VGG16, {name}", *(_accuracy(by_attack.get(attack)) for attack in ("clean", "pgd-20", "autoattack")),
            f"{size['macs'] / 1e6:.0f}", f"{size['parameters'] / 1e6:.2f}", f"{network['bytes'] / 1e6:.1f}",
        ])  # fmt: skip
    for name, accuracies in PUBLISHED.items():
        clean, attacked = accuracies[-1].split("/")  # of the VGG16 without 90 % of its parameters
        rows.append([f"{name} (published)", clean, "–", attacked, "–", "1.47", "–"])
    header = ("network", "clean %", "PGD-20 %", "AutoAttack %", "M MACs", "M parameters", "MB")
    save("robust_vgg16", {"networks": found, "seconds": seconds}, header, rows)


def _accuracy(result: dict[str, Any] | None) -> str:
    if result is None:
        return "–"
    low, high = result["interval"]
    return f"{100 * result['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f}, n={result['images']})"


if __name__ == "__main__":
    main()
