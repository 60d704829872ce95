"""compress() on a small network that was really trained, with real files, runtimes, processes and signals."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fsrp_edge.attacks import PGD
from fsrp_edge.bench.results import BenchResults
from fsrp_edge.bench.setup import Method
from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.exporting import verified
from fsrp_edge.files import read_json, sha256_file
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pipeline.compress import CompressResult, compress
from fsrp_edge.pipeline.evidence import break_down
from fsrp_edge.pipeline.inputs import Inputs, choose_artifacts, load_data, prepare
from fsrp_edge.pipeline.networks import _prune_in_rounds, recover_network
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.run import Run
from fsrp_edge.pipeline.rundir import RunDirectory, StageRecord
from fsrp_edge.progress import log_to
from fsrp_edge.pruning.budgets import Budgets
from fsrp_edge.pruning.compensation import DenseOutputs, most_images
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.records import Document
from fsrp_edge.report.evidence import Pictured
from fsrp_edge.report.manifest import MANIFEST
from fsrp_edge.report.store import load_report
from fsrp_edge.report.verify import verify
from fsrp_edge.runtimes import open_session
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.scores import FilterScores
from fsrp_edge.targets.load import load_target
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import without_held_out

EVERY_STAGE = [
    *(
        "baseline",
        "score",
        "plan",
        "prune",
        "recover",
        "evaluate-dense",
        "evaluate-pruned",
        "evaluate-recovered",
    ),
    *(
        "export-dense",
        "export-artifacts",
        "bench",
        "evaluate-dense-onnx-fp32",
        "evaluate-artifacts-onnx-fp32",
    ),
    *(
        "evaluate-artifacts-onnx-fp32-attacked",
        "evaluate-artifacts-onnx-int8",
        "evaluate-artifacts-onnx-int8-attacked",
        "evidence",
    ),
]
OF_INT8 = {"evaluate-artifacts-onnx-int8", "evaluate-artifacts-onnx-int8-attacked"}
OF_FP32 = {"evaluate-artifacts-onnx-fp32", "evaluate-artifacts-onnx-fp32-attacked"}


@pytest.fixture(scope="session")
def options(trained_checkpoint: Path, digits_npz: Path) -> CompressOptions:
    """A quick run; `out` is for each test to choose."""
    return CompressOptions(
        checkpoint=trained_checkpoint,
        data=str(digits_npz),
        target="generic-x86",
        formats=("onnx",),
        criterion=FSRP(attack=PGD(steps=1)),
        score_images=40,
        recovery=Recipe(epochs=6, batch_size=32, learning_rate=0.01, eps=0.05, schedule="cosine"),
        attacks=("pgd-2",),
        robust_images=20,
        file_images=6,
        calibration_images=32,
        method=Method(warmup_runs=0, warmup_seconds=0, runs=2, seconds=0, rounds=1),
    )


@pytest.fixture(scope="session")
def finished(options: CompressOptions, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    return compress(options.model_copy(update={"out": tmp_path_factory.mktemp("runs") / "finished"}))


@pytest.fixture
def again(finished: CompressResult, options: CompressOptions, tmp_path: Path) -> Any:
    """Runs in a copy of the finished run's directory, with some options changed."""
    directory = tmp_path / "run"
    shutil.copytree(finished.directory, directory)

    def run(**changed: Any) -> CompressResult:
        return compress(options.model_copy(update={"out": directory, **changed}))

    run.directory = directory  # type: ignore[attr-defined]
    return run


def redone(result: CompressResult) -> list[str]:
    return [stage.name for stage in result.report.stages if not stage.resumed]


def figures(result: CompressResult) -> dict[str, Any]:
    """What a report says, without when and how long."""
    content = result.report.model_dump(mode="json")
    del content["provenance"]["started_at"], content["stages"], content["request"]["options"]["out"]
    return content


def left(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# -- what the report shows ------------------------------------------------------------------------------------------


def test_the_evidence_agrees_with_the_ledger(finished: CompressResult) -> None:
    pictured = Pictured.load(finished.directory)
    evidence, dense = pictured.evidence, finished.report.ledger[0].accuracies[0]
    assert sum(each.images for each in evidence.classes) == dense.images
    assert sum(each.dense for each in evidence.classes) == dense.correct
    assert [point.network for point in evidence.curve] == ["dense"] * 4 + ["recovered"] * 4
    for network in ("dense", "recovered"):
        shares = [point.accuracy.accuracy for point in evidence.curve if point.network == network]
        assert shares == sorted(shares, reverse=True)
    assert evidence.breakdown is None  # nothing was published for this target
    file = finished.directory / "artifacts" / "model-fp32.onnx"
    breakdown = break_down(file, load_target("raspberry-pi-4"), "fp32", "onnxruntime")
    assert breakdown is not None and (breakdown.file, breakdown.runtime) == (file.name, "onnxruntime")
    times = [each.milliseconds for each in breakdown.operators]
    assert not any("/" in each.name for each in breakdown.operators)  # layers, by the network's names for them
    assert times == sorted(times, reverse=True) and 0 < sum(times) <= breakdown.milliseconds
    clean, adversarial = (pictured.arrays[f"examples/{name}"] for name in ("clean", "adversarial"))
    assert clean.shape == adversarial.shape == (len(evidence.examples), 3, *clean.shape[2:])
    assert 0 < np.abs(adversarial.astype(float) - clean.astype(float)).max() < evidence.example_eps + 1e-3
    scores = FilterScores.load(finished.directory / "scores.json").layers
    for each in evidence.spectra:
        assert pictured.arrays[f"spectra/{each.layer}"].shape == (6, *(scores[each.layer].map_size or ()))
        assert min(scores[each.layer].scores) == each.scores[0] <= each.scores[-1] == max(scores[each.layer].scores)
    measured = {each.latency.sha256 for each in BenchResults.load(finished.directory / "bench.json").measurements}
    assert {artifact.sha256 for artifact in finished.report.artifacts} < measured
    html = (finished.directory / "report.html").read_text()
    assert html.count('<svg role="img"') == 5 + len(evidence.spectra)


# -- gates ----------------------------------------------------------------------------------------------------------


def test_gates_are_judged_without_running_anything_again(again: Any, finished: CompressResult) -> None:
    result = again(
        gates=("clean_accuracy>=10%", "size<=1kB"),
        baseline=finished.directory,
        max_regression=("clean_accuracy=0",),
    )
    assert redone(result) == []
    assert [gate.passed for gate in result.report.gates] == [True, False, True]
    assert load_report(again.directory).gates == result.report.gates
    assert (again.directory / "junit.xml").is_file()


# -- what a run leaves ----------------------------------------------------------------------------------------------


def test_every_stage_was_done_and_left_whole_files(finished: CompressResult) -> None:
    assert sorted(redone(finished)) == sorted(EVERY_STAGE)
    records = {f"stages/{name}.json" for name in EVERY_STAGE}
    results = {"scores.json", "plan.json", "pruned.safetensors", "recovered.safetensors"}
    files = {"artifacts/model-fp32.onnx", "artifacts/model-int8.onnx", "dense/model-fp32.onnx"}
    reports = {"report.json", "report.md", "report.html", "manifest.json"}
    reports |= {"evidence.json", "evidence.npz", "bench.json", "MODEL_CARD.md", "bom.json"}
    assert left(finished.directory) == records | results | files | reports | {".lock", "run.log"}
    assert finished.artifacts == tuple(
        finished.directory / "artifacts" / name for name in ("model-fp32.onnx", "model-int8.onnx")
    )


def test_the_log_tells_what_was_done_and_when(finished: CompressResult) -> None:
    lines = (finished.directory / "run.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00 \S", line) for line in lines)
    assert any("evaluating the dense network" in line for line in lines)


def test_the_report_is_on_disk_as_it_was_returned(finished: CompressResult) -> None:
    assert load_report(finished.directory) == finished.report
    assert PruningPlan.load(finished.directory / "plan.json") == finished.plan
    assert finished.plan.digest == finished.report.pruning.plan_sha256


def test_the_ledger_tells_each_network_and_each_file(finished: CompressResult) -> None:
    rows = {row.name: row for row in finished.report.ledger}
    assert list(rows) == ["dense", "pruned", "recovered", "dense onnx fp32", "onnx fp32", "onnx int8"]
    for name in ("dense", "pruned", "recovered"):
        assert [(a.attack, a.images) for a in rows[name].accuracies] == [("clean", 100), ("pgd-2", 20)]
    assert rows["dense"].accuracies[0].accuracy > 0.9
    assert rows["recovered"].accuracies[0].accuracy > 0.9
    assert rows["pruned"].accuracies[0].accuracy > 0.8
    for name in ("dense onnx fp32", "onnx fp32", "onnx int8"):
        assert rows[name].accuracies[0].images == 100
        assert rows[name].latency[0].p50_ms > 0 and all(check.passed for check in rows[name].parity)
    assert rows["onnx fp32"].accuracies[0].correct == rows["recovered"].accuracies[0].correct
    for name in ("onnx fp32", "onnx int8"):
        attacked = rows[name].accuracies[1]
        assert (attacked.attack, attacked.images, attacked.norm) == ("transfer+square-500", 6, "Linf")


def test_rows_are_held_against_the_dense_network_image_by_image(finished: CompressResult) -> None:
    dense, *others = (row for row in finished.report.ledger if row.accuracies)
    assert not any(accuracy.since_dense for accuracy in dense.accuracies)
    before = {accuracy.attack: accuracy.accuracy for accuracy in dense.accuracies}
    for row in others:
        for accuracy in row.accuracies:
            if accuracy.attack not in before:  # files are attacked in ways of their own
                continue
            change = accuracy.since_dense
            assert change is not None, row.name
            assert change.difference == pytest.approx(accuracy.accuracy - before[accuracy.attack])
            assert change.interval[0] <= change.difference <= change.interval[1]


def test_the_network_and_its_files_became_smaller(finished: CompressResult) -> None:
    before, after = finished.report.pruning.before, finished.report.pruning.after
    assert after.channels < 0.6 * before.channels
    assert after.parameters < 0.4 * before.parameters and after.macs < 0.6 * before.macs
    sizes = {row.name: row.bytes for row in finished.report.ledger if row.bytes}
    assert sizes["onnx int8"] < sizes["onnx fp32"] < 0.5 * sizes["dense onnx fp32"]


def test_the_manifest_holds_the_digest_of_every_result(finished: CompressResult, options: CompressOptions) -> None:
    manifest = read_json(finished.directory / MANIFEST)
    for name, entry in manifest["files"].items():
        path = finished.directory / name
        assert entry == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    assert manifest["files"].keys() >= {
        *(
            "scores.json",
            "plan.json",
            "pruned.safetensors",
            "recovered.safetensors",
            "report.json",
        ),
        *("artifacts/model-fp32.onnx", "artifacts/model-int8.onnx", "dense/model-fp32.onnx"),
        *("MODEL_CARD.md", "bom.json"),
    }
    assert all(finding.passed for finding in verify(finished.directory))
    assert manifest["source"]["sha256"] == sha256_file(options.checkpoint)
    assert manifest["plan_sha256"] == finished.plan.digest and manifest["seed"] == 0
    for artifact in manifest["artifacts"]:
        assert artifact["sha256"] == manifest["files"][artifact["path"]]["sha256"]


def test_the_checkpoint_is_named_by_what_was_read_of_it(
    again: Any, options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "vgg.pt"
    shutil.copy(options.checkpoint, checkpoint)

    def trained_on(options: CompressOptions) -> Inputs:
        inputs = prepare(options)
        checkpoint.write_bytes(b"of a training that goes on")
        return inputs

    monkeypatch.setattr("fsrp_edge.pipeline.compress.prepare", trained_on)
    assert again(checkpoint=checkpoint).report.source.sha256 == sha256_file(options.checkpoint)


def test_files_keep_to_the_devices_caps_as_onnx_itself_reads_them(finished: CompressResult) -> None:
    import onnx

    target = load_target("generic-x86")
    for artifact, path in zip(finished.report.artifacts, finished.artifacts, strict=True):
        model = onnx.load(path)
        (opset,) = (entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
        assert opset == artifact.opset and opset <= target.choices.onnx_opset.value
        assert model.ir_version == artifact.ir_version and model.ir_version <= target.choices.onnx_ir_version.value
    assert {node.op_type for node in model.graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


def test_the_saved_networks_load_without_further_words_and_compute_what_the_files_compute(
    finished: CompressResult,
) -> None:
    recovered = load_classifier(finished.model)
    pixels = recovered.example_pixels(3)
    with torch.no_grad():
        logits = recovered(pixels).numpy()
    assert recovered.spec.layer_shapes and logits.shape == (3, 10)
    np.testing.assert_allclose(open_session(finished.artifacts[0]).run(pixels.numpy()), logits, atol=1e-4)


def test_the_plan_gives_the_pruned_network_again(
    finished: CompressResult, options: CompressOptions, again: Any
) -> None:
    plan, dense = PruningPlan.load(finished.directory / "plan.json"), load_classifier(options.checkpoint)
    learnt = without_held_out(load_data(dense, options.data, options.seed).train, options.seed)
    images = learnt.sample(most_images(dense.spec), options.seed)

    saved = load_classifier(finished.directory / "pruned.safetensors").state_dict()
    outputs = DenseOutputs(dense, images, trained_after=True)
    made = apply_plan(dense, plan, outputs).state_dict()
    torch.testing.assert_close(made, saved, rtol=1e-3, atol=1e-4)  # a run computes in another memory layout
    plain = again(compensate=False)
    saved_plain = load_classifier(plain.directory / "pruned.safetensors")
    assert weights_sha256(apply_plan(dense, plan)) == weights_sha256(saved_plain)
    assert {"prune", "recover"} <= set(redone(plain)) and "plan" not in redone(plain)
    multiple = load_target("generic-x86").channel_multiple
    assert all(len(group.kept) % multiple == 0 for group in plan.groups if len(group.kept) < group.channels)


@pytest.mark.slow
def test_a_pruned_network_can_be_compressed_again(
    finished: CompressResult, options: CompressOptions, tmp_path: Path
) -> None:
    update = {
        "checkpoint": finished.model,
        "out": tmp_path / "run",
        "precisions": ("fp32",),
        "ratio": 0.3,
        "recovery": None,
    }
    result = compress(options.model_copy(update=update))
    once, twice = load_classifier(finished.model), load_classifier(result.model)
    assert result.report.pruning.after.parameters < result.report.pruning.before.parameters
    assert result.report.pruning.before == finished.report.pruning.after
    assert twice.spec.layer_shapes != once.spec.layer_shapes
    assert result.report.recovery is None and len(result.artifacts) == 1


# -- running again --------------------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing_and_reports_the_same(again: Any, finished: CompressResult) -> None:
    times = {
        name: (again.directory / name).stat().st_mtime_ns for name in left(again.directory) if "report" not in name
    }
    result = again()
    assert redone(result) == []
    assert figures(result) == figures(finished)
    for written in (".lock", "run.log", "manifest.json", "MODEL_CARD.md", "bom.json"):
        del times[written]
    assert {name: (again.directory / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"attacks": ("fgsm",)}, {"evaluate-dense", "evaluate-pruned", "evaluate-recovered"}),
        ({"precisions": ("fp32",)}, {"export-artifacts", "bench"}),
        ({"file_images": 7}, {name for name in EVERY_STAGE if name.endswith("-attacked")}),
        ({"file_images": 0}, set()),
        ({"method": Method(warmup_runs=0, warmup_seconds=0, runs=3, seconds=0, rounds=1)}, {"bench"}),
        (
            {"recovery": None},
            {
                "prune",  # whether the last layer is fitted can depend on it
                *("recover", "evaluate-recovered", "export-artifacts", "bench", "evidence"),
                *(OF_FP32 | OF_INT8),
            },
        ),
    ],
    ids=["attacks", "precisions", "files", "no files", "bench", "recovery"],
)
def test_a_changed_option_makes_anew_what_depends_on_it(
    again: Any, changed: dict[str, Any], expected: set[str]
) -> None:
    result = again(**changed)
    assert set(redone(result)) == expected
    manifest = read_json(again.directory / MANIFEST)
    assert all(sha256_file(again.directory / name) == entry["sha256"] for name, entry in manifest["files"].items())
    published = {name for name in left(again.directory) if name.startswith("artifacts/")}
    assert published == {str(artifact.path) for artifact in result.report.artifacts}, (
        "a file of the other options is left"
    )


def test_another_ratio_keeps_the_scores_and_the_dense_file(again: Any, finished: CompressResult) -> None:
    result = again(ratio=0.75, recovery=None, compensate=False, precisions=("fp32",))
    untouched = {"baseline", "score", "evaluate-dense", "export-dense", "evaluate-dense-onnx-fp32"}
    assert set(redone(result)) == set(EVERY_STAGE) - untouched - OF_INT8
    assert result.plan.scores_sha256 == finished.plan.scores_sha256 and result.plan != finished.plan
    assert result.report.pruning.after.parameters < finished.report.pruning.after.parameters
    lost, kept = ("no better than guessing" in str(run.report.warnings) for run in (result, finished))
    assert lost and not kept


def test_recovery_between_rounds_is_where_the_next_starts(again: Any, options: CompressOptions) -> None:
    changed: dict[str, Any] = {
        "strategy": "gradual", "rounds": 2, "round_epochs": 1, "precisions": ("fp32",), "attacks": (), "file_images": 0,
        "recovery": Recipe(epochs=1, batch_size=32, learning_rate=0.01, eps=0.05),
    }  # fmt: skip
    result = again(**changed)
    assert {"plan", "prune", "recover"} <= set(redone(result))
    pruned = load_classifier(result.directory / "pruned.safetensors")
    cut = apply_plan(load_classifier(options.checkpoint), result.plan)
    assert weights_sha256(pruned) != weights_sha256(cut)
    assert [p.shape for p in pruned.parameters()] == [p.shape for p in cut.parameters()]
    assert not list(result.directory.glob("round-*")) and redone(again(**changed)) == []


def test_lost_and_damaged_files_are_made_anew_and_are_the_same(again: Any, finished: CompressResult) -> None:
    (again.directory / "artifacts" / "model-int8.onnx").unlink()
    plan = again.directory / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-20])
    (again.directory / "stages" / "bench.json").write_text('{"key": "half of a rec')
    result = again()
    assert redone(result) == ["plan", "export-artifacts", "bench"]
    assert plan.read_bytes() == (finished.directory / "plan.json").read_bytes()
    for path, before in zip(result.artifacts, finished.artifacts, strict=True):
        assert sha256_file(path) == sha256_file(before)


def test_a_second_run_in_the_same_directory_is_refused(again: Any) -> None:
    before = left(again.directory)
    with (
        RunDirectory(again.directory).locked(),
        pytest.raises(BadInputError, match="another run is working in"),
    ):
        again()
    assert left(again.directory) == before
    assert redone(again()) == []


# -- interruptions --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, click
from pathlib import Path
from fsrp_edge.cli.errors import resumable, run
@click.command()
@click.argument("options")
def command(options):
    from fsrp_edge.pipeline.compress import compress
    from fsrp_edge.pipeline.options import CompressOptions
    resumable()
    compress(CompressOptions.model_validate_json(Path(options).read_text()))
sys.exit(run(command))
"""


def _interrupted(options: CompressOptions, epochs: int, with_signal: int, scratch: Path) -> subprocess.Popen[str]:
    """A run in a process of its own, ended by a signal as soon as so many epochs are on disk."""
    assert options.out is not None
    scratch.write_text(options.model_dump_json())
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(scratch)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if any(_epochs(path) >= epochs for path in options.out.glob("recover-*.unfinished.pt")):
            process.send_signal(with_signal)
            break
        time.sleep(0.02)
    process.wait(60)
    return process


def _epochs(checkpoint: Path) -> int:
    return len(torch.load(checkpoint, weights_only=True)["state"]["history"])


def test_a_run_that_was_interrupted_and_killed_ends_as_if_nothing_had_happened(
    options: CompressOptions, finished: CompressResult, tmp_path: Path
) -> None:
    judged_less: dict[str, Any] = {"precisions": ("fp32",), "attacks": (), "file_images": 0}
    here = options.model_copy(update={"out": tmp_path / "run", **judged_less})
    first = _interrupted(here, 1, signal.SIGINT, tmp_path / "options.json")
    assert first.stderr is not None
    assert (first.returncode, first.stderr.read()) == (
        130,
        "\ninterrupted; run the same command again to resume\n",
    )
    second = _interrupted(here, 3, signal.SIGKILL, tmp_path / "options.json")
    assert second.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "stages" / "recover.json").exists()
    assert not (tmp_path / "run" / "report.json").exists()
    result = compress(here)
    before_recovery = {"baseline", "score", "plan", "prune"}
    assert not before_recovery & set(redone(result)) and "recover" in redone(result)
    for name in ("scores.json", "plan.json", "pruned.safetensors", "recovered.safetensors"):
        assert (result.directory / name).read_bytes() == (finished.directory / name).read_bytes(), name
    assert [one.sha256 for one in result.report.artifacts] == [finished.report.artifacts[0].sha256]
    assert not list(result.directory.glob("recover-*"))


def test_what_another_recovery_left_unfinished_does_not_stand_in_the_way(again: Any) -> None:
    stale = [
        again.directory / f"{name}-000000000000.unfinished{suffix}"
        for name, suffix in (
            ("recover", ".pt"), ("recover", ".int8.pt"), ("round-2", ".pt"), ("plan", ".json"), ("evaluate-x", ".json")
        )
    ]  # fmt: skip
    for path in stale:
        torch.save({"identity": {}, "state": {}}, path)
    of_the_user = again.directory / "mine.unfinished.pt"
    of_the_user.touch()
    result = again(recovery=Recipe(epochs=1, batch_size=32, learning_rate=0.02, eps=0.05), precisions=("fp32",))
    assert result.report.recovery is not None and result.report.recovery.epochs == 1
    assert not any(path.exists() for path in stale) and of_the_user.exists()


def test_a_recovery_that_makes_the_network_worse_is_told_and_not_shipped(again: Any) -> None:
    wild = Recipe(method="natural", epochs=1, batch_size=32, learning_rate=20.0, schedule="cosine")
    report = again(recovery=wild, precisions=("fp32",), attacks=(), file_images=0).report
    assert report.recovery is not None and report.recovery.best_epoch == 0
    assert report.ledger[2].accuracies[0].accuracy >= report.ledger[1].accuracies[0].accuracy - 0.1
    assert any("recovery: no epoch was as good" in warning for warning in report.warnings)


def test_a_recovery_whose_record_could_not_be_written_is_not_trained_again(
    again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_space(record: StageRecord, path: Path) -> None:
        if path.stem == "recover":
            raise OSError(errno.ENOSPC, "No space left on device")
        Document.save(record, path)

    recipe = Recipe(epochs=1, int8_epochs=1, batch_size=32, learning_rate=0.02, eps=0.05)
    changed: dict[str, Any] = {"recovery": recipe, "precisions": ("int8",), "attacks": (), "file_images": 0}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(StageRecord, "save", without_space)
        again(**changed)
    left_behind = again.directory.glob("recover-*")
    assert sorted(path.suffixes for path in left_behind) == [[".unfinished", ".int8", ".pt"], [".unfinished", ".pt"]]

    def trained(*_: Any, **__: Any) -> None:
        pytest.fail("an epoch was trained again")

    monkeypatch.setattr("fsrp_edge.training.checkpoint.save", trained)
    recovery = again(**changed).report.recovery
    assert recovery is not None and recovery.epochs == 2
    assert not list(again.directory.glob("*.unfinished*"))


def test_epochs_for_int8_round_weights_as_the_files_that_are_made(options: CompressOptions, tmp_path: Path) -> None:
    recipe, losses = Recipe(method="natural", epochs=0, int8_epochs=1, batch_size=32, learning_rate=0.02), {}
    for format_ in ("tflite", "onnx"):  # of 8 bits, and of 7
        update = {"out": tmp_path / format_, "recovery": recipe, "formats": (format_,), "precisions": ("int8",)}
        inputs = prepare(options.model_copy(update=update))
        run = Run(**vars(inputs), directory=RunDirectory(tmp_path / format_))
        _, recovery = recover_network(run, run.dense, recipe)
        losses[format_] = recovery and recovery.history[0]["loss"]
    assert losses["tflite"] != losses["onnx"]


def test_rounds_of_another_plan_start_anew(
    finished: CompressResult, options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latencies are measured anew when a run goes on, so its plan may be another one."""
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.01, eps=0.05)
    update = {"out": tmp_path / "run", "strategy": "gradual", "rounds": 2, "round_epochs": 1, "recovery": recipe}
    changed = options.model_copy(update=update)
    run = Run(**vars(prepare(changed)), directory=RunDirectory(tmp_path / "run"))
    groups = finished.plan.groups
    fewer = (groups[0].model_copy(update={"kept": groups[0].kept[:1]}), *groups[1:])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fsrp_edge.pipeline.run.save_classifier", interrupt)
        _prune_in_rounds(run, finished.plan, {}, recipe)
    plan = _prune_in_rounds(run, finished.plan.model_copy(update={"groups": fewer}), {}, recipe)
    assert len(plan.groups[0].kept) == 1


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# -- refusals and gates ---------------------------------------------------------------------------------------------


@pytest.fixture
def damaged_weights(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Files that are to be published have one layer's filters in reverse; undo it to go on."""
    import onnx
    from onnx import numpy_helper

    export = verified.export_artifacts

    def damaged(classifier: Any, requests: Any, directory: Path, *rest: Any, **named: Any) -> Any:
        artifacts = export(classifier, requests, directory, *rest, **named)
        if directory.parent.name != "artifacts":
            return artifacts
        model = onnx.load(directory / "model-fp32.onnx")
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
        onnx.save(model, directory / "model-fp32.onnx")
        return artifacts

    monkeypatch.setattr(verified, "export_artifacts", damaged)
    return monkeypatch


def test_a_file_that_computes_something_else_fails_the_run_and_nothing_is_published(
    again: Any, damaged_weights: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        GateFailedError, match=r"parity checks failed; worst: onnx fp32 in onnxruntime .* relative error"
    ):
        again(precisions=("fp32",))
    remaining = left(again.directory)
    assert not any(name.startswith((".artifacts", "artifacts/")) for name in remaining)
    assert not {"report.json", "report.md", "manifest.json", "stages/export-artifacts.json"} & remaining
    damaged_weights.undo()
    assert set(redone(again(precisions=("fp32",)))) >= {"export-artifacts"}


@pytest.mark.usefixtures("damaged_weights")
def test_a_sweep_of_files_that_all_compute_something_else_is_a_failed_gate(
    again: Any, options: CompressOptions, tmp_path: Path
) -> None:
    from fsrp_edge.pipeline.sweep import Variant, sweep

    shutil.move(again.directory, tmp_path / "sweep" / "ratio-0.5")
    variants = [Variant("ratio=0.5", options.model_copy(update={"precisions": ("fp32",)}))]
    with pytest.raises(GateFailedError, match=r"nothing of the sweep can be run: .* parity checks failed"):
        sweep(variants, "ratio", tmp_path / "sweep")


def test_another_runtime_measures_anew(again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsrp_edge.pipeline.budgeting.installed_version", lambda _: "0.1")
    assert redone(again()) == ["bench"]


def test_another_interpreter_measures_anew(again: Any, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert "bench" not in redone(again())
    for anew in (True, False):
        assert ("bench" in redone(again(bench_on=f"local?python={python}"))) is anew


def test_a_device_that_computes_something_else_fails_the_run_and_its_measurements_are_kept(
    again: Any, server: Any, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import sys\nhere = sys.path.pop(0)\ndel sys.modules['onnxruntime']\nimport onnxruntime\n"
        "class Wrong(onnxruntime.InferenceSession):\n"
        "    def run(self, *given):\n        return [value + 1 for value in super().run(*given)]\n"
        "onnxruntime.InferenceSession = Wrong\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(GateFailedError, match="computes something else on ssh://"):
        again(bench_on=server.address(python=str(python)))
    kept = BenchResults.load(again.directory / "bench.json").measurements
    assert {one.address for one in kept} == {f"ssh://127.0.0.1:{server.port}"}
    assert not any(one.agreement.passed for one in kept if one.agreement)


@pytest.mark.parametrize("report", ["", "report.json"])
def test_a_baseline_that_the_run_itself_would_replace_is_refused(again: Any, report: str) -> None:
    before = left(again.directory)
    with pytest.raises(BadInputError, match=r"--baseline .* this run would replace; choose another --out"):
        again(ratio=0.3, baseline=again.directory / report, max_regression=("clean_accuracy=1",))
    assert left(again.directory) == before


@pytest.mark.parametrize("name", ["pruned.safetensors", "recovered.safetensors"])
def test_a_checkpoint_that_the_run_itself_would_replace_is_refused(again: Any, name: str) -> None:
    before = sha256_file(again.directory / name)
    with pytest.raises(BadInputError, match=rf"{name} is what an earlier run left in .*; choose another --out"):
        again(checkpoint=again.directory / name)
    assert sha256_file(again.directory / name) == before


def test_labels_that_do_not_fit_stop_the_run_at_the_baseline(
    options: CompressOptions, digits_npz: Path, tmp_path: Path
) -> None:
    arrays = dict(np.load(digits_npz))
    arrays["y_test"] = (arrays["y_test"] + 3) % 10
    np.savez(tmp_path / "shuffled.npz", **arrays)
    with pytest.raises(BadInputError, match=r"of 100 images .* right .* guessing among 10 classes"):
        compress(options.model_copy(update={"data": str(tmp_path / "shuffled.npz"), "out": tmp_path / "run"}))
    assert not {"scores.json", "plan.json"} & left(tmp_path / "run")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ratio": 0.01}, r"nothing can be removed at ratio 0\.01 with channel multiple 8"),
        ({"keep": ("*",)}, "nothing can be removed with .*lift what keeps layers"),
        ({"keep": ("*",), "allocation": "global"}, "nothing can be removed with .*lift what keeps layers"),
        ({"keep": ("layer9",)}, "no layer is called 'layer9'"),
        ({"ratio": 0.999, "ratio_of": "parameters"}, "of the parameters cannot be removed"),
        ({"ratio": 0.999, "ratio_of": "macs", "allocation": "global"}, "of the macs cannot be removed"),
        (
            {"budgets": {"latency": "1%"}, "target": "raspberry-pi-4"},
            "latency of .* cannot be reached: .* is the least",
        ),
        ({"budgets": {"size": "50%", "macs": "0.01%"}}, "macs of .* cannot be reached: .* is the least"),
        ({"budgets": {"size": "50%"}, "keep": ("*",)}, "nothing can be removed with .*lift what keeps layers"),
    ],
)
def test_what_no_scores_make_possible_stops_the_run_before_anything_is_computed(
    options: CompressOptions, tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    changed = CompressOptions.model_validate({**dict(options), "out": tmp_path / "run", **asked})
    with pytest.raises(BadInputError, match=told):
        compress(changed)
    assert not list((tmp_path / "run").glob("stages/*"))


@pytest.mark.parametrize(
    ("formats", "precisions", "missing"),
    [(("onnx",), ("int8",), "int8 and onnx"), (("onnx",), ("fp32", "int8"), "int8")],
)
def test_a_file_that_the_device_has_no_use_for_is_refused_not_left_out(
    formats: Any, precisions: Any, missing: str
) -> None:
    with pytest.raises(BadInputError, match=f"jetson-nano offers no {missing} file .* Maxwell"):
        choose_artifacts(load_target("jetson-nano"), formats, precisions)


def test_formats_and_precisions_that_were_asked_for_are_made() -> None:
    target = load_target("jetson-nano")
    made = [(request.format, request.precision) for request in choose_artifacts(target, None, None)]
    assert made == [("onnx", "fp32"), ("onnx", "fp16"), ("tflite", "fp32")]
    made = [(r.format, r.precision) for r in choose_artifacts(target, ("tflite",), ("fp32", "int8"))]
    assert made == [("tflite", "fp32"), ("tflite", "int8")]


def test_a_file_that_is_left_out_of_those_asked_for_is_told(tmp_path: Path) -> None:
    with log_to(tmp_path / "log"):
        made = choose_artifacts(load_target("raspberry-pi-4"), ("onnx", "tflite"), ("fp16", "int8"))
    assert [(each.format, each.precision) for each in made if each.precision == "fp16"] == [("tflite", "fp16")]
    assert "onnx fp16 is not made: Cortex-A72 has no fp16 arithmetic" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"attacks": ("pgdd",)},
        {"ratio": 1.0},
        {"ratio": 0.0},
        {"seed": -1},
        {"raito": 0.5},
        {"formats": ("tf",)},
        {"round_epochs": 1},
        {"round_epochs": 1, "strategy": "gradual", "recovery": None},
    ],
)
def test_options_that_mean_nothing_are_refused_when_they_are_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompressOptions(**{"checkpoint": "x.pt", "target": "generic-x86", **wrong})


@pytest.mark.slow
def test_a_networks_short_name_is_remembered_in_full(
    options: CompressOptions, digits_npz: Path, tmp_path: Path
) -> None:
    """`mobilenet_v2` is torchvision's, but these weights are those of the one for 32x32 images."""
    from fsrp_edge.models.registry import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(build("cifar:mobilenet_v2", classes=10).state_dict(), tmp_path / "weights.pt")
    network = load_classifier(tmp_path / "weights.pt", architecture="mobilenet_v2")
    pixels = np.load(digits_npz)["x_test"][:16]
    with torch.no_grad():
        labels = network(torch.from_numpy(pixels).float() / 255).argmax(1).numpy()
    np.savez(tmp_path / "own.npz", x_train=pixels[8:], y_train=labels[8:], x_test=pixels[:8], y_test=labels[:8])
    update = {
        "checkpoint": tmp_path / "weights.pt",
        "architecture": "mobilenet_v2",
        "data": str(tmp_path / "own.npz"),
        "score_images": 2,
        "recovery": None,
        "attacks": (),
        "precisions": ("fp32",),
        "out": tmp_path / "run",
    }
    result = compress(options.model_copy(update=update))
    assert load_classifier(result.model).spec.architecture == "cifar:mobilenet_v2"


def test_a_network_built_by_the_users_own_file_goes_all_the_way(
    options: CompressOptions, digits_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=10):\n"
        "        super().__init__()\n"
        "        first, second = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1)\n"
        "        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())\n"
        "        self.head = nn.Linear(64 * 8 * 8, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = self.body(x)\n"
        "        return self.head(x.view(x.size(0), -1))\n"  # which maps in channels_last cannot
    )
    (tmp_path / "net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    from fsrp_edge.models.registry import build

    torch.save(build("net.py:Net", classes=10).state_dict(), "net.pt")
    update = {
        "checkpoint": Path("net.pt"),
        "architecture": "net.py:Net",
        "input_size": 32,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "data": "photographs",
        "score_images": 4,
        "recovery": Recipe(epochs=1, learning_rate=0.01, batch_size=8),
        "attacks": (),
        "precisions": ("fp32",),
        "out": None,
    }
    result = compress(options.model_copy(update=update))
    assert result.directory == Path("net-generic-x86")
    assert [len(group.kept) for group in result.plan.groups] == [16, 32, 10]
    assert result.report.recovery is not None and result.report.recovery.recipe["distillation"] == 1.0
    assert result.report.data.label_kind == "predictions of the dense network"
    assert any("accuracy was not measured" in warning for warning in result.report.warnings)
    dense = next(row for row in result.report.ledger if row.name == "dense")
    assert dense.accuracies[0].accuracy == 1
    with pytest.raises(BadInputError, match="--arch"):
        load_classifier(result.model)
    assert load_classifier(result.model, architecture="net.py:Net").spec.layer_shapes
    assert json.loads((result.directory / "report.json").read_text())["source"]["checkpoint"] == "net.pt"
    assert [path.name for path in result.artifacts] == ["model-fp32.onnx"]

    before = result.artifacts[0].read_bytes()
    assert compress(options.model_copy(update=update)).artifacts[0].read_bytes() == before
    (tmp_path / "net.py").write_text(code.replace("ReLU", "Tanh"))  # the same weights are another network now
    assert compress(options.model_copy(update=update)).artifacts[0].read_bytes() != before


# -- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("macs", "binding"), [("0.6", "macs"), ("0.9", "size")])
def test_budgets_are_tried_as_real_files_and_judged_at_the_end(
    options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macs: str, binding: str
) -> None:
    monkeypatch.setattr("fsrp_edge.pipeline.budgeting.TRIAL_METHOD", options.method)
    update = {
        "out": tmp_path / "run",
        "precisions": ("fp32",),
        "recovery": None,
        "budgets": Budgets.model_validate({"size": "50%", "macs": macs, "memory": "90%", "latency": "10s"}),
    }
    result = compress(options.model_copy(update=update))
    rows = {row.name: row for row in result.report.ledger}
    gates = {gate.gate.partition("<=")[0]: gate for gate in result.report.gates}
    assert gates.keys() == {"latency", "macs", "size", "memory"}
    assert all(gate.passed for gate in gates.values()), gates
    dense_bytes, file_bytes = rows["dense onnx fp32"].bytes, rows["onnx fp32"].bytes
    assert dense_bytes is not None and file_bytes is not None
    assert file_bytes <= 0.5 * dense_bytes
    # The plan is held against trial files, so it does not stop far below what binds either.
    bound, value = gates[binding].bound, gates[binding].value
    assert bound is not None and value is not None and value >= 0.8 * bound
    assert gates["size"].value == file_bytes
    assert result.report.pruning.after.macs <= float(macs) * result.report.pruning.before.macs
    assert "measured" in gates["latency"].message and result.plan.allocation == "knapsack"
    assert "size at most" in (result.directory / "report.md").read_text()
    assert redone(compress(options.model_copy(update=update))) == []


@pytest.mark.slow
def test_a_missed_budget_fails_the_command_after_the_report(
    options: CompressOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from fsrp_edge.cli.compress import compress as command

    # What runs between planning and the verdict may slow the machine down, here by as much as it takes.
    monkeypatch.setattr("fsrp_edge.pipeline.budgeting.TRIAL_METHOD", options.method)
    monkeypatch.setattr("fsrp_edge.pipeline.budgeting.Workplace.try_files", _half_of_the_truth)
    arguments = [str(options.checkpoint), "--target", "generic-x86", "--data", str(options.data)]
    arguments += ["--format", "onnx", "--precision", "fp32", "--size", "60%", "--recover-epochs", "0"]
    arguments += ["--score-images", "20", "--score-steps", "1", "--attack", "fgsm", "--robust-images", "10"]
    arguments += ["--quick-bench", "--out", str(tmp_path / "run")]
    outcome = CliRunner().invoke(command, arguments)
    assert isinstance(outcome.exception, GateFailedError), outcome.output
    assert "size<=" in str(outcome.exception)
    assert not all(gate.passed for gate in load_report(tmp_path / "run").gates)


def _half_of_the_truth(place: Any, classifier: Any, kinds: Any) -> Any:
    return {kind: 4.0 * sum(p.numel() for p in classifier.parameters()) / 2 for kind in kinds}


@pytest.mark.slow
def test_a_sweep_does_once_what_does_not_change_and_goes_on_past_what_cannot_be_met(
    options: CompressOptions, tmp_path: Path
) -> None:
    from fsrp_edge.pipeline.sweep import Variant, sweep

    base = options.model_copy(update={"precisions": ("fp32",), "recovery": None})
    variants = [
        Variant("macs=0.01%", base.model_copy(update={"budgets": Budgets.model_validate({"macs": "0.01%"})})),
        Variant("ratio=0.3", base.model_copy(update={"ratio": 0.3})),
        Variant("ratio=0.6", base.model_copy(update={"ratio": 0.6})),
    ]
    found = sweep(variants, "ratio", tmp_path)
    assert [point.name for point in found.points] == ["dense", "macs=0.01%", "ratio=0.3", "ratio=0.6"]
    assert "cannot be reached" in (found.points[1].problem or "")
    first, second = (load_report(tmp_path / f"ratio-{ratio}") for ratio in ("0.3", "0.6"))
    assert not any(stage.resumed for stage in first.stages)
    resumed = {stage.name for stage in second.stages if stage.resumed}
    assert resumed == {"baseline", "score", "evaluate-dense", "export-dense", "evaluate-dense-onnx-fp32"}
    dense, _, light, heavy = found.points
    assert heavy.macs and light.macs and dense.macs and heavy.macs < light.macs < dense.macs
    assert found.knee is None and (tmp_path / "sweep.png").is_file()
    page = (tmp_path / "sweep.html").read_text()
    assert [f'href="{folder}/report.html"' in page for folder in ("ratio-0.3", "ratio-0.6")] == [True, True]
    assert read_json(tmp_path / "sweep.json")["points"][2]["directory"] == "ratio-0.3"
