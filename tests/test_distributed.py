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
from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run as run_command
from fsrp_edge.evaluation.results import EvaluationFile
from fsrp_edge.models.saved import save_classifier
from tests.nets import built


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


@pytest.mark.parametrize("command", ["compress net.pt --target generic-x86", "sweep net.pt", "export net.pt"])
def test_a_command_that_each_process_would_do_in_full_is_refused(command, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(cli, command.split()) == 2
    told = f"error: {command.split()[0]} does not run under torchrun, where each process would do all of it; train, "
    assert capfd.readouterr().err.startswith(told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds net.safetensors: random weights that take digits."""
    path = tmp_path_factory.mktemp("net")
    save_classifier(built("cifar:vgg16_bn-w0.125", std=0.5, data="digits"), path / "net.safetensors")
    return path


def test_two_processes_give_the_scores_of_one(folder: Path) -> None:
    arguments = ["score", "net.safetensors", "--score-images", "17", "--score-steps", "2", "--json"]
    alone, together = (json.loads(run(launcher, folder, *arguments)) for launcher in (ALONE, TOGETHER))
    for name, layer in alone["layers"].items():
        assert together["layers"][name]["scores"] == pytest.approx(layer["scores"], rel=1e-6), name
    assert together["images"] == 17


UNEVEN = """
from fsrp_edge import distributed
from fsrp_edge.evaluation import evaluate
sizes = (12, 5)
evaluate.default_batch_size = lambda *_: sizes[distributed.processes()[0]]  # as GPUs with other free memory
from fsrp_edge.cli import main
main()
"""


def test_processes_of_unlike_memory_leave_no_image_out(folder: Path) -> None:
    (folder / "uneven.py").write_text(UNEVEN)
    arguments = ["evaluate", "net.safetensors", "--images", "24", "--eps", "0.5", "--attack", "pgd-2"]
    run(ALONE, folder, *arguments, "--out", "even.json")
    run([*TOGETHER[:-2], "uneven.py"], folder, *arguments, "--out", "uneven.json")
    even, uneven = (EvaluationFile.load(folder / name) for name in ("even.json", "uneven.json"))
    assert even.evaluations[0] == uneven.evaluations[0]
    assert uneven.evaluations[1].result.correct == even.evaluations[1].result.correct


WAIT = """
import sys
from pathlib import Path
import torch
from fsrp_edge import distributed
rank = distributed.processes()[0]
backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
(Path(sys.argv[1]) / str(rank)).write_text(str(backend.options._timeout.days))
"""


def test_a_process_waits_for_days_for_another(tmp_path: Path) -> None:
    (tmp_path / "wait.py").write_text(WAIT)
    run([*TOGETHER[:-2], "wait.py"], tmp_path, ".")
    assert [int((tmp_path / rank).read_text()) for rank in "01"] == [30, 30]


LEARN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import runpy
run = runpy.run_path(sys.argv[1])
from fsrp_edge import compute
from fsrp_edge.training.loop import train
from fsrp_edge.training.recipe import Recipe
network = run["small_cnn"]()
for name, layer in list(network.network.named_children()):
    if type(layer).__name__ in ("BatchNorm2d", "Dropout"):
        network.network[int(name)] = torch.nn.Identity()
compute.gains_from_bfloat16 = lambda device: False  # its rounding depends on how a batch is shared
recipe = Recipe(method="natural", eps=0.1, epochs=2, batch_size=64, learning_rate=0.05, ema_decay=0.9)
learnt, held_out = run["digit_sets"]()
result = train(network, learnt, held_out, recipe, seed=1)
torch.save(result.classifier.state_dict(), sys.argv[2])
"""


@pytest.mark.slow
def test_without_batch_statistics_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "learn.py").write_text(LEARN)
    run_file = str(Path(__file__).with_name("training") / "digits_run.py")
    for launcher, out in ((ALONE[:1], "alone.pt"), (TOGETHER[:-2], "together.pt")):
        run(launcher, tmp_path, "learn.py", run_file, out)
    alone, together = (torch.load(tmp_path / name, weights_only=True) for name in ("alone.pt", "together.pt"))
    for name, value in alone.items():
        assert torch.allclose(together[name], value, atol=1e-4), name


INTERRUPT = """
import os, runpy, sys, time, torch
from pathlib import Path
from fsrp_edge.training import loop
run = runpy.run_path(sys.argv[1])
loop.SAVE_SECONDS, loop.SAVE_SHARE = 0.0, float("inf")  # after every step
whole = loop._Run.step
def step(self, loss):
    if sys.argv[2] == "part.pt" and not Path("resumed").exists() and self.step_in_epoch == 4:
        torch.distributed.barrier()
        time.sleep(1)  # the other may still hear of it
        os._exit(0)  # as if killed: Python's end would wait for what runs in threads
    whole(self, loss)
loop._Run.step = step
learnt, held_out = run["digit_sets"]()
recipe = run["RECIPE"].model_copy(update={"epochs": 1})
result = loop.train(run["small_cnn"](), learnt, held_out, recipe, seed=1, checkpoint=Path("of-" + sys.argv[2]))
torch.save(result.classifier.state_dict(), sys.argv[2])
"""


def test_two_processes_interrupted_within_an_epoch_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Attacks see running statistics, of which a checkpoint holds those of one process."""
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    digits_run = str(Path(__file__).with_name("training") / "digits_run.py")
    launcher = [*TOGETHER[:-2], "interrupt.py", digits_run]
    run(launcher, tmp_path, "whole.pt")
    run(launcher, tmp_path, "part.pt")
    assert not (tmp_path / "part.pt").exists() and (tmp_path / "of-part.pt").exists()
    (tmp_path / "resumed").touch()
    run(launcher, tmp_path, "part.pt")
    whole, part = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "part.pt"))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


@pytest.mark.slow
def test_two_processes_train_and_judge_a_network(folder: Path) -> None:
    """Trained together, it learns; judged alone and together, the same images stand."""
    learning = ["--recover-epochs", "5", "--recover-method", "natural", "--recover-learning-rate", "0.1"]
    printed = run(
        TOGETHER,
        folder,
        "recover",
        "net.safetensors",
        *learning,
        "--batch-size",
        "32",
        "--out",
        "two.safetensors",
        "--json",
    )
    assert max(record["clean"] for record in json.loads(printed)["history"]) > 0.5
    arguments = ["evaluate", "two.safetensors", "--images", "120", "--eps", "0.03", "--attack", "pgd-2x2"]
    for launcher, out in ((ALONE, "alone.json"), (TOGETHER, "together.json")):
        run(launcher, folder, *arguments, "--attack", "cw-2", "--out", out)
    alone, together = (EvaluationFile.load(folder / name) for name in ("alone.json", "together.json"))
    assert alone == together
    assert 0 < alone.evaluations[-1].result.correct < alone.evaluations[0].result.correct
    assert not list(folder.glob("*unfinished*"))
