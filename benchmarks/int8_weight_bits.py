"""Is an int8 ONNX file right in a session that nobody set up? Weights of 8 and of 7 bits, onnxruntime's two modes.

Where a processor has no VNNI, onnxruntime's default is to add products of 8-bit numbers in 16 bits, which 8-bit weights
overflow; its exact mode and 7-bit weights don't. With VNNI all four agree.

python -m benchmarks.int8_weight_bits --checkpoint lite0.safetensors --arch benchmarks.efficientnet_lite0:network \
    --data imagenet
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from benchmarks.common import checkpoint_parser, save
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import Dataset
from fsrp_edge.data.open import open_dataset
from fsrp_edge.exporting.onnx import Int8Quantizer, export_onnx
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier

BITS: tuple[Literal[7, 8], ...] = (8, 7)
MODES = {"default": "0", "exact": "1"}


def logits_of(file: Path, mode: str, pixels: torch.Tensor) -> np.ndarray:
    """Of a file, (images, classes), in one of onnxruntime's modes."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", mode)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: one[None].numpy()})[0] for one in pixels])


def compared(classifier: Classifier, dataset: Dataset, images: int) -> list[dict[str, Any]]:
    """One row a number of bits and mode: mean cosine with the network's logits, and how often the class is the same."""
    pixels, _ = next(dataset.evaluation.sample(images, 0).batches(images))
    with torch.no_grad():
        reference = torch.cat([classifier(part) for part in pixels.split(16)]).numpy()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(classifier, folder / "fp32.onnx", opset=17, ir_version=8)
        for bits in BITS:
            quantizer = Int8Quantizer(
                folder / "fp32.onnx", folder, activation="uint8", weight_bits=bits,
                calibration=dataset.train.sample(64, 0),
            )  # fmt: skip
            quantizer.quantize(folder / f"{bits}.onnx")
            for mode, setting in MODES.items():
                found = logits_of(folder / f"{bits}.onnx", setting, pixels)
                lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
                rows.append({
                    "weight bits": bits,
                    "mode": mode,
                    "cosine": float(((found * reference).sum(1) / lengths).mean()),
                    "same class": float((found.argmax(1) == reference.argmax(1)).mean()),
                })  # fmt: skip
    return rows


def main() -> None:
    """Write results/int8_weight_bits.json and .md."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--arch")
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    classifier = load_classifier(arguments.checkpoint, architecture=arguments.arch)
    with show_progress():
        rows = compared(classifier, open_dataset(arguments.data, classifier.spec, seed=0), arguments.images)
    content = {"network": classifier.spec.architecture, "images": arguments.images, "rows": rows}
    save(
        "int8_weight_bits",
        content,
        ("weight bits", "mode", "cosine with the network", "same class"),
        [(r["weight bits"], r["mode"], f"{r['cosine']:.3f}", f"{r['same class']:.0%}") for r in rows],
    )


if __name__ == "__main__":
    main()
