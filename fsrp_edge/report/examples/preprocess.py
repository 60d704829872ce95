"""An image file as a network's input, and its answer in words; needs numpy and Pillow. The examples share it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent.parent


def load(path: str) -> np.ndarray:
    """Bytes (C, H, W): the shorter side resized, the centre cropped."""
    how = json.loads((HERE / "preprocessing.json").read_text())
    channels, height, width = how["input_shape"]
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip them at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    shorter = min(image.size)
    size = (int(how["resize"] * image.width / shorter), int(how["resize"] * image.height / shorter))
    image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def tell(logits: np.ndarray) -> None:
    """Print the five likeliest classes and their probabilities."""
    labels = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    for index in np.argsort(-shares)[:5]:
        print(f"{shares[index]:.3f} {labels[index]}")
