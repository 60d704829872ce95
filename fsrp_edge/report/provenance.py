"""With which versions, on which machine and when a run was made."""

import platform
from datetime import datetime

import torch

import fsrp_edge
from fsrp_edge.bench import agent
from fsrp_edge.packages import CORE, EXPORTERS, EXTRAS, installed_version
from fsrp_edge.report.schema import Machine, Provenance


def provenance(started_at: datetime) -> Provenance:
    """Versions and machine of this process.

    Args:
        started_at: when the run began, with its time zone.
    """
    names = [*CORE, *(name for extra in EXPORTERS for name in EXTRAS[extra])]
    installed = {name: installed_version(name) for name in names}
    return Provenance(
        fsrp_edge=fsrp_edge.__version__,
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
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )
