"""What a file recognizes on a device: images go there as one .npz file, classes come back."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fsrp_edge.bench.results import Recognition
from fsrp_edge.bench.setup import Setup
from fsrp_edge.data.images import UNLABELLED, ImageSet
from fsrp_edge.errors import BadInputError, FsrpEdgeError
from fsrp_edge.runtimes import open_session

_BATCH = 32


def save_images(images: ImageSet, folder: Path) -> Path:
    """Write images as uint8 (N, C, H, W); the same images give the same bytes, so that they are sent once."""
    pixels = [(batch * 255).round().byte().numpy() for batch, _ in images.batches(_BATCH)]
    return save_pixels(np.concatenate(pixels), folder, "images.npz")


def save_pixels(pixels: np.ndarray, folder: Path, name: str = "inputs.npz") -> Path:
    """Write images float32 (N, C, H, W) in [0, 1], or uint8, below a folder."""
    path = folder / name
    np.savez(path, pixels=pixels)
    return path


def require_taken(files: Sequence[Path], setup: Setup) -> None:
    """Refuse images that one of the files does not take: told on the device, that would cost the file its latency, too.

    ncnn's files do not tell what they take.

    Raises:
        BadInputError: they are of another size.
    """
    if setup.images is None:
        return
    pixels = next(setup.images.batches(1))[0].numpy()
    for path in files:
        try:
            session = open_session(path)
        except FsrpEdgeError:  # a device may have a runtime that this machine lacks
            continue
        try:
            session.prepare(pixels)
        except BadInputError as error:
            raise BadInputError(f"{error}, and bench {path.name} alone") from None


def recognize_here(path: Path, packed: Path) -> np.ndarray | None:
    """Classes int64 (N,) that this machine finds in packed images; None where it can't run the file."""
    try:
        session = open_session(path)
        with np.load(packed) as file:
            pixels = file["pixels"]
        parts = np.array_split(pixels, -(-len(pixels) // _BATCH))  # an open batch would take all at once
        return np.concatenate([session.run(part.astype(np.float32) / 255).argmax(axis=1) for part in parts])
    except Exception:  # runtimes raise errors of many types of their own
        return None


def judge(classes: Sequence[int], here: np.ndarray | None, images: ImageSet) -> Recognition:
    """Compare the classes that a device found with the labels and with those found here."""
    found = np.asarray(classes)
    labels = images.labels.numpy()
    return Recognition(
        data=images.name,
        images=len(images),
        correct=None if labels[0] == UNLABELLED else int((found == labels).sum()),
        same_as_here=None if here is None else int((found == here).sum()),
    )
