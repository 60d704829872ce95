"""Export, verify, publish: files reach their folder only after each was found to compute what the network computes."""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import fsrp_edge
from fsrp_edge.data.images import ImageSet
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.export import ArtifactRequest, ExportPlan, export_artifacts
from fsrp_edge.exporting.frozen import frozen_copy
from fsrp_edge.exporting.mixed import LayerError
from fsrp_edge.exporting.options import DEFAULTS, ExportOptions
from fsrp_edge.exporting.parity import Parity, Probe, Reference, require_parity
from fsrp_edge.exporting.tensorrt import write_engine_script
from fsrp_edge.files import MARK, without_folders
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.progress import track
from fsrp_edge.records import Record
from fsrp_edge.targets.profile import Target

PARITY_IMAGES = 256
"""Real images that each file is compared on, in each runtime."""
UNVERIFIED = ".unverified."
"""What the names of folders begin with whose files are not published yet."""


class Exported(Record):
    """Files that passed verification."""

    artifacts: tuple[Artifact, ...]
    """Paths are relative to the folder they were published in."""
    scripts: tuple[Path, ...] = ()
    """What builds more of them on the device."""
    parities: tuple[tuple[Parity, ...], ...]
    """The checks of each artifact."""
    layer_errors: dict[str, tuple[LayerError, ...]] = {}
    """Of int8 files, by path, the worst layer first; empty where they were not asked for."""
    weights_sha256: str
    """Of the network that the files were made from."""
    calibration_sha256: str
    """Of the images that int8 files were calibrated on."""
    probe: Probe
    """What the network answers to random images, so that the files can be checked again without it."""


def export_verified(
    classifier: Classifier,
    requests: Sequence[ArtifactRequest],
    directory: Path,
    *,
    target: Target,
    calibration: ImageSet,
    images: ImageSet,
    options: ExportOptions = DEFAULTS,
    list_errors: bool = False,
) -> Exported:
    """Write the files that were asked for, all of them or none.

    Args:
        classifier: the network; it is left as it is.
        requests: formats and precisions.
        directory: where the files are published; files of the same name there are replaced.
        target: its opset, IR version and int8 types are kept to.
        calibration: training images for int8.
        images: real images that parity and `options.int8_max_drop` are judged on, apart from the calibration.
        options: calibration, input and batch.
        list_errors: tell for int8 files how much each layer's quantization alone does.

    Raises:
        GateFailedError: a file computes something else than the network, loses more than `options.int8_max_drop`, or
            is of fp16 and can't hold the activations; nothing is published.
        ToolFailedError: an exporter is missing or failed.
    """
    network = frozen_copy(classifier)
    reference = Reference.of(network, images.sample(PARITY_IMAGES, seed=0))
    digest = weights_sha256(network)
    errors: dict[str, tuple[LayerError, ...]] = {}
    plan = ExportPlan(
        target,
        options=options,
        calibration=calibration,
        judged=images,
        pixels=[first for first, *_ in reference.batches.values()],
        list_errors=list_errors,
        metadata=facts_of(network, digest, calibration, target, options),
        close=lambda path, artifact: all(check.passed for check in reference.check(path, artifact)),
    )
    with _staging(directory) as staging:
        artifacts = export_artifacts(
            network,
            requests,
            staging,
            plan,
            report=lambda artifact, found: errors.update({artifact.path.name: found}),
        )
        parities = tuple(
            reference.check(staging / artifact.path, artifact) for artifact in track(artifacts, "verifying files")
        )
        require_parity([parity for checks in parities for parity in checks])
        for artifact in artifacts:
            shutil.rmtree(directory / artifact.path, ignore_errors=True)
            (staging / artifact.path).replace(directory / artifact.path)
        script = write_engine_script(directory, artifacts, target, network.spec.input_shape)
    return Exported(
        artifacts=artifacts,
        scripts=(Path(script.name),) if script else (),
        parities=parities,
        layer_errors=errors,
        weights_sha256=digest,
        calibration_sha256=calibration.digest,
        probe=Probe.of(network),
    )


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """A folder of this process alone inside another, because that may be a mount or a link to another file system.

    Those that killed processes left are removed, known by their locks: these go with a process, however it ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for mark in directory.glob(f"{UNVERIFIED}*/{MARK}"):
        with suppress(OSError):
            with mark.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent)
    staging = Path(tempfile.mkdtemp(prefix=UNVERIFIED, dir=directory))
    try:
        with (staging / f"{MARK}.new").open("w") as lock:
            with suppress(OSError):  # some file systems have no locks; nothing is removed there
                fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(staging / MARK)  # seen by others only when locked
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # it holds files of an earlier export, or those just published
            directory.rmdir()


def facts_of(
    network: Classifier, weights: str, calibration: ImageSet, target: Target, options: ExportOptions
) -> dict[str, str]:
    """What a file says of itself: how to feed it, what its answers mean, and where it comes from.

    Args:
        network: of the file.
        weights: digest of its weights.
        calibration: images that int8 ranges come from.
        target: the device profile.
        options: what the file is made with.
    """
    spec = network.spec
    facts = {
        "version": fsrp_edge.__version__,
        "architecture": without_folders(spec.architecture),
        "target": target.name,
        "weights_sha256": weights,
        "input": "uint8 pixels 0 to 255" if options.uint8_input else "float32 pixels in [0, 1]",
        "preprocessing": spec.preprocessing.model_dump_json(),
        "classes": str(spec.classes),
        "calibration_sha256": calibration.digest,
        "calibration_method": options.calibration_method,
    }
    if spec.class_names is not None:
        facts["labels"] = json.dumps(spec.class_names)
    return {f"fsrp_edge.{name}": value for name, value in facts.items()}
