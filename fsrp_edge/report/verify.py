"""Check a folder against its manifest: digests, and whether each file still computes what its network computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge.errors import FsrpEdgeError, NotInstalledError, first_line
from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.exporting.parity import installed_runtimes
from fsrp_edge.files import sha256_file
from fsrp_edge.progress import track
from fsrp_edge.report.manifest import Manifest, load_manifest
from fsrp_edge.report.summary import parity_figures
from fsrp_edge.runtimes import LAYOUTS, open_session


@dataclass(frozen=True)
class Finding:
    """One check of one file.

    Args:
        path: relative to the folder.
        check: `digest`, `parity in RUNTIME`, or `manifest` of a model file that the manifest does not know.
        passed: whether it holds; None where nothing here can run the file.
        detail: what was found.
    """

    path: str
    check: str
    passed: bool | None
    detail: str


def verify(directory: Path) -> list[Finding]:
    """Recheck every file of a run, an export or an unpacked bundle; nothing but its manifest is needed.

    Parity is that with the logits of the float network on random images, which the manifest holds. A model file beside
    the manifest's, of which nothing is known, is a check that failed.

    Raises:
        BadInputError: there is no manifest.
    """
    manifest = load_manifest(directory)
    findings = [_digest(directory, name, manifest) for name in track(manifest.files, "checking digests")]
    for artifact in track(manifest.artifacts, "running files"):
        findings += _parity(directory, artifact, manifest)
    return [*findings, *_unknown(directory, manifest)]


def _unknown(directory: Path, manifest: Manifest) -> Iterator[Finding]:
    known = {artifact.path for artifact in manifest.artifacts}
    for folder in manifest.origins:
        for path in sorted((directory / folder).glob("*")):
            name = path.relative_to(directory)
            if path.suffix in LAYOUTS and name not in known:
                yield Finding(name.as_posix(), "manifest", False, "not in it: nothing is known of this file")


def _digest(directory: Path, name: str, manifest: Manifest) -> Finding:
    path, entry = directory / name, manifest.files[name]
    if not path.is_file():
        return Finding(name, "digest", False, "missing")
    seen = sha256_file(path)
    if seen != entry.sha256:
        return Finding(name, "digest", False, f"SHA-256 {seen[:12]}…, not {entry.sha256[:12]}…: it was changed")
    return Finding(name, "digest", True, f"{entry.bytes:,} bytes")


def _parity(directory: Path, artifact: Artifact, manifest: Manifest) -> list[Finding]:
    """One finding a runtime that is here, whatever becomes of the others."""
    name, path, probe = artifact.path.as_posix(), directory / artifact.path, manifest.origin(artifact).probe
    found, missing = [], []
    for runtime in installed_runtimes(path):
        try:
            check = probe.judge(open_session(path, runtime=runtime).run(probe.pixels()), artifact, runtime)
        except NotInstalledError as error:
            missing.append(Finding(name, "parity", None, first_line(error)))
        except FsrpEdgeError as error:
            found.append(Finding(name, f"parity in {runtime}", False, first_line(error)))
        else:
            found.append(Finding(name, f"parity in {runtime}", check.passed, parity_figures(check)))
    return found or missing[:1]
