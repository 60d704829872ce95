"""A profile of the machine that runs this, read from Linux's /proc and /sys."""

import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fsrp_edge.bench.agent import Machine, core_numbers, processor_name
from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.profile import Target, source_keys

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
GENERIC = {
    "x86_64": "generic-x86", "AMD64": "generic-x86", "aarch64": "generic-arm64", "arm64": "generic-arm64",
}  # fmt: skip

SIMD_FLAGS = {
    "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm",
    "avx2": "avx2", "avx512f": "avx512", "avx512_vnni": "vnni", "avx_vnni": "vnni", "amx_tile": "amx",
}  # fmt: skip
"""The kernel's names in the order of the profile's."""

ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73", ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd41"): "Cortex-A78", ("0x41", "0xd42"): "Cortex-A78AE", ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}  # fmt: skip
"""Implementer and part of /proc/cpuinfo, as in the kernel's arch/arm64/include/asm/cputype.h."""


@dataclass(frozen=True)
class _Cpu:
    """One logical processor."""

    number: int
    model: str
    core: tuple[str, str]
    """Package and core; two hyper-threads share it."""
    highest_khz: str
    """Empty where the kernel does not tell, as in a virtual machine."""
    present_mhz: str
    flags: frozenset[str]


def skeleton(name: str, *, root: Path = ROOT) -> str:
    """Text of a YAML profile of this machine.

    Args:
        name: of the profile, in small letters and digits with hyphens between.
        root: where /proc and /sys are; another folder in tests.

    Returns:
        A file that extends the generic profile of this processor's architecture with what the kernel tells: the
        cores, their clock where it is known, SIMD instructions and data caches, and the memory. Every value's
        source is the file that it was read from.

    Raises:
        BadInputError: not a Linux machine, or no generic profile for its processor.
    """
    generic = GENERIC.get(platform.machine())
    if generic is None:
        raise BadInputError(f"no generic profile for a {platform.machine()} processor; there are x86-64 and arm64")
    if not (root / "proc" / "cpuinfo").exists():
        raise BadInputError("the hardware is read from Linux's /proc and /sys, which are not here; write it by hand")
    memory = Machine(str(root)).memory_mb("MemTotal")  # what the kernel can use; a little less than what is installed
    if memory is None:
        raise BadInputError("/proc/meminfo has no line `MemTotal`")
    clusters = list(_clusters(root))
    cores = sum(cluster["cores"]["value"] for cluster in clusters)
    choices = {"threads": {"value": cores, "reason": "one for each core", "source": "topology"}}
    if _all_have("avx512", root):
        choices["channel_multiple"] = {
            "value": 16,
            "reason": "fp32 computes in blocks of 16 with AVX-512: 24 channels take as long as 32; 8 will do for int8",
            "source": "cpuinfo",
        }
    if _all_have("vnni", root):
        choices["int8_weight_bits"] = {"value": 8, "reason": "VNNI adds in 32 bits", "source": "cpuinfo"}
    content: dict[str, Any] = {
        "name": name,
        "description": _description(root, clusters),
        "extends": generic,
        "sources": {},
        "cpu": clusters,
        "memory": {"size_gib": {"value": round(memory * 1e6 / 2**30, 2), "source": "meminfo"}},
        "choices": choices,
    }
    used = {key for _, key in source_keys(content, ())}
    content["sources"] = {key: f"{place} of {socket.gethostname()}" for key, place in SOURCES.items() if key in used}
    return HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def is_this_machine(target: Target, *, root: Path = ROOT) -> bool:
    """Whether a profile speaks of this machine: the generic one of its processor, or one with its cores."""
    if target.name.partition("@")[0] == GENERIC.get(platform.machine()):
        return True
    if not target.cpu or not (root / "proc" / "cpuinfo").exists():
        return False
    here = [(cluster["name"], cluster["cores"]["value"]) for cluster in _clusters(root)]
    return [(cluster.name, cluster.cores.value) for cluster in target.cpu] == here


def note_on_int8(target: Target, *, root: Path = ROOT) -> str | None:
    """What to know before int8 files are made for this machine; None where they pay, or it is not the target."""
    known = (root / "proc" / "cpuinfo").exists() and platform.machine() in ("x86_64", "AMD64")
    if not known or not is_this_machine(target, root=root) or _all_have("vnni", root):
        return None
    return (
        "this processor has no VNNI: expect int8 TFLite files to be 1.1 to 1.2 times slower than fp32 here, and int8 "
        "ONNX files to gain less than 2 times, small networks nothing; --format and --precision choose others"
    )


SOURCES = {
    "cpuinfo": "/proc/cpuinfo",
    "meminfo": "/proc/meminfo",
    "topology": "/sys/devices/system/cpu/cpu*/topology",
    "cpufreq": "/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq",
    "cache": "/sys/devices/system/cpu/cpu*/cache",
}

HEADER = """\
# Written by `fsrp-edge targets new`. Everything else is inherited from the profile under `extends`: see
# `fsrp-edge targets show NAME`. Add what you know, each with its source: of a core's `operations_per_cycle` latency is
# estimated where nothing was measured.
"""


def _clusters(root: Path) -> Iterator[dict[str, Any]]:
    """Cores of one model and clock."""
    cpus = list(_cpus(root))
    for model, khz in dict.fromkeys((cpu.model, cpu.highest_khz) for cpu in cpus):
        members = [cpu for cpu in cpus if (cpu.model, cpu.highest_khz) == (model, khz)]
        cluster: dict[str, Any] = {
            "name": model,
            "cores": _sourced(len({cpu.core for cpu in members}), "topology"),
        }
        if khz:
            cluster["clock_ghz"] = _sourced(round(int(khz) / 1e6, 3), "cpufreq")
        elif members[0].present_mhz:
            present = _sourced(round(float(members[0].present_mhz) / 1000, 3), "cpuinfo")
            cluster["clock_ghz"] = present | {"note": "the present clock; the highest is not told here"}
        simd = [word for flag, word in SIMD_FLAGS.items() if flag in members[0].flags]
        cluster["simd"] = _sourced(list(dict.fromkeys(simd)), "cpuinfo")
        caches = list(_caches(root, members))
        yield cluster | ({"caches": caches} if caches else {})


def _all_have(instructions: str, root: Path) -> bool:
    return all(instructions in {SIMD_FLAGS.get(flag) for flag in cpu.flags} for cpu in _cpus(root))


def _cpus(root: Path) -> Iterator[_Cpu]:
    machine = Machine(str(root))
    for fields in machine.processors():
        if "processor" not in fields:
            continue
        number = int(fields["processor"])
        folder = root / CPUS / f"cpu{number}"
        part = ARM_PARTS.get((fields.get("CPU implementer", ""), fields.get("CPU part", "")))
        yield _Cpu(
            number,
            part or processor_name(fields) or f"part {fields.get('CPU part', 'unknown')}",
            (
                machine.read(folder / "topology/physical_package_id") or "0",
                machine.read(folder / "topology/core_id") or str(number),
            ),
            machine.read(folder / "cpufreq/cpuinfo_max_freq") or "",
            fields.get("cpu MHz", ""),
            frozenset((fields.get("flags") or fields.get("Features") or "").split()),
        )


def _caches(root: Path, members: list[_Cpu]) -> Iterator[dict[str, Any]]:
    cores = {cpu.number: cpu.core for cpu in members}
    machine = Machine(str(root))
    for folder in machine.glob(f"{CPUS}/cpu{members[0].number}/cache/index*"):
        level, size = machine.read(folder / "level"), machine.read(folder / "size")
        if level and size and machine.read(folder / "type") in ("Data", "Unified"):
            sharing = core_numbers(machine.read(folder / "shared_cpu_list") or str(members[0].number))
            yield {
                "level": int(level),
                "kib": _sourced(int(size.removesuffix("K")), "cache"),
                "cores_sharing": len({cores.get(number, ("", str(number))) for number in sharing}),
            }


def _description(root: Path, clusters: list[dict[str, Any]]) -> str:
    return Machine(str(root)).read("proc/device-tree/model") or " + ".join(
        f"{cluster['cores']['value']} cores of {cluster['name']}" for cluster in clusters
    )


def _sourced(value: Any, source: str) -> dict[str, Any]:
    return {"value": value, "source": source}
