"""Does a file compute what the network computes? In every runtime, on random and on real images."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fsrp_edge.attacks import attackable
from fsrp_edge.compute import device_of
from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.exporting.artifact import Artifact, Precision
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.records import Record
from fsrp_edge.runtimes import RUNTIMES, Runtime, all_cores, open_session

Inputs = Literal["random", "real"]
PROBE_IMAGES, PROBE_SEED = 8, 1
"""Of the random images that a file is compared on when it is made, and again whenever it is checked."""
PROBE_FALL, PROBE_CONTRAST = 1.5, 0.25
"""Of random images: the power of the frequency that amplitudes fall with, and a channel's standard deviation."""


class Tolerance(Record):
    """Limits that a file has to keep to pass; None where a figure is shown but does not decide."""

    relative_error: float | None = None
    """Highest max|difference| / max|reference|, over all logits of all images."""
    cosine: float | None = None
    """Lowest cosine between the logits of the file and of the network."""
    top1_agreement: float | None = None
    """Lowest share of images that both put into the same class."""


# Measured in ONNX and TFLite on ResNet-20 and an adversarially trained VGG16 (CIFAR-10), Lite0 (EfficientNet
# with ImageNet weights) and nine torchvision CNNs without training; the worst figure is told with each limit.
#
# fp32 differs by the order of its sums only: 8e-6. A mixed-up axis gives more than 1e-2.
# fp16 keeps 11 bits: 5e-3 on real images; 3e-2 where random images drive Lite0 where it was never trained.
# int8 on real images: cosine 0.994 (Lite0), agreement 0.91 (untrained ConvNeXt). The largest error says
#     little: one activation beyond the calibrated range is cut off: 0.4 for the VGG16 at a cosine of 0.998.
#     A network that is unsure agrees less: 0.79 for a ResNet-20 of 27 % accuracy, whose logits lie close together.
# int8 on random images, which the ranges were not calibrated on, shows clipping: cosine 0.955 where ranges are cut by
#     entropy or calibrated on few images. Networks trained on CIFAR-10 are below the limit with their axes exchanged;
#     Lite0 and networks without training hardly see that, so real images have to tell.
TOLERANCES: dict[tuple[Precision, Inputs], Tolerance] = {
    ("fp32", "random"): Tolerance(relative_error=1e-4),
    ("fp32", "real"): Tolerance(relative_error=1e-4),
    ("fp16", "random"): Tolerance(relative_error=1e-1, cosine=0.999),
    ("fp16", "real"): Tolerance(relative_error=2e-2, cosine=0.999),
    ("int8", "random"): Tolerance(cosine=0.9),
    ("int8", "real"): Tolerance(cosine=0.98, top1_agreement=0.7),
    ("int8-dynamic", "random"): Tolerance(cosine=0.9),
    ("int8-dynamic", "real"): Tolerance(cosine=0.98, top1_agreement=0.7),
}


class Parity(Record):
    """How far a file's logits are from those of the float32 network in torch."""

    artifact: str
    """Name of the artifact, such as `onnx fp32`."""
    runtime: Runtime
    inputs: Inputs
    images: int
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    """max|difference| / max|reference|"""
    cosine: float
    """Between all logits of the file and all of the network."""
    top1_agreement: float
    """Share of images that both put into the same class, 0 to 1."""
    tolerance: Tolerance
    passed: bool


class Probe(Record):
    """Logits of a network on random images: with them a file can be checked without the network.

    The images are those of `probe_pixels` with this shape and seed.
    """

    shape: tuple[int, int, int]
    seed: int
    logits: tuple[tuple[float, ...], ...]
    """(images, classes)"""

    @classmethod
    def of(cls, classifier: Classifier) -> "Probe":
        """Ask the float32 network."""
        shape, seed = classifier.spec.input_shape, PROBE_SEED
        logits = _reference(classifier, [probe_pixels(shape, PROBE_IMAGES, seed)])
        return cls(shape=shape, seed=seed, logits=tuple(tuple(map(float, row)) for row in logits))

    def pixels(self) -> np.ndarray:
        """The images, float32 (N, C, H, W) in [0, 1]."""
        return probe_pixels(self.shape, len(self.logits), self.seed).numpy()

    def judge(self, logits: np.ndarray, artifact: Artifact, runtime: Runtime | None = None) -> Parity:
        """Compare what a file made of the images, float32 (N, classes), with the network."""
        reference = np.array(self.logits, np.float32)
        return compare(reference, logits, artifact, runtime or RUNTIMES[artifact.path.suffix][0], "random")


@dataclass(frozen=True)
class Reference:
    """What the float32 network answers to images, found once for all files that are compared with it.

    Args:
        batches: pixels float32 (N, C, H, W) in [0, 1], by kind.
        logits: float32 (images, classes) of all batches of a kind.
    """

    batches: dict[Inputs, list[torch.Tensor]]
    logits: dict[Inputs, np.ndarray]

    @classmethod
    def of(cls, classifier: Classifier, images: ImageSet | None = None) -> "Reference":
        """Ask the network.

        Args:
            classifier: the float32 network.
            images: real images, of which all are used; without them only random ones are, see `probe_pixels`.
        """
        batches: dict[Inputs, list[torch.Tensor]] = {
            "random": [probe_pixels(classifier.spec.input_shape, PROBE_IMAGES, PROBE_SEED)]
        }
        if images is not None and len(images):
            batches["real"] = [pixels for pixels, _ in images.batches(32)]
        return cls(batches, {inputs: _reference(classifier, pixels) for inputs, pixels in batches.items()})

    def check(self, path: Path, artifact: Artifact) -> tuple[Parity, ...]:
        """Compare a file with the network in every installed runtime of its format.

        The format's own runtime sees all images, the others, as a second opinion, the first batch of each kind.

        Args:
            path: the file.
            artifact: what the file is; its precision decides the tolerance.

        Returns:
            One parity a runtime and kind of input, random first.

        Raises:
            ToolFailedError: a runtime is missing or refuses the file.
        """
        parities = []
        for number, runtime in enumerate(installed_runtimes(path)):
            session = open_session(path, runtime=runtime, threads=all_cores())
            for inputs, pixels in self.batches.items():
                shown = pixels[:1] if number else pixels
                logits = np.concatenate([session.run(batch.numpy()) for batch in shown])
                reference = self.logits[inputs][: len(logits)]
                parities.append(compare(reference, logits, artifact, runtime, inputs))
        return tuple(parities)


def require_file_of(classifier: Classifier, path: Path) -> None:
    """Refuse a file of another network, by its logits on random images.

    What a file is called does not tell its precision, so it is held to what int8 files keep.

    Args:
        classifier: the network that the file is said to be made from.
        path: an ONNX or TFLite file.

    Raises:
        BadInputError: it computes something else, or is no file that can be run.
    """
    session, probe = open_session(path), Probe.of(classifier)
    artifact = Artifact.at(path, "int8")
    try:
        parity = probe.judge(session.run(probe.pixels()), artifact, session.runtime)
    except GateFailedError as error:
        raise BadInputError(f"{path}: {error}") from None
    if not parity.passed:
        far = "; ".join(_violations(parity))
        raise BadInputError(
            f"{path} is not a file of this network: on {parity.images} random images, {far}; give the network that it "
            "was exported from"
        )


def require_parity(parities: Sequence[Parity]) -> None:
    """Stop where a file computes something else than the network.

    Raises:
        GateFailedError: a check failed; the text tells the one furthest from its limit.
    """
    failed = [parity for parity in parities if not parity.passed]
    if failed:
        worst = max(failed, key=_excess)
        quantized = worst.artifact.endswith(" int8")
        raise GateFailedError(
            f"{len(failed)} of {len(parities)} parity checks failed; worst: {worst.artifact} in "
            f"{worst.runtime} on {worst.images} {worst.inputs} images: {'; '.join(_violations(worst))}"
            + ("; --int8-max-drop keeps the layers that do most harm in float" if quantized else "")
        )


def installed_runtimes(path: Path) -> tuple[Runtime, ...]:
    """Runtimes for this file: the format's own in any case, the others where they are installed."""
    first, *others = RUNTIMES[path.suffix]
    found = ((other, importlib.util.find_spec(other)) for other in others)
    # Without an origin it is a folder that an uninstalled package left behind.
    return (first, *(other for other, spec in found if spec is not None and spec.origin is not None))


def probe_pixels(shape: tuple[int, int, int], count: int, seed: int) -> torch.Tensor:
    """Random images as networks tell them apart, so that a file that mixes up axes, channels or images can't agree.

    Every channel is noise of its own whose amplitude falls with the frequency, as that of photographs does (Field,
    "Relations between the statistics of natural images and the response properties of cortical cells", JOSA A 4,
    1987): it looks different along each axis, and stays in the range that int8 files are calibrated to. In steps of
    1/255 like real images, so that files that take bytes see the same. On other machines too: the uniform numbers are
    exact, and float64 leaves nothing to round differently.

    Args:
        shape: (channels, height, width).
        count: number of images.
        seed: the same images for the same seed.

    Returns:
        float32 (count, C, H, W) in [0, 1].
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand((count, channels, height, width), generator=generator, dtype=torch.float64).numpy()
    means = 0.3 + 0.4 * torch.rand((count, channels, 1, 1), generator=generator, dtype=torch.float64).numpy()
    rows, columns = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width)
    falling = np.maximum(np.hypot(rows, columns), 1) ** -PROBE_FALL
    images = np.fft.irfft2(np.fft.rfft2(noise) * falling, s=(height, width))
    images -= images.mean((2, 3), keepdims=True)
    images *= PROBE_CONTRAST / np.maximum(images.std((2, 3), keepdims=True), np.finfo(np.float64).tiny)
    return torch.from_numpy(np.rint(255 * np.clip(images + means, 0, 1)) / 255).float()


def compare(reference: np.ndarray, logits: np.ndarray, artifact: Artifact, runtime: Runtime, inputs: Inputs) -> Parity:
    """Errors of a file's logits (N, classes) against the network's, judged by the artifact's precision.

    Raises:
        GateFailedError: they are of another shape.
    """
    if logits.shape != reference.shape:
        raise GateFailedError(
            f"{artifact.name} in {runtime} puts out {'x'.join(map(str, logits.shape))} numbers for {len(reference)} "
            f"images, the network {'x'.join(map(str, reference.shape))}: it is the file of another network"
        )
    difference = np.abs(logits - reference)
    parity = Parity(
        artifact=artifact.name,
        runtime=runtime,
        inputs=inputs,
        images=len(reference),
        max_abs_error=float(difference.max()),
        mean_abs_error=float(difference.mean()),
        relative_error=float(difference.max() / np.abs(reference).max()),
        cosine=float((logits * reference).sum() / (np.linalg.norm(logits) * np.linalg.norm(reference))),
        top1_agreement=float((logits.argmax(1) == reference.argmax(1)).mean()),
        tolerance=TOLERANCES[artifact.precision, inputs],
        passed=False,
    )
    return parity.model_copy(update={"passed": not _violations(parity)})


def _violations(parity: Parity) -> list[str]:
    """The limits that are not kept, in words; a NaN keeps none."""
    limits = parity.tolerance
    found = []
    if limits.relative_error is not None and not parity.relative_error <= limits.relative_error:
        found.append(f"relative error {parity.relative_error:.2g}, at most {limits.relative_error:g} allowed")
    if limits.cosine is not None and not parity.cosine >= limits.cosine:
        found.append(f"cosine {parity.cosine:.5f}, at least {limits.cosine:g} required")
    if limits.top1_agreement is not None and not parity.top1_agreement >= limits.top1_agreement:
        found.append(
            f"top-1 agreement {100 * parity.top1_agreement:.1f} %, at least {100 * limits.top1_agreement:g} % required"
        )
    return found


def _excess(parity: Parity) -> float:
    """How many times what its limits allow a file is off, by the worst of them: files of all precisions compare."""
    limits = parity.tolerance
    shares = [
        error / allowed
        for error, allowed in (
            (parity.relative_error, limits.relative_error),
            (1 - parity.cosine, limits.cosine and 1 - limits.cosine),
            (1 - parity.top1_agreement, limits.top1_agreement and 1 - limits.top1_agreement),
        )
        if allowed
    ]
    return max(math.inf if math.isnan(share) else share for share in shares)


def _reference(classifier: Classifier, batches: Sequence[torch.Tensor]) -> np.ndarray:
    """Logits (N, classes) of the network in evaluation mode, in float32."""
    device = device_of(classifier)
    with torch.no_grad(), attackable(classifier):
        return np.concatenate([classifier(pixels.to(device)).float().cpu().numpy() for pixels in batches])
