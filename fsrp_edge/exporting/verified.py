"""Export, verify, publish: files reach their folder only after each was found to compute what the network computes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fsrp_edge.data.images import ImageSet
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.export import ArtifactRequest, export_artifacts
from fsrp_edge.exporting.frozen import frozen_copy
from fsrp_edge.exporting.parity import Parity, check_parity, require_parity
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.progress import track
from fsrp_edge.targets.profile import Target

PARITY_IMAGES = 256
"""Real images that each file is compared on, in each runtime."""


class Exported(BaseModel):
    """Files that passed verification."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifacts: tuple[Artifact, ...]
    """Paths are relative to the folder they were published in."""
    parities: tuple[tuple[Parity, ...], ...]
    """The checks of each artifact."""


def export_verified(
    classifier: Classifier,
    requests: Sequence[ArtifactRequest],
    directory: Path,
    *,
    target: Target,
    calibration: ImageSet,
    images: ImageSet,
) -> Exported:
    """Write the files that were asked for, all of them or none.

    Args:
        classifier: the network; it is left as it is.
        requests: formats and precisions.
        directory: where the files are published; files of the same name there are replaced.
        target: its opset, IR version and int8 types are kept to.
        calibration: training images for int8.
        images: real images that parity is judged on, apart from the calibration.

    Raises:
        GateFailedError: a file computes something else than the network; nothing is published.
        ToolFailedError: an exporter is missing or failed.
    """
    network = frozen_copy(classifier)
    judged = images.sample(PARITY_IMAGES, seed=0)
    staging = directory.parent / f".{directory.name}.unverified"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        artifacts = export_artifacts(
            network,
            requests,
            staging,
            opset=target.onnx_opset,
            ir_version=target.onnx_ir_version,
            int8_activation=target.int8_activation,
            calibration=calibration,
            metadata={"fsrp_edge.target": target.name, "fsrp_edge.architecture": network.spec.architecture},
        )
        parities = tuple(
            check_parity(network, staging / artifact.path, artifact, judged)
            for artifact in track(artifacts, "verifying files")
        )
        require_parity([parity for checks in parities for parity in checks])
        directory.mkdir(parents=True, exist_ok=True)
        for artifact in artifacts:
            (staging / artifact.path).replace(directory / artifact.path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Exported(artifacts=artifacts, parities=parities)
