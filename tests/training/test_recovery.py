import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fsrp_edge.data.embedded import digits
from fsrp_edge.data.images import Dataset
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.classifier import ModelSpec
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.training import checkpoint as checkpoints
from fsrp_edge.training import loop
from fsrp_edge.training.dense import train_dense
from fsrp_edge.training.recipe import Recipe
from fsrp_edge.training.recovery import (
    _is_no_ruin,
    fit_recipe,
    recover,
    require_same_task,
    split_held_out,
    without_held_out,
)


def test_a_tenth_is_held_out_and_never_learnt(digit_sets) -> None:
    images = digit_sets[0]
    learnt, held_out = split_held_out(images, seed=3)
    assert (len(learnt), len(held_out)) == (540, 60)
    assert not set(learnt.indices) & set(held_out.indices)
    assert set(learnt.indices) | set(held_out.indices) == set(images.indices)
    assert min(torch.bincount(held_out.labels, minlength=10)) >= 5  # balanced over the classes
    again = split_held_out(images, seed=3)[1]
    assert held_out.digest == again.digest != split_held_out(images, seed=4)[1].digest
    assert [len(part) for part in split_held_out(images.first(3), seed=0)] == [2, 1]


def test_what_fits_a_network_does_not_judge_it(digit_sets) -> None:
    images = digit_sets[0]
    fitted, (_, held_out) = without_held_out(images, 3).sample(200, 3), split_held_out(images, 3)
    assert len(fitted) == 200 and not set(fitted.indices) & set(held_out.indices)
    assert len(without_held_out(images.first(1), 0)) == 1


def test_trades_learns_from_no_teacher() -> None:
    with pytest.raises(BadInputError, match="trades learns from no teacher"):
        Recipe(method="trades").distilling(1.0).check_teacher(given=True)


def test_without_a_recipe_only_the_statistics_of_batch_norm_change(digit_sets, small_cnn) -> None:
    network = small_cnn()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = recover(network, digit_sets[0], None, seed=0)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert result.classifier is network and (result.best_epoch, result.history) == (0, ())
    assert changed == {
        f"network.{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.parametrize(("statistics", "kept"), [(1e4, True), (None, False)])
def test_statistics_that_fit_already_are_not_replaced_by_worse_ones(
    digit_sets, small_cnn, monkeypatch: pytest.MonkeyPatch, statistics: float | None, kept: bool
) -> None:
    train, _ = digit_sets
    network = recover(small_cnn(), train, Recipe(method="natural", epochs=2), seed=0).classifier
    before = weights_sha256(network)

    def recalibrate(classifier, images, **_: object) -> None:
        for norm in (module for module in classifier.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            if statistics is None:
                norm.running_mean.add_(1e-6)  # as good as before
            else:
                norm.running_var.fill_(statistics)

    monkeypatch.setattr("fsrp_edge.training.recovery.recalibrate_batch_norm", recalibrate)
    assert (weights_sha256(recover(network, train, None, seed=0).classifier) == before) == kept


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("recipe", [None, Recipe(method="natural", epochs=1)])
def test_a_network_is_judged_once_as_it_is(
    digit_sets, small_cnn, monkeypatch: pytest.MonkeyPatch, recipe: Recipe | None, normalized: bool
) -> None:
    """Before anything, after the last recalibration; the epoch tells its own merit. Nothing moves a group norm."""
    network, judged = small_cnn(), list[object]()
    for place, layer in enumerate(network.network):
        if isinstance(layer, torch.nn.BatchNorm2d) and not normalized:
            network.network[place] = torch.nn.GroupNorm(1, layer.num_features)

    def merit(*given: object) -> tuple[float, float]:
        judged.append(given)
        return 0.5, 0.5

    monkeypatch.setattr("fsrp_edge.training.recovery.held_out_merit", merit)
    recover(network, digit_sets[0].first(40), recipe, seed=0)
    assert len(judged) == (recipe is not None or normalized) + normalized


@pytest.mark.parametrize("method", ["natural", "n-fgsm"])
def test_an_epoch_knows_the_merit_of_the_network_that_it_leaves(digit_sets, small_cnn, method: str) -> None:
    learnt, held_out = split_held_out(digit_sets[0], 1)
    recipe = Recipe(method=method, eps=0.1, epochs=3, batch_size=50, learning_rate=0.05)
    result = loop.train(small_cnn(), learnt, held_out, recipe, seed=1)
    reached = loop.merit_of(result.best, recipe)
    assert reached == loop.held_out_merit(result.classifier, held_out, recipe, 1) and max(reached) > 0.2


def test_recovery_repeats_to_the_bit_and_learns(digit_sets, small_cnn) -> None:
    recipe = Recipe(method="natural", epochs=2, batch_size=50, learning_rate=0.05)
    first, second = (recover(small_cnn(), digit_sets[0], recipe, seed=1) for _ in range(2))
    assert weights_sha256(first.classifier) == weights_sha256(second.classifier)
    assert [record.clean for record in first.history] == [record.clean for record in second.history]
    assert first.history[-1].clean > 0.3 and first.history[0].held_out == 60


def test_a_training_that_makes_a_network_worse_is_undone(digit_sets, small_cnn) -> None:
    good = recover(small_cnn(), digit_sets[0], Recipe(method="natural", epochs=3, batch_size=50), seed=1).classifier
    before = good.network[0].weight.detach().clone()
    wild = Recipe(method="natural", epochs=1, batch_size=50, learning_rate=20.0, schedule="cosine")
    result = recover(good, digit_sets[0], wild, seed=1)
    assert result.best_epoch == 0 and len(result.history) == 1
    assert torch.equal(result.classifier.network[0].weight, before)


def test_an_image_less_under_attack_undoes_no_training_that_gained_clean_accuracy() -> None:
    robust, natural = (_is_no_ruin(Recipe(method=method)) for method in ("n-fgsm", "natural"))
    assert robust((0.398, 0.75), (0.4, 0.6)) and not robust((0.398, 0.6), (0.4, 0.6))
    assert natural((0.6, 0.1), (0.6, 0.1)) and not natural((0.59, 0.5), (0.6, 0.1))


def test_a_teacher_alone_can_teach(digit_sets, small_cnn) -> None:
    teacher = recover(
        small_cnn(),
        digit_sets[0],
        Recipe(method="natural", epochs=5, batch_size=50, learning_rate=0.05),
        seed=1,
    ).classifier
    recipe = Recipe(method="natural", epochs=3, batch_size=50, learning_rate=0.05, distillation=1.0)
    learnt, held_out = split_held_out(digit_sets[0], 1)
    unknown = learnt.relabelled(torch.zeros(len(learnt)), "predictions of the dense network")
    taught = loop.train(small_cnn(), unknown, held_out, recipe, seed=1, teacher=teacher).classifier
    pixels, labels = next(digit_sets[1].batches(100))
    with torch.no_grad():
        assert (taught(pixels).argmax(1) == labels).float().mean() > 0.4  # though every label it saw was 0


def test_a_missing_teacher_is_told_before_the_network_changes(digit_sets, small_cnn) -> None:
    network = small_cnn()
    before = weights_sha256(network)
    with pytest.raises(BadInputError, match="needs a teacher network"):
        recover(network, digit_sets[0], Recipe(method="rslad"), seed=0)
    with pytest.raises(BadInputError, match="a teacher was given"):
        recover(network, digit_sets[0], Recipe(method="natural"), seed=0, teacher=small_cnn())
    assert weights_sha256(network) == before


@pytest.mark.parametrize(
    ("mirrorable", "predicted", "teacher"), [(True, False, True), (False, True, True), (False, True, False)]
)
def test_the_recipe_bends_to_the_data(digit_sets, mirrorable: bool, predicted: bool, teacher: bool) -> None:
    images = digit_sets[0]
    if predicted:
        images = images.relabelled(images.labels, "predictions of the dense network")
    dataset = Dataset(images, images, "digits", mirrorable=mirrorable)
    fitted = fit_recipe(Recipe(flip=True, batch_size=128), dataset, has_teacher=teacher)
    assert fitted.flip == mirrorable
    assert fitted.batch_size == 75  # an eighth of 600: a few steps an epoch at least
    assert fitted.learning_rate == pytest.approx(Recipe().learning_rate * 75 / 128)
    assert fitted.distillation == (1.0 if predicted and teacher else 0.0)
    assert fit_recipe(Recipe(flip=False, batch_size=4), dataset, has_teacher=teacher).batch_size == 4


def test_dense_training_repeats_with_its_seed_and_says_what_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsrp_edge.training import dense

    def few(source: str, spec, *, seed: int) -> Dataset:
        data = digits(spec)
        return Dataset(data.train.first(100), data.evaluation, data.description, data.mirrorable)

    monkeypatch.setattr(dense, "open_dataset", few)  # the same digits, only fewer
    state = torch.get_rng_state()
    recipe = Recipe(method="natural", epochs=1, batch_size=32, flip=True)
    options = {"classes": 10, "input_size": None}
    first, again, other = (
        train_dense("cifar:vgg16_bn-w0.05", "digits", recipe, seed=seed, **options) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(first.classifier) == weights_sha256(again.classifier) != weights_sha256(other.classifier)
    spec = first.classifier.spec
    assert (spec.architecture, spec.input_shape, spec.data) == ("cifar:vgg16_bn-w0.05", (3, 32, 32), "digits")
    assert not first.classifier.training


def test_a_mean_of_one_value_makes_a_network_of_gray_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsrp_edge.training import dense

    def few(_source: str, spec: ModelSpec, *, seed: int) -> Dataset:
        data = digits(spec)
        return Dataset(data.train.first(60), data.evaluation.first(20), data.description, data.mirrorable)

    monkeypatch.setattr(dense, "open_dataset", few)
    recipe = Recipe(method="natural", epochs=1, batch_size=30)
    options = {"classes": 10, "input_size": None, "seed": 0}
    gray = train_dense("cifar:resnet20-a", "digits", recipe, mean=(0.5,), std=(0.2,), **options).classifier
    assert (gray.spec.input_shape, gray.spec.mean) == ((1, 32, 32), (0.5,))


def test_a_network_file_takes_means_and_deviations_that_the_trained_file_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsrp_edge.models.checkpoint import load_classifier
    from fsrp_edge.models.saved import save_checkpoint_pt
    from fsrp_edge.training import dense

    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))\n"
    )
    factory = f"{tmp_path}/net.py:build"

    def few(_source: str, spec: ModelSpec, *, seed: int) -> Dataset:
        data = digits(spec)
        return Dataset(data.train.first(60), data.evaluation.first(20), data.description, data.mirrorable)

    monkeypatch.setattr(dense, "open_dataset", few)
    recipe = Recipe(method="natural", epochs=1, batch_size=30)
    options = {"classes": 10, "input_size": 16, "seed": 0}
    with pytest.raises(BadInputError, match="give the input size, mean and std"):
        train_dense(factory, "digits", recipe, **options)
    with pytest.raises(BadInputError, match="mean and std need 3 values each"):
        train_dense(factory, "digits", recipe, mean=(0.5,) * 3, std=(0.2,), **options)
    trained = train_dense(factory, "digits", recipe, mean=(0.5,) * 3, std=(0.2,) * 3, **options).classifier
    save_checkpoint_pt(trained, tmp_path / "net.pt")
    spec = load_classifier(tmp_path / "net.pt", architecture=factory).spec
    assert (spec.mean, spec.std, spec.input_shape) == ((0.5,) * 3, (0.2,) * 3, (3, 16, 16))


def test_photographs_have_nothing_to_teach() -> None:
    with pytest.raises(BadInputError, match="has no labels to learn from"):
        train_dense("cifar:vgg16_bn-w0.05", "photographs", Recipe(epochs=1), classes=10, input_size=None, seed=0)


def test_passes_for_int8_come_last_and_leave_a_network_as_its_factory_builds_it(digit_sets, small_cnn) -> None:
    recipe = Recipe(method="natural", epochs=2, int8_epochs=1, batch_size=50, learning_rate=0.05)
    first, second = (recover(small_cnn(), digit_sets[0], recipe, seed=1) for _ in range(2))
    assert weights_sha256(first.classifier) == weights_sha256(second.classifier)
    assert [record.epoch for record in first.history] == [1, 2, 3] and first.best_epoch <= 3
    assert first.history[-1].learning_rate < 0.05 / 20
    assert first.classifier.state_dict().keys() == small_cnn().state_dict().keys()
    alone = recipe.model_copy(update={"epochs": 0})
    again = recover(first.classifier, digit_sets[0], alone, seed=1)
    assert [record.epoch for record in again.history] == [1]
    with pytest.raises(ValueError, match="at least 1 epoch"):
        Recipe(epochs=0)
    with pytest.raises(BadInputError, match="fsrp-edge recover's"):
        train_dense("cifar:resnet20", "digits", recipe, classes=10, input_size=32, seed=0)


def test_passes_for_int8_that_diverge_leave_the_recovery_before_them(
    digit_sets, small_cnn, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(method="natural", epochs=2, batch_size=50, learning_rate=0.05)
    before = weights_sha256(recover(small_cnn(), digit_sets[0], recipe, seed=1).classifier)
    wild = recipe.for_int8().model_copy(update={"epochs": 1, "learning_rate": 1e30})
    monkeypatch.setattr(Recipe, "for_int8", lambda _: wild)
    then = recipe.model_copy(update={"int8_epochs": 1})
    result = recover(small_cnn(), digit_sets[0], then, seed=1)
    assert weights_sha256(result.classifier) == before and not result.classifier.training
    assert [record.epoch for record in result.history] == [1, 2] and result.best_epoch > 0
    with pytest.raises(ToolFailedError, match="diverged"):  # nothing was recovered before
        recover(small_cnn(), digit_sets[0], then.model_copy(update={"epochs": 0}), seed=1)


@pytest.mark.parametrize("saves", [1, 3])
def test_a_recovery_goes_on_where_arithmetic_has_other_last_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_sets, small_cnn, saves: int
) -> None:
    """As with another number of threads or on another processor, after an epoch or one for int8."""
    recipe = Recipe(method="natural", epochs=2, int8_epochs=2, batch_size=50, learning_rate=0.05)
    path = tmp_path / "training.pt"
    recalibrated = recover(small_cnn(), digit_sets[0], None, seed=1).classifier
    with interrupted_after(saves, monkeypatch):
        recover(small_cnn(), digit_sets[0], recipe, seed=1, checkpoint=path)
    with torch.backends.mkldnn.flags(enabled=False):
        elsewhere = recover(small_cnn(), digit_sets[0], None, seed=1).classifier
        result = recover(small_cnn(), digit_sets[0], recipe, seed=1, checkpoint=path)
    assert weights_sha256(elsewhere) != weights_sha256(recalibrated)
    assert [record.epoch for record in result.history] == [1, 2, 3, 4]


def test_passes_for_int8_do_not_go_on_from_another_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_sets, small_cnn
) -> None:
    alone = Recipe(method="natural", epochs=0, int8_epochs=1, batch_size=50, learning_rate=0.05)
    path = tmp_path / "training.pt"
    with interrupted_after(1, monkeypatch):
        recover(small_cnn(), digit_sets[0], alone, seed=1, checkpoint=path)
    with pytest.raises(BadInputError, match="belongs to another run"):
        recover(small_cnn(), digit_sets[0], alone.model_copy(update={"epochs": 1}), seed=1, checkpoint=path)


@contextlib.contextmanager
def interrupted_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Expect that the block is interrupted as soon as it has written so many checkpoints."""
    save, written = checkpoints.save, []

    def stop(*arguments) -> None:
        save(*arguments)
        written.append(arguments)
        if len(written) == saves:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save", stop)
        yield


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"input_shape": (3, 16, 16)}, r"input \(\(3, 16, 16\)\) are not the network's \(\(1, 16, 16\)\)"),
        ({"classes": 3, "class_names": ("a", "b", "c")}, r"classes \(3\) are not the network's \(10\)"),
        ({"class_names": tuple("9876543210")}, "class names"),
    ],
)
def test_a_teacher_of_other_images_or_classes_is_refused(small_cnn, changed: dict[str, object], told: str) -> None:
    network, teacher = small_cnn(), small_cnn()
    network.spec = network.spec.model_copy(update={"class_names": tuple("0123456789")})
    require_same_task(network, teacher)
    teacher.spec = teacher.spec.model_copy(update=changed)
    with pytest.raises(BadInputError, match=told):
        require_same_task(network, teacher)
