"""Recovery: what a pruned network gets back by batch-norm recalibration and (adversarial) fine-tuning."""

import copy
import operator
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fsrp_edge import distributed, progress
from fsrp_edge.data.images import Dataset, ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.files import sha256_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.targets.profile import WeightBits
from fsrp_edge.training.batchnorm import has_batch_norm, recalibrate_batch_norm
from fsrp_edge.training.int8 import rounded_to_int8
from fsrp_edge.training.loop import Merit, TrainingResult, held_out_merit, merit_of, train
from fsrp_edge.training.recipe import Recipe

HELD_OUT_SHARE = 0.1
MOST_HELD_OUT = 1000
UNTRAINED = Recipe(method="natural")
"""Says what networks that are not trained are judged by: clean accuracy before robust."""

UNDONE = "no epoch was as good on held-out images as the network before it, which is kept"

Better = Callable[[Merit, Merit], bool]
"""Whether what has the first merit is taken before what has the second."""


def split_held_out(images: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Training images without, and then the tenth (at most 1,000) that only chooses the best epoch."""
    count = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(images))))
    held_out, rest = images.split(count, seed)
    return rest, held_out


def without_held_out(images: ImageSet, seed: int) -> ImageSet:
    """Training images to score, fit and weigh networks on: those that judge the recovery are not among them.

    Where none would be left (of one image), all of them.
    """
    return split_held_out(images, seed)[0] or images


def fit_recipe(recipe: Recipe, dataset: Dataset, *, has_teacher: bool) -> Recipe:
    """The recipe as the data allows it.

    Images that are known to mean something else when mirrored are not flipped, and where others are, that is told.
    Batches are at most an eighth of the set with the learning rate scaled along (Goyal et al., arXiv 1706.02677), and
    labels that are only the dense network's predictions give way to its soft labels where it is there to ask.
    """
    predicted = dataset.train.label_kind != "ground truth"
    batch_size = min(recipe.batch_size, max(2, len(dataset.train) // 8))
    if predicted and has_teacher:
        recipe = recipe.distilling(1.0)
    flip = recipe.flip and dataset.mirrorable
    if flip:
        progress.log("training images are mirrored at random: --no-flip where that makes something else of them")
    return recipe.model_copy(
        update={
            "flip": flip,
            "batch_size": batch_size,
            "learning_rate": recipe.learning_rate * batch_size / recipe.batch_size,
        }
    )


def require_same_task(network: Classifier, teacher: Classifier) -> None:
    """Refuse a teacher that could not be asked about the network's images and classes.

    Raises:
        BadInputError: it takes images of another shape, or its classes are others or in another order.
    """
    own, others = network.spec, teacher.spec
    facts = [("input", own.input_shape, others.input_shape), ("classes", own.classes, others.classes)]
    if own.class_names is not None and others.class_names is not None:
        facts.append(("class names", own.class_names, others.class_names))
    for what, mine, theirs in facts:
        if mine != theirs:
            raise BadInputError(
                f"the teacher's {what} ({reprlib.repr(theirs)}) are not the network's ({reprlib.repr(mine)}); name one "
                "that takes the same images and tells the same classes in the same order"
            )


def recover(
    pruned: Classifier,
    images: ImageSet,
    recipe: Recipe | None,
    *,
    seed: int,
    teacher: Classifier | None = None,
    checkpoint: Path | None = None,
    int8_weight_bits: WeightBits = 8,
) -> TrainingResult:
    """Recover a pruned network in place.

    Args:
        pruned: network to recover.
        images: training images; a tenth of them is held out to choose the best epoch.
        recipe: of the fine-tuning; None recalibrates batch norm, unless held-out images are against it (a compensated
            network's statistics fit already), and trains nothing.
        seed: of every random draw.
        teacher: the dense network, for a recipe that needs a teacher.
        checkpoint: of the fine-tuning, rewritten after each epoch and continued from; that for int8 is beside it (see
            `int8_checkpoint`). Both stay, for the caller to remove once the network is saved.
        int8_weight_bits: of the files that epochs for int8 are for.

    Returns:
        The recovered network with the history of its epochs (empty without fine-tuning), those for int8 after the
        others. Where the best of them is worse on the held-out images than the network was, the best epoch is 0, and
        it is left as it was. Batch norm is recalibrated once more after fine-tuning where that is better on the
        held-out images.

    Raises:
        BadInputError, ToolFailedError: as `train` does, but epochs for int8 after others leave what these made (where
            processes share the work, they raise too); teacher and recipe that disagree are told before anything is
            computed.
    """
    if recipe is not None:
        recipe.check_teacher(given=teacher is not None)
    learnt, held_out = split_held_out(images, seed)
    trial = _Trial(pruned, held_out, recipe or UNTRAINED, seed)
    result = TrainingResult(pruned, 0, ())
    if recipe is None:
        _recalibrate_where(operator.ge, trial, learnt)
        return result
    origin = weights_sha256(pruned)
    if recipe.epochs:
        with trial.step(_is_no_ruin(recipe)) as training:
            recalibrate_batch_norm(pruned, learnt, seed=seed)
            result = train(
                pruned, learnt, held_out, recipe, seed=seed, teacher=teacher, checkpoint=checkpoint, origin=origin
            )
            training.merit = merit_of(result.best, recipe)
        if not training.kept:
            progress.log(f"recovery: {UNDONE}")
            result = replace(result, best_epoch=0)
    _recalibrate_where(operator.gt, trial, learnt)
    if not recipe.int8_epochs:
        return result
    unfinished = int8_checkpoint(checkpoint) if checkpoint else None
    gentle = recipe.for_int8()
    # `gentle` does not say how it was before.
    trained = sha256_json([origin, recipe.model_dump(mode="json"), int8_weight_bits])
    try:
        with (
            rounded_to_int8(pruned, int8_weight_bits),
            _Trial(pruned, held_out, gentle, seed).step(operator.gt) as tuning,
        ):
            tuned = train(
                pruned, learnt, held_out, gentle, seed=seed, teacher=teacher, checkpoint=unfinished, origin=trained
            )
            tuning.merit = merit_of(tuned.best, gentle)
    except ToolFailedError as error:
        if not recipe.epochs or distributed.processes()[1] > 1:  # nothing to keep; others would go on without this one
            raise
        diverged = f"epochs for int8: {error}; the network before them is kept"
        progress.log(diverged)
        pruned.eval()
        return replace(result, diverged=diverged)
    done = len(result.history)
    history = (record.model_copy(update={"epoch": done + record.epoch}) for record in tuned.history)
    best = done + tuned.best_epoch if tuning.kept else result.best_epoch
    return TrainingResult(pruned, best, (*result.history, *history), result.diverged or tuned.diverged)


def _recalibrate_where(better: Better, trial: "_Trial", learnt: ImageSet) -> None:
    if has_batch_norm(trial.network):  # else nothing would change, and judging it takes an attack
        with trial.step(better):
            recalibrate_batch_norm(trial.network, learnt, seed=trial.seed)


def int8_checkpoint(checkpoint: Path) -> Path:
    """Of the fine-tuning for int8, beside that of the fine-tuning before it."""
    return checkpoint.with_suffix(".int8.pt")


def _is_no_ruin(recipe: Recipe) -> Better:
    """Clean accuracy counts as well: one held-out image less under attack is no reason to undo a training."""
    clean = 0 if recipe.method == "natural" else 1
    return lambda after, before: after >= before or after[clean] > before[clean]


@dataclass
class _Step:
    kept: bool = False
    merit: Merit | None = None
    """Of the network after it, where the step found it out itself."""


@dataclass
class _Trial:
    """A network whose values change only as held-out images allow. Its merit takes an attack, so it is kept."""

    network: Classifier
    held_out: ImageSet
    recipe: Recipe
    seed: int
    merit: Merit | None = None

    @contextmanager
    def step(self, better: Better) -> Iterator[_Step]:
        """Undo what the block does to the network's values unless its merit is better then, or it fails."""
        before, merit = copy.deepcopy(self.network.state_dict()), self.merit or self._measured()
        step = _Step()
        try:
            yield step
        except ToolFailedError:
            self.network.load_state_dict(before)
            raise
        reached = step.merit or self._measured()
        step.kept = better(reached, merit)
        self.merit = reached if step.kept else merit
        if not step.kept:
            self.network.load_state_dict(before)

    def _measured(self) -> Merit:
        return held_out_merit(self.network, self.held_out, self.recipe, self.seed)
