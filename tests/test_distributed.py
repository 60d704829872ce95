import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge import distributed
from fsrp_edge.evaluation.results import EvaluationFile
from fsrp_edge.models.classifier import Classifier, ModelSpec, Preprocessing
from fsrp_edge.models.registry import build
from fsrp_edge.models.saved import save_classifier


@given(st.integers(0, 50), st.integers(1, 8))
def test_the_parts_of_all_processes_are_the_whole(count, size):
    with pytest.MonkeyPatch.context() as patch:
        parts = []
        for rank in range(size):
            patch.setattr(distributed, "processes", lambda rank=rank: (rank, size))
            parts.extend(distributed.my_part(count))
    assert parts == list(range(count))


def test_one_process_has_nothing_to_share():
    tensor = torch.arange(3.0)
    assert distributed.processes() == (0, 1)
    assert torch.equal(distributed.sum_over_processes(tensor.clone()), tensor)


ALONE = [sys.executable, "-m", "fsrp_edge"]
TOGETHER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "fsrp_edge",
]


def run(launcher: list[str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*launcher, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds net.safetensors: random weights that take digits."""
    path = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    spec = ModelSpec(
        architecture="cifar:vgg16_bn-w0.125",
        input_shape=(3, 32, 32),
        classes=10,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        preprocessing=Preprocessing(resize=32),
        data="digits",
    )
    save_classifier(Classifier(build(spec.architecture, classes=10), spec), path / "net.safetensors")
    return path


def test_two_processes_give_the_scores_of_one(folder: Path) -> None:
    arguments = ["score", "net.safetensors", "--score-images", "17", "--score-steps", "2", "--json"]
    alone, together = (json.loads(run(launcher, folder, *arguments)) for launcher in (ALONE, TOGETHER))
    for name, layer in alone["layers"].items():
        assert together["layers"][name]["scores"] == pytest.approx(layer["scores"], rel=1e-6), name
    assert together["images"] == 17


def test_two_processes_reach_the_verdicts_of_one(folder: Path) -> None:
    arguments = ["evaluate", "net.safetensors", "--eps", "0.002", "--attack", "pgd-2x2", "--attack", "cw-2"]
    for launcher, out in ((ALONE, "alone.json"), (TOGETHER, "together.json")):
        run(launcher, folder, *arguments, "--out", out)
    alone, together = (EvaluationFile.load(folder / name) for name in ("alone.json", "together.json"))
    assert alone == together
    assert 0 < alone.evaluations[-1].result.correct < alone.evaluations[0].result.correct
    assert not list(folder.glob("*unfinished*"))
