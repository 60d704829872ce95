"""Images that come as arrays: .npz files, and fitting any array to a network's input."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsrp_edge.data.check import without_leaks
from fsrp_edge.data.images import ArraySource, Dataset, ImageSet, ImageSource, classes_in_turn, ranks_and_sizes
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import ModelSpec

HELD_OUT = 0.2
"""Share of each class that is evaluated on where the data does not come split."""
BEYOND = 1e-5
"""How far floating-point images may leave [0, 1] for rounding, as resized ones do."""
SPLIT_SEED = 0
"""Draws what is evaluated on. Were it the --seed of a command, one command would train on what another judges by."""

# MedMNIST's are the longer ones; it publishes its results on test.
_SPLIT_KEYS = {
    "test": (
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ),
    "val": (
        ("x_train", "y_train", "x_val", "y_val"),
        ("train_images", "train_labels", "val_images", "val_labels"),
    ),
}
_WHOLE_KEYS = (("x", "y"), ("images", "labels"), ("arr_0", "arr_1"))


class FittedSource:
    """Images of a source brought to a network's input: resized (antialiased), gray in every channel.

    They are fitted batch by batch, which costs less than the conversion to float that follows, because 50,000
    CIFAR images at 224x224 would fill 7 GB.
    """

    def __init__(self, source: ArraySource, spec: ModelSpec) -> None:
        self._source = source
        self.pixels = source.pixels
        """As they are stored."""
        self._shape = spec.input_shape
        self._interpolation = spec.preprocessing.interpolation
        self.resizes = source.pixels.shape[2:] != spec.input_shape[1:]

    def __len__(self) -> int:
        return len(self._source)

    def load(self, indices: np.ndarray) -> Tensor:
        """See ImageSource."""
        pixels = self._source.load(indices)
        channels, *size = self._shape
        if self.resizes:
            pixels = F.interpolate(
                pixels.contiguous(memory_format=torch.channels_last),  # three times faster than NCHW here
                size=size,
                mode=self._interpolation,
                antialias=True,
            ).contiguous()
        return pixels.expand(-1, channels, -1, -1)

    def digest_of(self, indices: np.ndarray) -> str:
        """See ImageSource: of all images."""
        recipe = f"{self._source.digest_of(indices)} {self._shape} {self._interpolation}"
        return hashlib.sha256(recipe.encode()).hexdigest()


def fit(source: ArraySource, spec: ModelSpec) -> tuple[ImageSource, str]:
    """The images at the network's input shape, and what was done for it, to be appended to a description.

    Raises:
        BadInputError: the images have other channels than the network takes, and are not grayscale.
    """
    channels, height, width = source.pixels.shape[1:]
    wanted = spec.input_shape
    if channels not in (1, wanted[0]):
        raise BadInputError(
            f"the images have {channels} channels, the network takes {wanted[0]}; only grayscale is "
            "converted (by repeating it)"
        )
    if (channels, height, width) == wanted:
        return source, ""
    note = ""
    if (height, width) != wanted[1:]:
        how = f"{spec.preprocessing.interpolation}, antialiased"
        note += f", resized from {height}x{width} to {wanted[1]}x{wanted[2]} ({how})"
    if channels != wanted[0]:
        note += f", gray repeated in {wanted[0]} channels"
    return FittedSource(source, spec), note


def open_npz(path: Path, spec: ModelSpec) -> Dataset:
    """Data from an .npz file; see `fsrp_edge.data.open.open_dataset` for the keys and shapes it may have.

    Raises:
        BadInputError: not such a file, or its arrays are not images and labels.
    """
    arrays = _read(path)
    for split, choices in _SPLIT_KEYS.items():
        for train_x, train_y, x, y in choices:
            if {train_x, train_y, x, y} <= arrays.keys():
                train, note = _image_set(path, "train", arrays[train_x], arrays[train_y], spec)
                evaluation, _ = _image_set(path, split, arrays[x], arrays[y], spec)
                return _dataset(train, evaluation, f"{path.name}: {x} for evaluation{note}")
    for x, y in _WHOLE_KEYS:
        if {x, y} <= arrays.keys():
            whole, note = _image_set(path, "all", arrays[x], arrays[y], spec)
            train, evaluation, split = hold_out(whole)
            return _dataset(train, evaluation, f"{path.name}: {split}{note}")
    allowed = "; ".join(", ".join(keys) for keys in (*_WHOLE_KEYS, *sum(_SPLIT_KEYS.values(), ())))
    raise BadInputError(f"{path} holds the arrays {', '.join(sorted(arrays))}; allowed are {allowed}")


def hold_out(whole: ImageSet) -> tuple[ImageSet, ImageSet, str]:
    """What is trained on, what is evaluated on, and how that was chosen, for a description."""
    singles = int((ranks_and_sizes(whole.labels.numpy())[1] == 1).sum())
    note = f" (but of {singles} with a single image, which are only trained on)" if singles else ""
    return *whole.hold_out(HELD_OUT, SPLIT_SEED), f"{HELD_OUT:.0%} of each class{note} held out for evaluation"


def _read(path: Path) -> dict[str, np.ndarray]:
    """Every array of the file by its key in lower case."""
    if not zipfile.is_zipfile(path):
        raise BadInputError(f"{path} is not a whole .npz file (a zip archive of arrays); write it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key.lower(): np.asarray(file[key]) for key in file.files}
    except Exception as error:  # damaged archives and headers raise nearly anything
        raise BadInputError(f"{path} cannot be read as .npz: {error}; write it again with numpy.savez") from None


def _image_set(path: Path, split: str, x: np.ndarray, y: np.ndarray, spec: ModelSpec) -> tuple[ImageSet, str]:
    where = f"{path.name} ({split})"
    pixels, quantized = _to_uint8(_to_nchw(x, spec, where), where)
    source, note = fit(ArraySource(pixels), spec)
    images = ImageSet.of(f"{path.stem}/{split}", source, _labels(y, len(pixels), where), spec.class_names)
    if _is_stored_by_class(images):
        # The first n images, which attacks are given, would be of one class: classes in turn instead.
        images = images.subset(classes_in_turn(images.labels.numpy()))
    return images, note + quantized


def _dataset(train: ImageSet, evaluation: ImageSet, about: str) -> Dataset:
    learnt = set(_image_digests(train))
    leaked = [digest in learnt for digest in _image_digests(evaluation)]
    evaluation, note = without_leaks(train, evaluation, leaked)
    return Dataset(train, _taking_turns(evaluation), about + note, whole=_resizes(train))


def _image_digests(images: ImageSet) -> list[bytes]:
    """Of each image, as it is stored."""
    assert isinstance(images.source, ArraySource | FittedSource)
    pixels = images.source.pixels
    shape = repr(pixels.shape[1:]).encode()
    return [hashlib.blake2b(pixels[index].tobytes(), digest_size=16, key=shape).digest() for index in images.indices]


def _taking_turns(evaluation: ImageSet) -> ImageSet:
    """Evaluation images ordered for `first`; an order other than by class may be an official one and is kept."""
    return evaluation.taking_turns() if _is_stored_by_class(evaluation) else evaluation


def _is_stored_by_class(images: ImageSet) -> bool:
    stored = images.labels.numpy()[np.argsort(images.indices)]
    return int(np.count_nonzero(np.diff(stored))) < len(np.unique(stored))


def _resizes(images: ImageSet) -> bool:
    return isinstance(images.source, FittedSource) and images.source.resizes


def _to_nchw(x: np.ndarray, spec: ModelSpec, where: str) -> np.ndarray:
    """`x` as (N, C, H, W), told from its shape."""
    if 0 in x.shape[1:]:
        raise BadInputError(f"{where}: images have shape {x.shape}, no pixels; allowed are sides of 1 or more")
    if x.ndim == 3:
        return x[:, None]
    channels = {1, 3, spec.input_shape[0]}
    first, last = (x.shape[1] in channels, x.shape[3] in channels) if x.ndim == 4 else (False, False)
    if first and (not last or x.shape[1:] == spec.input_shape):
        return x
    if last and not first:
        return x.transpose(0, 3, 1, 2)
    raise BadInputError(
        f"{where}: images have shape {x.shape}; allowed are (N, C, H, W), (N, H, W, C) and (N, H, W) with "
        f"{' or '.join(map(str, sorted(channels)))} channels"
    )


def _to_uint8(x: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """`x` as uint8, and a note where that rounded it."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x), ""
    if not np.issubdtype(x.dtype, np.floating):
        raise BadInputError(f"{where}: images are {x.dtype}; allowed are uint8, or floats in [0, 1]")
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not (low >= -BEYOND and high <= 1 + BEYOND):  # also where one is NaN
        raise BadInputError(
            f"{where}: floating-point images range from {low:g} to {high:g}; allowed is [0, 1], before "
            "normalization. Divide 0…255 by 255, or undo the normalization (the network does it itself)"
        )
    return np.ascontiguousarray(np.rint(x * np.float32(255)).astype(np.uint8)), ", rounded to 8 bits"


def _labels(y: np.ndarray, images: int, where: str) -> Tensor:
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise BadInputError(
            f"{where}: labels have shape {y.shape} and type {y.dtype}; allowed is one integer class an image "
            "(for one-hot labels: labels.argmax(1))"
        )
    if len(flat) != images:
        raise BadInputError(f"{where}: {len(flat)} labels for {images} images")
    return torch.from_numpy(flat.astype(np.int64))
