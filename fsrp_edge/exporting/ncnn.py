"""ncnn's pairs of files, `model.param` and `model.bin`, in a folder.

pnnx converts. int8 is not offered: ncnn's calibration and quantization tools (ncnn2table, ncnn2int8) are neither in its
wheel nor in pnnx's.
"""

import shutil
import tempfile
from pathlib import Path

import torch

from fsrp_edge.exporting.artifact import Artifact, Precision
from fsrp_edge.exporting.frozen import as_exported
from fsrp_edge.files import atomic_path
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import require
from fsrp_edge.tool_output import captured_output


def export_ncnn(classifier: Classifier, path: Path, precision: Precision) -> Artifact:
    """Write a network for ncnn: blob `in0` takes float32 pixels (C, H, W) in [0, 1], `out0` gives the logits.

    Args:
        classifier: the network; it is left as it is.
        path: folder to write, by rename.
        precision: of the stored weights, fp32 or fp16; what ncnn computes in is its own option.

    Raises:
        ToolFailedError: pnnx is missing or failed.
    """
    with (
        captured_output(f"exporting {classifier.spec.architecture} to ncnn {precision}"),
        tempfile.TemporaryDirectory() as folder,
    ):
        network, example = as_exported(classifier, uint8_input=False)
        with torch.no_grad():
            require("pnnx").export(network, f"{folder}/model.pt", (example,), fp16=precision == "fp16")
        with atomic_path(path) as temporary:
            temporary.mkdir()
            for suffix in ("param", "bin"):
                # Not renamed: temporary files may lie on another file system.
                shutil.move(Path(folder) / f"model.ncnn.{suffix}", temporary / f"model.{suffix}")
    return Artifact.at(path, precision)
