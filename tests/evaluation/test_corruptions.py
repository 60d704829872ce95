import numpy as np
import pytest
import torch
from torch import nn

from fsrp_edge import compute
from fsrp_edge.data.embedded import photographs
from fsrp_edge.data.images import ArraySource, ImageSet, ranks_and_sizes
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation import corruptions
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.corruptions import FAMILIES, corrupt, corruption_accuracies
from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate
from fsrp_edge.models.classifier import ModelSpec, Preprocessing
from tests.nets import as_classifier


@pytest.fixture(scope="module")
def pictures():
    def load(side: int) -> torch.Tensor:
        spec = ModelSpec(architecture="any", input_shape=(3, side, side), classes=2, mean=(0.5,) * 3, std=(0.5,) * 3,
                         preprocessing=Preprocessing(resize=side))  # fmt: skip
        return next(photographs(spec, seed=0).evaluation.batches(24))[0]

    return {side: load(side) for side in (32, 96)}


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("family", FAMILIES)
def test_stronger_is_further_from_the_picture(pictures, family: str, side: int) -> None:
    pixels = pictures[side]
    distances = []
    for severity in range(1, 6):
        corrupted = corrupt(pixels, family, severity, seed=3)
        assert corrupted.shape == pixels.shape and corrupted.dtype == torch.float32
        assert corrupted.min() >= 0 and corrupted.max() <= 1
        assert torch.allclose(corrupted * 255, (corrupted * 255).round(), atol=1e-3)
        assert torch.equal(corrupted, corrupt(pixels, family, severity, seed=3))
        distances.append(float((corrupted - pixels).square().mean()))
    assert distances[0] > 0 or family in ("defocus blur", "glass blur", "elastic")
    assert distances[4] > distances[0] or family == "elastic"  # whose strengths trade large shifts for rough ones


def test_noise_has_the_published_strength(pictures) -> None:
    grey = torch.full((64, 3, 32, 32), 0.5)
    assert (corrupt(grey, "gaussian noise", 3, 0) - grey).std() == pytest.approx(0.08, rel=0.03)
    assert (corrupt(grey, "shot noise", 5, 0) - grey).std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.03)
    assert (corrupt(grey, "impulse noise", 5, 0) != 128 / 255).float().mean() == pytest.approx(0.07, rel=0.05)
    assert corrupt(grey, "contrast", 5, 0).unique().tolist() == pytest.approx([128 / 255])


def test_blurs_keep_the_mean_and_lose_detail(pictures) -> None:
    for family in ("defocus blur", "motion blur", "zoom blur", "glass blur"):
        blurred = corrupt(pictures[96], family, 5, 0)
        assert blurred.mean() == pytest.approx(float(pictures[96].mean()), abs=0.02), family
        assert blurred.std() < pictures[96].std(), family


def test_elastic_moves_pixels_alike_in_wide_and_in_tall_pictures() -> None:
    def moved_centre(height: int, width: int) -> torch.Tensor:
        rows, columns = torch.meshgrid(
            torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij"
        )
        moved = corruptions.elastic(torch.stack([rows, columns])[None], (0, 0, 0.05), compute.generator(0))
        return moved[..., height // 2 - 8 : height // 2 + 8, width // 2 - 8 : width // 2 + 8]

    assert torch.allclose(moved_centre(48, 96), moved_centre(96, 48), atol=1e-3)


def test_accuracy_under_each_family(trained) -> None:
    evaluations = corruption_accuracies(trained.natural, trained.images, seed=0, batch_size=64)
    assert [evaluation.result.attack for evaluation in evaluations] == list(FAMILIES)
    again = corruption_accuracies(trained.natural, trained.images, seed=0, batch_size=64)
    assert all(torch.equal(one.standing, other.standing) for one, other in zip(evaluations, again, strict=True))
    clean = clean_accuracy(trained.natural, trained.images).result
    mean = sum(evaluation.result.accuracy for evaluation in evaluations) / len(evaluations)
    assert 0.2 < mean < clean.accuracy
    assert evaluations[0].result.eps is None


def test_every_class_meets_every_severity(trained, monkeypatch) -> None:
    """Also where images come with their classes in turn, as of folders."""
    turns = trained.images.subset(np.argsort(ranks_and_sizes(trained.images.labels.numpy())[0], kind="stable"))
    met = set()

    def note(pixels, family, severity, seed):
        shown = {image.numpy().tobytes() for image in pixels}
        met.update(
            (int(label), severity) for each, label in zip(everything, turns.labels, strict=True) if each in shown
        )
        return pixels

    everything = [image.numpy().tobytes() for image in next(turns.batches(len(turns)))[0]]
    monkeypatch.setattr(corruptions, "corrupt", note)
    monkeypatch.setattr(corruptions, "FAMILIES", ("brightness",))
    corruption_accuracies(trained.natural, turns, seed=0, batch_size=64)
    assert met == {(label, severity) for label in range(10) for severity in range(1, 6)}


def test_a_few_images_of_many_classes_meet_every_severity_too(monkeypatch) -> None:
    """As the first thousand of ImageNet, one of a class."""
    classifier = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 50)), shape=(3, 8, 8), classes=50)
    images = ImageSet.of("50", ArraySource(np.zeros((50, 3, 8, 8), np.uint8)), torch.randperm(50))
    met: dict[int, int] = {}

    def note(pixels, family, severity, seed):
        met[severity] = met.get(severity, 0) + len(pixels)
        return pixels

    monkeypatch.setattr(corruptions, "corrupt", note)
    monkeypatch.setattr(corruptions, "FAMILIES", ("brightness",))
    corruption_accuracies(classifier, images, seed=0, batch_size=64)
    assert met == dict.fromkeys(range(1, 6), 10)


def test_brightness_raises_the_value_of_black_too() -> None:
    for severity, shift in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), start=1):
        black = corrupt(torch.zeros(1, 3, 32, 32), "brightness", severity, seed=0)
        assert black == pytest.approx(torch.full_like(black, shift), abs=1 / 255)


def test_channels_that_are_no_picture_are_refused_before_any_attack() -> None:
    body = nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(128, 2))
    pixels = np.zeros((2, 4, 8, 8), np.uint8)
    images = ImageSet.of("four channels", ArraySource(pixels), torch.tensor([0, 1]))
    with pytest.raises(BadInputError, match="made for 1 or 3 channels, this network takes 4"):
        evaluate(as_classifier(body, shape=(4, 8, 8), classes=2), images, EvaluationPlan(corruptions=True))
