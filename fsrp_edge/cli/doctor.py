"""`fsrp-edge doctor`: what is installed here, what is missing, and what to do about it."""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import click

from fsrp_edge.cli import options
from fsrp_edge.packages import EXTRAS, installed_version

LITTLE_DISK = 5e9
"""Bytes; a run of a large network with its data can take this much."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Args:
        what: was looked at.
        seen: there.
        state: ok, missing (only what needs it is affected) or wrong.
        fix: what to do; "" where nothing is.
    """

    what: str
    seen: str
    state: str = "ok"
    fix: str = ""


@click.command()
@options.output_options
def doctor() -> None:
    """Look at this machine and tell what is missing.

    Versions, extras, CPU features, GPU, disk, and what to do about each.

    Exit code 3 where something that every run needs does not work; a missing extra is no error.

    \b
    fsrp-edge doctor
    """
    from fsrp_edge.cli.console import show_result
    from fsrp_edge.errors import ToolFailedError

    found = [*_core(), *_extras(), *_machine(), _disk(Path.cwd())]
    marks = {"ok": "✓", "missing": "–", "wrong": "✗"}
    show_result(
        found,
        ("what", "", "seen"),
        [(each.what, marks[each.state], each.seen) for each in found],
        footer="\n".join(f"{each.what}: {each.fix}" for each in found if each.fix),
    )
    wrong = [each.what for each in found if each.state == "wrong"]
    if wrong:
        raise ToolFailedError(f"does not work: {', '.join(wrong)}")


def _core() -> list[Finding]:
    import platform

    from fsrp_edge import __version__

    found = [Finding("fsrp-edge", __version__), Finding("Python", platform.python_version())]
    try:
        import torch

        found.append(Finding("torch", torch.__version__))
        importlib.import_module("fsrp_edge.torchvision_compat")  # has to come first
        torchvision = importlib.import_module("torchvision")
    except Exception as error:  # a wheel of another torch fails with whatever its loader raises
        what = "torchvision" if len(found) == 3 else "torch"
        fix = "install torch and torchvision of one release, built for the same CUDA or both for the CPU"
        return [*found, Finding(what, f"{type(error).__name__}: {error}", "wrong", fix)]
    return [*found, Finding("torchvision", torchvision.__version__)]


def _extras() -> list[Finding]:
    found = []
    for extra, packages in EXTRAS.items():
        versions = {package: installed_version(package) for package in packages}
        complete = None not in versions.values()
        seen = ", ".join(f"{package} {installed or 'missing'}" for package, installed in versions.items())
        fix = "" if complete else f'pip install "fsrp-edge[{extra}]"'
        found.append(Finding(f"extra {extra}", seen, "ok" if complete else "missing", fix))
    return found


def _machine() -> list[Finding]:
    try:
        import torch
    except Exception:  # as `_core` has told
        return [_found("ssh", shutil.which("ssh"), "not found", "install an OpenSSH client")]
    from fsrp_edge import compute
    from fsrp_edge.cli import cores
    from fsrp_edge.report.provenance import this_machine

    machine = this_machine()
    bfloat16 = "pays" if compute.gains_from_bfloat16(torch.device("cpu")) else "does not pay"
    cpu = f"{machine.cpu}, {machine.cores} cores, {torch.backends.cpu.get_cpu_capability()}; bfloat16 {bfloat16}"
    threads, free = torch.get_num_threads(), cores.free_cores()
    slow = "" if machine.gpu else cores.advice(threads, free)
    return [
        Finding("CPU", cpu),
        Finding("cores", f"{free:.1f} free, {threads} threads of torch", "missing" if slow else "ok", slow),
        _found("GPU", machine.gpu, "none that torch can use: training and attacks run on the CPU"),
        _found("ssh", shutil.which("ssh"), "not found", "install an OpenSSH client"),
    ]


def _found(what: str, seen: str | None, absent: str, fix: str = "") -> Finding:
    return Finding(what, seen) if seen else Finding(what, absent, "missing", fix)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    little = free < LITTLE_DISK
    fix = "give --out a folder on a larger disk" if little else ""
    return Finding("disk here", f"{free / 1e9:.1f} GB free", "missing" if little else "ok", fix)
