"""The criterion that keeps what explains the others, and the moments it works on."""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fsrp_edge.attacks import PGD
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.scoring import reconstruction
from fsrp_edge.scoring.moments import MOST_CHANNELS, by_position, read_input_moments
from fsrp_edge.scoring.reconstruction import (
    Reconstruction,
    explained_shares,
    rest_by_size,
    score_reconstruction,
)
from fsrp_edge.scoring.rivals import Rival, score_rival
from tests.nets import as_classifier, built

ALL = 2**0.5
"""Radius of all frequencies."""


def images(count: int = 24, shape: tuple[int, int, int] = (3, 16, 12)) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageSet.of("noise", ArraySource(pixels), torch.arange(count) % 4)


def batches(some: ImageSet) -> list[torch.Tensor]:
    return [pixels for pixels, _ in some.batches(10)]


def network() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 6 * 4, 4),
        )  # fmt: skip
    return as_classifier(body, shape=(3, 16, 12), classes=4)


def what_the_second_layer_reads(classifier: Classifier, some: ImageSet) -> np.ndarray:
    """(images, 8, 8, 6) in double precision."""
    pixels = torch.cat(batches(some))
    normalized = (pixels - classifier.mean) / classifier.std
    found: np.ndarray = classifier.network[:3](normalized).detach().double().numpy()  # type: ignore[index]
    return found


def test_moments_are_those_of_what_a_layer_reads():
    classifier, some = network(), images()
    found = read_input_moments(classifier.eval(), batches(some), ["3"], radius=ALL)["3"]
    values = what_the_second_layer_reads(classifier, some).transpose(1, 0, 2, 3).reshape(8, -1)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(values, bias=True), rtol=1e-4, atol=1e-7)


def test_what_a_layer_reads_by_name_is_read():
    class Named(nn.Sequential):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            for layer in self:
                maps = layer(input=maps)
            return maps

    classifier = network()
    expected = read_input_moments(classifier, batches(images()), ["3"], radius=ALL)["3"]
    classifier.network = Named(*classifier.network)  # type: ignore[arg-type]
    found = read_input_moments(classifier, batches(images()), ["3"], radius=ALL)["3"]
    assert torch.equal(found.covariance, expected.covariance) and found.size == expected.size


@pytest.mark.parametrize("other", [(2, 2), (8, 2), (100, 2)])
def test_the_size_is_that_of_the_largest_maps_with_bands(other):
    class TwoSizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            square = self.shared(nn.functional.adaptive_avg_pool2d(pixels, 7))
            return self.shared(nn.functional.adaptive_avg_pool2d(square, other)).mean((2, 3))

    classifier = network()
    classifier.network = TwoSizes()
    assert read_input_moments(classifier, batches(images()), ["shared"], radius=ALL)["shared"].size == (7, 7)


def test_steps_of_an_attack_are_read_too_and_summed_up_in_full_precision():
    classifier, some = network().eval(), images()
    read: list[torch.Tensor] = []
    classifier.network[3].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach().double()))  # type: ignore[index, operator, union-attr]

    def attacked() -> Iterator[torch.Tensor]:
        for pixels in batches(some):
            with torch.autocast("cpu", torch.bfloat16):  # as on a device that gains from it
                classifier(pixels)
            yield pixels

    found = read_input_moments(classifier, attacked(), ["3"], radius=ALL)["3"]
    assert len(read) == 6
    values = torch.cat(read).transpose(0, 1).reshape(8, -1)
    torch.testing.assert_close(found.covariance, torch.cov(values, correction=0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("radius", [0.3, 0.5])
def test_with_a_radius_they_are_those_of_the_low_frequencies(radius):
    classifier, some = network(), images()
    found = read_input_moments(classifier.eval(), batches(some), ["3"], radius=radius)["3"]
    maps = what_the_second_layer_reads(classifier, some)
    rows, columns = (2 * np.abs(np.fft.fftfreq(size)) for size in maps.shape[2:])
    low = rows[:, None] ** 2 + columns[None, :] ** 2 <= radius**2 + 1e-12
    smooth = np.fft.ifft2(np.fft.fft2(maps) * low).real.transpose(1, 0, 2, 3).reshape(8, -1)
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(smooth, bias=True), rtol=1e-4, atol=1e-7)


def test_a_layer_with_too_many_inputs_is_left_out(monkeypatch):
    monkeypatch.setattr("fsrp_edge.scoring.moments.MOST_CHANNELS", 100)
    assert set(read_input_moments(network().eval(), batches(images()), ["3", "6"], radius=ALL)) == {"3"}
    assert MOST_CHANNELS > 512


def test_positions_pair_a_layers_channels_with_the_groups():
    assert by_position([0, 1, 2, 3, 4, 5], [7, 7, 8, 8, 9, 9]) == [
        ([0, 2, 4], [7, 8, 9]), ([1, 3, 5], [7, 8, 9]),
    ]  # fmt: skip
    assert by_position([4, 2], [0, 1]) == [([4, 2], [0, 1])]


def unexplained(covariance: np.ndarray, weights: np.ndarray, chosen: list[int]) -> float:
    """Variance of what weights make of all variables that the chosen ones leave, by least squares."""
    cross = covariance[:, chosen]
    left = covariance - cross @ np.linalg.pinv(covariance[np.ix_(chosen, chosen)]) @ cross.T
    return float(np.trace(weights @ left @ weights.T))


@given(st.integers(2, 7), st.integers(1, 3), st.integers(1, 8), st.integers(0, 10_000))
def test_each_step_takes_the_variable_that_explains_most_of_what_readers_make(count, readers, panel, seed):
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(readers, count, 3 * count)) * draw.uniform(0.2, 3, (count, 1))
    covariances, weights = mixed @ mixed.transpose(0, 2, 1), draw.normal(size=(readers, 4, count))
    read = [(torch.tensor(each), torch.tensor(made.T @ made)) for each, made in zip(covariances, weights, strict=True)]
    with mock.patch.object(reconstruction, "PANEL", panel):
        shares = explained_shares(read).numpy()
    order = np.argsort(-shares, kind="stable").tolist()

    def left(chosen: list[int]) -> float:
        pairs = zip(covariances, weights, strict=True)
        return float(np.mean([unexplained(*pair, chosen) / unexplained(*pair, []) for pair in pairs]))

    for step in range(len(order)):
        if step + 1 < len(order) and shares[order[step]] - shares[order[step + 1]] < 1e-3:
            break  # the order of equals is arbitrary
        least = min(left([*order[:step], other]) for other in range(count) if other not in order[:step])
        assert left(order[: step + 1]) == pytest.approx(least, rel=1e-2, abs=1e-3)
    assert shares.min() >= 0 and shares.sum() <= 1 + 1e-9


def test_copies_and_channels_that_are_dead_or_not_read_score_nothing():
    values = torch.randn(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.cat([values, 2 * values[:1], torch.zeros(1, 50, dtype=torch.float64)])
    weights = torch.ones(6, dtype=torch.float64)
    weights[3] = 0
    shares = explained_shares([(values @ values.T, torch.diag(weights))])
    first, again = max(shares[0], shares[4]), min(shares[0], shares[4])
    assert first > 0.1 and again < 1e-3
    assert shares[3] < 0.1 * shares[[1, 2]].min(), "but for what it tells of the others by chance"
    assert shares[5] == 0
    nothing = torch.zeros(4, 4, dtype=torch.float64)
    assert torch.equal(explained_shares([(nothing, torch.eye(4).double())]), torch.zeros(4).double())


@pytest.mark.parametrize(("channels", "samples"), [(64, 5), (256, 40)])
def test_fewer_samples_than_channels_are_no_trouble(channels, samples):
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(channels, samples, generator=draw) * torch.rand(channels, 1, generator=draw) ** 6
    weights = torch.randn(8, channels, generator=draw).double()
    rounded = (values @ values.T).double() + 1e-6 * torch.randn(channels, channels, generator=draw).double()
    shares = explained_shares([((rounded + rounded.T) / 2, weights.T @ weights)])
    assert torch.isfinite(shares).all() and 0.9 < shares.sum() <= 1 + 1e-6


def test_scores_stand_under_each_groups_root_and_do_not_change_the_network():
    dense = built("cifar:resnet20-a")
    some, before = images(16, (3, 32, 32)), weights_sha256(dense.network)
    found = score_reconstruction(dense, some, Reconstruction(attack=PGD(steps=1)), seed=0)
    assert weights_sha256(dense.network) == before
    plan = make_plan(dense, found, PlanOptions(ratio=0.5))
    assert {group.root for group in plan.groups if len(group.kept) < group.channels} == set(found.layers)
    for layer in found.layers.values():
        assert 0 < sum(layer.scores) <= 1 + 1e-9 and min(layer.scores) >= 0


def test_scores_beyond_what_explains_enough_are_ranked_as_by_l1():
    dense, some = built("cifar:resnet20-a"), images(16, (3, 32, 32))
    to_the_end, found = (
        score_reconstruction(dense, some, Reconstruction(attack=PGD(eps=0), explained=share), seed=0).layers
        for share in (1, 0.5)
    )
    sizes = score_rival(dense, some, Rival(name="l1"), seed=0).layers
    for root, layer in found.items():
        scores, before, size = (np.array(each.scores) for each in (layer, to_the_end[root], sizes[root]))
        assert sorted(scores) == sorted(before)
        chosen = np.searchsorted(np.cumsum(-np.sort(-before)), 0.5 * before.sum()) + 1
        order = np.argsort(-scores, kind="stable")
        assert set(order[:chosen]) == set(np.argsort(-before, kind="stable")[:chosen])
        assert (np.diff(size[order[chosen:]]) <= 0).all()


def test_a_filter_that_repeats_another_goes_first():
    classifier = network()
    with torch.no_grad():
        first = classifier.network[0]  # type: ignore[index]
        first.weight[5], first.bias[5] = 0.5 * first.weight[2], 0.5 * first.bias[2]
    scores = score_reconstruction(classifier, images(), Reconstruction(attack=PGD(eps=0)), seed=0)
    assert min(range(8), key=lambda channel: scores.layers["0"].scores[channel]) == 5


@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True),
    st.floats(0.01, 1),
    st.randoms(use_true_random=False),
)
def test_what_comes_after_what_explains_enough_is_ranked_by_size(values, explained, draw):
    shares, sizes = torch.tensor(values, dtype=torch.float64), torch.tensor([draw.random() for _ in values])
    found = rest_by_size(shares, sizes, explained)
    assert sorted(found.tolist()) == sorted(values), "the same shares, for others"
    order = sorted(range(len(values)), key=lambda channel: -values[channel])
    enough = next(
        count for count in range(1, len(values) + 1)
        if sum(values[channel] for channel in order[:count]) >= explained * sum(values)
    )  # fmt: skip
    assert all(found[channel] == values[channel] for channel in order[:enough])
    rest = sorted(
        (channel for channel in order[enough:] if values[channel]), key=lambda channel: -float(sizes[channel])
    )
    assert found[rest].tolist() == sorted(found[rest].tolist(), reverse=True)
    assert all(found[channel] == 0 for channel in order if not values[channel]), "dead ones stay last"


def test_what_is_not_finite_is_refused_by_name():
    classifier = network()
    with torch.no_grad():
        classifier.network[0].bias[3] = torch.nan  # type: ignore[index]
    with pytest.raises(BadInputError, match="layer 0 responds with NaN"):
        score_reconstruction(classifier, images(), Reconstruction(attack=PGD(eps=0)), seed=0)


def normalized_network() -> Classifier:
    """Every layer but the last before a batch norm, one of which has no weights of its own."""
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 7, 3, bias=False), nn.BatchNorm2d(7, affine=False), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4),
        )  # fmt: skip
    for norm in body.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(generator=draw)
            norm.running_var.uniform_(0.01, 4, generator=draw)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2, generator=draw)
    return as_classifier(body, shape=(3, 16, 12), classes=4)


def test_readers_count_as_if_batch_norm_were_part_of_them():
    classifier, options = normalized_network().eval(), Reconstruction(attack=PGD(eps=0), explained=1)
    layers = list(classifier.network)  # type: ignore[call-overload]
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Linear) and place + 1 < len(layers):
            layers[place] = fuse_linear_bn_eval(layer, layers[place + 1])
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layers[place] = fuse_conv_bn_eval(layer, layers[place + 1], transpose=isinstance(layer, nn.ConvTranspose2d))
    folded = as_classifier(
        nn.Sequential(
            *(nn.Identity() if isinstance(each, nn.modules.batchnorm._BatchNorm) else each for each in layers)
        ),
        shape=(3, 16, 12),
        classes=4,
    ).eval()
    scores, wanted = (score_reconstruction(each, images(), options, seed=0) for each in (classifier, folded))
    bare = options.model_copy(update={"through_batch_norm": False})
    otherwise = score_reconstruction(classifier, images(), bare, seed=0)
    assert scores.layers.keys() == wanted.layers.keys() == {"0", "3", "6", "11"}
    for root, layer in wanted.layers.items():
        assert scores.layers[root].scores == pytest.approx(layer.scores, rel=1e-3, abs=1e-6)
        if root != "11":  # read by the logits, which no batch norm follows
            assert otherwise.layers[root].scores != pytest.approx(layer.scores, rel=1e-2)
