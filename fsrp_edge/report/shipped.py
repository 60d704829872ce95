"""What stands beside files that are shipped: the manifest and, made of it alone, model card and bill of materials."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsrp_edge.errors import BadInputError
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.verified import Exported
from fsrp_edge.files import files_of, sha256_file, without_folders, write_text
from fsrp_edge.progress import log
from fsrp_edge.report import bom, model_card
from fsrp_edge.report.manifest import MANIFEST, FileEntry, Manifest, Origin, load_manifest
from fsrp_edge.report.provenance import provenance
from fsrp_edge.report.schema import DataUsed, RunReport, Source, TargetReference

MODEL_CARD = "MODEL_CARD.md"
BOM = "bom.json"
WRITTEN = (MANIFEST, MODEL_CARD, BOM)
"""All that `write_manifest` writes."""
OF_INT8 = ("calibration_method", "int8_max_drop")
"""Options that decide what an int8 file computes, beside the images it is calibrated on."""


def manifest_of_run(report: RunReport, exports: Mapping[str, Exported]) -> Manifest:
    """The manifest of a run, still without digests of its files.

    Args:
        report: what the run found.
        exports: what was exported, by folder, with paths relative to the run directory.
    """
    artifacts = {
        f"{'dense ' if folder == 'dense' else ''}{artifact.name}": artifact
        for folder, exported in exports.items()
        for artifact in exported.artifacts
    }
    rows = {artifacts[row.name].path.as_posix() if row.name in artifacts else row.name: row for row in report.ledger}
    return Manifest(
        artifacts=tuple(artifacts.values()),
        origins={folder: Origin.of(exported) for folder, exported in exports.items()},
        source=report.source,
        target=report.request.target,
        options=report.model_dump(mode="json")["request"]["options"],
        seed=report.request.seed,
        data=report.data,
        trained=report.recovery is not None and report.recovery.best_epoch != 0,
        plan_sha256=report.pruning.plan_sha256,
        parity={name: row.parity for name, row in rows.items() if row.parity},
        accuracies={name: row.accuracies for name, row in rows.items() if row.accuracies},
        provenance=report.provenance,
    )


def manifest_of_export(
    exported: Exported,
    *,
    source: Source,
    target: TargetReference,
    options: Mapping[str, Any],
    seed: int,
    data: DataUsed,
) -> Manifest:
    """The manifest of a folder of files that `fsrp-edge export` made, still without digests of them."""
    checks = zip(exported.artifacts, exported.parities, strict=True)
    return Manifest(
        artifacts=exported.artifacts,
        origins={".": Origin.of(exported)},
        source=source,
        target=target,
        options=without_folders(options),
        seed=seed,
        data=data,
        parity={artifact.path.as_posix(): parities for artifact, parities in checks},
        provenance=provenance(datetime.now(UTC).replace(microsecond=0)),
    )


def with_earlier_export(manifest: Manifest, directory: Path) -> Manifest:
    """Add to a manifest what an earlier export left in its folder, and remove from there what it cannot speak for.

    Args:
        manifest: of files that were just published in the folder, not yet written.
        directory: may hold the manifest of an earlier export. Files that are no longer as that one has them are left.

    Returns:
        The manifest with the earlier files of the same network and target, and how those in int8 were calibrated where
        none was made now. One of other weights, normalization or input size, or for another device, is removed, and so
        is an int8 file whose images are of other data, or that was calibrated otherwise or may lose another share than
        a new one.
    """
    try:
        earlier = load_manifest(directory)
    except BadInputError:
        return manifest
    replaced = {artifact.path for artifact in manifest.artifacts}
    kept = []
    for artifact in earlier.artifacts:
        path = directory / artifact.path
        # Those of a run lie in folders of their own, which an export does not touch.
        in_folder = artifact.path.parent == Path() and artifact.path not in replaced
        if not in_folder or not path.exists() or sha256_file(path) != artifact.sha256:
            continue
        if _speaks_for(manifest, artifact, earlier):
            kept.append(artifact)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            log(f"{path}: removed, an earlier export of another network or target, or int8 of other images or options")
    parity = {path: earlier.parity.get(path, ()) for path in (artifact.path.as_posix() for artifact in kept)}
    if _has_int8(kept) and not _has_int8(manifest.artifacts):
        told = {name: earlier.options.get(name) for name in ("calibration_images", *OF_INT8)}
        of_int8 = {"options": manifest.options | told, "origins": {".": earlier.origins["."]}}
        manifest = manifest.model_copy(update=of_int8)
    return manifest.model_copy(update={"artifacts": (*kept, *manifest.artifacts), "parity": parity | manifest.parity})


def _has_int8(artifacts: Sequence[Artifact]) -> bool:
    return any(artifact.precision == "int8" for artifact in artifacts)


def _speaks_for(manifest: Manifest, artifact: Artifact, earlier: Manifest) -> bool:
    """Whether what a manifest tells of its folder holds for a file of an earlier one, too."""
    (origin,) = manifest.origins.values()
    before = earlier.origin(artifact)
    one, other = ((model.mean, model.std, model.input_shape) for model in (earlier.source.model, manifest.source.model))
    same = before.weights_sha256 == origin.weights_sha256 and earlier.target == manifest.target and one == other
    if artifact.precision != "int8":
        return same
    if not _has_int8(manifest.artifacts):
        return same and (earlier.data, earlier.seed) == (manifest.data, manifest.seed)
    return (
        same
        and before.calibration_sha256 == origin.calibration_sha256
        and all(earlier.options.get(name) == manifest.options.get(name) for name in OF_INT8)
    )


def write_manifest(manifest: Manifest, directory: Path, others: Sequence[str] = ()) -> Manifest:
    """Write the model card, the bill of materials and the manifest, with the digest of every file, into a folder.

    Args:
        manifest: still without files.
        directory: holds the artifacts.
        others: files and folders of it that belong to the result, beside the artifacts; absent ones are left out.

    Returns:
        The manifest as it was written.
    """
    write_text(directory / MODEL_CARD, model_card.render(manifest))
    write_text(directory / BOM, bom.render(manifest))
    names = [*others, *(artifact.path.as_posix() for artifact in manifest.artifacts), MODEL_CARD, BOM]
    files = {
        file.relative_to(directory).as_posix(): FileEntry(bytes=file.stat().st_size, sha256=sha256_file(file))
        for name in names
        for file in files_of(directory / name)
        if file.is_file()
    }
    written = manifest.model_copy(update={"files": files})
    written.save(directory / MANIFEST)
    return written
