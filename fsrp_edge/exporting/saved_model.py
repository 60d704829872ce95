"""SavedModels: a network as TensorFlow's own tools and servers take it."""

from pathlib import Path

import torch

from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.tflite import channels_last
from fsrp_edge.files import atomic_path
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.runtimes import require
from fsrp_edge.tool_output import captured_output


def export_saved_model(classifier: Classifier, path: Path) -> Artifact:
    """Write a network as an fp32 SavedModel, a folder; images (1, H, W, C) go in, logits (1, classes) come out.

    The network becomes one XLA call (StableHLO), by the same route that leads to TFLite.

    Args:
        classifier: the network; it is left as it is.
        path: folder to write, by rename.

    Raises:
        ToolFailedError: TensorFlow or the converter is missing or failed.
    """
    with captured_output(f"exporting {classifier.spec.architecture} to saved_model"):
        tensorflow, lowering = require("tensorflow"), require("litert_torch.backend.export")
        network, example = channels_last(classifier)
        with torch.no_grad():
            lowered = lowering.exported_program_to_mlir(torch.export.export(network, (example,)))
        module = tensorflow.Module()
        module.call = require("litert_torch.backend.tf_integration").mlir_to_tf_function(lowered)
        with atomic_path(path) as temporary:
            tensorflow.saved_model.save(module, str(temporary), signatures={"serving_default": module.call})
    return Artifact.at(path, "fp32")
