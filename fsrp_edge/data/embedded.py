"""Data that comes with a dependency, for runs without data of one's own; nothing is downloaded."""

import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from PIL import Image

from fsrp_edge.data.arrays import SPLIT_SEED, fit
from fsrp_edge.data.classes import match_classes
from fsrp_edge.data.images import UNLABELLED, ArraySource, Dataset, ImageSet
from fsrp_edge.errors import BadInputError, ToolFailedError
from fsrp_edge.models.classifier import ModelSpec

DIGITS_EVALUATION = 400
CROPS = {"train": 512, "evaluation": 256}
"""Crops of photographs in each set."""


@dataclass(frozen=True)
class Photograph:
    """A photograph inside another package's wheel, and by what right it is used."""

    package: str
    file: str
    author: str
    licence: str


# Each licence as stated by the package: scikit-image 0.26, skimage/data/_fetchers.py (docstrings);
# scikit-learn 1.9, sklearn/datasets/images/README.txt. The sets share no photograph.
PHOTOGRAPHS = {
    "train": (
        Photograph("skimage.data", "astronaut.png", "NASA Great Images", "public domain"),
        Photograph("skimage.data", "coffee.png", "Rachel Michetti", "CC0 1.0"),
        Photograph("skimage.data", "hubble_deep_field.jpg", "NASA, HubbleSite", "public domain"),
        Photograph("skimage.data", "retina.jpg", "Mikael Häggström", "CC0 1.0"),
        Photograph("sklearn.datasets.images", "china.jpg", "danielbuechele (Flickr)", "CC BY 2.0"),
    ),
    "evaluation": (
        Photograph("skimage.data", "chelsea.png", "Stéfan van der Walt", "CC0 1.0"),
        Photograph("skimage.data", "rocket.jpg", "SpaceX", "public domain"),
        Photograph("sklearn.datasets.images", "flower.jpg", "vultilion (Flickr)", "CC BY 2.0"),
    ),
}


def digits(spec: ModelSpec) -> Dataset:
    """Scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,397 for training, 400 for evaluation.

    Args:
        spec: the network; the images are resized to its input and gray is repeated in its channels.

    Raises:
        ToolFailedError: scikit-learn is missing.
        BadInputError: the network has not 10 classes.
    """
    match = match_classes([str(digit) for digit in range(10)], spec)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise _missing("scikit-learn") from None
    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    source, note = fit(ArraySource(pixels), spec)
    labels = torch.tensor(match.indices)[torch.from_numpy(data.target)]
    whole = ImageSet.of("digits", source, labels, match.names)
    evaluation, train = whole.split(DIGITS_EVALUATION, SPLIT_SEED)
    return Dataset(
        train.named("digits/train"),
        evaluation.named("digits/evaluation"),
        "scikit-learn's handwritten digits (Alpaydin and Kaynak, UCI Machine Learning Repository, CC BY "
        f"4.0), {len(evaluation)} held out for evaluation{note}",
        mirrorable=False,
        whole=True,
    )


def photographs(spec: ModelSpec, *, seed: int) -> Dataset:
    """Unlabelled crops of freely licensed photographs, each at the network's input size.

    Args:
        spec: the network; it must take colour or gray.
        seed: of the crops.

    Returns:
        512 crops to train on and 256 to evaluate on, from different photographs; labels are UNLABELLED until
        `fsrp_edge.data.check.pseudo_labelled` sets them.

    Raises:
        ToolFailedError: scikit-image or scikit-learn is missing.
        BadInputError: the network takes neither 1 nor 3 channels.
    """
    if spec.input_shape[0] not in (1, 3):
        raise BadInputError(
            f"photographs have 3 channels (or 1 as gray), the network takes {spec.input_shape[0]}; give it "
            "data of its own"
        )
    sets = {
        split: _crops(split, chosen, spec, np.random.default_rng([seed, number]))
        for number, (split, chosen) in enumerate(PHOTOGRAPHS.items())
    }
    credits = "; ".join(
        f"{photograph.file} by {photograph.author}, {photograph.licence}"
        for chosen in PHOTOGRAPHS.values()
        for photograph in chosen
    )
    return Dataset(
        sets["train"],
        sets["evaluation"],
        f"unlabelled random crops and flips (seed {seed}) of photographs that come with scikit-image and "
        f"scikit-learn: {credits}",
    )


def _crops(split: str, chosen: tuple[Photograph, ...], spec: ModelSpec, random: np.random.Generator) -> ImageSet:
    originals = [_open(photograph).convert("RGB" if spec.input_shape[0] == 3 else "L") for photograph in chosen]
    pixels = np.stack(
        [_random_crop(originals[number % len(originals)], spec, random) for number in range(CROPS[split])]
    )
    labels = torch.full((len(pixels),), UNLABELLED)
    return ImageSet.of(f"photographs/{split}", ArraySource(pixels), labels)


def _open(photograph: Photograph) -> Image.Image:
    # Read from the wheel itself: scikit-image's own loader may go to the network for a file that it lacks.
    try:
        with (resources.files(photograph.package) / photograph.file).open("rb") as file:
            image = Image.open(file)
            image.load()
            return image
    except (ImportError, FileNotFoundError):
        raise _missing(f"{photograph.file} of {photograph.package}") from None


def _random_crop(image: Image.Image, spec: ModelSpec, random: np.random.Generator) -> np.ndarray:
    """Inception's crop: 10 to 100 % of the area, aspect 3:4 to 4:3 of the input's, mirrored half the time."""
    channels, height, width = spec.input_shape
    area = random.uniform(0.1, 1.0) * image.width * image.height
    aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3))) * width / height
    crop_width, crop_height = (
        min(math.sqrt(area * aspect), image.width),
        min(math.sqrt(area / aspect), image.height),
    )
    left, top = random.uniform(0, image.width - crop_width), random.uniform(0, image.height - crop_height)
    crop = image.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + crop_width, top + crop_height)
    )
    if random.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop).reshape(height, width, channels).transpose(2, 0, 1)


def _missing(what: str) -> ToolFailedError:
    return ToolFailedError(f'the embedded data needs {what}: pip install "fsrp-edge[samples]"')
