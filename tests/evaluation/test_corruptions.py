import pytest
import torch

from fsrp_edge.data.embedded import photographs
from fsrp_edge.evaluation.accuracy import clean_accuracy
from fsrp_edge.evaluation.corruptions import FAMILIES, corrupt, corruption_accuracies
from fsrp_edge.models.classifier import ModelSpec, Preprocessing


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
    assert (
        distances[4] > distances[0] or family == "elastic"
    )  # whose strengths trade large shifts for rough ones


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


def test_accuracy_under_each_family(trained) -> None:
    evaluations = corruption_accuracies(trained.natural, trained.images, seed=0, batch_size=64)
    assert [evaluation.result.attack for evaluation in evaluations] == list(FAMILIES)
    again = corruption_accuracies(trained.natural, trained.images, seed=0, batch_size=64)
    assert all(
        torch.equal(one.standing, other.standing) for one, other in zip(evaluations, again, strict=True)
    )
    clean = clean_accuracy(trained.natural, trained.images).result
    mean = sum(evaluation.result.accuracy for evaluation in evaluations) / len(evaluations)
    assert 0.2 < mean < clean.accuracy
    assert evaluations[0].result.eps is None
