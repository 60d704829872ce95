"""Images to recover EfficientNet-Lite0 on: random crops of the few training images that there are, and of photographs.

Labels are the dense network's own predictions; recovery learns its soft labels anyway (`distillation: 1` in a recipe).
The evaluation images, which recovery does not read, are crops of other photographs.

python -m benchmarks.lite0_crops lite0.safetensors imagenet/train crops.npz
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import parser_of
from fsrp_edge import torchvision_compat  # noqa: F401 (before torchvision)
from fsrp_edge.data.check import pseudo_labelled
from fsrp_edge.data.images import ArraySource, Dataset, ImageSet
from fsrp_edge.data.open import open_dataset
from fsrp_edge.evaluation.accuracy import predictions
from fsrp_edge.models.checkpoint import load_classifier


def random_crops(folder: Path, size: int, count: int) -> np.ndarray:
    """`count` crops of each image of a folder, uint8 (N, 3, size, size): 35 to 100 % of it, mirrored half the time."""
    from torchvision.transforms import v2

    crop = v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.35, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ])  # fmt: skip
    torch.manual_seed(0)
    opened = (Image.open(path).convert("RGB") for path in sorted(folder.glob("*/*.JPEG")))
    return np.stack([crop(image).numpy() for image in opened for _ in range(count)])


def main() -> None:
    parser = parser_of(__doc__)
    for name in ("checkpoint", "folder", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--crops", type=int, default=6, help="of each image")
    given = parser.parse_args()
    dense = load_classifier(given.checkpoint, architecture="benchmarks.efficientnet_lite0:network")
    photographs = open_dataset("photographs", dense.spec, seed=0)
    more = random_crops(given.folder, dense.spec.input_shape[1], given.crops)
    pixels = np.concatenate([more, photographs.train.source.load(np.arange(len(photographs.train))).numpy()])
    train = ImageSet.of("crops", ArraySource(pixels), torch.zeros(len(pixels)))
    both = train, photographs.evaluation
    labelled = pseudo_labelled(Dataset(*both, "crops"), *(predictions(dense, each) for each in both))
    arrays: dict[str, Any] = {}
    for split, images in (("train", labelled.train), ("test", labelled.evaluation)):
        arrays[f"x_{split}"] = images.source.load(np.arange(len(images))).numpy()
        arrays[f"y_{split}"] = images.labels.numpy()
    np.savez(given.out, **arrays)


if __name__ == "__main__":
    main()
