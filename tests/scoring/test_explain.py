import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge.attacks import PGD
from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError
from fsrp_edge.scoring.explain import PARTS, explain, mean_spectra, rank_correlation, same_lower_half
from fsrp_edge.scoring.fourier import band_energies
from fsrp_edge.scoring.fsrp import FSRP, score_fsrp
from fsrp_edge.scoring.pictures import explain_into
from tests.nets import built

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
