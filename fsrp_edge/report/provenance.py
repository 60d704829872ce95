"""With which versions, on which machine and when a run was made."""

import os
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fsrp_edge.report.schema import Machine, Provenance

LIBRARIES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "pyautoattack",
    "numpy",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "tensorflow",
)


def provenance(started_at: datetime) -> Provenance:
    """Versions and machine of this process.

    Args:
        started_at: when the run began, with its time zone.
    """
    installed = {name: _version(name) for name in LIBRARIES}
    return Provenance(
        fsrp_edge=_version("fsrp-edge") or "not installed",
        python=platform.python_version(),
        libraries={name: found for name, found in installed.items() if found is not None},
        machine=Machine(
            cpu=_cpu_model(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            os=f"{platform.system()} {platform.release()} {platform.machine()}",
        ),
        started_at=started_at,
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in {"model name", "model"} and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
