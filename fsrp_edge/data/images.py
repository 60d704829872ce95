"""ImageSet: images with labels, deterministic per seed, streamed in batches."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fsrp_edge import compute
from fsrp_edge.progress import track

LabelKind = Literal["ground truth", "predictions of the dense network"]

UNLABELLED = -1
"""Label of an image whose class nobody knows; loss functions refuse it, so nobody trains on it by mistake."""
EVERY_CLASS = 32
"""Up to so many classes, even the fewest images that are judged by default (`--file-images`) show every class."""


class ImageSource(Protocol):
    """Where pixels come from: an array in memory, or files decoded when asked for."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def load(self, indices: np.ndarray) -> Tensor:
        """Images (len(indices), C, H, W) as uint8, in the order asked for."""
        ...

    def digest_of(self, indices: np.ndarray) -> str:
        """Hex SHA-256 of what these images are made from, or all, where that takes no reading."""
        ...


class ArraySource:
    """Images held in memory.

    Args:
        pixels: uint8 array (N, C, H, W).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        assert pixels.dtype == np.uint8 and pixels.ndim == 4
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, indices: np.ndarray) -> Tensor:
        """See ImageSource."""
        return torch.from_numpy(self.pixels[indices])

    def digest_of(self, indices: np.ndarray) -> str:
        """See ImageSource: of all images."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts = hashlib.sha256(repr(self.pixels.shape).encode())
        parts.update(np.ascontiguousarray(self.pixels).data)
        return parts.hexdigest()


def ranks_and_sizes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) how many images of its own class stand before each, and (N,) how many images that class has."""
    _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[np.argsort(classes, kind="stable")] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks, sizes[classes]


def classes_in_turn(labels: np.ndarray) -> np.ndarray:
    """(N,) positions, by how far each is into its own class: the first of them have the shares of all classes."""
    ranks, sizes = ranks_and_sizes(labels)
    order: np.ndarray = np.argsort((ranks + 0.5) / sizes, kind="stable")
    return order


@dataclass(frozen=True)
class ImageSet:
    """Images and labels that can be gone through any number of times.

    Args:
        name: how the set is called in reports, such as `cifar10/test`.
        source: the pixels.
        labels: int64 tensor (len(indices),), aligned with `indices`: classes as the network numbers them, or
            UNLABELLED throughout.
        indices: int64 array of positions in `source` that belong to the set.
        class_names: one name a class of the network, where the data has them.
        label_kind: whether the labels are true or were predicted by the dense network.
    """

    name: str
    source: ImageSource
    labels: Tensor
    indices: np.ndarray
    class_names: tuple[str, ...] | None = None
    label_kind: LabelKind = "ground truth"

    @classmethod
    def of(
        cls, name: str, source: ImageSource, labels: Tensor, class_names: tuple[str, ...] | None = None
    ) -> "ImageSet":
        """The whole of a source."""
        assert len(source) == len(labels)
        return cls(name, source, labels.long(), np.arange(len(source)), class_names)

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def usual_batch(self) -> int:
        """Images to compute on at once: about a million pixels a channel, 16 to 256."""
        height, width = self.source.load(self.indices[:1]).shape[2:]
        return max(16, min(256, 2**20 // (height * width)))

    def batches(self, batch_size: int, *, shuffle_seed: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pixels, labels): float32 (n, C, H, W) in [0, 1] and int64 (n,), on the CPU.

        Args:
            batch_size: images a batch; the last one may be smaller.
            shuffle_seed: the order of a permutation by this seed; None keeps the order of the set.
        """
        order = np.arange(len(self))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(len(self))
        # One batch ahead: files are decoded while the network works on the batch before.
        with compute.worker_thread() as ahead:
            pending: Future[tuple[Tensor, Tensor]] | None = None
            for start in range(0, len(self), batch_size):
                following = ahead.submit(self._load, order[start : start + batch_size])
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()

    def _load(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = self.source.load(self.indices[positions]).float().div_(255)
        return pixels, self.labels[torch.from_numpy(positions)]

    def tracked(self, batch_size: int, description: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, told to whoever follows the progress."""
        return track(self.batches(batch_size), description, -(-len(self) // batch_size))

    def subset(self, positions: np.ndarray) -> "ImageSet":
        """The images at these positions of this set, in that order."""
        return replace(
            self,
            labels=self.labels[torch.from_numpy(positions)],
            indices=self.indices[positions],
        )

    def named(self, name: str) -> "ImageSet":
        """The same images under another name."""
        return replace(self, name=name)

    def first(self, count: int) -> "ImageSet":
        """The first `count` images (all where there are fewer): the sets that published tables use."""
        return self.subset(np.arange(min(count, len(self))))

    def taking_turns(self) -> "ImageSet":
        """The same images with the classes in turn, so that the first n speak of the whole set.

        Of classes of one size, first comes one image of each, then another of each, and so on, each time with the
        classes in another order, always the same one: in one order throughout, the first 128 images of ImageNet would
        be of the 128 classes that its numbering begins with. A rarer class comes as much more rarely. A set of at most
        EVERY_CLASS classes stays as it is.
        """
        labels = self.labels.numpy()
        if len(np.unique(labels)) <= EVERY_CLASS:
            return self
        ranks, sizes = ranks_and_sizes(labels)
        # Anywhere within their turn: in its middle, classes of about one size would come by size, the largest first.
        within = np.random.default_rng(0).random(len(self))
        return self.subset(np.argsort((ranks + within) / sizes, kind="stable"))

    def sample(self, count: int, seed: int) -> "ImageSet":
        """`count` images drawn without replacement, every class with its share; see `split`."""
        return self.split(count, seed)[0]

    def split(self, count: int, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """A draw of `count` images, every class with its share, and the rest; both in the order of this set.

        A class of two or more images is in both parts where a part has room for one image of each such class.
        """
        if count >= len(self):
            return self, self.subset(np.arange(0))
        shuffled = np.random.default_rng(seed).permutation(len(self))
        labels = self.labels.numpy()[shuffled]
        ranks, sizes = ranks_and_sizes(labels)
        place = (ranks + 0.5) / sizes
        place[(ranks == 0) & (sizes > 1)] = 0  # not by size: a draw of fewer images than classes takes any of these
        place[(ranks == sizes - 1) & (sizes > 1)] = 1
        drawn = np.zeros(len(self), dtype=bool)
        drawn[shuffled[np.argsort(place, kind="stable")[:count]]] = True
        return self.subset(np.flatnonzero(drawn)), self.subset(np.flatnonzero(~drawn))

    def hold_out(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """What stays, and what is held out: about `fraction` of every class, both in the order of this set.

        A class of two or more images is on both sides; one of a single image stays.
        """
        shuffled = np.random.default_rng(seed).permutation(len(self))
        labels = self.labels.numpy()[shuffled]
        held = np.zeros(len(self), dtype=bool)
        for label in np.unique(labels):
            mine = shuffled[labels == label]
            count = min(max(round(fraction * len(mine)), 1), len(mine) - 1)
            held[mine[:count]] = True
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    @property
    def is_labelled(self) -> bool:
        """Whether the images have labels, true or predicted."""
        return bool((self.labels != UNLABELLED).any())

    def relabelled(self, labels: Tensor, kind: LabelKind) -> "ImageSet":
        """The same images with other labels, marked as what they are."""
        assert len(labels) == len(self)
        return replace(self, labels=labels.long().cpu(), label_kind=kind)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over pixels, choice of images and labels: the same data, the same digest."""
        parts = hashlib.sha256(self.source.digest_of(self.indices).encode())
        parts.update(self.indices.astype(np.int64).tobytes())
        parts.update(self.labels.numpy().astype(np.int64).tobytes())
        return parts.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """What a run works on.

    Args:
        train: for scoring, recovery and calibration.
        evaluation: for every accuracy that is reported; never trained on.
        description: one line for the report, such as where the images come from and under which licence.
        mirrorable: whether an image mirrored left to right shows the same class; digits and letters do not. True
            where it is not known, as of a user's files.
        whole: images were brought to the network's size as a whole, without the crop of its preprocessing.
    """

    train: ImageSet
    evaluation: ImageSet
    description: str
    mirrorable: bool = True
    whole: bool = False
