"""Folders of image files, one folder a class, decoded when asked for."""

import hashlib
import math
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fsrp_edge import progress
from fsrp_edge.data.arrays import hold_out
from fsrp_edge.data.check import without_leaks
from fsrp_edge.data.classes import ClassMatch, match_classes
from fsrp_edge.data.images import Dataset, ImageSet, classes_in_turn
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_file
from fsrp_edge.models.classifier import ModelSpec

CACHE_BYTES = 1 << 30
"""Decoded images of a set are kept in memory where all of them fit into this."""

# What torchvision's ImageFolder takes for images; other files are ignored, as it does.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FORMATS = (
    *("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000"),
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),  # Pillow knows it from 11.3 on
)
"""What may be in such a file, whatever it is called: for PostScript, Pillow would run another program."""
_TRAIN_FOLDERS = ("train", "training")
_EVALUATION_FOLDERS = ("val", "valid", "validation", "test")
_SPLIT_FOLDERS = {*_TRAIN_FOLDERS, *_EVALUATION_FOLDERS}
_MODES = {1: "L", 3: "RGB"}
_INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_THREADS = min(os.cpu_count() or 1, 16)
_MOST_A_FUTURE = 64
"""Files: a future takes 2 kB, and one for each of ImageNet's would take gigabytes; an error waits for those begun."""

Result = TypeVar("Result")


class FolderSource:
    """Image files, decoded to a network's input when asked for.

    Args:
        files: the images, in the order of their indices.
        root: names in the digest are relative to it, so that a moved folder keeps its digest.
        spec: input shape (1 or 3 channels) and preprocessing.
    """

    def __init__(self, files: Sequence[Path], root: Path, spec: ModelSpec) -> None:
        self.files = tuple(files)
        self._root = root
        self._spec = spec
        shape = (len(self.files), *spec.input_shape)
        # np.empty takes no memory before it is written to.
        self._cache = np.empty(shape, np.uint8) if np.prod(shape) <= CACHE_BYTES else None
        self._cached = np.zeros(len(self.files), dtype=bool)
        self._digests = np.zeros(len(self.files), "S64")

    def __len__(self) -> int:
        return len(self.files)

    def load(self, indices: np.ndarray) -> Tensor:
        """See ImageSource.

        Raises:
            BadInputError: a file cannot be decoded; the text names it.
        """
        if self._cache is None:
            return torch.from_numpy(self._decode(indices))
        missing = np.unique(indices[~self._cached[indices]])
        if len(missing):
            self._cache[missing] = self._decode(missing)
            self._cached[missing] = True
        return torch.from_numpy(self._cache[indices])

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        images = _in_threads(lambda index: decode_image(self.files[index], self._spec), indices.tolist())
        return np.stack(images) if images else np.empty((0, *self._spec.input_shape), np.uint8)

    def digest_of(self, indices: np.ndarray) -> str:
        """Hex SHA-256 of these files' names and contents, and of how they are decoded; no other file is read."""
        unread = np.unique(indices[self._digests[indices] == b""])
        if len(unread):
            told = f"digesting the images of {self._root.name}"
            self._digests[unread] = _in_threads(sha256_file, [self.files[index] for index in unread], told)
        parts = hashlib.sha256(f"{self._spec.input_shape} {self._spec.preprocessing}".encode())
        for index in indices:
            name = self.files[index].relative_to(self._root).as_posix()
            parts.update(os.fsencode(name) + b"\0" + self._digests[index])
        return parts.hexdigest()


def decode_image(path: Path, spec: ModelSpec) -> np.ndarray:
    """One image file as the network's input: uint8 (C, H, W).

    The orientation in EXIF is applied and an alpha channel dropped; then the shorter side is resized and the
    centre cropped, pixel for pixel as torchvision's `Resize` and `CenterCrop` do to a Pillow image.

    Raises:
        BadInputError: the file cannot be decoded.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            _require_known_range(file)
            ImageOps.exif_transpose(file, in_place=True)
            return _resize_and_crop(_to_mode(file, _MODES[spec.input_shape[0]]), spec)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise BadInputError(f"cannot decode the image {_printable(path)} ({error}); repair or remove it") from None


def _resize_and_crop(image: Image.Image, spec: ModelSpec) -> np.ndarray:
    channels, height, width = spec.input_shape
    resize, shorter = spec.preprocessing.resize, min(image.size)
    size = (int(resize * image.width / shorter), int(resize * image.height / shorter))
    if size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width}x{image.height} would become {size[0]}x{size[1]} pixels before the crop")
    image = image.resize(size, _INTERPOLATIONS[spec.preprocessing.interpolation])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _require_known_range(image: Image.Image) -> None:
    """Raise ValueError where nobody knows what is white: a TIFF of 16 bits has another mode."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("floats and 32-bit integers have no known range: save it with 8 or 16 bits")


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns where the alpha is dropped in one step
    return image.convert(mode)


def open_folder(root: Path, spec: ModelSpec) -> Dataset | None:
    """Data from `train/` and `val/` folders of class folders, or from one folder of class folders.

    Returns:
        None where `root` has no subfolders, so is no such data.

    Raises:
        BadInputError: empty or damaged folders, or classes that are not the network's.
    """
    subfolders = _subfolders(root)
    if not subfolders:
        return None
    _check_preprocessing(spec)
    splits = _splits(root, subfolders)
    train = next((splits[name] for name in _TRAIN_FOLDERS if name in splits), None)
    evaluation = next((splits[name] for name in _EVALUATION_FOLDERS if name in splits), None)
    if train and evaluation:
        return _open_split(root, train, evaluation, spec)
    return _open_whole(train or evaluation or root, spec)


def _splits(root: Path, subfolders: Sequence[Path]) -> dict[str, Path]:
    """The subfolders that are splits, by their names in lower case; none where all are classes."""
    named: dict[str, Path] = {}
    for folder in subfolders:
        other = named.setdefault(folder.name.lower(), folder)
        if other != folder and other.name.lower() in _SPLIT_FOLDERS:
            raise BadInputError(f"{root} has both {other.name} and {folder.name}; keep the one that is meant")
    # A class may be called "train": only a folder of folders is a split.
    splits = {name: folder for name, folder in named.items() if name in _SPLIT_FOLDERS and _subfolders(folder)}
    for names in (_TRAIN_FOLDERS, _EVALUATION_FOLDERS) if splits else ():
        name = next((name for name in names if name in named), None)  # what stands behind it is not used
        if name is not None and name not in splits:
            raise BadInputError(f"{named[name]} has no class folders; sort its images into one folder a class")
    return splits


def _open_split(root: Path, train: Path, evaluation: Path, spec: ModelSpec) -> Dataset:
    train_files, evaluation_files = _class_files(train), _class_files(evaluation)
    names = sorted(train_files.keys() | evaluation_files.keys())
    match = match_classes(names, spec)
    return _without_leaks(
        _image_set(train, train_files, names, match, spec).named(f"{root.name}/{train.name}"),
        _image_set(evaluation, evaluation_files, names, match, spec).named(f"{root.name}/{evaluation.name}"),
        f"image folder {root.name}: {train.name} for training, {evaluation.name} for evaluation, "
        f"classes matched {match.rule}",
    )


def _open_whole(folder: Path, spec: ModelSpec) -> Dataset:
    files = _class_files(folder)
    names = sorted(files)
    match = match_classes(names, spec)
    train, evaluation, split = hold_out(_image_set(folder, files, names, match, spec))
    return _without_leaks(
        train.named(f"{folder.name}/train"),
        evaluation.named(f"{folder.name}/evaluation"),
        f"image folder {folder.name}: {split}, classes matched {match.rule}",
    )


def _check_preprocessing(spec: ModelSpec) -> None:
    channels, height, width = spec.input_shape
    if channels not in _MODES:
        raise BadInputError(f"image folders serve networks of 1 or 3 channels, this one takes {channels}; use .npz")
    if spec.preprocessing.resize < max(height, width):
        raise BadInputError(
            f"the shorter side of each image is resized to {spec.preprocessing.resize}, too small for the "
            f"central crop of {height}x{width} that the network takes; resize to {max(height, width)} or more"
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_files(root: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, sorted."""
    classes = {
        _printable(Path(folder.name)): _image_files(folder)
        for folder in progress.track(_subfolders(root), f"listing the images of {root.name}")
    }
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise BadInputError(
            f"{len(empty)} of the {len(classes)} class folders in {root} hold no images: "
            f"{', '.join(empty[:5])}. Allowed are {' '.join(sorted(_SUFFIXES))}; fill or remove them"
        )
    return classes


def _image_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    # Nested links to folders are not followed: they may lead in circles.
    for parent, folders, names in os.walk(folder):
        # Hidden folders are left out, too, as .ipynb_checkpoints with its copies.
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(parent)
        found += (here / name for name in names if name.lower().endswith(_SUFFIXES) and not name.startswith("."))
    return sorted(found)


def _image_set(
    root: Path, classes: dict[str, list[Path]], names: list[str], match: ClassMatch, spec: ModelSpec
) -> ImageSet:
    """Every image of the class folders, the classes in turn, so that the first n images have the whole's shares."""
    listed = [(position, file) for position, label in enumerate(names) for file in classes.get(label, [])]
    turns = classes_in_turn(np.array([position for position, _ in listed]))
    files = [listed[turn][1] for turn in turns]
    _in_threads(_check_header, files, f"checking the images of {root.name}")
    labels = torch.tensor([match.indices[listed[turn][0]] for turn in turns])
    return ImageSet.of(root.name, FolderSource(files, root, spec), labels, match.names)


def _check_header(path: Path) -> None:
    """Find files that are no images before the long work starts; damage further in shows later."""
    try:
        with Image.open(path, formats=_FORMATS) as file:
            _require_known_range(file)
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise BadInputError(f"{_printable(path)} is not an image that can be read ({error}); remove it") from None


def _without_leaks(train: ImageSet, evaluation: ImageSet, description: str) -> Dataset:
    """The data set without those evaluation images whose file is also a training image, the others in turn."""
    files = _files(evaluation)
    shared = _files(train), files
    for key in (_size, _middle, sha256_file):  # each tells most files apart, so that few are read
        shared = _with_common_keys(*shared, key)
    leaked = set(shared[1])
    evaluation, note = without_leaks(train, evaluation, [file in leaked for file in files])
    return Dataset(train, evaluation.taking_turns(), description + note)


def _with_common_keys(
    training: Sequence[Path], evaluation: Sequence[Path], key: Callable[[Path], Hashable]
) -> tuple[list[Path], list[Path]]:
    """Of two lists of files those whose key the other list has, too."""
    told = "looking for evaluation images among those for training"
    keys = _in_threads(key, [*training, *evaluation], told)
    sides = keys[: len(training)], keys[len(training) :]
    common = set(sides[0]) & set(sides[1])
    left, right = (
        [file for file, found in zip(files, side, strict=True) if found in common]
        for files, side in zip((training, evaluation), sides, strict=True)
    )
    return left, right


def _size(file: Path) -> int:
    return file.stat().st_size


def _middle(file: Path) -> tuple[int, bytes]:
    """A file's size and a part of it in which images differ."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(size // 2)
        return size, stream.read(64)


def _files(images: ImageSet) -> list[Path]:
    assert isinstance(images.source, FolderSource)
    return [images.source.files[index] for index in images.indices]


Item = TypeVar("Item")


def _in_threads(work: Callable[[Item], Result], items: Sequence[Item], description: str | None = None) -> list[Result]:
    """`work` on every item, in order; reading files and decoding release Python's lock."""
    size = max(1, min(_MOST_A_FUTURE, len(items) // (8 * _THREADS)))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        results = chain.from_iterable(pool.map(lambda part: [work(item) for item in part], parts))
        return list(progress.track(results, description, len(items)) if description else results)


def _printable(path: Path) -> str:
    """The path as text even where its name is not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
