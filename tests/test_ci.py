"""The CI script as a CI system runs it, and the workflows as far as they can be checked without GitHub."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = [*(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / "docs" / "examples" / "compress.yml"]


THIS_CODE = f'exec "{sys.executable}" -m fsrp_edge "$@"'


def script(
    folder: Path, config: dict[str, Any], *targets: str, program: str = THIS_CODE
) -> subprocess.CompletedProcess[str]:
    """Runs ci/compress-and-gate.sh with `program`, a line of shell, as `fsrp-edge`."""
    started = start(folder, config, *targets, program=program)
    out, err = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def start(folder: Path, config: dict[str, Any], *targets: str, program: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "fsrp-edge").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "fsrp-edge").chmod(0o755)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}
    environment |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return subprocess.Popen(
        [ROOT / "ci" / "compress-and-gate.sh", "run.yaml", "out", *targets],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def config(trained_checkpoint: Path, digits_npz: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(trained_checkpoint), "data": str(digits_npz), "format": "onnx", "precision": "fp32",
        "recover-epochs": 0, "score-images": 8, "score-steps": 1, "attack": "fgsm", "robust-images": 8,
        "file-images": 0, "quick-bench": True, "ratio": 0.1,
    }  # fmt: skip


@pytest.mark.slow
def test_a_red_run_and_a_green_one(config: dict[str, Any], tmp_path: Path) -> None:
    gates = ["size<=1MB", "clean_accuracy>=99.9%"]
    red = script(tmp_path, {**config, "gates": gates}, "generic-x86", "no-such-device")
    assert red.returncode == 2, red.stderr  # the worst: of two targets, one failed a gate and one does not exist
    assert "== no-such-device" in red.stdout and "1 of 2 gates failed" in red.stderr
    assert "::error title=clean_accuracy>=99.9%25::" in red.stderr
    suite = ElementTree.parse(tmp_path / "out" / "generic-x86" / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")

    green = script(tmp_path, {**config, "gates": gates[:1]}, "generic-x86")
    assert green.returncode == 0, green.stderr
    assert "size<=1MB" in (tmp_path / "summary.md").read_text().replace("&lt;", "<")
    suite = ElementTree.parse(tmp_path / "out" / "generic-x86" / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    assert "score: already done" in green.stderr
    assert "bundle: out/generic-x86.zip" in green.stdout
    assert "artifacts/model-fp32.onnx" in zipfile.ZipFile(tmp_path / "out" / "generic-x86.zip").namelist()


@pytest.mark.parametrize(("code", "bundled"), [(0, True), (1, True), (2, False), (3, False)])
def test_an_earlier_run_is_not_shipped_after_one_that_ended_before_its_report(
    tmp_path: Path, code: int, bundled: bool
) -> None:
    run = tmp_path / "out" / "generic-x86"
    run.mkdir(parents=True)
    (run / "report.json").touch()
    run.with_suffix(".zip").touch()
    ended = f'case $1 in compress) exit {code};; bundle) echo packed > "$4";; esac'
    done = script(tmp_path, {}, "generic-x86", program=ended)
    assert done.returncode == code
    assert run.with_suffix(".zip").exists() == bundled == ("bundle: out/generic-x86.zip" in done.stdout)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_interrupt_ends_the_script_with_the_command_that_it_runs(
    tmp_path: Path, sent: signal.Signals, code: int, stopped: bool
) -> None:
    ends = f"trap 'echo ended; kill -9 $! 2>/dev/null; exit {code}' {sent.name.removeprefix('SIG')}"
    running = start(tmp_path, {}, "one", "two", program=f"{ends}; sleep 60 & echo $$; wait")
    assert running.stdout is not None and running.stdout.readline() == "== one\n"
    command = int(running.stdout.readline())
    if stopped:
        os.kill(command, signal.SIGSTOP)
        time.sleep(0.5)
    running.send_signal(sent)
    out, err = running.communicate(timeout=30)  # which ends when nobody writes to the pipes any more
    assert (running.returncode, out, err) == (code, "ended\n", "")


@pytest.mark.parametrize("code", [0, 2, 143])
def test_the_script_waits_for_a_command_that_was_stopped_for_a_while(tmp_path: Path, code: int) -> None:
    running = start(tmp_path, {}, "one", "two", program=f"echo $$; sleep 1; echo ended; exit {code}")
    assert running.stdout is not None and running.stdout.readline() == "== one\n"
    stopped = int(running.stdout.readline())
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(2)
    os.kill(stopped, signal.SIGCONT)
    out, err = running.communicate(timeout=30)
    assert [line for line in out.splitlines() if not line.isdigit()] == ["ended", "== two", "ended"]
    assert (running.returncode, err) == (code, "")


@pytest.mark.parametrize("code", [0, 2])
def test_the_action_tells_its_next_step_how_the_run_ended(tmp_path: Path, code: int) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (step,) = (step for step in action["runs"]["steps"] if step.get("id") == "compress")
    (tmp_path / "fsrp-edge").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "fsrp-edge").chmod(0o755)
    (tmp_path / "run.zip").touch()
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "OUT": "run/"}
    environment |= {
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "CONFIG": "of/run.yaml",
        "TARGET": "boards/my board@5W.yaml",
    }
    ended = subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == code and (tmp_path / "output").read_text().splitlines() == [
        "out=run",  # the bundle lies beside the run as run.zip, and not in it as .zip
        "artifact=fsrp-edge-run-boards-my-board@5W.yaml",  # no character that an artifact's name may not have
        f"code={code}",
    ]
    assert not (tmp_path / "run.zip").exists()
    assert sum("inputs.out" in str(step) for step in action["runs"]["steps"]) == 1  # what follows takes it from here
    (bundling,) = (step for step in action["runs"]["steps"] if "fsrp-edge bundle" in step.get("run", ""))
    assert "steps.compress.outputs.code" in bundling["if"]


def test_wrong_use_of_the_script_says_how() -> None:
    done = subprocess.run([ROOT / "ci" / "compress-and-gate.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_commands_of_workflows_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            command = step.get("run", "").split()
            if command[:1] == ["make"]:
                assert f"\n{command[1]}:" in makefile


def test_the_action_takes_what_its_example_gives() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    example = yaml.safe_load((ROOT / "docs" / "examples" / "compress.yml").read_text())
    (given,) = (step["with"] for step in example["jobs"]["compress"]["steps"] if "with" in step)
    required = {name for name, field in action["inputs"].items() if field.get("required")}
    assert required <= given.keys() <= action["inputs"].keys()
    for step in action["runs"]["steps"]:
        # What a workflow gives reaches the shell as variables, never as text of the script.
        assert "${{" not in step.get("run", "")
