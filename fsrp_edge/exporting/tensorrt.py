"""TensorRT builds its engines on the device: what we ship is the ONNX file and the commands."""

import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from fsrp_edge.exporting.artifact import Artifact
from fsrp_edge.files import allow, write_text
from fsrp_edge.targets.profile import Target

SCRIPT = "build_engines.sh"


def takes_tensorrt(target: Target) -> bool:
    """Whether the device runs TensorRT."""
    return any(runtime.name == "tensorrt" for runtime in target.runtimes)


def write_engine_script(
    directory: Path, artifacts: Sequence[Artifact], target: Target, input_shape: Sequence[int]
) -> Path | None:
    """Write `build_engines.sh` beside ONNX files for a device with TensorRT, and return its path; else there is none.

    Args:
        directory: where the files are.
        artifacts: the files; only ONNX counts.
        target: the device.
        input_shape: (C, H, W) of an image, needed where the batch is open.
    """
    files = [artifact for artifact in artifacts if artifact.format == "onnx"]
    if not files or not takes_tensorrt(target):
        (directory / SCRIPT).unlink(missing_ok=True)  # of files that lay here earlier
        return None
    version = next(runtime.version for runtime in target.runtimes if runtime.name == "tensorrt")
    # On one line, whatever a profile of somebody else's says: behind a line break it would be a command.
    built_with = f" ({' '.join(version.value.split())} here)" if version else ""
    one_image = f" --shapes=pixels:1x{'x'.join(map(str, input_shape))}"
    lines = [
        "#!/bin/sh",
        f"# Builds TensorRT engines for {target.name}. Run it on the device: an engine only runs on the kind of GPU",
        f"# and the version of TensorRT that it was built with{built_with}.",
        "set -eu",
        'cd "$(dirname "$0")"',
        "trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)",
        *(
            '"$trtexec" '
            + shlex.join([f"--onnx={artifact.path.name}", f"--saveEngine={engine}.engine"])
            + flags
            + (one_image if artifact.dynamic_batch else "")
            for artifact in files
            for engine, flags in _engines(artifact, target)
        ),
    ]
    write_text(directory / SCRIPT, "\n".join(lines) + "\n")
    allow(directory / SCRIPT, stat.S_IFREG | 0o755)
    return directory / SCRIPT


def _engines(artifact: Artifact, target: Target) -> list[tuple[str, str]]:
    """Name and flags of each engine that a file is built to."""
    stem = artifact.path.stem
    if artifact.precision == "int8":
        return [(stem, " --int8 --fp16")]  # layers that are not quantized run in fp16
    if artifact.precision == "fp16":
        return [(stem, " --fp16")]
    if target.precisions.fp16.useful:
        return [(stem, ""), (f"{stem}-as-fp16", " --fp16")]
    return [(stem, "")]
