"""The criterion on real networks; the spectra have their own tests in test_fourier.py."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.scoring.capture import scored_layers
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.scores import FilterScores
from tests.nets import as_classifier

CLEAN = FSRP(read_at="activation", radius=0.25, attack=PGD(eps=0))


def network(*layers: nn.Module) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    return as_classifier(body, shape=(3, 16, 12), classes=4)


def images(count: int = 23) -> ImageSet:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 3, 16, 12), dtype=np.uint8)
    pixels[: count // 2] = np.sort(pixels[: count // 2], axis=2)  # some smooth, some noisy
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 4)


def values(scores: FilterScores) -> dict[str, list[float]]:
    return {name: list(layer.scores) for name, layer in scores.layers.items()}


def reference(maps: np.ndarray, options: FSRP) -> np.ndarray:
    """The criterion as DESIGN tells it, by numpy's FFT in double precision: mean over images of low / high energy."""
    spectrum = np.abs(np.fft.fft2(maps.astype(np.float64))) ** 2
    rows, columns = (2 * np.abs(np.fft.fftfreq(size)) for size in maps.shape[2:])
    low_band = rows[:, None] ** 2 + columns[None, :] ** 2 <= options.radius**2 + 1e-12
    low, high = spectrum[:, :, low_band].sum(-1), spectrum[:, :, ~low_band].sum(-1)
    if options.aggregate == "ratio-of-means":
        low, high = low.mean(0, keepdims=True), high.mean(0, keepdims=True)
    ratio = np.divide(low, high + 1e-6 * (low + high), out=np.zeros_like(low), where=low + high > 0)
    return np.asarray((ratio if options.power == 2 else np.sqrt(ratio)).mean(0))


@pytest.mark.parametrize("aggregate", ["mean-of-ratios", "ratio-of-means"])
@pytest.mark.parametrize("power", [1, 2])
def test_scores_are_the_ratio_of_the_bands_after_the_activation(aggregate: Any, power: Any) -> None:
    options = CLEAN.model_copy(update={"aggregate": aggregate, "power": power, "batch_size": 5})
    classifier, data = network(), images()
    found = values(score_fsrp(classifier, data, options, seed=0))
    pixels = next(data.batches(len(data)))[0]
    with torch.no_grad():
        normalized = (pixels - 0.5) / 0.25
        first = classifier.network[:3](normalized)
        second = classifier.network[3:5](first)
    for layer, maps in (("0", first), ("3", second)):
        np.testing.assert_allclose(found[layer], reference(maps.numpy(), options), rtol=2e-4)


def test_layers_whose_maps_have_no_two_bands_are_scored_by_their_energy() -> None:
    classifier, data = network(), images()
    layer = score_fsrp(classifier, data, CLEAN, seed=0).layers["7"]
    with torch.no_grad():
        logits = classifier(next(data.batches(len(data)))[0])
    assert layer.map_size == (1, 1)
    np.testing.assert_allclose(layer.scores, logits.square().mean(0), rtol=1e-5)


@pytest.mark.parametrize("other", [(2, 2), (18, 2), (100, 2)])
def test_a_layer_used_at_two_sizes_is_scored_where_its_maps_have_bands(other: tuple[int, int]) -> None:
    torch.manual_seed(0)

    class TwoSizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            large = F.relu(self.shared(x))
            return self.head(F.relu(self.shared(F.adaptive_avg_pool2d(large, other))).mean((2, 3)))

    classifier, data = network(), images()
    classifier.network = TwoSizes().eval()
    found = score_fsrp(classifier, data, CLEAN, seed=0).layers["shared"]
    with torch.no_grad():
        maps = F.relu(classifier.network.shared((next(data.batches(len(data)))[0] - 0.5) / 0.25))
    assert found.map_size == tuple(maps.shape[2:])
    np.testing.assert_allclose(found.scores, reference(maps.numpy(), CLEAN), rtol=2e-4)


def test_a_1d_convolution_is_scored_by_the_energy_of_its_rows() -> None:
    torch.manual_seed(0)
    classifier, data = network(), images()
    classifier.network = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    classifier.network(next(data.batches(2))[0])
    found = score_fsrp(classifier, data, CLEAN, seed=0).layers["1"]
    with torch.no_grad():
        rows = classifier.network[:3]((next(data.batches(len(data)))[0] - 0.5) / 0.25)
    np.testing.assert_allclose(found.scores, rows.square().mean((0, 2)), rtol=1e-5)


def test_the_batch_size_does_not_matter() -> None:
    whole = values(score_fsrp(network(), images(), CLEAN, seed=0))
    for size in (1, 4, 22, 23):
        parts = values(score_fsrp(network(), images(), CLEAN.model_copy(update={"batch_size": size}), seed=0))
        assert parts.keys() == whole.keys()
        for name in whole:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    options = FSRP(attack=PGD(eps=0.1, steps=2), batch_size=8)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        score_fsrp(network(), images(), options, seed=seed).save(tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert FilterScores.load(tmp_path / "a").layers != FilterScores.load(tmp_path / "c").layers and a != c


def test_examples_are_adversarial() -> None:
    clean, attacked = (
        values(score_fsrp(network(), images(), FSRP(attack=PGD(eps=eps, steps=3)), seed=0)) for eps in (0, 0.2)
    )
    assert any(abs(a / b - 1) > 0.01 for a, b in zip(clean["0"], attacked["0"], strict=True))


def test_scores_say_what_they_were_made_from() -> None:
    classifier, data = network(), images()
    scores = score_fsrp(classifier, data, CLEAN, seed=7)
    assert scores.model_sha256 == weights_sha256(classifier.network)
    assert (scores.data_sha256, scores.images, scores.seed) == (data.digest, 23, 7)
    assert scores.options["attack.eps"] == 0 and scores.options["radius"] == 0.25
    assert list(scores.layers) == list(scored_layers(classifier.network))
    assert all(value >= 0 for layer in scores.layers.values() for value in layer.scores)


def test_scoring_leaves_the_network_as_it_was() -> None:
    classifier = network()
    classifier.train()
    classifier.network[0].weight.requires_grad_(False)
    before = weights_sha256(classifier.network)
    score_fsrp(classifier, images(), FSRP(attack=PGD(steps=1)), seed=0)
    assert weights_sha256(classifier.network) == before
    assert classifier.training and classifier.network[1].training
    assert [p.requires_grad for p in classifier.parameters()] == [False] + [True] * 6
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("eps", [0.0, 8 / 255])
def test_the_layer_whose_weights_are_nan_is_named(eps: float) -> None:
    classifier = network()
    with torch.no_grad():
        classifier.network[3].weight[2, 0, 0, 0] = torch.nan
    with pytest.raises(BadInputError, match=r"layer 3: 1 of 8 channels score NaN"):
        score_fsrp(classifier, images(), FSRP(attack=PGD(eps=eps, steps=2)), seed=0)


def test_a_filter_that_never_responds_scores_zero() -> None:
    classifier = network()
    with torch.no_grad():
        classifier.network[3].weight[5] = 0
        classifier.network[3].bias[5] = -1
    scores = values(score_fsrp(classifier, images(), CLEAN, seed=0))["3"]
    assert scores[5] == 0 and min(score for index, score in enumerate(scores) if index != 5) > 0


def test_no_map_outlives_its_batch() -> None:
    """Memory grows with channels: nothing as large as a map is alive between batches."""
    seen: list[int] = []

    def watched(data: ImageSet) -> Any:
        for batch in ImageSet.batches(data, 8):
            yield batch
            gc.collect()
            alive = (item for item in gc.get_objects() if isinstance(item, Tensor) and item.dim() == 4)
            seen.append(sum(tensor.numel() for tensor in alive))

    class Watched(ImageSet):
        def batches(self, batch_size: int, *, shuffle_seed: int | None = None) -> Any:
            return watched(self)

    data = images(32)
    tracked = Watched(data.name, data.source, data.labels, data.indices)
    score_fsrp(network(), tracked, CLEAN.model_copy(update={"batch_size": 8}), seed=0)
    assert len(seen) == 4
    assert seen[-1] <= seen[1]


def test_options_that_mean_nothing_are_refused() -> None:
    for wrong in ({"radius": 0}, {"radius": 1.5}, {"power": 3}, {"read_at": "pooling"}, {"raduis": 0.25}):
        with pytest.raises(ValidationError):
            FSRP(**wrong)


def test_a_file_of_scores_comes_back_and_others_are_refused_in_a_line(tmp_path: Path) -> None:
    scores = score_fsrp(network(), images(), CLEAN, seed=0)
    scores.save(tmp_path / "scores.json")
    assert FilterScores.load(tmp_path / "scores.json") == scores
    for text in ("{}", "[1]", '{"schema_version": 2}', "null"):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(BadInputError, match=r"wrong.json is not a file of filter scores: .+") as error:
            FilterScores.load(tmp_path / "wrong.json")
        assert "\n" not in str(error.value)
    for text in ("{", "\xff"):
        (tmp_path / "wrong.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(BadInputError, match="not valid JSON"):
            FilterScores.load(tmp_path / "wrong.json")
    with pytest.raises(BadInputError, match="no such file"):
        FilterScores.load(tmp_path / "absent.json")
