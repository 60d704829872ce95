"""`--config`, `--save-config` and `--dry-run` of compress."""

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from fsrp_edge.cli import cli
from fsrp_edge.cli.compress import compress, options_from
from fsrp_edge.cli.errors import run


def parsed(*arguments: object) -> dict[str, Any]:
    """What `compress` is called with."""
    return compress.make_context("compress", [str(argument) for argument in arguments]).params


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    path.touch()
    return path


def config(tmp_path: Path, **content: Any) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_says_what_the_options_say(net: Path, tmp_path: Path) -> None:
    path = config(
        tmp_path,
        **{
            "checkpoint": str(net),
            "target": "jetson-nano",
            "recover-epochs": 20,
            "attack": ["fgsm", "pgd-5"],
        },
        **{
            "gates": "size<=2MB",
            "layer_ratios": {"layer1.*": 0.25},
            "mean": [0.5, 0.4, 0.3],
            "keep_first": True,
        },
        eps="4/255",
    )
    flags = ("--recover-epochs", 20, "--attack", "fgsm", "--attack", "pgd-5", "--require", "size<=2MB")
    more = ("--layer-ratio", "layer1.*=0.25", "--mean", "0.5,0.4,0.3", "--keep-first", "--eps", "4/255")
    assert parsed("--config", path) == parsed(net, "--target", "jetson-nano", *flags, *more)


def test_a_key_without_a_value_says_nothing(net: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("gates:\n  # - size<=2MB\nrecover-epochs:\nkeep_first:\n")
    plain = [net, "--target", "jetson-nano"]
    assert parsed(*plain, "--config", path) == parsed(*plain)


def test_a_tilde_is_the_home_folder_where_no_shell_says_so(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"checkpoint": "~/net.pt", "target": "~/mine.yaml", "data": "~/cifar", "out": "~/run", "arch": "~/a.py:net"}
    found = parsed("--config", config(tmp_path, **names))
    assert {name: str(found[name]) for name in ("checkpoint", "target", "data", "out", "architecture")} == {
        "checkpoint": str(net), "target": f"{tmp_path}/mine.yaml", "data": f"{tmp_path}/cifar",
        "out": f"{tmp_path}/run", "architecture": f"{tmp_path}/a.py:net",
    }  # fmt: skip
    assert parsed(net, "--target", "jetson-nano", "--out=~/run", "--keep=~x")["out"] == tmp_path / "run"


def test_the_command_line_wins(net: Path, tmp_path: Path) -> None:
    path = config(tmp_path, checkpoint=str(net), target="jetson-nano", ratio=0.3, attacks=["fgsm"])
    found = parsed("--config", path, "--ratio", 0.7, "--attack", "pgd-3")
    assert (found["ratio"], found["attacks"], found["target"]) == (0.7, ("pgd-3",), "jetson-nano")


@pytest.mark.parametrize(("out", "refused"), [("vol", False), (".", False), ("vol/sub", False), ("other", True)])
def test_a_folder_to_write_into_is_one_that_may_be_written_whatever_is_above_it(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, refused: bool
) -> None:
    """As a volume of a container is; access is told here, as root has it everywhere."""
    volume = tmp_path / "vol"
    volume.mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: may(place, mode) and (mode != os.W_OK or place == volume))
    monkeypatch.chdir(volume if out == "." else tmp_path)
    if refused:
        with pytest.raises(click.BadParameter, match="is no folder that you may write into"):
            parsed(net, "--target", "jetson-nano", "--out", out)
    else:
        assert parsed(net, "--target", "jetson-nano", "--out", out)["out"] == Path(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recover-epoch: 3", "unknown key 'recover-epoch'; the nearest known one is 'recover_epochs'"),
        ("ration: 0.3", "unknown key 'ration'; the nearest known one is 'ratio'"),
        ("config: other.yaml", "unknown key 'config'"),
        ("gates: [size<=1MB]\nrequire: [size<=2MB]", "'require' says again what another key says"),
        ("require: size<=1MB\nrequire: size<=2MB", "'require' stands twice; give it once, with a list where there are"),
        ("layer-ratio:\n  a: 0.1\n  b: 0.1\n  a: 0.2", "'a' stands twice"),
        ("attack: [[fgsm]]", "attack holds a list inside a list"),
        ("- ratio", "holds no keys and values; it should look like `target: jetson-nano`"),
        ("a: [", "is not YAML"),
        ("ratio: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("ratio: !!int ''", "is not YAML"),
        ("ratio: 3", "3.0 is not in the range"),
        ("target: jetson-nano", "Missing argument 'CHECKPOINT'"),
        ("gates: [size>=1MB]", "size takes <="),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    content: str, message: str, net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    arguments = ["compress", "--config", str(path)]
    if "target" not in content:
        arguments += [str(net), "--target", "jetson-nano"]
    assert run(cli, arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def options_of(*arguments: object) -> Any:
    """What a run would be of."""
    with compress.make_context("compress", [str(argument) for argument in arguments]) as context:
        return options_from({name: value for name, value in context.params.items() if name != "dry_run"})


def test_a_ratio_beside_a_budget_is_refused_in_a_file_too(net: Path, tmp_path: Path) -> None:
    start = {"checkpoint": str(net), "target": "jetson-nano"}
    path = config(tmp_path, **start, ratio=0.9, params=0.5)
    with pytest.raises(click.UsageError, match="--ratio does not go with --params"):
        options_of("--config", path)
    path = config(tmp_path, **start, ratio=0.5, params=0.5)  # as --save-config writes the default
    assert options_of("--config", path).budgets.parameters is not None
    path = config(tmp_path, **start, ratio=0.9)
    assert options_of("--config", path, "--params", 0.5).budgets.parameters is not None, "the command line wins"


def test_a_dry_run_tells_and_leaves_nothing(
    trained_checkpoint: Path,
    digits_npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "saved.yaml"
    arguments = [
        *(
            "compress",
            str(trained_checkpoint),
            "--target",
            "generic-x86",
            "--data",
            str(digits_npz),
            "--quiet",
        ),
        *("--format", "onnx", "--require", "size<=1MB", "--require", "robust_accuracy>=1%", "--dry-run"),
        *("--save-config", str(saved), "--layer-ratio", "features.0=0"),
    ]
    assert run(cli, arguments) == 0
    out = capfd.readouterr().out
    assert "✓ size<=1MB" in out and "? robust_accuracy>=1%: only the run will tell" in out
    assert [path.name for path in tmp_path.iterdir()] == ["saved.yaml"]
    assert parsed("--config", saved) | {"dry_run": True} == parsed(*arguments[1:])

    assert run(cli, ["compress", "--config", str(saved), "--attack", "cw-5x2", "--dry-run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert {"score", "recover", "measure latency"} <= {step["name"] for step in found["steps"]}
    assert found["seconds"] == pytest.approx(sum(step["seconds"] for step in found["steps"])) and found["exact"]
    assert found["macs"][1] < found["macs"][0]

    assert "2 of them on 32 images under attack" in next(
        step["detail"] for step in found["steps"] if step["name"] == "evaluate files"
    )

    assert run(cli, [*arguments, "--params", "0.5"]) == 0
    out = capfd.readouterr().out
    assert "asked, " in out and "weigh plans" in out and "try files" not in out
    assert run(cli, [*arguments, "--size", "0.5"]) == 0
    assert "try files" in capfd.readouterr().out

    assert run(cli, [*arguments, "--require", "size<=1kB"]) == 1
    assert "out of reach with these options: size<=1kB" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("asked", "criterion"), [({}, "random"), ({"allocation": "global", "criterion": {"name": "lamp"}}, "lamp")]
)
def test_the_counts_of_a_dry_run_are_those_of_the_run(
    trained_checkpoint: Path, digits_npz: Path, asked: dict[str, Any], criterion: Any
) -> None:
    from fsrp_edge.pipeline.inputs import prepare
    from fsrp_edge.pipeline.options import CompressOptions
    from fsrp_edge.pipeline.preview import preview
    from fsrp_edge.pruning.planning import make_plan
    from fsrp_edge.pruning.surgery import apply_plan
    from fsrp_edge.scoring.fsrp import FSRP
    from fsrp_edge.scoring.rivals import Rival
    from fsrp_edge.scoring.score import score

    options = CompressOptions.model_validate(
        {"checkpoint": trained_checkpoint, "data": str(digits_npz), "target": "generic-x86", **asked}
    )
    inputs = prepare(options)
    other = score(inputs.dense, inputs.dataset.train, Rival(name=criterion), seed=0)
    pruned = apply_plan(inputs.dense, make_plan(inputs.dense, other, inputs.plan_options()))
    found = preview(options)
    assert found.parameters[1] == sum(parameter.numel() for parameter in pruned.network.parameters())
    assert found.exact and not preview(options.model_copy(update={"allocation": "global", "criterion": FSRP()})).exact


@pytest.mark.parametrize(
    ("asked", "checkpoints"),
    [
        ({"recovery": None}, 0),
        ({}, 2),
        ({"recovery": {"int8_epochs": 1}}, 3),
        ({"strategy": "gradual", "rounds": 4, "round_epochs": 1}, 5),
    ],
)
def test_a_dry_run_counts_the_checkpoints_that_lie_side_by_side(asked: dict[str, Any], checkpoints: int) -> None:
    from fsrp_edge.pipeline import preview
    from fsrp_edge.pipeline.options import CompressOptions

    options = CompressOptions.model_validate({"checkpoint": "net.pt", "target": "generic-x86", **asked})
    assert preview._checkpoints(options) == checkpoints


@pytest.mark.parametrize(
    ("budgets", "told"),
    [
        ({"latency": "0.001ms"}, "at most 0.001 ms asked: only trial files will tell; all else here is"),
        ({"latency": "0.001ms", "macs": "0.5"}, "only trial files will tell; all else here is without it"),
        ({"latency": "0.001ms", "size": "1GB"}, "without it (at ratio 0.5)"),
        ({"latency": "0.1%"}, "at most 0.1 % of the dense network's asked: only trial files will tell"),
    ],
)  # fmt: skip
def test_no_milliseconds_are_told_of_a_device_that_nothing_is_known_of(
    trained_checkpoint: Path, budgets: dict[str, Any], told: str
) -> None:
    from fsrp_edge.pipeline.inputs import prepare
    from fsrp_edge.pipeline.options import CompressOptions
    from fsrp_edge.pipeline.preview import preview
    from fsrp_edge.pruning.budgets import Budgets

    options = CompressOptions(
        checkpoint=trained_checkpoint, data="digits", target="generic-x86", formats=("onnx",),
        budgets=Budgets.model_validate(budgets), gates=("size<=1kB",),
    )  # fmt: skip
    assert prepare(options).place.measured, "files are tried here"
    found = preview(options)
    assert told in found.latency
    assert [each.kind for each in found.budgets] == (["macs"] if "macs" in budgets else [])
    # A latency may ask for less than what is foreseen, so a gate is not out of reach for that.
    assert found.gates[0][1] is None and not found.exact


@pytest.mark.parametrize(
    ("option", "in_recipe", "mirrored"),
    [
        ((), "", True),
        (("--no-flip",), "", False),
        ((), "flip: false", False),
        (("--no-flip",), "flip: true", True),
    ],
)
def test_images_are_mirrored_unless_told(
    net: Path, tmp_path: Path, option: tuple[str, ...], in_recipe: str, mirrored: bool
) -> None:
    (tmp_path / "recipe.yaml").write_text(in_recipe or "{}")
    found = options_of(net, "--target", "raspberry-pi-4", *option, "--recipe", tmp_path / "recipe.yaml")
    assert found.recovery is not None and found.recovery.flip == mirrored


def test_the_command_line_recovers_as_the_library_does_by_default(net: Path) -> None:
    from fsrp_edge.pipeline.options import CompressOptions

    found = options_of(net, "--target", "raspberry-pi-4")
    assert found.recovery == CompressOptions(checkpoint=net, target="raspberry-pi-4").recovery


def test_a_radius_of_a_recipe_may_be_a_fraction(net: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("eps: 4/255\n")
    found = options_of(net, "--target", "raspberry-pi-4", "--recipe", tmp_path / "recipe.yaml")
    assert found.recovery.eps == 4 / 255 and found.eps == 8 / 255


def test_what_a_recipe_says_is_not_replaced(net: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: trades\nepochs: 3\n")
    given = (net, "--target", "raspberry-pi-4", "--recipe", tmp_path / "recipe.yaml", "--recover-epochs", 0)
    found = options_of(*given)
    assert found.recovery is not None
    assert (found.recovery.method, found.recovery.epochs, found.recovery.flip) == ("trades", 3, True)
    assert not found.natural_if_undefended, "a method that was asked for stays"
