import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fsrp_edge.attacks import PGD
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.scoring.explain import PARTS, explain, mean_spectra, parts_of, rank_correlation, same_lower_half
from fsrp_edge.scoring.fourier import band_energies
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.pictures import explain_into
from tests.nets import as_classifier, built

CLEAN = FSRP(read_at="activation", attack=PGD(eps=0))
distinct = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True)


@pytest.fixture(scope="module")
def subject():
    """A network with weights of its own draw, and real digits."""
    classifier = built("cifar:vgg16_bn-w0.125", std=0.5)
    return classifier, open_dataset("digits", classifier.spec, seed=0).train.first(4 * PARTS)


@given(distinct)
def test_a_ranking_agrees_with_itself_and_opposes_its_reverse(values):
    scores = np.array(values)
    assert rank_correlation(scores, scores) == pytest.approx(1)
    assert rank_correlation(scores, -scores) == pytest.approx(-1)
    assert same_lower_half(scores, scores) == 1


@given(distinct)
def test_rank_correlation_sees_order_alone(values):
    scores = np.array(values)
    assert rank_correlation(scores, np.argsort(np.argsort(scores)) ** 3) == pytest.approx(1)


def test_equal_values_share_their_ranks_and_all_equal_ones_rank_nothing():
    assert rank_correlation(np.zeros(4), np.arange(4.0)) == rank_correlation(np.zeros(4), np.zeros(4)) == 0
    # ranks 1.5, 1.5, 3, 4 and 1.5, 1.5, 4, 3: 1 - 6 * 2 / (4 * 15) with the ties' correction
    assert rank_correlation(np.array([0, 0, 1, 2]), np.array([0, 0, 2, 1])) == pytest.approx(3.5 / 4.5)


def test_spectra_of_a_layer_used_at_two_sizes_are_those_of_the_larger():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 10)

        def forward(self, x):
            smaller = nn.functional.avg_pool2d(x, 2)
            return self.head(self.conv(smaller).mean((2, 3)) + self.conv(x).mean((2, 3)))

    classifier = as_classifier(Twice(), shape=(3, 16, 16), classes=10)
    images = open_dataset("digits", classifier.spec, seed=0).train.first(5)
    options = FSRP(attack=PGD(eps=0), batch_size=2)
    spectra = mean_spectra(classifier, images, options, {"conv": [1, 3]}, seed=0)["conv"]
    pixels, _ = next(images.batches(5))
    with torch.no_grad():
        maps = classifier.network.conv((pixels - classifier.mean) / classifier.std)[:, [1, 3]]
    power = torch.fft.fftshift(torch.fft.fft2(maps).abs().square().mean(0), dim=(-2, -1))
    np.testing.assert_allclose(spectra, power, rtol=1e-3, atol=1e-4)


def test_unrelated_rankings_share_half_of_their_lower_half():
    generator = np.random.default_rng(0)
    shared = [same_lower_half(generator.random(64), generator.random(64)) for _ in range(200)]
    assert np.mean(shared) == pytest.approx(0.5, abs=0.02)


def test_the_mean_over_parts_is_the_score_of_all_images(subject):
    classifier, images = subject
    scores, explanation = explain(classifier, images, CLEAN, seed=0)
    whole = score_fsrp(classifier, images, CLEAN, seed=0)
    for name, layer in whole.layers.items():
        np.testing.assert_allclose(scores.layers[name].scores, layer.scores, rtol=1e-4)
    assert scores.images == len(images)
    assert [row.images for row in explanation.by_images] == [4, 8, 12, 16]
    assert all(-1 <= row.rank_correlation <= 1 for row in explanation.layers)


def test_parts_have_the_same_classes_also_where_classes_take_turns(subject):
    _, images = subject
    turns = images.relabelled(torch.arange(4 * PARTS) % 4, "ground truth")  # as the images of folders do
    parts = parts_of(turns)
    assert [part.labels.bincount().tolist() for part in parts] == [[1, 1, 1, 1]] * PARTS
    assert sorted(np.concatenate([part.indices for part in parts])) == sorted(images.indices)


def test_spectra_hold_the_energy_that_was_scored(subject):
    classifier, images = subject
    chosen = {"features.0": [0, 3]}
    spectra = mean_spectra(classifier, images, CLEAN, chosen, seed=0)
    assert list(spectra) == ["features.0"]
    with torch.no_grad():
        pixels = next(images.batches(len(images)))[0]
        maps = classifier.network.features[:3]((pixels - classifier.mean) / classifier.std)[:, [0, 3]]
    energies = band_energies(maps, CLEAN.radius)
    expected = (energies.low + energies.high).mean(dim=0) * maps.shape[2] * maps.shape[3]
    np.testing.assert_allclose(spectra["features.0"].sum(axis=(1, 2)), expected, rtol=1e-4)


def test_pictures_and_figures_are_written(subject, tmp_path):
    classifier, images = subject
    explain_into(tmp_path / "pictures", classifier, images, CLEAN, seed=0)
    written = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"explanation.json", "scores.png", "spectra-features.0.png"} <= written
    assert "spectra-classifier.png" not in written  # 1x1 maps have no spectrum


def test_too_few_images_are_refused(subject):
    classifier, images = subject
    with pytest.raises(BadInputError, match="7 images can't be split into 8 parts"):
        explain(classifier, images.first(7), CLEAN, seed=0)
