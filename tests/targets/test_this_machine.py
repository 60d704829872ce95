import platform
import sys
from pathlib import Path

import pytest
import yaml

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.load import load_target
from fsrp_edge.targets.this_machine import is_this_machine, note_on_int8, skeleton

ARM_CORE = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: {part}
"""
ARMV8 = "fp asimd evtstrm crc32 cpuid"
ARMV82 = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def write_cpu(root, number, *, core, khz=None, caches=()):
    folder = root / "sys/devices/system/cpu" / f"cpu{number}"
    write(folder / "topology/core_id", core)
    write(folder / "topology/physical_package_id", 0)
    if khz:
        write(folder / "cpufreq/cpuinfo_max_freq", khz)
    for index, (level, kind, size, sharing) in enumerate(caches):
        for name, value in (
            ("level", level),
            ("type", kind),
            ("size", f"{size}K"),
            ("shared_cpu_list", sharing),
        ):
            write(folder / "cache" / f"index{index}" / name, value)


def load(text: str, tmp_path: Path):
    path = tmp_path / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return load_target(str(path))


@pytest.fixture
def on(monkeypatch):
    return lambda machine: monkeypatch.setattr(platform, "machine", lambda: machine)


def test_a_board_with_two_kinds_of_cores(tmp_path, on):
    on("aarch64")
    cores = [ARM_CORE.format(number=n, features=ARMV82, part="0xd05" if n < 4 else "0xd0b") for n in range(8)]
    write(tmp_path / "proc/cpuinfo", "\n".join(cores))
    write(tmp_path / "proc/meminfo", "MemTotal:       16219132 kB\nMemFree: 1 kB")
    (tmp_path / "proc/device-tree").mkdir()
    (tmp_path / "proc/device-tree/model").write_bytes(b"Radxa ROCK 5B\0")
    for n in range(8):
        own = (
            (1, "Data", 32 if n < 4 else 64, n),
            (1, "Instruction", 32, n),
            (2, "Unified", 128 if n < 4 else 512, n),
        )
        write_cpu(
            tmp_path,
            n,
            core=n,
            khz=1_800_000 if n < 4 else 2_400_000,
            caches=(*own, (3, "Unified", 3072, "0-7")),
        )
    target = load(skeleton("my-board", root=tmp_path), tmp_path)
    little, big = target.cpu
    assert (little.name, little.cores.value, little.clock_ghz.value) == ("Cortex-A55", 4, 1.8)
    assert (big.name, big.cores.value, big.clock_ghz.value) == ("Cortex-A76", 4, 2.4)
    assert big.simd.value == ("neon", "fp16", "dotprod")
    assert [(cache.level, cache.kib.value, cache.cores_sharing) for cache in big.caches] == [
        (1, 64, 1), (2, 512, 1), (3, 3072, 8),
    ]  # fmt: skip
    assert target.description == "Radxa ROCK 5B"
    assert target.memory.size_gib.value == pytest.approx(15.47)
    assert target.threads == 8
    assert target.sources["cpufreq"].startswith("/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq of ")


def test_an_older_core_has_neither_dot_products_nor_fp16(tmp_path, on):
    on("aarch64")
    write(
        tmp_path / "proc/cpuinfo",
        "\n".join(ARM_CORE.format(number=n, features=ARMV8, part="0xd08") for n in range(4)),
    )
    write(tmp_path / "proc/meminfo", "MemTotal:        3884316 kB")
    target = load(skeleton("my-board", root=tmp_path), tmp_path)
    assert target.cpu[0].name == "Cortex-A72"
    assert target.cpu[0].simd.value == ("neon",)
    assert target.cpu[0].clock_ghz is None
    assert target.cpu[0].caches == ()
    assert target.cpu[0].cores.value == 4


def test_two_hyper_threads_are_one_core(tmp_path, on):
    on("x86_64")
    block = "processor\t: {n}\nmodel name\t: Xeon\ncpu MHz\t\t: 2793.438\nflags\t: avx2 avx512f avx512_vnni amx_tile\n"
    write(tmp_path / "proc/cpuinfo", "\n".join(block.format(n=n) for n in range(4)))
    write(tmp_path / "proc/meminfo", "MemTotal:        8388608 kB")
    for n in range(4):
        write_cpu(tmp_path, n, core=n // 2, caches=((1, "Data", 48, f"{n // 2 * 2}-{n // 2 * 2 + 1}"),))
    target = load(skeleton("my-server", root=tmp_path), tmp_path)
    (cluster,) = target.cpu
    assert target.choices.int8_weight_bits.value == 8, "VNNI does not cut off"
    assert target.channel_multiple == 16, "AVX-512 computes 16 channels at a time"
    assert cluster.cores.value == 2
    assert cluster.caches[0].cores_sharing == 1
    assert cluster.simd.value == ("avx2", "avx512", "vnni", "amx")
    assert cluster.clock_ghz.value == 2.793
    assert "present" in cluster.clock_ghz.note


def test_a_profile_of_another_virtual_processor_of_the_same_name_is_not_this_machine(tmp_path, on):
    on("x86_64")
    block = "processor\t: 0\ncpu family\t: 25\nmodel\t: {model}\nmodel name\t: AMD EPYC\nflags\t: avx2 hypervisor\n"
    write(tmp_path / "proc/meminfo", "MemTotal:        8388608 kB")
    write_cpu(tmp_path, 0, core=0)
    write(tmp_path / "proc/cpuinfo", block.format(model=17))
    target = load(skeleton("my-server", root=tmp_path), tmp_path)
    assert is_this_machine(target, root=tmp_path)
    write(tmp_path / "proc/cpuinfo", block.format(model=1))
    assert not is_this_machine(target, root=tmp_path)


def test_int8_is_doubted_before_the_work_where_there_is_no_vnni(tmp_path, on):
    on("x86_64")
    generic, pi = load_target("generic-x86"), load_target("raspberry-pi-4")
    for flags, doubted in (("avx2", True), ("avx2 avx_vnni", False)):
        write(tmp_path / "proc/cpuinfo", f"processor\t: 0\nmodel name\t: Any\nflags\t: {flags}\n")
        assert bool(note_on_int8(generic, root=tmp_path)) == doubted
        assert note_on_int8(pi, root=tmp_path) is None


def test_other_processors_and_systems_are_refused(tmp_path, on):
    on("riscv64")
    with pytest.raises(BadInputError, match="no generic profile for a riscv64 processor"):
        skeleton("mine", root=tmp_path)
    on("x86_64")
    with pytest.raises(BadInputError, match="read from Linux's /proc and /sys"):
        skeleton("mine", root=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's /proc and /sys")
def test_the_machine_of_this_test_gives_a_valid_profile(tmp_path):
    text = skeleton("this-machine")
    target = load(text, tmp_path)
    assert target.cpu and target.threads >= 1
    places = yaml.safe_load(text)["sources"].values()
    assert all(place.startswith(("/proc/", "/sys/")) for place in places)
