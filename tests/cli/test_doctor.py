import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsrp_edge.cli import cli
from fsrp_edge.cli.doctor import EXTRAS
from fsrp_edge.cli.errors import run

MAIN = "from fsrp_edge.cli import main; main()"


def test_the_doctor_sees_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["doctor", "--json"]) == 0
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["torch"]["seen"] == torch.__version__
    assert "cores" in found["CPU"]["seen"] and "GB free" in found["disk here"]["seen"]
    for extra in EXTRAS:
        each = found[f"extra {extra}"]
        assert (each["state"] == "ok") == ("missing" not in each["seen"])
        assert each["fix"] == ("" if each["state"] == "ok" else f'pip install "fsrp-edge[{extra}]"')


def test_the_extras_are_those_of_the_package() -> None:
    import tomllib

    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    for extra, packages in EXTRAS.items():
        wanted = content["project"]["optional-dependencies"][extra]
        assert {line.split(">")[0] for line in wanted} == set(packages)


@pytest.mark.parametrize("package", ["torch", "torchvision"])
def test_a_broken_package_is_told_with_exit_code_3(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('libcudart.so.12')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "doctor"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 3 and "does not work: torch" in done.stderr
    assert f"{package} " in done.stdout and "libcudart.so.12" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    environment = {**os.environ, "_FSRP_EDGE_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "_FSRP_EDGE_COMPLETE" in done.stdout
