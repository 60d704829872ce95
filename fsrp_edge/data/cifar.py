"""CIFAR-10 and CIFAR-100 in the official binary layout and in the Python layout that torchvision keeps."""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsrp_edge.data.arrays import fit
from fsrp_edge.data.classes import match_classes
from fsrp_edge.data.images import ArraySource, Dataset, ImageSet
from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import ModelSpec

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32

Batch = tuple[np.ndarray, np.ndarray]
"""Pixels uint8 (N, 3072) and labels (N,)."""


@dataclass(frozen=True)
class Layout:
    """Where one of the two sets keeps what, in one of its two layouts."""

    folder: str
    title: str
    classes: int
    label_key: str
    """Key of the labels in the Python layout."""
    train: Sequence[str]
    test: str
    names: str
    """File with the class names."""
    label_bytes: int = 0
    """Of the binary layout, before an image; the last of them is the (fine) label. 0: the Python layout."""

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` holds this layout."""
        return (folder / self.train[0]).is_file() and (folder / self.test).is_file()

    def read(self, path: Path) -> Batch:
        """One file of images and labels."""
        return _read_binary(path, self.label_bytes) if self.label_bytes else _read_python(path, self.label_key)

    def class_names(self, folder: Path) -> list[str]:
        """The class names, in the order of the labels."""
        path = folder / self.names
        if self.label_bytes:
            names = path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []
        else:
            entries = _unpickle(path) if path.is_file() else {}
            names = [_text(name) for name in entries.get(f"{self.label_key.removesuffix('s')}_names", [])]
        return names if len(names) == self.classes else [f"class {index}" for index in range(self.classes)]


_10, _100 = ("CIFAR-10", 10, "labels"), ("CIFAR-100", 100, "fine_labels")
_FIVE = [f"data_batch_{number}" for number in range(1, 6)]
_FIVE_BINARY = [f"{name}.bin" for name in _FIVE]
LAYOUTS = (
    Layout("cifar-10-batches-bin", *_10, _FIVE_BINARY, "test_batch.bin", "batches.meta.txt", label_bytes=1),
    Layout("cifar-10-batches-py", *_10, _FIVE, "test_batch", "batches.meta"),
    Layout("cifar-100-binary", *_100, ["train.bin"], "test.bin", "fine_label_names.txt", label_bytes=2),
    Layout("cifar-100-python", *_100, ["train"], "test", "meta"),
)


def find_cifar(folder: Path, classes: int) -> tuple[Path, Layout] | None:
    """The CIFAR set in `folder` or in an official subfolder; of several, one with that many classes."""
    found = [(place, layout) for layout in LAYOUTS for place in (folder, folder / layout.folder) if layout.is_in(place)]
    fitting = [(place, layout) for place, layout in found if layout.classes == classes]
    return next(iter(fitting or found), None)


def open_cifar(folder: Path, layout: Layout, spec: ModelSpec) -> Dataset:
    """The official training and test images, in the official order.

    Raises:
        BadInputError: a file is missing or damaged, or the classes are not the network's.
    """
    match = match_classes(layout.class_names(folder), spec)
    train, note = _image_set(folder, layout, "train", layout.train, spec)
    test, _ = _image_set(folder, layout, "test", [layout.test], spec)
    index = torch.tensor(match.indices)
    train, test = (
        ImageSet.of(images.name, images.source, index[images.labels], match.names) for images in (train, test)
    )
    kind = "binary" if layout.label_bytes else "Python"
    return Dataset(
        train,
        test,
        f"{layout.title} ({kind} layout), its official test set for evaluation, classes matched {match.rule}{note}",
        whole=True,
    )


def _image_set(folder: Path, layout: Layout, split: str, files: Sequence[str], spec: ModelSpec) -> tuple[ImageSet, str]:
    """A split with the data's own labels."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise BadInputError(f"{folder} looks like {layout.title} but lacks {', '.join(missing)}; unpack it again")
    batches = [layout.read(folder / name) for name in files]
    labels = np.concatenate([labels for _, labels in batches]).astype(np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < layout.classes:
        raise BadInputError(
            f"{folder} ({split}): labels range from {labels.min()} to {labels.max()}, {layout.title} has 0 "
            f"to {layout.classes - 1}; the file is damaged or not {layout.title}"
        )
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, *_SHAPE)
    source, note = fit(ArraySource(pixels), spec)
    name = f"{layout.title.lower().replace('-', '')}/{split}"
    return ImageSet.of(name, source, torch.from_numpy(labels)), note


def _read_binary(path: Path, label_bytes: int) -> Batch:
    content = np.fromfile(path, dtype=np.uint8)
    record = label_bytes + _PIXELS
    if len(content) == 0 or len(content) % record:
        raise BadInputError(
            f"{path} has {len(content)} bytes, not a multiple of {record} (one image and its label); it is damaged"
        )
    records = content.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_python(path: Path, label_key: str) -> Batch:
    entries = _unpickle(path)
    try:
        pixels, labels = entries["data"].as_uint8(), np.array(entries[label_key], dtype=np.int64)
        if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or labels.shape != (len(pixels),):
            raise ValueError(f"data has shape {pixels.shape}, {label_key} {labels.shape}")
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"{path} is not a CIFAR batch: {type(error).__name__}: {error}") from None
    return pixels, labels


class _InertDtype:
    """Stands in for numpy.dtype: keeps the type's name, does nothing."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        pass


class _InertArray:
    """Stands in for numpy.ndarray: keeps the bytes that numpy would have been given."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def as_uint8(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self.state
        if _text(dtype.name) not in ("u1", "uint8"):
            raise ValueError(f"data has type {dtype.name!r}, not uint8")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


_INERT: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _InertDtype,
    ("numpy", "ndarray"): _InertArray,
    ("numpy.core.multiarray", "_reconstruct"): _InertArray,
    ("numpy._core.multiarray", "_reconstruct"): _InertArray,
}


class _InertUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings, numbers, and numpy arrays as inert records; calls nothing of the file's.

    The official md5 sums would be as safe, but would refuse every file that was written again, and even
    permitting numpy's own functions would hand them states of the file's choosing.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _INERT[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        entries = _InertUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return {_text(key): value for key, value in entries.items()}
    except Exception as error:  # a malformed pickle may raise nearly anything
        raise BadInputError(f"{path} was refused: {error}. Allowed is a CIFAR batch as published") from None


def _text(value: Any) -> str:
    """Python 2 wrote `str` as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
