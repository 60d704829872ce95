"""Which layers of an int8 file do the harm, and files that keep those in float."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import GateFailedError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.progress import log, track
from fsrp_edge.records import Record
from fsrp_edge.runtimes import all_cores, open_session

SENSITIVITY_IMAGES = 32
TOLD = 3
"""Layers that are named as the worst ones while files are still made."""
ROUNDING = 1e-9
"""Of accuracies, far below one image of any set."""


class Quantizer(Protocol):
    """Makes int8 files of one fp32 file; both formats have one."""

    source: Path
    layers: tuple[str, ...]

    def quantize(self, path: Path, *, keep: Sequence[str] = (), only: str | None = None) -> Artifact:
        """Write a file in which `keep` stays in float, or one in which nothing but `only` is quantized."""
        ...


class LayerError(Record):
    """What the quantization of one layer alone does to the logits."""

    layer: str
    relative_error: float
    """Root mean square of the logits' change by that of the logits."""


def layer_errors(quantizer: Quantizer, images: ImageSet) -> tuple[LayerError, ...]:
    """How much each layer's quantization alone changes the logits, the worst first.

    Args:
        quantizer: of the file.
        images: real images, of which the first 32 are used.
    """
    pixels, _ = next(images.first(SENSITIVITY_IMAGES).batches(SENSITIVITY_IMAGES))
    reference = open_session(quantizer.source, threads=all_cores()).run(pixels.numpy())
    found = []
    with tempfile.TemporaryDirectory(dir=quantizer.source.parent) as folder:
        path = Path(folder) / f"one{quantizer.source.suffix}"
        for layer in track(quantizer.layers, f"errors of single layers, {quantizer.source.suffix[1:]}"):
            quantizer.quantize(path, only=layer)
            change = open_session(path, threads=all_cores()).run(pixels.numpy()) - reference
            error = float(np.sqrt((change**2).mean() / (reference**2).mean()))
            found.append(LayerError(layer=layer, relative_error=error))
    found.sort(key=lambda one: -one.relative_error)
    # Told at once: where the file is refused, nothing else names them.
    worst = ", ".join(f"{one.layer} {100 * one.relative_error:.2f} %" for one in found[:TOLD])
    log(f"{quantizer.source.suffix[1:]}: quantized alone, these layers change the logits most: {worst}")
    return tuple(found)


def quantize_within(
    quantizer: Quantizer,
    path: Path,
    images: ImageSet,
    accuracy: Callable[[Path], float],
    max_drop: float,
    close: Callable[[Path, Artifact], bool],
    errors: tuple[LayerError, ...] = (),
    *,
    wholly_int8: bool = False,
) -> tuple[Artifact, tuple[LayerError, ...]]:
    """Write an int8 file that loses no more accuracy than allowed: with 0, 1, 2, 4, … or half of its layers in float.

    Args:
        quantizer: of the file.
        path: file to write.
        images: real images for `layer_errors`, which takes long and is only asked where a layer has to stay in float.
        accuracy: of a file, 0 to 1.
        max_drop: points that may be lost against the fp32 file.
        close: whether a file's outputs are close enough to the network's, which it has to be as well; asked only of
            files that keep their accuracy.
        errors: of the layers, the most sensitive first, where they are known.
        wholly_int8: no layer may stay in float.

    Returns:
        The file, and its layers' errors as far as they are known.

    Raises:
        GateFailedError: no such file even with half of the layers in float.
    """
    floor = accuracy(quantizer.source) - max_drop / 100 - ROUNDING
    layers = len(quantizer.layers)
    counts = [0] if wholly_int8 else numbers_in_float(layers)
    best = 0.0
    for count in counts:
        if count and not errors:
            errors = layer_errors(quantizer, images)
        keep = tuple(one.layer for one in errors[:count])
        artifact = quantizer.quantize(path, keep=keep)
        reached = accuracy(path)
        found = f"{path.name}, {count} of {layers} layers in float: {reached:.2%}, at least {floor:.2%} wanted"
        best = max(best, reached)
        if reached < floor:
            log(found)
        elif close(path, artifact):
            log(found)
            return artifact.model_copy(update={"kept_in_float": keep}), errors
        else:
            log(f"{found}, but its outputs differ too much from the network's")
    path.unlink()
    why = f"it reaches {best:.2%}, and {floor:.2%} is wanted"
    if best >= floor:
        why += "; outputs that differ too much from the network's, however, at every step that keeps the accuracy"
    raise GateFailedError(
        f"{path.name} can't keep to {max_drop:g} points: with up to {counts[-1]} of {layers} layers in float "
        f"{why}; allow more, try another --calibration-method, or recover with --int8-epochs"
    )


def numbers_in_float(layers: int) -> list[int]:
    """How many layers are kept in float, one try after the other: 0, 1, 2, 4, … and half of them."""
    half = (layers + 1) // 2
    return sorted({0, half, *(2**power for power in range(16) if 2**power < half)})
