"""manifest.json: which files a folder holds, by digest, what they were made from, and how to check them again."""

import contextlib
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import JsonValue, model_validator

from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Accuracy
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import Parity, Probe
from fsrp_edge.exporting.verified import Exported
from fsrp_edge.records import Document, Record
from fsrp_edge.report.schema import DataUsed, Provenance, Source, TargetReference

MANIFEST = "manifest.json"


class FileEntry(Record):
    """What a file has to be."""

    bytes: int
    sha256: str


class Origin(Record):
    """What the artifacts of one folder were made from."""

    weights_sha256: str
    calibration_sha256: str
    probe: Probe

    @classmethod
    def of(cls, exported: Exported) -> Self:
        """What is said of an export."""
        return cls.model_validate(exported.model_dump(include=set(cls.model_fields)))


class Manifest(Document):
    """A folder and what is known of it; all paths are relative to it."""

    called = "a manifest that this version reads"

    schema_version: Literal[3] = 3
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
    trained: bool = False
    """Whether weights were fine-tuned here, and what came of it was kept."""
    plan_sha256: str | None = None
    """Of the pruning plan; None where nothing was pruned here."""
    parity: dict[str, tuple[Parity, ...]]
    """By the path of the artifact."""
    accuracies: dict[str, tuple[Accuracy, ...]] = {}
    """By the path of the artifact, or the name of a network: dense, pruned, recovered."""
    provenance: Provenance

    @model_validator(mode="after")
    def _stays_in_its_folder(self) -> Self:
        for path in (
            *map(PurePosixPath, (*self.files, *self.origins)),
            *(artifact.path for artifact in self.artifacts),
        ):
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{path} leads out of the folder")
        return self

    @model_validator(mode="after")
    def _tells_every_origin(self) -> Self:
        for artifact in self.artifacts:
            if artifact.path.parent.as_posix() not in self.origins:
                raise ValueError(f"origins say nothing of {artifact.path}")
        return self

    def origin(self, artifact: Artifact) -> Origin:
        """What an artifact was made from."""
        return self.origins[artifact.path.parent.as_posix()]


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        BadInputError: there is none, or it is none that this version reads.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise BadInputError(f"{directory} has no {MANIFEST}; give the folder of a run, an export or an unpacked bundle")
    return Manifest.load(path)


def manifest_of_file(path: Path) -> tuple[Manifest, Artifact] | None:
    """The manifest of the run, export or bundle that a file lies in, and the file's entry; None where there is none.

    A manifest of another version says nothing.
    """
    path = path.resolve()
    for folder in path.parents[:2]:
        with contextlib.suppress(BadInputError):
            manifest = load_manifest(folder)
            for artifact in manifest.artifacts:
                if folder / artifact.path == path:
                    return manifest, artifact
    return None
