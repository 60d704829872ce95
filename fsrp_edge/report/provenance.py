"""With which versions, on which machine and when a run was made."""

import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from fsrp_edge.bench import agent
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
    installed = {name: installed_version(name) for name in LIBRARIES}
    return Provenance(
        fsrp_edge=installed_version("fsrp-edge") or "not installed",
        python=platform.python_version(),
        libraries={name: found for name, found in installed.items() if found is not None},
        machine=this_machine(),
        started_at=started_at,
    )


def this_machine() -> Machine:
    """The machine of this process, without anything that names it."""
    return Machine(
        cpu=agent.Machine().cpu_name(),
        cores=agent.cores(),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def installed_version(distribution: str) -> str | None:
    """Version of a distribution by its name on the package index; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
