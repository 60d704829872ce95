"""Where the time and the memory of an export go: one network to every format in one process, stage by stage.

The peak is that of the process during the stage (Linux's VmHWM, set back before each), so it holds what earlier stages
left; `before` says how much that was. Quantization is calibrated on 32 images of noise; by default an
export takes 256.

python -m benchmarks.export_stages resnet50
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.artifact_latency import network
from benchmarks.common import parser_of, save
from fsrp_edge.cli.console import show_progress
from fsrp_edge.data.images import ArraySource, ImageSet
from fsrp_edge.exporting import ncnn, onnx, saved_model, tflite
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Reference
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import require

CALIBRATION_IMAGES, PARITY_IMAGES = 32, 16


def memory(kind: str) -> float:
    """MB of this process: VmRSS now, VmHWM at its highest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1000


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("network", nargs="?", default="resnet50")
    given = parser.parse_args()
    classifier = network(given.network)
    noise = np.random.default_rng(0).integers(0, 256, (CALIBRATION_IMAGES, *classifier.spec.input_shape), np.uint8)
    images = ImageSet.of("noise", ArraySource(noise), torch.arange(CALIBRATION_IMAGES) % classifier.spec.classes)
    measured: list[dict[str, Any]] = []
    kept: dict[str, Any] = {}

    def stage(name: str, work: Callable[[], Any]) -> None:
        forget_peak()
        before, started = memory("VmRSS"), time.perf_counter()
        kept[name] = work()
        seconds = time.perf_counter() - started
        measured.append({"stage": name, "seconds": seconds, "before_mb": before, "peak_mb": memory("VmHWM")})

    with tempfile.TemporaryDirectory() as scratch, show_progress():
        folder = Path(scratch)
        graph, lite = folder / "fp32.onnx", folder / "fp32.tflite"
        for module in ("onnx", "onnxsim", "onnxruntime.quantization", "onnxconverter_common.float16", "litert_torch",
                       "ai_edge_quantizer.quantizer", "tensorflow", "pnnx", "ncnn"):  # fmt: skip
            stage(f"import {module.partition('.')[0]}", partial(require, module))
        stage("onnx fp32", lambda: onnx.export_onnx(classifier, graph, opset=17, ir_version=8))
        stage("onnx fp16", lambda: onnx.convert_to_fp16(graph, folder / "fp16.onnx"))
        stage(
            f"onnx int8: calibrate on {CALIBRATION_IMAGES} images",
            lambda: onnx.Int8Quantizer(graph, folder, activation="uint8", calibration=images),
        )
        quantizer = kept[f"onnx int8: calibrate on {CALIBRATION_IMAGES} images"]
        stage("onnx int8: quantize", lambda: quantizer.quantize(folder / "int8.onnx"))
        stage("tflite fp32", lambda: tflite.export_tflite(classifier, lite))
        stage("tflite fp16", lambda: tflite.convert_weights(lite, folder / "fp16.tflite", "fp16"))
        stage(
            "tflite int8-dynamic",
            lambda: tflite.convert_weights(lite, folder / "dynamic.tflite", "int8-dynamic"),
        )
        stage(
            f"tflite int8: calibrate on {CALIBRATION_IMAGES} images",
            lambda: tflite.Int8Quantizer(lite, calibration=images),
        )
        lite_quantizer = kept[f"tflite int8: calibrate on {CALIBRATION_IMAGES} images"]
        stage("tflite int8: quantize", lambda: lite_quantizer.quantize(folder / "int8.tflite"))
        stage("saved_model fp32", lambda: saved_model.export_saved_model(classifier, folder / "m.saved_model"))
        stage("ncnn fp32", lambda: ncnn.export_ncnn(classifier, folder / "fp32.ncnn", "fp32"))
        stage("ncnn fp16", lambda: ncnn.export_ncnn(classifier, folder / "fp16.ncnn", "fp16"))
        for name, path in (
            ("onnx fp32", graph),
            ("onnx int8: quantize", folder / "int8.onnx"),
            ("tflite fp32", lite),
            ("tflite int8: quantize", folder / "int8.tflite"),
            ("saved_model fp32", folder / "m.saved_model"),
            ("ncnn fp32", folder / "fp32.ncnn"),
        ):
            stage(
                f"verify {path.name} on {PARITY_IMAGES} images in every runtime",
                partial(_verify, classifier, path, kept[name], images.first(PARITY_IMAGES)),
            )
    rows = [
        (one["stage"], f"{one['seconds']:.1f}", f"{one['before_mb']:.0f}", f"{one['peak_mb']:.0f}") for one in measured
    ]
    header = ("stage", "seconds", "MB before", "MB at most")
    save(f"export_stages_{given.network}", {"network": given.network, "stages": measured}, header, rows)


def _verify(classifier: Classifier, path: Path, artifact: Artifact, images: ImageSet) -> None:
    Reference.of(classifier, images).check(path, artifact)


if __name__ == "__main__":
    main()
