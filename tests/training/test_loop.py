import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge import distributed, progress
from fsrp_edge.attacks import PGD, attackable, pgd
from fsrp_edge.compute import generator
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.training import checkpoint as checkpoints
from fsrp_edge.training import loop
from fsrp_edge.training.batchnorm import recalibrate_batch_norm
from fsrp_edge.training.loop import HELD_OUT_STEPS, held_out_merit, train
from fsrp_edge.training.recipe import Recipe
from tests.nets import as_classifier

SHORT = Recipe(method="natural", eps=0.1, epochs=2, batch_size=64, learning_rate=0.05)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Lines:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def track(self, items: Iterable[Any], description: str, total: int | None) -> Iterator[Any]:
        yield from items

    def log(self, message: str) -> None:
        self.lines.append(message)


def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, interruptible_run) -> None:
    checkpoint = tmp_path / "run" / "training.pt"
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("digits_run.py")), str(checkpoint)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout
    for line in child.stdout:
        if line.startswith("epoch 3/"):
            child.kill()
            break
    child.stdout.close()
    assert child.wait() == -9
    listener = Lines()
    with progress.listen(listener):
        continued = interruptible_run(checkpoint)
    assert any(f"after epoch {done} of 6" in listener.lines[0] for done in (2, 3, 4, 5)), listener.lines[0]
    uninterrupted = interruptible_run(None)
    assert same_weights(continued.classifier, uninterrupted.classifier)
    assert [record.loss for record in continued.history] == [record.loss for record in uninterrupted.history]
    assert [record.epoch for record in continued.history] == [1, 2, 3, 4, 5, 6]
    again = interruptible_run(checkpoint)
    assert same_weights(again.classifier, uninterrupted.classifier), "a finished run is not trained again"


def test_a_run_interrupted_within_an_epoch_continues_to_the_same_bits(
    tmp_path: Path, monkeypatch, digit_sets, small_cnn
) -> None:
    recipe = SHORT.model_copy(update={"method": "trades", "attack_steps": 2, "ema_decay": 0.9, "cutmix": True})
    whole = train(small_cnn(), *digit_sets, recipe, seed=3)
    path, save = tmp_path / "training.pt", checkpoints.save
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", np.inf)
    places = []

    def stop_after(*arguments) -> None:
        save(*arguments)
        places.append(arguments[2]["place"][0])
        if len(places) % 4 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", stop_after)
    result = None
    while result is None:
        with contextlib.suppress(KeyboardInterrupt):
            result = train(small_cnn(), *digit_sets, recipe, seed=3, checkpoint=path)
    assert len(places) > 8 and {1, 4, 7} <= set(places), "stopped at several steps of an epoch"
    assert same_weights(result.classifier, whole.classifier)
    assert [record.loss for record in result.history] == [record.loss for record in whole.history]


@pytest.mark.parametrize(("writing", "places"), [(1 / 32, [2, 4, 6]), (1 / 4, [2, 7])])
def test_checkpoints_take_a_twentieth_of_the_time_at_most(
    writing: float, places: list[int], tmp_path: Path, monkeypatch, digit_sets, small_cnn
) -> None:
    """By a clock that only steps, a second each, and writing move."""
    now, saved = 0.0, []

    def step(self: loop._Run, loss: torch.Tensor) -> None:
        nonlocal now
        now += 1.0
        whole(self, loss)

    def save(_path: Path, _identity: object, state: dict[str, Any]) -> None:
        nonlocal now
        now += writing
        saved.append(state["place"][0])

    whole = loop._Run.step
    monkeypatch.setattr(loop._Run, "step", step)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(loop, "SAVE_SECONDS", 2.0)
    monkeypatch.setattr(checkpoints, "save", save)
    learnt = digit_sets[0].first(8 * SHORT.batch_size)
    once = SHORT.model_copy(update={"epochs": 1})
    train(small_cnn(), learnt, digit_sets[1], once, seed=0, checkpoint=tmp_path / "training.pt")
    assert saved == [*places, 0], "the last is the finished epoch's"


@pytest.mark.parametrize("change", [{"method": "trades", "attack_steps": 3}, {"cutmix": True, "method": "n-fgsm"}])
def test_other_recipes_learn_too(digit_sets, small_cnn, change) -> None:
    recipe = SHORT.model_copy(update={"epochs": 8, "schedule": "cosine", **change})
    best = max(train(small_cnn(), *digit_sets, recipe, seed=0).history, key=lambda record: record.robust)
    assert best.clean > 0.8 and best.robust > 0.3


def test_patience_ends_a_run_that_gets_no_better(digit_sets, small_cnn) -> None:
    recipe = SHORT.model_copy(update={"epochs": 50, "patience": 2, "schedule": "cosine"})
    result = train(small_cnn(), *digit_sets, recipe, seed=0)
    assert len(result.history) == result.best_epoch + 2 < 50


def test_the_seed_decides_the_weights(digit_sets, small_cnn) -> None:
    first, again, other = (train(small_cnn(), *digit_sets, SHORT, seed=seed).classifier for seed in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_it_learns_and_keeps_the_weights_of_its_best_epoch(digit_sets, small_cnn, ema_decay) -> None:
    learnt, held_out = digit_sets
    recipe = SHORT.model_copy(
        update={"method": "pgd", "attack_steps": 2, "epochs": 6, "schedule": "cosine", "ema_decay": ema_decay}
    )
    result = train(small_cnn(), learnt, held_out, recipe, seed=0)
    best = result.history[result.best_epoch - 1]
    assert best.robust == max(record.robust for record in result.history)
    assert best.clean > 0.8 and best.robust > 0.3
    assert not result.classifier.training
    pixels, labels = next(held_out.batches(len(held_out)))
    with torch.no_grad(), attackable(result.classifier):
        right = result.classifier(pixels).argmax(1) == labels
        attack = PGD(eps=recipe.eps, steps=HELD_OUT_STEPS)
        stands = result.classifier(pgd(result.classifier, pixels, labels, attack, generator(0))).argmax(1) == labels
    assert right.float().mean().item() == pytest.approx(best.clean, abs=0.011)
    assert (right & stands).float().mean().item() == pytest.approx(best.robust, abs=0.021)


@pytest.mark.parametrize("momentum", [0.0003, None])
def test_running_statistics_keep_up_whatever_their_momentum(digit_sets, small_cnn, momentum) -> None:
    network = small_cnn()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = momentum  # as torchvision's MNASNet has it; or all batches so far, weighed alike
    train(network, *digit_sets, SHORT.model_copy(update={"method": "natural", "epochs": 6}), seed=0)
    assert all(norm.momentum == momentum for norm in norms)
    followed = [norm.running_var.clone() for norm in norms]
    recalibrate_batch_norm(network, digit_sets[0])
    for norm, variance in zip(norms, followed, strict=True):
        torch.testing.assert_close(variance, norm.running_var, rtol=0.5, atol=0.1)


def test_natural_training_keeps_the_epoch_of_the_best_clean_accuracy(digit_sets, small_cnn) -> None:
    result = train(small_cnn(), *digit_sets, SHORT.model_copy(update={"epochs": 3}), seed=0)
    best = result.history[result.best_epoch - 1]
    assert best.clean == max(record.clean for record in result.history)


def test_frozen_parameters_stay_and_every_other_moves(digit_sets, small_cnn) -> None:
    network = small_cnn()
    network.network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.named_parameters()}
    train(network, *digit_sets, SHORT.model_copy(update={"method": "n-fgsm"}), seed=0)
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(before) - {"network.0.weight"}
    assert not network.network[0].weight.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("change", [{"distillation": 1.0}, {"method": "rslad", "attack_steps": 2}])
def test_a_teacher_alone_teaches(digit_sets, small_cnn, change) -> None:
    learnt, held_out = digit_sets
    teacher = train(small_cnn(), learnt, held_out, SHORT.model_copy(update={"epochs": 6}), seed=0).classifier
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    mislabelled = learnt.relabelled((learnt.labels + 1) % 10, "ground truth")
    recipe = SHORT.model_copy(update={"epochs": 6, **change})
    student = train(small_cnn(), mislabelled, held_out, recipe, seed=1, teacher=teacher)
    assert student.history[-1].clean > 0.8
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("learning_rate", "what"), [(1e30, "the loss became nan"), (1e3, "running_var became infinite or NaN")]
)
def test_divergence_says_when_and_what_to_change(
    learning_rate: float, what: str, tmp_path: Path, digit_sets, small_cnn
) -> None:
    """With 1e3 every loss is finite, and only a running variance is not."""
    diverging = SHORT.model_copy(update={"learning_rate": learning_rate, "method": "natural"})
    path = tmp_path / "training.pt"
    with pytest.raises(ToolFailedError, match=rf"diverged in epoch \d of 2: .*{what}; lower") as error:
        train(small_cnn(), *digit_sets, diverging, seed=0, checkpoint=path)
    assert str(error.value).endswith(f"the learning rate (it was {learning_rate:g})")
    assert not path.exists()  # it would stand in the way of a run with another learning rate


def test_a_run_that_diverges_late_keeps_its_best_epoch(tmp_path: Path, digit_sets, small_cnn, monkeypatch) -> None:
    classifier, steps = small_cnn(), 0
    told: list[str] = []
    monkeypatch.setattr(progress, "log", told.append)

    def spoil(module: nn.Module, _: object, logits: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += module.training
        return (
            logits * float("nan") if module.training and steps > 2 + len(digit_sets[0]) // SHORT.batch_size else logits
        )

    classifier.network.register_forward_hook(spoil)
    result = train(classifier, *digit_sets, SHORT, seed=0, checkpoint=tmp_path / "training.pt")
    assert len(result.history) == result.best_epoch == 1
    assert result.diverged is not None and told[-1] == result.diverged
    assert any("diverged in epoch 2 of 2" in line and "epoch 1, the best before, is kept" in line for line in told)
    assert all(value.isfinite().all() for value in classifier.state_dict().values())


def test_a_single_held_out_image_can_withstand(small_cnn) -> None:
    classifier = small_cnn()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
        next(module for module in classifier.modules() if isinstance(module, nn.Linear)).bias[3] = 5.0
    shape = classifier.spec.input_shape
    one = ImageSet.of("one", ArraySource(np.zeros((1, *shape), np.uint8)), torch.tensor([3]))
    assert held_out_merit(classifier, one, SHORT, 0)[0] == 1.0


@pytest.mark.parametrize(("side", "processes", "most"), [(32, 1, 64), (32, 8, 8), (224, 1, 20)])
def test_held_out_images_are_judged_in_batches_that_fit(
    side: int, processes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes judge all images: the recipe's whole batch may be too many for one."""
    monkeypatch.setattr(distributed, "processes", lambda: (0, processes))
    monkeypatch.setattr(distributed, "sum_over_processes", lambda tensor: tensor)
    network = as_classifier(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.LazyLinear(10)), shape=(1, side, side))
    network(network.example_pixels(1))
    seen = set[int]()
    network.register_forward_pre_hook(lambda _, pixels: seen.add(len(pixels[0])))
    noise = np.random.default_rng(0).integers(0, 256, (70, 1, side, side), dtype=np.uint8)
    held_out_merit(network, ImageSet.of("noise", ArraySource(noise), torch.arange(70) % 10), SHORT, 0)
    assert max(seen) == most


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path, digit_sets, small_cnn) -> None:
    path = tmp_path / "training.pt"
    train(small_cnn(), *digit_sets, SHORT.model_copy(update={"epochs": 1}), seed=0, checkpoint=path)
    with pytest.raises(BadInputError, match=r"belongs to another run: recipe.epochs \(there 1, now 2\); delete it"):
        train(small_cnn(), *digit_sets, SHORT, seed=0, checkpoint=path)
    other = small_cnn()
    with torch.no_grad():
        other.network[0].weight.mul_(2)
    with pytest.raises(BadInputError, match=r"network\.weights"):
        train(other, *digit_sets, SHORT.model_copy(update={"epochs": 1}), seed=0, checkpoint=path)


def test_a_checkpoint_that_not_every_machine_sees_is_refused(
    tmp_path: Path, digit_sets, small_cnn, monkeypatch
) -> None:
    path = tmp_path / "run.pt"
    train(small_cnn(), *digit_sets, SHORT, seed=0, checkpoint=path)
    monkeypatch.setattr(distributed, "numbers_of_processes", lambda number: [number, 0])
    with pytest.raises(BadInputError, match=r"from different steps \([1-9]\d*, 0\): put .*run\.pt where all machines"):
        train(small_cnn(), *digit_sets, SHORT, seed=0, checkpoint=path)
    path.unlink()
    train(small_cnn(), *digit_sets, SHORT, seed=0, checkpoint=path)


def test_a_checkpoint_is_not_continued_behind_another_normalization(tmp_path: Path, digit_sets, small_cnn) -> None:
    def behind(mean: float) -> Classifier:
        network = small_cnn()
        return Classifier(network.network, network.spec.model_copy(update={"mean": (mean,)}))

    path, distilled = tmp_path / "training.pt", SHORT.model_copy(update={"method": "rslad", "epochs": 1})
    train(behind(0.3), *digit_sets, distilled, seed=0, checkpoint=path, teacher=behind(0.3))
    for mean, of_teacher, name in ((0.5, 0.3, "network"), (0.3, 0.5, "teacher")):
        with pytest.raises(BadInputError, match=rf"another run: {name}\.mean \(there \[0\.3\], now \[0\.5\]\); delete"):
            train(behind(mean), *digit_sets, distilled, seed=0, checkpoint=path, teacher=behind(of_teacher))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_foreign_file_is_refused(tmp_path: Path, digit_sets, small_cnn, content: bytes) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="is not a training checkpoint"):
        train(small_cnn(), *digit_sets, SHORT, seed=0, checkpoint=path)
    assert path.read_bytes() == content


def test_what_cannot_be_trained_is_refused_before_it_starts(digit_sets, small_cnn) -> None:
    learnt, held_out = digit_sets
    with pytest.raises(BadInputError, match="1 training images; at least 2"):
        train(small_cnn(), learnt.first(1), held_out, SHORT, seed=0)
    with pytest.raises(BadInputError, match="is empty"):
        train(small_cnn(), learnt, held_out.first(0), SHORT, seed=0)
    with pytest.raises(BadInputError, match="needs a teacher"):
        train(small_cnn(), learnt, held_out, SHORT.model_copy(update={"distillation": 0.5}), seed=0)
    with pytest.raises(BadInputError, match="method rslad needs a teacher"):
        train(small_cnn(), learnt, held_out, SHORT.model_copy(update={"method": "rslad"}), seed=0)
    with pytest.raises(BadInputError, match="distillation is 0"):
        train(small_cnn(), learnt, held_out, SHORT, seed=0, teacher=small_cnn())


def test_a_set_smaller_than_a_batch_is_one_batch(digit_sets, small_cnn) -> None:
    learnt, held_out = digit_sets
    result = train(small_cnn(), learnt.first(10), held_out, SHORT.model_copy(update={"epochs": 1}), seed=0)
    assert len(result.history) == 1


def test_modules_may_keep_more_than_tensors_beside_their_weights(digit_sets, small_cnn) -> None:
    class Kept(nn.Sequential):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: object) -> None:
            assert state == {"version": 1}

    classifier = small_cnn()
    classifier.network = Kept(classifier.network)
    result = train(classifier, *digit_sets, SHORT.model_copy(update={"ema_decay": 0.9}), seed=0)
    assert len(result.history) == SHORT.epochs
