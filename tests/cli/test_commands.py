"""Every command on a small network that was really trained; the chain of stages is run once for all tests."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch

from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.cli.export import next_steps
from fsrp_edge.evaluation.results import EvaluationFile
from fsrp_edge.files import read_json
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.registry import build
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.report.schema import RunReport
from fsrp_edge.scoring.scores import FilterScores

MAIN = "from fsrp_edge.cli import main; main()"
TARGET = ("--target", "generic-x86")
FP32 = ("--format", "onnx", "--precision", "fp32")


def paths(command: click.Command, name: str = "") -> list[tuple[str, ...]]:
    """Every command and subcommand as it is typed."""
    if not isinstance(command, click.Group):
        return [(name,)]
    return [(name, *rest) for each, inner in command.commands.items() for rest in paths(inner, each)]


COMMANDS = [tuple(part for part in path if part) for path in paths(cli)]


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, check=False, **options
    )


class Done:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def fsrp_edge(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command as the console script does, in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = run(cli, [str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def chain(trained_checkpoint: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what score, prune, recover and export leave of the small network."""
    folder = tmp_path_factory.mktemp("chain")
    data = ("--data", digits_npz, "--quiet")
    scores, pruned, recovered = (
        folder / "scores.json",
        folder / "pruned.safetensors",
        folder / "recovered.safetensors",
    )
    for arguments in (
        ("score", trained_checkpoint, *data, "--score-images", 32, "--score-steps", 1, "--out", scores),
        ("prune", trained_checkpoint, "--scores", scores, *TARGET, "--quiet", "--out", pruned),
        (
            "recover",
            pruned,
            *data,
            "--recover-epochs",
            2,
            "--batch-size",
            32,
            "--eps",
            "0.05",
            "--out",
            recovered,
        ),
        ("export", recovered, *TARGET, *data, "--format", "onnx", "--out", folder / "artifacts"),
    ):
        assert run(cli, [str(argument) for argument in arguments]) == 0
    return folder


# -- help -----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'rich', 'pydantic', 'numpy', 'torchvision', 'onnx', 'onnxruntime', 'jinja2', 'yaml'}"
    program = (
        "import sys; from fsrp_edge.cli import cli; from fsrp_edge.cli.errors import run\n"
        "codes = [run(cli, [*line.split(','), '--help']) for line in sys.argv[1:]]\n"
        f"print('LOADED', sorted({heavy} & set(sys.modules)), codes)"
    )
    lines = ["", *(",".join(path) for path in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", program.replace("*line.split(',')", "*filter(None, line.split(','))"), *lines],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith(f"LOADED [] {[0] * len(lines)}\n")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], fsrp_edge: Callable[..., Done]) -> None:
    done = fsrp_edge(*path, "--help")
    assert done.code == 0 and not done.err
    assert f"Usage: fsrp-edge {' '.join(path)} " in done.out
    takes_something = any(isinstance(each, click.Argument) for each in _find(path).params)
    assert not takes_something or f"\n  fsrp-edge {path[0]} " in done.out, "no example"


def _find(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for part in path:
        assert isinstance(command, click.Group)
        command = command.commands[part]
    return command


def test_the_options_that_examples_show_exist() -> None:
    for path in COMMANDS:
        command = _find(path)
        known = {text for each in command.params for text in (*each.opts, *each.secondary_opts)}
        shown = [line for line in (command.help or "").splitlines() if line.strip().startswith(f"fsrp-edge {path[0]} ")]
        used = {word for line in shown for word in line.split() if word.startswith("--")}
        assert used <= known, path


def test_lists_of_commands_say_each_in_a_whole_sentence_at_80_columns() -> None:
    for arguments in ([], ["targets"], ["bench"], ["devices"]):
        done = process(*arguments, "--help", env={**os.environ, "COLUMNS": "80"})
        _, _, listed = done.stdout.partition("Commands:\n")
        assert listed and "..." not in listed, listed
    assert next(iter(cli.commands)) == "compress"


def test_the_version_is_told() -> None:
    import fsrp_edge as package

    assert process("--version").stdout == f"fsrp-edge, version {package.__version__}\n"


# -- the stages, one by one -----------------------------------------------------------------------------------------


def test_the_chain_leaves_what_its_commands_promise(chain: Path, trained_checkpoint: Path) -> None:
    assert {path.name for path in chain.iterdir()} == {
        *("scores.json", "pruned.safetensors", "pruned.plan.json", "recovered.safetensors", "artifacts"),
    }
    plan = PruningPlan.load(chain / "pruned.plan.json")
    scores = FilterScores.load(chain / "scores.json")
    assert plan.model_sha256 == scores.model_sha256
    pruned, recovered = (load_classifier(chain / name) for name in ("pruned.safetensors", "recovered.safetensors"))
    assert pruned.spec.layer_shapes == recovered.spec.layer_shapes != {}
    left = {path.name for path in (chain / "artifacts").iterdir()}
    assert left == {"model-fp32.onnx", "model-int8.onnx", "manifest.json", "MODEL_CARD.md", "bom.json"}


def test_a_plan_can_be_applied_again(chain: Path, trained_checkpoint: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    out = tmp_path / "pruned.safetensors"
    done = fsrp_edge("prune", trained_checkpoint, "--plan", chain / "pruned.plan.json", "--out", out)
    assert done.code == 0 and "parameters" in done.out
    assert out.read_bytes() == (chain / "pruned.safetensors").read_bytes()


def test_a_teacher_teaches(
    chain: Path, trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any
) -> None:
    done = fsrp_edge(
        *("recover", chain / "pruned.safetensors", "--data", digits_npz, "--teacher", trained_checkpoint),
        *("--recover-epochs", 1, "--int8-epochs", 1, "--batch-size", 32),
        *("--out", tmp_path / "taught.safetensors", "--json"),
    )
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["history"]) == 2
    untaught = load_classifier(chain / "recovered.safetensors")
    assert load_classifier(tmp_path / "taught.safetensors").spec == untaught.spec
    assert list(tmp_path.iterdir()) == [tmp_path / "taught.safetensors"]


def test_a_teacher_of_another_task_is_refused(chain: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    torch.save(build("cifar:resnet20-a", classes=5).state_dict(), tmp_path / "teacher.pt")
    done = fsrp_edge(
        *("recover", chain / "pruned.safetensors", "--data", digits_npz, "--teacher", tmp_path / "teacher.pt"),
        *("--out", tmp_path / "taught.safetensors"),
    )
    assert done.code == 2 and "the teacher's classes (5) are not the network's (10)" in done.err


def test_a_network_says_how_its_images_came_also_where_a_teacher_taught_it(tmp_path: Path, fsrp_edge: Any) -> None:
    torch.save(build("torchvision:squeezenet1_1", classes=2).state_dict(), tmp_path / "net.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", x=pixels, y=np.arange(20) % 2)
    done = fsrp_edge(
        *("recover", tmp_path / "net.pt", "--teacher", tmp_path / "net.pt", "--input-size", 32),
        *("--data", tmp_path / "small.npz", "--recover-epochs", 0, "--out", tmp_path / "taught.safetensors"),
    )
    assert done.code == 0, done.err
    assert load_classifier(tmp_path / "taught.safetensors").spec.preprocessing.resize == 32, "they were resized whole"


def test_training_leaves_a_checkpoint_and_no_rest(digits_npz: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    out = tmp_path / "new.safetensors"
    done = fsrp_edge(
        *("train", "--arch", "cifar:vgg16_bn-w0.05", "--data", digits_npz, "--epochs", 1, "--batch-size", 64),
        *("--method", "natural", "--out", out),
    )
    assert done.code == 0, done.err
    assert list(tmp_path.iterdir()) == [out] and "fsrp-edge compress" in done.out
    assert "--no-flip" not in done.out and "--no-flip where" in done.err, "these digits could be anything"
    spec = load_classifier(out).spec
    assert (spec.architecture, spec.classes, spec.data) == ("cifar:vgg16_bn-w0.05", 10, None)


def test_inspect_gives_a_reason_for_what_stays(trained_checkpoint: Path, fsrp_edge: Any) -> None:
    done = fsrp_edge("inspect", trained_checkpoint, *TARGET)
    assert done.code == 0
    assert "these channels are the network's output" in " ".join(done.out.split())
    assert "cifar:vgg16_bn-w0.125: input 3x32x32, 10 classes" in done.out


def test_targets_are_listed_shown_and_validated(fsrp_edge: Any) -> None:
    listed = fsrp_edge("targets", "list")
    assert listed.code == 0
    for name in ("generic-x86", "jetson-nano", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5"):
        assert name in listed.out
    shown = fsrp_edge("targets", "show", "jetson-nano")
    assert shown.code == 0 and "Maxwell" in shown.out
    profile = Path(__file__).parents[2] / "profiles" / "jetson-nano.yaml"
    valid = fsrp_edge("targets", "validate", profile)
    assert valid.code == 0 and "valid profile of jetson-nano" in valid.out


def test_the_whole_way_by_one_command(
    trained_checkpoint: Path,
    digits_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fsrp_edge: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = fsrp_edge(
        *(
            "compress",
            trained_checkpoint,
            *TARGET,
            "--data",
            digits_npz,
            "--format",
            "onnx",
            "--precision",
            "fp32",
        ),
        *(
            "--recover-epochs",
            0,
            "--score-images",
            16,
            "--score-steps",
            1,
            "--attack",
            "fgsm",
            "--file-images",
            4,
            "--robust-images",
            8,
        ),
        *("--quick-bench", "--quiet"),
    )
    assert done.code == 0, done.err
    assert done.err == ""
    assert "vgg-generic-x86/artifacts/model-fp32.onnx" in done.out and "recovered" in done.out
    following = [line.strip() for line in done.out.splitlines() if line.startswith("  fsrp-edge evaluate ")]
    assert following == [
        f"fsrp-edge evaluate vgg-generic-x86/recovered.safetensors --data {digits_npz} --eps 8/255 --images 8 "
        "--attack autoattack"
    ]
    manifest = (tmp_path / "vgg-generic-x86" / "manifest.json").read_bytes()
    again = fsrp_edge("report", "vgg-generic-x86")
    assert again.code == 0
    assert again.out.splitlines()[:8] == done.out.splitlines()[:8]
    for name, entry in json.loads(manifest)["files"].items():
        assert (tmp_path / "vgg-generic-x86" / name).stat().st_size == entry["bytes"]
    resumed = fsrp_edge("report", "vgg-generic-x86/report.json", "--json")
    report = RunReport.model_validate_json(resumed.out)
    disturbed = any(not latency.valid for row in report.ledger for latency in row.latency)
    assert ("rm vgg-generic-x86/stages/bench.json" in done.out) == disturbed


@pytest.mark.parametrize(
    ("arguments", "code"), [(("targets", "list"), 0), (("targets", "show", "nope"), 2), (("inspect", "nope.pt"), 2)]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(arguments: tuple[str, ...], code: int, closed: str) -> None:
    command = f"{shlex.join([sys.executable, '-c', MAIN, *arguments])} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert bool(done.stdout) == (code == 0 and closed == "2>&-"), "errors don't go where results do"
    assert bool(done.stderr) == (code != 0 and closed == ">&-") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["m.saved_model", "m.tflite"], ["Next: fsrp-edge bench e/m.tflite", "fsrp-edge bundle e"]),
        (["m.ncnn"], ["Next: fsrp-edge bench e/m.ncnn --input-shape 1,8,8", "fsrp-edge bundle e"]),
        (["m.saved_model"], ["Next: fsrp-edge bundle e"]),
    ],
)
def test_export_proposes_what_can_be_run(made: list[str], said: list[str]) -> None:
    artifacts: Any = [SimpleNamespace(path=Path(name)) for name in made]
    assert [line.strip() for line in next_steps(Path("e"), artifacts, (1, 8, 8))] == said


def test_a_recipe_file_says_what_has_no_option(chain: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    (tmp_path / "recipe.yaml").write_text("method: trades\nattack_steps: 1\nema_decay: 0.9\n")
    (tmp_path / "wrong.yaml").write_text("ema_dekay: 0.9\n")
    recover = ("recover", chain / "pruned.safetensors", "--data", digits_npz, "--recover-epochs", 1)
    out = ("--out", tmp_path / "recovered.safetensors")
    done = fsrp_edge(*recover, *out, "--recipe", tmp_path / "recipe.yaml", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["history"]) == 1
    refused = fsrp_edge(*recover, *out, "--recipe", tmp_path / "wrong.yaml")
    assert refused.code == 2 and "wrong.yaml: unknown key 'ema_dekay'; did you mean ema_decay" in refused.err


def test_next_commands_read_the_network_as_it_was_read(
    digits_npz: Path, tmp_path: Path, fsrp_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    convolutions = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())\n"
        "    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))\n"
    )
    torch.save(build("net.py:build", classes=10).state_dict(), "my net.pt")
    code, data = "--arch net.py:build", f"--data {digits_npz}"
    read = f"{code} --input-size 32 --mean 0.5,0.4,0.3 --std 0.25,0.25,0.25"
    chain = {
        f"inspect 'my net.pt' {read}": f"compress 'my net.pt' {read} --target NAME",
        f"score 'my net.pt' {read} {data} --score-images 8 --score-steps 1":
            f"prune 'my net.pt' {read} {data} --scores scores.json --compensate --target NAME",
        f"prune 'my net.pt' {read} {data} --scores scores.json --compensate":
            f"recover pruned.safetensors {code} {data}",
        f"recover pruned.safetensors {code} {data} --recover-epochs 0":
            f"export recovered.safetensors {code} {data} --target NAME",
    }  # fmt: skip
    for command, following in chain.items():
        done = fsrp_edge(*shlex.split(command))
        assert done.code == 0, done.err
        assert done.out.splitlines()[-1] == f"Next: fsrp-edge {following}"


def test_rslad_learns_from_a_teacher_or_says_that_it_needs_one(
    chain: Path, trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any
) -> None:
    out = tmp_path / "taught.safetensors"
    (tmp_path / "recipe.yaml").write_text("attack_steps: 2\n")
    asked = ("recover", chain / "pruned.safetensors", "--data", digits_npz, "--recover-method", "rslad",
             "--recover-epochs", 1, "--recipe", tmp_path / "recipe.yaml", "--out", out)  # fmt: skip
    refused = fsrp_edge(*asked)
    assert refused.code == 2 and "needs a teacher network" in refused.err and not out.exists()
    done = fsrp_edge(*asked, "--teacher", trained_checkpoint, "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["history"]) == 1 and out.exists()


def test_two_networks_are_compared_image_by_image(
    chain: Path, trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any
) -> None:
    dense, pruned = tmp_path / "dense.json", tmp_path / "pruned.json"
    asked = ("--data", digits_npz, "--attack", "fgsm", "--norm", "L2", "--eps", 1.5, "--images", 30)
    for network, out in ((trained_checkpoint, dense), (chain / "recovered.safetensors", pruned)):
        done = fsrp_edge("evaluate", network, *asked, "--corruptions", "--out", out)
        assert done.code == 0, done.err
        assert "mean over 14 corruptions" in done.out and f"Next: fsrp-edge compare OTHER.json {out}" in done.out
    done = fsrp_edge("compare", dense, pruned)
    assert done.code == 0, done.err
    assert "FGSM L2" in done.out and "fog" in done.out
    rows = json.loads(fsrp_edge("compare", dense, pruned, "--json").out)
    clean = [next(row["result"]["correct"] for row in read_json(path)["evaluations"]) for path in (dense, pruned)]
    assert rows[0]["only_second"] - rows[0]["only_first"] == clean[1] - clean[0]
    assert len(rows) == 16


def test_verdicts_are_kept_until_the_result_is_on_disk(
    trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out, unfinished = tmp_path / "net.json", tmp_path / "net.unfinished.json"
    asked = ("evaluate", trained_checkpoint, "--data", digits_npz, "--attack", "fgsm", "--images", 30, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationFile, "save", full)
        assert fsrp_edge(*asked).code != 0
    assert read_json(unfinished)["verdicts"].keys() == {"fgsm"} and not out.exists()
    assert fsrp_edge(*asked).code == 0
    assert out.exists() and not unfinished.exists()


def test_comparing_says_of_which_file_a_row_is(chain: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    file, out = chain / "artifacts/model-fp32.onnx", tmp_path / "both.json"
    asked = ("--data", digits_npz, "--clean-only", "--images", 10, "--file", file, "--out", out)
    assert fsrp_edge("evaluate", chain / "recovered.safetensors", *asked).code == 0
    rows = json.loads(fsrp_edge("compare", out, out, "--json").out)
    assert [(row["file"], row["attack"]) for row in rows] == [(None, "clean"), (file.name, "clean")]
    table = fsrp_edge("compare", out, out).out
    assert "network" in table and file.name in table


# -- --json: valid JSON on stdout and nothing else ------------------------------------------------------------------


def test_json_and_nothing_else(
    chain: Path, trained_checkpoint: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any
) -> None:
    recovered, scores, data = chain / "recovered.safetensors", chain / "scores.json", ("--data", digits_npz)
    quick = ("--score-images", 8, "--score-steps", 1)
    commands: list[tuple[tuple[object, ...], set[str]]] = [
        (("inspect", trained_checkpoint), {"spec", "size", "groups"}),
        (("score", recovered, *data, *quick, "--out", tmp_path / "s.json"), {"layers"}),
        (("prune", trained_checkpoint, "--scores", scores, "--out", tmp_path / "p.safetensors"), {"plan"}),
        (("recover", recovered, *data, "--recover-epochs", 0, "--out", tmp_path / "r.safetensors"), {"best_epoch"}),
        (("export", recovered, *TARGET, *data, *FP32, "--out", tmp_path / "e"), {"artifacts"}),
        (("targets", "show", "jetson-nano"), {"choices", "artifacts"}),
    ]  # fmt: skip
    for arguments, keys in commands:
        done = fsrp_edge(*arguments, "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out).keys() >= keys
    for arguments in (
        ("evaluate", recovered, *data, "--attack", "fgsm", "--images", 20),
        ("targets", "list"),
    ):
        done = fsrp_edge(*arguments, "--json")
        assert done.code == 0, done.err
        assert len(json.loads(done.out)) > 1


def test_json_by_the_console_script_is_not_mixed_with_what_libraries_print(
    chain: Path, digits_npz: Path, tmp_path: Path
) -> None:
    done = process(
        *("export", str(chain / "recovered.safetensors"), *TARGET, "--data", str(digits_npz), "--json"),
        *("--format", "onnx", "--precision", "int8", "--out", str(tmp_path / "artifacts")),
    )
    assert done.returncode == 0, done.stderr
    assert [artifact["precision"] for artifact in json.loads(done.stdout)["artifacts"]] == ["int8"]


def test_results_are_written_to_a_file_too(chain: Path, digits_npz: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    out = tmp_path / "accuracy.json"
    done = fsrp_edge(
        *(
            "evaluate",
            chain / "recovered.safetensors",
            "--data",
            digits_npz,
            "--clean-only",
            "--json",
            "--out",
            out,
        )
    )
    assert done.code == 0 and json.loads(done.out) == read_json(out)
    (clean,) = (row["result"] for row in read_json(out)["evaluations"])
    assert (clean["attack"], clean["images"]) == ("clean", 100) and clean["correct"] == round(100 * clean["accuracy"])


def test_exported_files_are_verified_and_bundled(chain: Path, tmp_path: Path, fsrp_edge: Any) -> None:
    folder = Path(shutil.copytree(chain / "artifacts", tmp_path / "artifacts"))
    done = fsrp_edge("verify", folder)
    assert done.code == 0 and "model-fp32.onnx" in done.out, done.err
    done = fsrp_edge("bundle", folder, "--out", tmp_path / "model.zip", "--json")
    assert done.code == 0 and "examples/run_onnxruntime.py" in json.loads(done.out)["files"], done.err
    (folder / "model-fp32.onnx").write_bytes(b"something else")
    done = fsrp_edge("verify", folder, "--json")
    assert done.code == 1 and not all(finding["passed"] for finding in json.loads(done.out))
    assert "checks failed; the first: model-fp32.onnx, digest" in done.err


def test_a_file_whose_runtime_is_missing_was_not_checked(
    chain: Path, fsrp_edge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = fsrp_edge("verify", chain / "artifacts")
    assert done.code == 3 and "not checked" in done.out and "NO" not in done.out
    assert "2 of 6 checks could not be made; the first: model-fp32.onnx, parity: onnxruntime can't be" in done.err
    assert 'pip install "fsrp-edge[onnx]"' in done.err


def test_a_file_is_judged_in_its_own_runtime(chain: Path, digits_npz: Path, fsrp_edge: Any) -> None:
    network, data = chain / "recovered.safetensors", ("--data", digits_npz, "--images", 8, "--attack", "fgsm")
    done = fsrp_edge("evaluate", network, *data, "--file", chain / "artifacts" / "model-fp32.onnx", "--json")
    assert done.code == 0, done.err
    rows = [(row["file"], row["result"]["attack"]) for row in json.loads(done.out)["evaluations"]]
    file = "model-fp32.onnx"
    assert rows == [(None, "clean"), (None, "fgsm"), (file, "clean"), (file, "transfer+square-500")]


# -- wrong use: exit code 2 and one line that helps -----------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, chain: Path, trained_checkpoint: Path, digits_npz: Path) -> dict[str, str]:
    """Names that the wrong commands below use."""
    (tmp_path / "text.pt").write_text("this is no checkpoint")
    (tmp_path / "empty").mkdir()
    (tmp_path / "fraction.yaml").write_text("recover-epochs: 0.9\n")
    (tmp_path / "soft.yaml").write_text("distillation: 0.5\n")
    (tmp_path / "hard.yaml").write_text("distillation: 0\n")
    (tmp_path / "switch.yaml").write_text("quick-bench: 1\n")
    (tmp_path / "model-fp32.onnx").write_text("another file of that name")
    (tmp_path / "one.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))\n"
    )
    torch.save(build(f"{tmp_path}/one.py:build", classes=10).state_dict(), tmp_path / "one.pt")
    (tmp_path / "half.npz").write_bytes(digits_npz.read_bytes()[:1000])
    plan = read_json(chain / "pruned.plan.json")
    for name, change in (
        ("far", {"kept": "0-99999"}),
        ("other", {"root": "features.99"}),
        ("two", {"channels": 2}),
    ):
        content = json.loads(json.dumps(plan))
        content["groups"][0] |= change if name != "two" else {"channels": 2, "kept": "0"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    output = json.loads(json.dumps(plan))
    assert output["groups"][-1]["channels"] == 10
    output["groups"][-1]["kept"] = "0-7"
    (tmp_path / "output.json").write_text(json.dumps(output))
    arrays = dict(np.load(digits_npz))
    np.savez(tmp_path / "labels.npz", **arrays | {"y_test": (arrays["y_test"] + 1) % 10})
    np.savez(tmp_path / "classes.npz", **arrays | {"y_test": arrays["y_test"] + 5})
    return {
        "net": str(trained_checkpoint),
        "data": str(digits_npz),
        "chain": str(chain),
        "here": str(tmp_path),
        "out": str(tmp_path / "out"),
    }


NOT_IN_RANGE = "at least one is needed, of 0 to 7"
WRONG = {
    "compress {net} --target jetson-nan": "unknown target 'jetson-nan'; did you mean jetson-nano",
    "compress {here}/absent.pt --target generic-x86": "'{here}/absent.pt' does not exist",
    "compress {here}/text.pt --target generic-x86": "neither a torch checkpoint nor safetensors",
    "compress {net} --target generic-x86 --arch resnet18": "the weights are not those of torchvision:resnet18",
    "compress {net} --target generic-x86 --arch resnet19": "unknown architecture 'resnet19'; nearest:",
    "compress {net} --target generic-x86 --data {here}/empty": "is an empty folder; allowed:",
    "compress {net} --target generic-x86 --data {here}/half.npz": "is not a whole .npz file",
    "compress {net} --target generic-x86 --data {here}/classes.npz --out {out}": "range from 5 to 14",
    "compress {net} --target generic-x86 --data {here}/labels.npz --out {out}": "guessing among 10 classes",
    "compress {net} --target generic-x86 --ratio 1.5": "1.5 is not in the range",
    "evaluate {net} --seed 99999999999999999999": "99999999999999999999 is not in the range",
    "compress {net} --target generic-x86 --attack pgd": "Invalid value for '--attack': unknown attack 'pgd': give fgsm",
    "compress {net} --target generic-x86 --eps 0": "method 'n-fgsm' with eps 0",
    "compress {net} --target generic-x86 --eps 8": "8 is outside 0 to 1 (pixels are in [0, 1]); 8/255 is usual",
    "compress {net} --target generic-x86 --eps nan": "is outside 0 to 1",
    "compress {net} --target generic-x86 --mean a,b,c": "'a,b,c' is not a list of numbers",
    "compress {net} --target generic-x86 --mean nan,1,1": "'nan,1,1' is not a list of numbers",
    "compress {net} --target generic-x86 --mean 0.5": "mean and std need 3 values each",
    "compress {net} --target generic-x86 --precision fp16 --format onnx": "generic-x86 offers no fp16 and onnx file",
    "compress {net} --target generic-x86 --data {data} --ratio 0.01 --score-images 8 --score-steps 1 --out {out}":
        "nothing can be removed at ratio 0.01 with channel multiple 8",
    "compress {net} --target generic-x86 --out {net}": "is a file",
    "compress {net} --target generic-x86 --out {net}/run": "is no folder that you may write into",
    "score {here}/one.pt --arch {here}/one.py:build --input-size 32 --mean 0,0,0 --std 1,1,1 --data {here}/absent":
        "has 1 convolution: there are no filters to prune",
    "compress {here}/one.pt --arch {here}/one.py:build --input-size 32 --mean 0,0,0 --std 1,1,1 --data {here}/absent "
    "--target generic-x86 --out {out}": "has 1 convolution: there are no filters to prune",
    "evaluate {net} --data {data} --clean-only --attack pgd-5": "--attack does not go with --clean-only",
    "score {net} --data {data} --criterion l1 --region square --out {out}": "--region does not go with --criterion l1",
    "score {net} --data {data} --criterion l1 --radius 0.9 --out {out}": "--radius does not go with --criterion l1",
    "score {net} --data {data} --criterion fsrp-reconstruction --read-at activation --out {out}":
        "--read-at does not go with --criterion fsrp-reconstruction",
    "prune {net} --plan {chain}/pruned.plan.json --data {data} --out {out}":
        "--data is of no use here: add --compensate",
    "prune {net} --scores {chain}/scores.json --data {data} --out {out}":
        "--data is of no use here: add --compensate",
    "evaluate {net} --data {data} --attack autoatack": "unknown attack 'autoatack'",
    "evaluate {net} --data {here}/absent": "does not exist; allowed:",
    "evaluate {chain}/recovered.safetensors --data photographs": "would be compared with itself; give labelled images",
    "evaluate {chain}/artifacts/model-fp32.onnx": "neither a torch checkpoint nor safetensors",
    "score {net} --data {data} --out {here}/empty": "is a directory",
    "prune {net}": "give either --scores or --plan",
    "prune {net} --scores {chain}/scores.json --plan {chain}/pruned.plan.json": "give either --scores or --plan",
    "prune {net} --plan {chain}/pruned.plan.json --ratio 0.7 --out {out}": "--ratio does not go with --plan",
    "prune {net} --scores {chain}/pruned.plan.json --out {out}": "is not a file of filter scores:",
    "prune {net} --plan {chain}/scores.json --out {out}": "is not a pruning plan:",
    "prune {chain}/recovered.safetensors --plan {chain}/pruned.plan.json --out {out}": "plan was made for weights",
    "prune {chain}/recovered.safetensors --scores {chain}/scores.json --out {out}": "made for other weights",
    "prune {net} --plan {here}/far.json --out {out}": NOT_IN_RANGE,
    "prune {net} --plan {here}/other.json --out {out}": "features.99",
    "prune {net} --plan {here}/two.json --out {out}": "(2 channels)",
    "prune {net} --plan {here}/output.json --out {out}": "output",
    "recover {chain}/pruned.safetensors --data photographs --out {out}": "name the dense network with --teacher",
    "recover {chain}/pruned.safetensors --data {data} --recipe {here}/soft.yaml --recover-epochs 1 --out {out}":
        "distillation 0.5 needs a teacher network; give one (`recover --teacher`)",
    "recover {chain}/pruned.safetensors --data {data} --recipe {here}/hard.yaml --teacher {net} --out {out}":
        "a teacher was given, but the recipe's distillation is 0",
    "recover {chain}/pruned.safetensors --eps 0 --out {out}": "method 'n-fgsm' with eps 0",
    "export {chain}/recovered.safetensors --target jetson-nano --format onnx --precision int8": "no int8 and onnx file",
    "bench {here}/text.pt": "unknown suffix '.pt'; allowed: .onnx, .tflite",
    "report {here}/empty": "{here}/empty has no report.json; give the directory of a finished run",
    "report {chain}/scores.json": "not a valid report",
    "report {chain} --max-regression size=0%": "--max-regression is judged by an earlier run; name it with --baseline",
    "report {chain} {chain} --max-regression size=0%": "--max-regression is judged by an earlier run",
    "report {chain} --baseline {chain}": "--baseline alone judges nothing; say how much worse",
    "compress {net} --target generic-x86 --baseline {chain} --out {out}": "a baseline alone judges nothing",
    "compress {net} --target generic-x86 --max-regression size=0% --out {out}":
        "max_regression is judged by an earlier run",
    "compress {net} --target generic-x86 --require size[tflite]<=1kB --format onnx --out {out}":
        "there will be no row 'tflite'; there will be 'recovered'",
    "compress {net} --target generic-x86 --config {here}/fraction.yaml": "recover-epochs is 0.9; give a whole number",
    "sweep {net} --target generic-x86 --macs 50% --over ratio=0.3,0.7": "--over ratio does not go with --macs",
    "sweep {net} --target generic-x86 --ratio 0.9 --over ratio=0.3,0.7": "--ratio does not go with --over ratio",
    "sweep {net} --target generic-x86 --params 0.9 --over params=0.3,0.7": "--params does not go with --over params",
    "compress {net} --target generic-x86 --out=": "Invalid value for '--out': it is empty; give a name",
    "score {net} --data {data} --out=": "Invalid value for '--out': it is empty; give a name",
    "compress {net} --target generic-x86 --config {here}/switch.yaml": "quick-bench is 1; give true or false",
    "bench {chain}/artifacts/model-fp32.onnx --picture heat": "give a name that ends in .png",
    "score {net} --out {net}/scores.json": "is no folder that you may write into",
    "score {net} --data {data} --radius nan --out {out}": "Invalid value for '--radius': Input should be",
    "compress {net} --target generic-x86 --recover-learning-rate inf --out {out}": "Input should be a finite number",
    "compress {net} --target generic-x86 --rounds 10 --out {out}": "--rounds does not go with --strategy one-shot",
    "compress {net} --target generic-x86 --strategy gradual --round-epochs 2 --compensate --out {out}":
        "--compensate does not go with --round-epochs",
    "compress {net} --target generic-x86 --strategy gradual --rounds 1 --round-epochs 2 --out {out}":
        "at least 2 rounds",
    "compress {net} --target generic-x86 --data= --out {out}": "it is empty; name a data set, or leave it out",
    "prune {net} --scores {chain}/scores.json --compensate --data= --out {out}": "it is empty; name a data set",
    "score {net} --data {data} --criterion l1 --eps 4/255 --out {out}": "--eps does not go with --criterion l1",
    "compress {net} --target generic-x86 --precision fp32 --int8-max-drop 1 --out {out}":
        "--int8-max-drop does not go with --precision fp32",
    "export {net} --target jetson-nano --int8-max-drop 1 --out {out}": "int8-max-drop is for int8 files, and only onnx",
    "export {net} --target generic-x86 --precision fp32 --layer-errors --out {out}": "layer-errors is for int8 files",
    "evaluate {net} --data {data} --norm L2 --eps inf": "is outside 0 to 1",
    "evaluate {net} --data {data} --norm L2": "give --eps, such as 0.5, which is usual for CIFAR-10",
    "evaluate {net} --data {data} --file {chain}/artifacts/model-fp32.onnx --file {here}/model-fp32.onnx":
        "two of these --file have the same",
    "targets show jetson-nan": "unknown target 'jetson-nan'; did you mean jetson-nano",
    "train --arch cifar:vgg16_bn --data digits --out model.onnx": "give a name that ends in .pt or .safetensors",
    "train --arch cifar:vgg --data digits --out {out}.pt": "unknown architecture 'cifar:vgg'; nearest:",
    "train --arch cifar:vgg16_bn --data digits --eps 0 --out {out}.pt": "method 'n-fgsm' with eps 0",
    "train --arch cifar:vgg16_bn --data photographs --out {out}.pt": "has no labels to learn from",
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use_is_refused_in_a_line_with_exit_code_2(wrong: str, place: dict[str, str], fsrp_edge: Any) -> None:
    done = fsrp_edge(*wrong.format(**place).split(), "--quiet")
    message = done.err.strip().splitlines()[-1]
    assert done.code == 2, done.err
    assert message.lower().startswith("error: ") and WRONG[wrong].format(**place) in message, message
    assert "Traceback" not in done.err and "unexpected" not in done.err
    assert done.out == ""
    assert not (Path(place["here"]) / "out").is_file()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("score net.pt --data digits.npz --out net.pt", "--out net.pt"),
        ("score net.pt --data digits.npz --out digits.npz", "--out digits.npz"),
        ("prune net.pt --scores scores.json --out linked.pt", "--out linked.pt"),
        ("recover recovered.safetensors --recover-epochs 0 --int8-epochs 2", "--out recovered.safetensors"),
        ("recover pruned.pt --teacher net.pt --out net.pt", "--out net.pt"),
        ("evaluate net.pt --out net.pt", "--out net.pt"),
        ("evaluate net.pt --file m.onnx --out m.onnx", "--out m.onnx"),
        ("bench m.onnx --csv m.onnx", "--csv m.onnx"),
        ("compress net.pt --target generic-x86 --save-config net.pt", "--save-config net.pt"),
        ("report report.json other.json --page other.json", "--page other.json"),
    ],
)
def test_no_command_writes_over_what_it_reads(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsrp_edge: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [each for each in command.split() if "." in each]
    for name in {"net.pt", *names} - {"linked.pt"}:
        Path(name).write_text("the only one")
    Path("linked.pt").symlink_to("net.pt")
    done = fsrp_edge(*command.split())
    assert done.code == 2 and f"Error: {option} is what this command reads; name another file" in done.err
    assert all(Path(name).read_text() == "the only one" for name in names)


def test_a_wrong_command_through_the_console_script(place: dict[str, str]) -> None:
    done = process("compress", place["net"], "--target", "jetson-nan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown target 'jetson-nan'")


def test_a_missing_extra_is_named_with_exit_code_3(chain: Path, digits_npz: Path, tmp_path: Path) -> None:
    """onnxsim is made unimportable in a process of its own, as on a machine that only trains."""
    (tmp_path / "onnxsim.py").write_text("raise ImportError('not here')")
    (tmp_path / "onnx.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = process(
        *("export", str(chain / "recovered.safetensors"), *TARGET, "--data", str(digits_npz), "--quiet"),
        *("--format", "onnx", "--precision", "fp32", "--out", str(tmp_path / "artifacts")),
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 3, done.stderr
    assert "pip install" in done.stderr and "[onnx]" in done.stderr and "Traceback" not in done.stderr
