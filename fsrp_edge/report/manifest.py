"""manifest.json: which files a run directory holds, by digest, and what they were made from."""

from pathlib import Path
from typing import Any

from fsrp_edge.files import sha256_file, write_json
from fsrp_edge.report.schema import RunReport

MANIFEST = "manifest.json"
_RESULTS = (
    "scores.json",
    "plan.json",
    "pruned.safetensors",
    "recovered.safetensors",
    "report.json",
    "report.md",
    "report.html",
    "evidence.json",
    "evidence.npz",
    "bench.json",
)


def write_manifest(report: RunReport, directory: Path) -> Path:
    """Write manifest.json into a run directory that holds the report and its files; return its path."""
    names = [*_RESULTS, *(str(artifact.path) for artifact in report.artifacts)]
    content: dict[str, Any] = {
        "schema_version": 1,
        "files": {
            name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_file(directory / name)}
            for name in names
        },
        "source": {"checkpoint": report.source.checkpoint, "sha256": report.source.sha256},
        "target": report.request.target.model_dump(mode="json"),
        "plan_sha256": report.pruning.plan_sha256,
        "seed": report.request.seed,
        "data": report.data.model_dump(mode="json"),
        "options": report.model_dump(mode="json")["request"]["options"],
        "artifacts": [artifact.model_dump(mode="json") for artifact in report.artifacts],
        "provenance": report.provenance.model_dump(mode="json"),
    }
    write_json(directory / MANIFEST, content)
    return directory / MANIFEST
