"""The training loop: SGD on the recipe's images, judged after each epoch on held-out ones, resumable."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from fsrp_edge import compute, distributed, progress
from fsrp_edge.attacks import PGD, attackable, pgd
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.classifier import Classifier, tensors_of
from fsrp_edge.records import Record
from fsrp_edge.training import checkpoint as checkpoints
from fsrp_edge.training.batchnorm import following_batch_norm
from fsrp_edge.training.passes import Passes, require_trainable
from fsrp_edge.training.recipe import Recipe

HELD_OUT_IMAGES = 512
HELD_OUT_STEPS = 5
SAVE_SECONDS = 60.0
"""Of training between two checkpoints within an epoch, at least."""
SAVE_SHARE = 1 / 20
"""Of the time between them that writing one may take: a large network's is gigabytes."""
LOOK_STEPS = 20
"""Between two looks at whether the loss is finite."""

Merit = tuple[float, float]
"""What the best epoch is chosen by: (robust, clean) accuracy, the other way round for natural training."""


class EpochRecord(Record):
    """What one epoch did.

    `clean` and `robust` are accuracies on `held_out` images that were not trained on, `robust` under PGD of 5
    steps at the recipe's eps (an early warning, not an evaluation).
    """

    epoch: int
    """From 1."""
    loss: float
    clean: float
    robust: float
    held_out: int
    learning_rate: float
    """Of the epoch's last step."""
    seconds: float
    """Of training, without the held-out check."""
    images_per_second: float


@dataclass(frozen=True)
class TrainingResult:
    """A trained network and how it came about.

    Args:
        classifier: the network that was given to `train`, with the weights of the best epoch.
        best_epoch: that epoch, from 1; 0 where none is.
        history: one record an epoch, those of an interrupted run included.
        diverged: what became infinite or NaN, where that ended it early, and what was kept.
    """

    classifier: Classifier
    best_epoch: int
    history: tuple[EpochRecord, ...]
    diverged: str | None = None

    @property
    def best(self) -> EpochRecord:
        """The best epoch's record; a KeyError where none is best."""
        return {record.epoch: record for record in self.history}[self.best_epoch]


def train(
    classifier: Classifier,
    train: ImageSet,
    held_out: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    teacher: Classifier | None = None,
    origin: str | None = None,
) -> TrainingResult:
    """Train a network in place, from the weights it has, on the device it is on.

    The weights of the epoch with the highest held-out robust accuracy (clean accuracy for method `natural`)
    are kept, so that robust overfitting does not end up in the file. Parameters with requires_grad False stay
    as they are. On the CPU the same arguments and number of threads give the same weights to the bit,
    interrupted or not. Under `torchrun` every process learns from its share of each batch and the gradients
    are averaged; batch norm then sees the shares apart, so the weights are equivalent, not equal, to those of
    one process.

    Args:
        classifier: network to train; returned in evaluation mode.
        train: images to learn from. The last incomplete batch of an epoch is left out.
        held_out: images that choose the best epoch, of which at most 512 are drawn; never the evaluation
            images.
        recipe: what to do.
        seed: of the order, augmentation, attacks and dropout.
        checkpoint: file that is rewritten after each epoch and every minute (of large networks
            more rarely), and continued from if it exists.
        teacher: network whose soft labels are learnt, for a recipe that needs one.
        origin: digest of what the weights were computed from, which a checkpoint is held to in place of them; None
            where they were not computed.

    Raises:
        BadInputError: too few images, teacher and recipe that disagree, a network without logits in training mode, a
            checkpoint of another run, or one that not every machine sees.
        ToolFailedError: the loss, or a value of the network, became infinite or NaN, and no epoch was finished before
            (or processes share the work); else the best of these is returned.
    """
    _check(classifier, train, held_out, recipe, teacher)
    # The identity is that of the initial weights, so it is taken before anything is trained.
    identity = (
        checkpoints.run_identity(classifier, train, held_out, recipe, seed=seed, teacher=teacher, origin=origin)
        if checkpoint
        else {}
    )
    run = _Run(classifier, recipe, teacher, steps_per_epoch=max(1, len(train) // recipe.batch_size))
    saved = checkpoints.load(checkpoint, identity) if checkpoint else None
    if saved is not None:
        run.load_state(saved)
        progress.log(
            f"continuing {checkpoint} after epoch {len(run.history)} of {recipe.epochs}, step {run.step_in_epoch}"
        )
    if checkpoint:
        _check_same_place(checkpoint, run)

    def save() -> None:
        if checkpoint and distributed.processes()[0] == 0:
            checkpoints.save(checkpoint, identity, run.state())

    judges, diverged = held_out.sample(HELD_OUT_IMAGES, seed), None
    with ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(attackable(teacher))
        stack.enter_context(following_batch_norm(classifier))
        for epoch in range(len(run.history) + 1, recipe.epochs + 1):
            if run.is_stale:
                break
            try:
                _train_epoch(run, train, epoch, seed, save)
            except ToolFailedError as error:
                if run.best_epoch and distributed.processes()[1] == 1:  # others would go on without this one
                    diverged = f"{error}; epoch {run.best_epoch}, the best before, is kept"
                    progress.log(diverged)
                    break
                if checkpoint:
                    checkpoint.unlink(missing_ok=True)  # where it leads is known now
                raise
            clean, robust = _held_out_accuracy(run.judged, judges, recipe, seed)
            images = run.steps_per_epoch * min(recipe.batch_size, len(train))
            record = EpochRecord(
                epoch=epoch,
                loss=run.loss / run.steps_per_epoch,
                clean=clean,
                robust=robust,
                held_out=len(judges),
                learning_rate=run.last_learning_rate,
                seconds=run.seconds,
                images_per_second=images / run.seconds,
            )
            run.finish_epoch(record)
            progress.log(_line(record, recipe))
            save()
    run.optimizer.zero_grad(set_to_none=True)
    classifier.load_state_dict(run.best_weights)
    classifier.eval()
    return TrainingResult(classifier, run.best_epoch, tuple(run.history), diverged)


def _check_same_place(checkpoint: Path, run: "_Run") -> None:
    """Refuse to go on where machines do not see the same checkpoint: their gradients would be of other weights."""
    steps = distributed.numbers_of_processes(len(run.history) * run.steps_per_epoch + run.step_in_epoch)
    if len(set(steps)) > 1:
        raise BadInputError(
            f"the processes would go on from different steps ({', '.join(map(str, steps))}): put {checkpoint} where "
            "all machines see the same file, or delete it to start over"
        )


class _Run:
    """Everything that changes while training, and so everything that a checkpoint holds.

    There is no generator among it: each step draws from generators seeded by (seed, epoch, step).
    """

    def __init__(
        self, classifier: Classifier, recipe: Recipe, teacher: Classifier | None, *, steps_per_epoch: int
    ) -> None:
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.classifier = classifier
        classifier.to_fast_layout(compute.device_of(classifier))
        self.passes = Passes(classifier, recipe, teacher)
        self.optimizer = _optimizer(classifier, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, recipe.epochs * steps_per_epoch)
        self.average = _MovingAverage(classifier, recipe.ema_decay) if recipe.ema_decay else None
        self.last_learning_rate = 0.0
        self.step_in_epoch, self.seconds = 0, 0.0
        self._loss = torch.zeros((), dtype=torch.float64, device=compute.device_of(classifier))
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Any] = {}

    @property
    def loss(self) -> float:
        """Sum over the epoch's steps so far."""
        return float(self._loss)

    @property
    def judged(self) -> nn.Module:
        """The network whose accuracy counts."""
        return self.classifier if self.average is None else self.average.network

    @property
    def is_stale(self) -> bool:
        """Whether the recipe's patience is over."""
        patience = self.recipe.patience
        return patience is not None and len(self.history) - self.best_epoch >= patience

    def step(self, loss: Tensor) -> None:
        distributed.average(self.classifier)
        self.optimizer.step()
        self.step_in_epoch += 1
        self._loss += loss
        self.last_learning_rate = float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        if self.average is not None:
            self.average.update()

    def finish_epoch(self, record: EpochRecord) -> None:
        self.history.append(record)
        self.step_in_epoch, self.seconds = 0, 0.0
        self._loss.zero_()
        best = self.history[self.best_epoch - 1] if self.best_epoch else None
        # A tie goes to the later epoch, which had the lower learning rate.
        if best is None or merit_of(record, self.recipe) >= merit_of(best, self.recipe):
            self.best_epoch = record.epoch
            self.best_weights = copy.deepcopy(self.judged.state_dict())

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.classifier.state_dict(),
            "average": self.average and (self.average.network.state_dict(), self.average.steps),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "place": [self.step_in_epoch, self.loss, self.seconds, self.last_learning_rate],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "history": [record.model_dump() for record in self.history],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["weights"])
        if self.average is not None:
            weights, self.average.steps = state["average"]
            self.average.network.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step_in_epoch, loss, self.seconds, self.last_learning_rate = state["place"]
        self._loss.fill_(loss)
        self.best_epoch = state["best_epoch"]
        self.best_weights = state["best_weights"]
        self.history = [EpochRecord(**record) for record in state["history"]]


def _check(
    classifier: Classifier, train: ImageSet, held_out: ImageSet, recipe: Recipe, teacher: Classifier | None
) -> None:
    if not recipe.epochs:
        raise BadInputError("saw a recipe of 0 epochs; give at least 1")
    if len(train) < 2:
        raise BadInputError(f"{train.name} has {len(train)} training images; at least 2 are needed")
    if len(held_out) == 0:
        raise BadInputError(f"{held_out.name} is empty; the best epoch is chosen on held-out images, give at least 1")
    recipe.check_teacher(given=teacher is not None)
    require_trainable(classifier)


def _optimizer(classifier: Classifier, recipe: Recipe) -> torch.optim.SGD:
    trainable = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1]},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
        fused=True,
    )


def _scheduler(optimizer: torch.optim.SGD, recipe: Recipe, steps: int) -> LRScheduler:
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    # One step more than are taken: the schedule's last value would be a step that learns nothing, and a
    # single-step run would divide by zero.
    return OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1, cycle_momentum=False)


class _MovingAverage:
    """Exponential moving average of a network's parameters and running statistics.

    torch's AveragedModel keeps its count on the device, so that every step would wait for a GPU.
    """

    def __init__(self, averaged: nn.Module, decay: float) -> None:
        self.network, self.decay, self.steps = copy.deepcopy(averaged), decay, 0
        mine, theirs = ((*network.parameters(), *network.buffers()) for network in (self.network, averaged))
        self._averaged, self._counted = (
            [[each for each in side if each.is_floating_point() == averaged] for side in (mine, theirs)]
            for averaged in (True, False)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network as it is now."""
        # The decay grows with the steps taken, or short runs would average in the untrained start.
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 1.0
        mine, theirs = self._averaged
        torch._foreach_lerp_(mine, theirs, weight)
        counts, their_counts = self._counted
        if counts:
            torch._foreach_copy_(counts, their_counts)
        self.steps += 1


def _train_epoch(run: _Run, train: ImageSet, epoch: int, seed: int, save: Callable[[], None]) -> None:
    """One pass over the images, or what is left of it; each process of torchrun takes its share of every batch."""
    recipe, classifier = run.recipe, run.classifier
    rank = distributed.processes()[0]
    size = min(recipe.batch_size, len(train))
    order = np.random.default_rng(compute.seed_of(seed, epoch)).permutation(len(train))
    share = distributed.my_part(size)
    if len(share) < 2:
        raise BadInputError(f"a batch of {size} is too small for so many processes; raise the batch size")
    mine = order[: run.steps_per_epoch * size].reshape(-1, size)[run.step_in_epoch :, share.start : share.stop]
    stream = train.subset(mine.reshape(-1)).batches(len(share))
    classifier.train()
    saved = started = time.perf_counter()
    took = 0.0
    before = run.seconds
    with compute.own_draws():  # each step seeds torch's global generator
        described = f"epoch {epoch}/{recipe.epochs}"
        for pixels, labels in progress.track(stream, described, len(mine)):
            step_seed = compute.seed_of(seed, epoch, run.step_in_epoch, rank)
            run.step(run.passes.loss(pixels, labels, step_seed))
            at_end = run.step_in_epoch == run.steps_per_epoch
            # Asking waits for a GPU, which then idles until it is fed again; a sum that is NaN once stays so.
            if (at_end or run.step_in_epoch % LOOK_STEPS == 0) and not math.isfinite(run.loss):
                raise _diverged(recipe, epoch, f"the loss became {run.loss}")
            now = time.perf_counter()
            run.seconds = before + now - started
            if now - saved >= max(SAVE_SECONDS, took / SAVE_SHARE) and not at_end:
                save()
                saved = time.perf_counter()
                took = saved - now
    # The loss may stay finite where weights or running variances do not, and such a network is of no use to anyone.
    for name, value in tensors_of(run.judged).items():
        if not value.isfinite().all():
            raise _diverged(recipe, epoch, f"{name.removeprefix('network.')} became infinite or NaN")


def _diverged(recipe: Recipe, epoch: int, what: str) -> ToolFailedError:
    attack = "" if recipe.method == "natural" else f" or eps (it was {recipe.eps:g})"
    return ToolFailedError(
        f"training diverged in epoch {epoch} of {recipe.epochs}: {what}; lower the learning rate (it was "
        f"{recipe.learning_rate:g}){attack}"
    )


def held_out_merit(classifier: Classifier, held_out: ImageSet, recipe: Recipe, seed: int) -> Merit:
    """Of a network as it is, on the images that judge epochs."""
    judges = held_out.sample(HELD_OUT_IMAGES, seed)
    return _merit(recipe, *_held_out_accuracy(classifier, judges, recipe, seed))


def merit_of(record: EpochRecord, recipe: Recipe) -> Merit:
    """Of an epoch: that of the network with its weights."""
    return _merit(recipe, record.clean, record.robust)


def _merit(recipe: Recipe, clean: float, robust: float) -> Merit:
    return (clean, robust) if recipe.method == "natural" else (robust, clean)


def _held_out_accuracy(model: nn.Module, images: ImageSet, recipe: Recipe, seed: int) -> tuple[float, float]:
    """Clean and PGD accuracy; the same images and random starts in every epoch, so that epochs compare.

    A network with one answer to all images cannot be attacked, and is worth nothing: its PGD accuracy is 0.
    """
    device = compute.device_of(model)
    attack = PGD(eps=recipe.eps, steps=HELD_OUT_STEPS)
    generator = compute.generator(seed)
    # No more than a process trains on, as all judge all images; a GPU also keeps what the recorded step needs.
    size = min(-(-recipe.batch_size // distributed.processes()[1]), images.usual_batch)
    counts, answered = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    with attackable(model), torch.no_grad(), compute.full_float32():
        for pixels, labels in images.tracked(size, "held-out accuracy"):
            here, truth = pixels.to(device, memory_format=torch.channels_last), labels.to(device)
            logits = model(here)
            answers = logits.argmax(1)
            right = answers == truth
            stands = model(pgd(model, here, truth, attack, generator)).argmax(1) == truth
            counts += torch.stack((right.sum(), (right & stands).sum())).cpu()
            answered = answered + answers.bincount(minlength=logits.shape[1]).cpu()
    # On a GPU the processes' counts may differ by an image, and with them when each would stop.
    clean, robust = (distributed.sum_over_processes(counts) / (len(images) * distributed.processes()[1])).tolist()
    constant = len(images) > 1 and (distributed.sum_over_processes(answered) > 0).sum() < 2
    return clean, 0.0 if constant else robust


def _line(record: EpochRecord, recipe: Recipe) -> str:
    return (
        f"epoch {record.epoch}/{recipe.epochs}: loss {record.loss:.3f}, held-out clean {record.clean:.1%}, "
        f"PGD-{HELD_OUT_STEPS} at eps {recipe.eps:.4g} {record.robust:.1%} (n={record.held_out}), "
        f"learning rate {record.learning_rate:.3g}, {record.images_per_second:.0f} images/s"
    )
