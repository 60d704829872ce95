from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrp_edge.data.images import EVERY_CLASS, UNLABELLED, ArraySource, ImageSet, ranks_and_sizes


def numbered(labels: list[int]) -> ImageSet:
    """One-pixel images whose value is their position."""
    pixels = np.arange(len(labels)).astype(np.uint8).reshape(-1, 1, 1, 1)
    return ImageSet.of("numbered", ArraySource(pixels), torch.tensor(labels, dtype=torch.int64))


def contents(images: ImageSet, **how: int) -> list[tuple[int, int]]:
    return [
        (round(pixel * 255), label)
        for pixels, labels in images.batches(3, **how)
        for pixel, label in zip(pixels.flatten().tolist(), labels.tolist(), strict=True)
    ]


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels=LABELS, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9))
@settings(deadline=None)
def test_hold_out_is_disjoint_complete_stratified_and_deterministic(labels, fraction, seed):
    images = numbered(labels)
    kept, held = images.hold_out(fraction, seed)
    assert sorted([*kept.indices, *held.indices]) == list(range(len(labels)))
    for label in set(labels):
        total, taken = labels.count(label), int((held.labels == label).sum())
        assert taken < total
        assert total == 1 or (taken >= 1 and abs(taken - fraction * total) <= 1)
    assert np.array_equal(images.hold_out(fraction, seed)[1].indices, held.indices)


@given(labels=LABELS, count=st.integers(1, 70), seed=st.integers(0, 9))
@settings(deadline=None)
def test_split_is_disjoint_complete_and_deterministic_and_no_class_is_on_one_side_alone(labels, count, seed):
    images = numbered(labels)
    drawn, rest = images.split(count, seed)
    assert len(drawn) == min(count, len(labels))
    assert sorted([*drawn.indices, *rest.indices]) == list(range(len(labels)))
    for part in (drawn, rest):
        several = {label for label in labels if labels.count(label) > 1}
        assert len(part) < len(several) or several <= set(part.labels.tolist())
    assert np.array_equal(images.sample(count, seed).indices, drawn.indices)


@pytest.mark.parametrize("count", [50, 100, 500, 950])
def test_every_class_has_its_share_of_what_is_drawn(count):
    drawn, rest = numbered([0] * 900 + [1] * 80 + [2] * 18 + [3] * 2).split(count, 0)
    for part in (drawn, rest):
        found = part.labels.bincount(minlength=4)
        assert (found - torch.tensor([0.9, 0.08, 0.018, 0.002]) * len(part)).abs().max() <= 1
        assert found.min() >= 1


def test_a_draw_of_fewer_images_than_classes_favours_none():
    images = numbered([*range(40)] * 5 + [0])  # sizes of 6 and 5
    drawn = [images.sample(10, seed).labels.tolist() for seed in range(200)]
    assert all(len(set(each)) == 10 for each in drawn)
    assert 25 <= sum(0 in each for each in drawn) <= 80, "a quarter of them"


@given(classes=st.integers(1, 6), each=st.integers(1, 12), count=st.integers(1, 71), seed=st.integers(0, 9))
@settings(deadline=None)
def test_of_classes_of_one_size_those_with_the_fewest_drawn_come_next(classes, each, count, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(ranks_and_sizes(labels[order])[0], kind="stable")]
    images = numbered(labels.tolist())
    assert images.sample(count, seed).indices.tolist() == sorted(order[:count])


def test_classes_take_turns_in_another_order_each_time():
    images = numbered(sorted([*range(60)] * 3)).taking_turns()
    rounds = images.labels.reshape(3, 60)
    assert sorted(images.indices) == list(range(180))
    assert rounds.sort(1).values.tolist() == [list(range(60))] * 3, "one image of every class in each"
    assert len({tuple(each) for each in rounds.tolist()}) == 3
    assert (images.first(20).labels >= 30).sum() >= 5, "not the classes that the numbering begins with"
    assert np.array_equal(numbered(sorted([*range(60)] * 3)).taking_turns().indices, images.indices)
    few = numbered(sorted([*range(EVERY_CLASS)] * 2))
    assert few.taking_turns() is few


def test_the_first_images_are_not_of_the_largest_classes():
    sizes = [40 + label % 21 for label in range(200)]
    images = numbered([label for label, size in enumerate(sizes) for _ in range(size)]).taking_turns()
    first = torch.tensor(sizes)[images.first(64).labels].float()
    assert 47 <= first.mean() <= 56 and first.min() <= 44, "the mean over all images is 51"


def test_a_rare_class_comes_as_rarely_among_the_first_as_among_all():
    images = numbered(sorted([*range(50)] * 100 + [50, 51] * 10)).taking_turns()
    assert 8 <= (images.first(len(images) // 2).labels >= 50).sum() <= 12
    assert (images.first(len(images) // 10).labels >= 50).sum() <= 4


def test_batches_keep_pixels_and_labels_together_in_every_order():
    images = numbered([3, 1, 4, 1, 5, 9, 2])
    in_order = contents(images)
    assert in_order == list(enumerate([3, 1, 4, 1, 5, 9, 2]))
    shuffled = contents(images, shuffle_seed=1)
    assert shuffled != in_order and sorted(shuffled) == sorted(in_order)
    assert contents(images, shuffle_seed=1) == shuffled
    assert contents(images, shuffle_seed=2) != shuffled
    assert [len(pixels) for pixels, _ in images.tracked(3, "looking")] == [3, 3, 1]


def test_batches_of_an_empty_set_and_of_an_abandoned_pass():
    images = numbered([0, 1, 2, 3])
    assert list(images.subset(np.arange(0)).batches(2)) == []
    for pixels, _ in images.batches(1):
        assert pixels.dtype == torch.float32
        break
    assert len(contents(images)) == 4


class ThreadCounts(ArraySource):
    """Notes on how many threads torch computes where images are loaded."""

    def __init__(self, pixels: np.ndarray) -> None:
        super().__init__(pixels)
        self.seen: list[int] = []

    def load(self, indices: np.ndarray) -> torch.Tensor:
        self.seen.append(torch.get_num_threads())
        return super().load(indices)


def test_loading_takes_no_more_than_a_core_from_what_computes():
    source = ThreadCounts(np.zeros((4, 1, 2, 2), dtype=np.uint8))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(ImageSet.of("counted", source, torch.zeros(4)).batches(2))
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(torch.get_num_threads).result()
        assert (source.seen, torch.get_num_threads(), later) == ([1, 1], 3, 3)
    finally:
        torch.set_num_threads(before)


def test_an_error_while_loading_reaches_the_reader():
    images = numbered([0, 1])
    broken = ImageSet("broken", images.source, images.labels, np.array([0, 7]))
    with pytest.raises(IndexError):
        list(broken.batches(1))


def test_digest_tells_pixels_shape_choice_and_labels_apart():
    images = numbered([0, 1, 0, 1])
    flat = ArraySource(np.zeros((2, 1, 2, 8), np.uint8))
    square = ArraySource(np.zeros((2, 1, 4, 4), np.uint8))
    digests = {
        images.digest,
        images.first(3).digest,
        images.relabelled(torch.tensor([1, 1, 0, 1]), "ground truth").digest,
        *(source.digest_of(np.arange(2)) for source in (flat, square)),
    }
    assert len(digests) == 5
    assert numbered([0, 1, 0, 1]).digest == images.digest


def test_unlabelled_images_are_known_as_such():
    images = numbered([UNLABELLED, UNLABELLED])
    assert not images.is_labelled
    assert images.relabelled(torch.tensor([0, 1]), "predictions of the dense network").is_labelled
