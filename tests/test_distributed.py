import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge import distributed
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


def test_two_processes_give_the_scores_of_one(tmp_path):
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
    save_classifier(Classifier(build(spec.architecture, classes=10), spec), tmp_path / "net.safetensors")
    arguments = ["score", "net.safetensors", "--score-images", "17", "--score-steps", "2", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    outputs = []
    for launcher in (
        [sys.executable, "-m", "fsrp_edge"],
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "fsrp_edge",
        ],
    ):
        done = subprocess.run(
            [*launcher, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout))
    alone, together = outputs
    for name, layer in alone["layers"].items():
        assert together["layers"][name]["scores"] == pytest.approx(layer["scores"], rel=1e-6), name
    assert together["images"] == 17
