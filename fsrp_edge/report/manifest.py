"""manifest.json: which files a folder holds, by digest, what they were made from, and how to check them again.

Beside it stand a model card (Hugging Face's form) and a bill of materials (CycloneDX), both made of it alone.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Parity, Probe
from fsrp_edge.exporting.verified import Exported
from fsrp_edge.files import files_of, sha256_file, write_text
from fsrp_edge.records import Document, Record
from fsrp_edge.report import bom, model_card
from fsrp_edge.report.schema import DataUsed, Provenance, RunReport, Source, TargetReference

MANIFEST = "manifest.json"
MODEL_CARD = "MODEL_CARD.md"
BOM = "bom.json"
WRITTEN = (MANIFEST, MODEL_CARD, BOM)
"""All that `write_manifest` writes."""
_RESULTS = (
    "scores.json", "plan.json", "pruned.safetensors", "recovered.safetensors", "evidence.json", "evidence.npz",
    "bench.json",
)  # fmt: skip


class FileEntry(Record):
    """What a file has to be."""

    bytes: int
    sha256: str


class Origin(Record):
    """What the artifacts of one folder were made from."""

    weights_sha256: str
    calibration_sha256: str
    probe: Probe


class Manifest(Document):
    """A folder and what is known of it; all paths are relative to it."""

    called = "a manifest that this version reads"

    schema_version: Literal[2] = 2
    files: dict[str, FileEntry] = {}
    artifacts: tuple[Artifact, ...]
    origins: dict[str, Origin]
    """By the folder of the artifacts; `.` is that of the manifest."""
    source: Source
    """The checkpoint that was handed in."""
    target: TargetReference
    options: dict[str, JsonValue]
    seed: int
    data: DataUsed
    plan_sha256: str | None = None
    """Of the pruning plan; None where nothing was pruned here."""
    parity: dict[str, tuple[Parity, ...]]
    """By the path of the artifact."""
    accuracies: dict[str, tuple[Accuracy, ...]] = {}
    """By the path of the artifact, or the name of a network: dense, pruned, recovered."""
    provenance: Provenance

    def origin(self, artifact: Artifact) -> Origin:
        """What an artifact was made from."""
        return self.origins[artifact.path.parent.as_posix()]


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
    rows = {
        artifacts[row.name].path.as_posix() if row.name in artifacts else row.name: row
        for row in report.ledger
    }
    return Manifest(
        artifacts=tuple(artifacts.values()),
        origins={folder: origin_of(exported) for folder, exported in exports.items()},
        source=report.source,
        target=report.request.target,
        options=report.model_dump(mode="json")["request"]["options"],
        seed=report.request.seed,
        data=report.data,
        plan_sha256=report.pruning.plan_sha256,
        parity={name: row.parity for name, row in rows.items() if row.parity},
        accuracies={name: row.accuracies for name, row in rows.items() if row.accuracies},
        provenance=report.provenance,
    )


def origin_of(exported: Exported) -> Origin:
    """What the files of an export were made from."""
    return Origin.model_validate(exported.model_dump(include=set(Origin.model_fields)))


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


def results_of_run(directory: Path) -> list[str]:
    """The files of a run directory that belong to the result, beside artifacts and reports."""
    scripts = [path.relative_to(directory).as_posix() for path in directory.glob("*/*.sh")]
    return [*_RESULTS, *scripts]


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        BadInputError: there is none, or it is none that this version reads.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BadInputError(
            f"{directory} has no {MANIFEST}; give the folder of a run, an export or an unpacked bundle"
        )
    return Manifest.load(path)


def origin_of_file(path: Path) -> tuple[Artifact, Probe] | None:
    """What the manifest of the run, export or bundle that a file lies in says of it; None where it says nothing.

    A manifest of another version says nothing.
    """
    path = path.resolve()
    for folder in path.parents[:2]:
        with contextlib.suppress(BadInputError):
            manifest = load_manifest(folder)
            for artifact in manifest.artifacts:
                if folder / artifact.path == path:
                    return artifact, manifest.origin(artifact).probe
    return None
