"""One archive to ship: files, labels, preprocessing, examples of use, and the evidence."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from fsrp_edge.errors import BadInputError, GateFailedError
from fsrp_edge.files import atomic_path, files_of, sha256_file, write_json, write_text
from fsrp_edge.report.manifest import Manifest, load_manifest
from fsrp_edge.report.shipped import write_manifest

EXAMPLES = Path(__file__).parent / "examples"
RUNS = {
    "onnx": "run_onnxruntime",
    "tflite": "run_litert",
    "saved_model": "run_saved_model",
    "ncnn": "run_ncnn",
}
"""The example that goes with a format."""


def bundle(directory: Path, archive: Path) -> Manifest:
    """Pack what a device needs of a run or an export; the same folder gives the same bytes.

    Args:
        directory: of a run or an export. Of a run, the compressed network's files are taken, not the dense one's.
        archive: zip file to write, by rename.

    Returns:
        The manifest inside; `verify` of the unpacked archive checks it.

    Raises:
        BadInputError: no manifest, or a file of it is missing.
        GateFailedError: a file is not the one that was verified; nothing is written.
    """
    manifest = load_manifest(directory)
    wanted = [artifact for artifact in manifest.artifacts if artifact.path.parts[0] != "dense"]
    names = {artifact.path.as_posix() for artifact in wanted}
    scripts = [name for name in manifest.files if name.endswith(".sh") and not name.startswith("dense/")]
    part = manifest.model_copy(
        update={
            "artifacts": tuple(wanted),
            "origins": {folder: o for folder, o in manifest.origins.items() if folder != "dense"},
            "parity": {name: checks for name, checks in manifest.parity.items() if name in names},
            "accuracies": {n: found for n, found in manifest.accuracies.items() if not n.startswith("dense/")},
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in [*names, *scripts]:
            _copy_verified(manifest, name, directory, folder)
        _write_use(part, folder)
        written = write_manifest(part, folder, [*scripts, "labels.txt", "preprocessing.json", "examples"])
        with atomic_path(archive) as temporary:
            _zip(folder, temporary)
    return written


def _write_use(manifest: Manifest, folder: Path) -> None:
    """What an application needs beside the files."""
    spec = manifest.source.model
    labels = spec.class_names or tuple(str(number) for number in range(spec.classes))
    write_text(folder / "labels.txt", "".join(f"{' '.join(label.splitlines())}\n" for label in labels))
    feeding = {"input_shape": spec.input_shape, **spec.preprocessing.model_dump()}
    write_json(folder / "preprocessing.json", feeding)
    used = {RUNS[artifact.format] for artifact in manifest.artifacts}
    for name in ("preprocess", *sorted(used)):
        _copy(EXAMPLES / f"{name}.py", folder / "examples" / f"{name}.py")


def _copy_verified(manifest: Manifest, name: str, directory: Path, folder: Path) -> None:
    """Copy a file, or the files below a folder, as far as the manifest has them.

    The bundle gets digests of its own, which would vouch for a file that was changed since it was verified.
    """
    listed = [file for file in manifest.files if file == name or file.startswith(f"{name}/")]
    for file in listed or [name]:
        _copy(directory / file, folder / file)
        entry = manifest.files.get(file)
        if entry is None or sha256_file(folder / file) != entry.sha256:
            raise GateFailedError(
                f"{directory / file} is not the file that was verified: the manifest has another digest of it; put "
                "that file back, or run compress or export again"
            )


def _copy(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, destination)
    except FileNotFoundError:
        raise BadInputError(f"{source} is missing; run `fsrp-edge verify` on the folder") from None


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        for file in files_of(folder):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())  # of one date, which every entry has then
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if file.suffix == ".sh" else 0o644) << 16
            stream.writestr(entry, file.read_bytes())
