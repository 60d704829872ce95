"""Which classifiers come through: every one of torchvision's, the CIFAR networks, and one written for the purpose.

Each goes, in a process of its own, through inspect → score → prune at 50 % → forward → backward → save → load → the
same output → ONNX → parity. Weights are random and images are noise, as whether it works does not depend on them.
`prune` includes a proof: where no norm mixes channels, the pruned network has to compute what the dense one computes
with the removed channels' weights set to zero in every layer that reads them.

    python -m benchmarks.coverage                 # all that results/coverage.json does not hold yet
    python -m benchmarks.coverage resnet18 --again
"""

import argparse
import contextlib
import copy
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, save
from fsrp_edge.errors import FsrpEdgeError
from fsrp_edge.models.channel_graph import IS_OUTPUT

TIMEOUT_SECONDS = 900
MEMORY_BYTES = 12 * 2**30
RATIO, MULTIPLE = 0.5, 8
CUSTOM = Path(__file__).parent / "custom_network.py"


def networks() -> list[str]:
    """Identifiers of all networks that are tried."""
    from fsrp_edge.models import cifar
    from fsrp_edge.models.registry import torchvision_names

    return [
        *(f"torchvision:{name}" for name in torchvision_names()),
        *(f"cifar:{name}" for name in cifar.FACTORIES),
        f"{CUSTOM.relative_to(Path.cwd())}:build",
    ]


def input_size(architecture: str) -> int:
    """Height and width to try a network on: the smallest that it takes at little cost."""
    if architecture.startswith("cifar:") or architecture.startswith("benchmarks"):
        return 32
    name = architecture.partition(":")[2]
    if name.startswith(("vit", "swin", "maxvit", "alexnet", "vgg")):
        return 224  # fixed by the network, or by how ONNX has to write its adaptive pooling
    return 96 if name == "inception_v3" else 64


class Trial:
    """One network's way through all steps; `row` says how far it came and what was found.

    Args:
        architecture: its identifier.
        tell: called with the row after every step.
    """

    def __init__(self, architecture: str, tell: Callable[[dict[str, Any]], None]) -> None:
        self.row: dict[str, Any] = {"network": architecture, "input": input_size(architecture), "passed": []}
        self.tell = tell

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one step."""
        self.row["stopped_at"] = name
        self.tell(self.row)
        result = work()
        self.row["passed"].append(name)
        return result

    def run(self) -> None:
        """All steps; an error of ours ends the trial with its text."""
        started = time.perf_counter()
        try:
            self._run()
            del self.row["stopped_at"]
        except FsrpEdgeError as error:
            self.row |= {"reason": str(error).splitlines()[0], "refused": type(error).__name__}
        except Exception as error:
            self.row["reason"] = f"{type(error).__name__}: {error}"[:500]
        self.row["seconds"] = round(time.perf_counter() - started, 1)
        self.tell(self.row)

    def _run(self) -> None:
        import torch

        torch.manual_seed(0)
        dense = self.step("build", lambda: _build(self.row["network"], self.row["input"]))
        pruned = self._prune(dense)
        pixels = dense.example_pixels(2)
        self.step("forward", lambda: _logits(pruned, pixels))
        self.step("backward", lambda: _backward(copy.deepcopy(pruned)))
        with tempfile.TemporaryDirectory() as folder:
            self._export(self._reload(pruned, pixels, Path(folder)), Path(folder))

    def _prune(self, dense: Any) -> Any:
        from fsrp_edge.attacks import PGD
        from fsrp_edge.models.channel_graph import PruningGraph
        from fsrp_edge.pruning.options import PlanOptions
        from fsrp_edge.pruning.planning import make_plan
        from fsrp_edge.pruning.surgery import apply_plan
        from fsrp_edge.scoring.fsrp import FSRP
        from fsrp_edge.scoring.score import score

        groups = self.step("inspect", lambda: PruningGraph(dense).groups())
        criterion = FSRP(attack=PGD(steps=1), batch_size=4)
        scores = self.step("score", lambda: score(dense, _noise(dense.spec), criterion, seed=0))
        options = PlanOptions(ratio=RATIO, channel_multiple=MULTIPLE)
        plan = self.step("plan", lambda: make_plan(dense, scores, options))
        self.row["not_pruned"] = Counter(group.note for group in plan.groups if len(group.kept) == group.channels)
        self.row["off_multiple"] = {
            f"{group.root} ({len(group.kept)})": group.note for group in plan.groups if len(group.kept) % MULTIPLE
        }

        def prune() -> Any:
            pruned = apply_plan(dense, plan)
            self.row |= _compare(dense, pruned, groups, {group.root: group.kept for group in plan.groups})
            return pruned

        return self.step("prune", prune)

    def _reload(self, pruned: Any, pixels: Any, folder: Path) -> Any:
        import torch

        from fsrp_edge.models.checkpoint import load_classifier
        from fsrp_edge.models.saved import save_classifier

        path = folder / "pruned.safetensors"
        self.step("save", lambda: save_classifier(pruned, path))
        own = self.row["network"] if self.row["network"].startswith("benchmarks") else None
        loaded = self.step("load", lambda: load_classifier(path, architecture=own))

        def same() -> None:
            assert torch.equal(_logits(loaded, pixels), _logits(pruned, pixels)), "another output after loading"

        self.step("same output", same)
        return loaded

    def _export(self, classifier: Any, folder: Path) -> None:
        from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
        from fsrp_edge.exporting.parity import Reference, require_parity
        from fsrp_edge.targets.load import load_target

        requests = [ArtifactRequest("onnx", "fp32")]
        (artifact,) = self.step(
            "onnx",
            lambda: export_artifacts(classifier, requests, folder, ExportPlan(load_target("generic-x86"))),
        )

        def parity() -> None:
            found = Reference.of(classifier).check(folder / artifact.path, artifact)
            self.row["onnx_relative_error"] = float(f"{found[0].relative_error:.2g}")
            require_parity(found)

        self.step("parity", parity)


def _compare(dense: Any, pruned: Any, groups: Any, kept: Any) -> dict[str, Any]:
    """What went, and two checks: of the count that planning made, and against masking."""
    from fsrp_edge.models.size import measure_size
    from fsrp_edge.pruning.counting import SizeCounter

    before, after = measure_size(dense), measure_size(pruned)
    assert SizeCounter(dense, groups).size(kept) == after, "the plan's size was not counted right"
    return {
        "removed": {name: round(1 - new / getattr(before, name), 4) for name, new in after.model_dump().items()},
        "error_against_masking": _error_against_masking(dense, pruned, groups, kept),
    }


def _logits(classifier: Any, pixels: Any) -> Any:
    import torch

    from fsrp_edge.attacks import attackable

    with torch.no_grad(), attackable(classifier):
        return classifier(pixels)


def _build(architecture: str, size: int) -> Any:
    from fsrp_edge.models import registry
    from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing

    spec = ModelSpec(
        architecture=architecture,
        input_shape=(3, size, size),
        classes=10,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        preprocessing=Preprocessing(resize=size),
    )
    classifier = Classifier(registry.build(architecture, classes=10), spec)
    _enliven(classifier)
    return classifier.eval()


def _enliven(classifier: Any) -> None:
    """Batch-norm statistics of its own: some start so small that nothing of the image would be left in the logits."""
    import torch
    from torch.optim.swa_utils import update_bn

    (noise, _), *_ = _noise(classifier.spec).batches(4)
    update_bn([noise], classifier)
    first, *others = torch.unbind(_logits(classifier.eval(), noise))
    assert all((first - other).abs().max() > 1e-3 * first.abs().max() for other in others), (
        "the logits hardly depend on the image: no comparison of them would prove anything"
    )


def _noise(spec: Any) -> Any:
    import torch

    from fsrp_edge.data.images import ArraySource, ImageSet

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4, *spec.input_shape), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.from_numpy(random.integers(0, spec.classes, 4)))


def _error_against_masking(dense: Any, pruned: Any, groups: Any, kept: Any) -> float | None:
    """Largest difference of logits, relative to the largest; None where a norm across channels lost some."""
    from torch import nn

    from fsrp_edge.pruning.surgery import removed_channels

    masked = copy.deepcopy(dense).double()
    for (name, side), channels in removed_channels(groups, kept).items():
        with contextlib.suppress(AttributeError):  # a bare parameter
            layer = masked.network.get_submodule(name)
            if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                return None
            if side == "input":  # of a grouped convolution, the same positions in each group
                layer.weight.data[:, [channel for channel in channels if channel < layer.weight.shape[1]]] = 0
    pixels = dense.example_pixels(2).double()
    expected, seen = _logits(masked, pixels), _logits(copy.deepcopy(pruned).double(), pixels)
    error = float((expected - seen).abs().max() / expected.abs().max())
    assert error < 1e-6, f"the pruned network does not compute what the masked one does (relative error {error:.1e})"
    return float(f"{error:.1g}")


def _backward(classifier: Any) -> None:
    import torch
    import torch.nn.functional as F

    classifier.train()
    F.cross_entropy(classifier(classifier.example_pixels(2)), torch.tensor([0, 1])).backward()
    for name, parameter in classifier.network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), f"no gradient in {name}"


def _try_in_process(architecture: str) -> dict[str, Any]:
    """A row, whatever becomes of the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.coverage", "--one", architecture, str(path)]
        ended = f"ended after {TIMEOUT_SECONDS} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, timeout=TIMEOUT_SECONDS, capture_output=True, text=True, check=False)
            ended = f"the process ended with {done.returncode}: {done.stderr[-300:]}"
        row: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"network": architecture, "passed": []}
    if "stopped_at" in row and "reason" not in row:
        row["reason"] = ended
    return row


def _one(architecture: str, path: Path) -> None:
    import torch

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)

    def tell(row: dict[str, Any]) -> None:
        path.with_suffix(".new").write_text(json.dumps(row))
        path.with_suffix(".new").replace(path)

    Trial(architecture, tell).run()


def _table(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    table = []
    for row in rows:
        if "stopped_at" in row:
            verdict = "refused" if row.get("refused") == "BadInputError" else f"**stops at {row['stopped_at']}**"
            table.append([row["network"], row.get("input", ""), verdict, "", "", "", "", row["reason"].split(";")[0]])
            continue
        removed = row["removed"]
        shares = [f"{removed[name]:.0%}" for name in ("channels", "parameters", "macs")]
        notes = "; ".join(f"{count}x {note}" for note, count in _without_places(row["not_pruned"]).items())
        off = ", ".join(layer for layer, note in row["off_multiple"].items() if note != IS_OUTPUT)
        notes += f"; not multiples of {MULTIPLE}: {off[:120]}" if off else ""
        table.append([row["network"], row["input"], "passes", *shares, row["onnx_relative_error"], notes])
    return table


def _without_places(notes: dict[str, int]) -> Counter[str]:
    """Reasons that differ only in the layer they name, counted together."""
    merged: Counter[str] = Counter()
    for note, count in notes.items():
        words = [word for word in note.split() if "." not in word.strip(",.;")]
        merged[" ".join(words)] += count
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="only networks whose identifier contains one of these")
    parser.add_argument("--again", action="store_true", help="also those that the results hold already")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        _one(given.one[0], Path(given.one[1]))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    path = RESULTS / "coverage.json"
    rows = {row["network"]: row for row in (json.loads(path.read_text())["results"] if path.exists() else [])}
    everything = networks()
    for architecture in everything:
        if given.names and not any(name in architecture for name in given.names):
            continue
        if architecture in rows and not given.again:
            continue
        rows[architecture] = _try_in_process(architecture)
        row = rows[architecture]
        print(f"{architecture}: {row.get('reason') or 'passes'} ({row.get('seconds', '-')} s)", flush=True)
        done = [rows[name] for name in everything if name in rows]
        with contextlib.redirect_stdout(io.StringIO()):
            save(
                "coverage",
                done,
                (
                    "network",
                    "input",
                    "result",
                    "channels",
                    "parameters",
                    "MACs",
                    "ONNX error",
                    "groups left as they are",
                ),
                _table(done),
            )
    failed = [name for name, row in rows.items() if "stopped_at" in row and row.get("refused") != "BadInputError"]
    sys.exit(f"{len(failed)} of {len(rows)} stop: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
