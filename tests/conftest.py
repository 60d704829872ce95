"""Fixtures that tests of several rooms use."""

import signal
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fsrp_edge.report.schema import RunReport

pytest_plugins = ["tests.sshd"]

# A shell that starts the tests in the background ignores SIGINT for them and all their children; the tests of Ctrl-C
# are about what a user at a terminal gets.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every machine, so that a merge is never stopped by another one's chance find;
# `pytest --hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

HOSTILE = ("<script>alert(1)</script>|x|", "`a`\n# b", "[link](http://x)", "\x1b[31mred_*bold*")
"""Class names that try to be HTML, Markdown, a new table cell or a terminal's escape sequence."""


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests keeps their own profiles and their job's summary to themselves.

    What programs leave that tests kill goes with the session; in a short path, as sockets of ssh are there too.
    """
    tmp_path_factory.getbasetemp()  # chosen before, or the files of failed tests would go as well
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        patch.setenv("FSRP_EDGE_PROFILES", f"{folder}/profiles")
        for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
            patch.delenv(name, raising=False)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session")
def trained_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VGG, trained on real handwritten digits for a few seconds: right on more than nine of ten."""
    from fsrp_edge.models.saved import save_checkpoint_pt
    from fsrp_edge.training.dense import train_dense
    from fsrp_edge.training.recipe import Recipe

    recipe = Recipe(method="natural", epochs=3, batch_size=64, learning_rate=0.05)
    options = {"classes": 10, "input_size": None, "seed": 0}
    trained = train_dense("cifar:vgg16_bn-w0.125", "digits", recipe, **options)
    path = tmp_path_factory.mktemp("trained") / "vgg.pt"
    save_checkpoint_pt(trained.classifier, path)
    return path


@pytest.fixture(scope="session")
def digits_npz(trained_checkpoint: Path) -> Path:
    """Some of these digits as a user's own file: 320 to train on and 100 to judge by."""
    import numpy as np

    from fsrp_edge.data.embedded import digits
    from fsrp_edge.models.checkpoint import load_classifier

    data = digits(load_classifier(trained_checkpoint).spec)
    arrays: dict[str, Any] = {}
    for name, images, count in (("train", data.train, 320), ("test", data.evaluation, 100)):
        pixels, labels = next(images.batches(count))
        arrays |= {f"x_{name}": (pixels * 255).round().byte().numpy(), f"y_{name}": labels.numpy()}
    path = trained_checkpoint.with_name("digits.npz")
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session", autouse=True)
def _hang_ups() -> None:
    """Under nohup what tests start heeds SIGHUP as at a terminal, and the tests themselves go on.

    Not where this file is read: pytest-xdist's workers would inherit it, and end when the terminal goes away.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture
def run_report() -> "RunReport":
    """A report with figures of the size that a CIFAR-10 ResNet-20 gives, and hostile class names."""
    return make_report()


@pytest.fixture
def estimated_report(run_report: "RunReport") -> "RunReport":
    """The same with estimates of its ONNX files on the target."""
    from fsrp_edge.report.schema import EstimatedLatency

    def estimate(milliseconds: float) -> EstimatedLatency:
        interval = (0.5 * milliseconds, 2 * milliseconds)
        return EstimatedLatency(
            runtime="onnxruntime", threads=4, milliseconds=milliseconds, interval=interval, basis="35 measurements"
        )

    found = {"dense onnx fp32": estimate(8.35), "onnx fp32": estimate(5.98)}
    ledger = tuple(row.model_copy(update={"estimate": found.get(row.name)}) for row in run_report.ledger)
    return run_report.model_copy(update={"ledger": ledger})


@pytest.fixture
def agreement_report() -> "RunReport":
    """The same of a run without labels."""
    return make_report(label_kind="predictions of the dense network", warnings=(NOT_MEASURED,))


NOT_MEASURED = "accuracy was not measured: no labelled data; agreement with the dense network was measured instead"


def make_report(*, label_kind: Any = "ground truth", warnings: tuple[str, ...] = ()) -> "RunReport":
    import torch

    from fsrp_edge.bench.results import Latency
    from fsrp_edge.evaluation.paired import paired_difference
    from fsrp_edge.evaluation.results import PairedDifference, ReportedAccuracy
    from fsrp_edge.exporting.artifact import Artifact
    from fsrp_edge.exporting.parity import TOLERANCES, Parity
    from fsrp_edge.models.classifier import ModelSpec, Preprocessing
    from fsrp_edge.models.size import Size
    from fsrp_edge.report import schema

    def change(lost: int, won: int) -> PairedDifference:
        first = torch.arange(1000) < lost
        return paired_difference(first, ~first & (torch.arange(1000) < lost + won))

    def accuracy(
        correct: int,
        low: float,
        high: float,
        attack: str = "clean",
        since_dense: PairedDifference | None = None,
    ) -> ReportedAccuracy:
        attacked: dict[str, Any] = {"norm": "Linf", "eps": 8 / 255, "seed": 0} if attack != "clean" else {}
        return ReportedAccuracy(
            attack=attack,
            images=1000,
            correct=correct,
            accuracy=correct / 1000,
            interval=(low, high),
            data="cifar10/test",
            label_kind=label_kind,
            since_dense=since_dense,
            **attacked,
        )

    def latency(model: str, p50: float, threads: int, runtime: str = "onnxruntime") -> Latency:
        return Latency(
            model=model,
            sha256="a" * 64,
            device="local: Intel(R) Xeon(R) Processor @ 2.80GHz, 2 cores",
            runtime=runtime,
            runtime_version="1.32.0" if runtime == "onnxruntime" else "2.3.0",
            threads=threads,
            warmup_runs=10,
            runs=1000,
            init_ms=12.5,
            first_ms=3 * p50,
            min_ms=0.95 * p50,
            mean_ms=1.02 * p50,
            std_ms=0.05 * p50,
            p50_ms=p50,
            p90_ms=1.05 * p50,
            p95_ms=1.1 * p50,
            p99_ms=1.3 * p50,
            p50_interval_ms=(0.99 * p50, 1.01 * p50),
        )

    def parity(name: str, runtime: Any, precision: Any, error: float) -> tuple[Parity, ...]:
        places: tuple[tuple[Any, int, float], ...] = (("random", 8, 0.875), ("real", 64, 1.0))
        return tuple(
            Parity(
                artifact=name,
                runtime=runtime,
                inputs=inputs,
                images=images,
                max_abs_error=error,
                mean_abs_error=error / 10,
                relative_error=error / 8,
                cosine=1 - error / 100,
                top1_agreement=agreement,
                tolerance=TOLERANCES[precision, inputs],
                passed=True,
            )
            for inputs, images, agreement in places
        )

    def artifact(file: str, kind: Any, precision: Any, size: int) -> Artifact:
        return Artifact(
            path=Path("artifacts") / file,
            format=kind,
            precision=precision,
            layout="NCHW" if kind == "onnx" else "NHWC",
            bytes=size,
            sha256="c" * 64,
            opset=13 if kind == "onnx" else None,
        )

    dense, small = {"macs": 40_813_184, "parameters": 272_474}, {"macs": 10_430_000, "parameters": 68_700}
    images = schema.ImageSetReference(name="cifar10/test", images=10_000, sha256="d" * 64)
    return schema.RunReport(
        request=schema.Request(
            options={
                "data": Path("/home/ada/cifar-10-batches-bin"),
                "ratio": 0.5,
                "format": ["onnx", "tflite"],
            },
            target=schema.TargetReference(name="raspberry-pi-4", sha256="e" * 64),
            seed=0,
        ),
        source=schema.Source(
            checkpoint="/home/ada/models/resnet20_cifar10.th",
            sha256="f" * 64,
            model=ModelSpec(
                architecture="/home/ada/nets.py:resnet20",
                input_shape=(3, 32, 32),
                classes=4,
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
                preprocessing=Preprocessing(resize=32),
                class_names=HOSTILE,
            ),
        ),
        data=schema.DataUsed(
            description="CIFAR-10, binary layout",
            train=images.model_copy(update={"name": "cifar10/train", "images": 50_000}),
            evaluation=images,
            label_kind=label_kind,
        ),
        pruning=schema.Pruning(
            criterion="fsrp",
            ratio=0.5,
            ratio_of="channels",
            channel_multiple=4,
            groups=(
                schema.GroupChannels(layers=("conv1", "layer1.0.conv2", "layer1.1.conv2"), before=16, after=8),
                schema.GroupChannels(layers=("layer1.0.conv1",), before=16, after=8),
            ),
            before=Size(channels=688, **dense),
            after=Size(channels=344, **small),
            plan_sha256="0" * 64,
        ),
        recovery=schema.Recovery(
            recipe={"learning_rate": 0.05, "loss": "trades"},
            epochs=4,
            best_epoch=3,
            history=({"epoch": 1, "loss": 1.52}, {"epoch": 2, "loss": float("nan")}),
        ),
        ledger=(
            schema.LedgerRow(
                name="dense",
                accuracies=(accuracy(917, 0.898, 0.932), accuracy(2, 0.0, 0.007, "pgd-20")),
                **dense,
            ),
            schema.LedgerRow(
                name="pruned",
                accuracies=(accuracy(313, 0.285, 0.342), accuracy(10, 0.005, 0.018, "pgd-20")),
                **small,
            ),
            schema.LedgerRow(
                name="recovered",
                accuracies=(
                    accuracy(746, 0.718, 0.772, since_dense=change(190, 19)),
                    accuracy(421, 0.391, 0.452, "pgd-20", change(1, 420)),
                ),
                **small,
            ),
            schema.LedgerRow(
                name="dense onnx fp32",
                bytes=1_095_000,
                latency=(latency("dense.onnx", 1.234, 1), latency("dense.onnx", 0.701, 2)),
                **dense,
            ),
            schema.LedgerRow(
                name="onnx fp32",
                accuracies=(accuracy(746, 0.718, 0.772, since_dense=change(190, 19)),),
                bytes=287_000,
                latency=(latency("model.onnx", 0.412, 1), latency("model.onnx", 0.301, 2)),
                parity=parity("onnx fp32", "onnxruntime", "fp32", 3.1e-6),
                **small,
            ),
            schema.LedgerRow(
                name="tflite int8",
                accuracies=(accuracy(741, 0.713, 0.767, since_dense=change(200, 24)),),
                bytes=98_304,
                latency=(latency("model_int8.tflite", 0.395, 1, "litert"),),
                parity=parity("tflite int8", "litert", "int8", 0.21),
                **small,
            ),
        ),
        artifacts=(
            artifact("model.onnx", "onnx", "fp32", 287_000),
            artifact("model_int8.tflite", "tflite", "int8", 98_304),
        ),
        stages=(
            schema.StageTime(name="score", seconds=31.2, resumed=True),
            schema.StageTime(name="recover", seconds=312.0),
        ),
        warnings=warnings,
        provenance=schema.Provenance(
            fsrp_edge="0.1.0",
            python="3.11.7",
            libraries={"torch": "2.13.0", "onnxruntime": "1.32.0"},
            machine=schema.Machine(cpu="Intel(R) Xeon(R) Processor @ 2.80GHz", cores=2, os="Linux 6.1 x86_64"),
            started_at=datetime(2026, 11, 22, 10, 0, tzinfo=UTC),
        ),
    )
