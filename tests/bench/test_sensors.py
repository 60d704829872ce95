"""What the agent reads of boards that are not here: files as their drivers show them, and what their tools printed."""

import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fsrp_edge.bench import agent

# https://github.com/rbonghi/jetson_stats and https://github.com/GDWR/jetson_exporter/issues/14 (Nano, AGX Orin)
NANO = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1224,4%@1224,3%@1224,"
    "6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C thermal@40C POM_5V_IN "
    "1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305,306] VIC_FREQ "
    "729 APE 174 CV0@-256C CPU@44.562C Tboard@32C"
)
TX2 = (  # https://github.com/rbonghi/jetson_stats/issues/187
    "RAM 1689/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,1%@345] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"
)
# `sudo jetson_clocks --show` of a Jetson Nano as it starts, two of its cores …
LOOSE = """SOC family:tegra210  Machine:NVIDIA Jetson Nano Developer Kit
Online CPUs: 0-3
CPU Cluster Switching: Disabled
cpu0: Online=1 Governor=schedutil MinFreq=102000 MaxFreq=1479000 CurrentFreq=825600 IdleStates: WFI=1 c7=1
cpu1: Online=1 Governor=schedutil MinFreq=102000 MaxFreq=1479000 CurrentFreq=825600 IdleStates: WFI=1 c7=1
GPU MinFreq=76800000 MaxFreq=921600000 CurrentFreq=76800000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=0
Fan: PWM=0
NV Power Mode: MAXN
"""
HELD = """cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000 IdleStates: WFI=0 c7=0
GPU MinFreq=921600000 MaxFreq=921600000 CurrentFreq=921600000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
Fan: PWM=0
NV Power Mode: MAXN
"""  # … and after `sudo jetson_clocks`
# Raspberry Pi 5, `vcgencmd pmic_read_adc`, three of its rails, and two that have no current.
PI_5 = """     3V7_WL_SW_A current(0)=0.05855580A
       3V3_SYS_A current(1)=0.06148359A
      VDD_CORE_A current(7)=5.03652000A
     3V7_WL_SW_V volt(8)=3.61069200V
       3V3_SYS_V volt(9)=3.29982600V
      VDD_CORE_V volt(15)=0.89369880V
         EXT5V_V volt(24)=4.98480000V
          BATT_V volt(25)=0.00000000V
"""


@pytest.mark.parametrize(("line", "mhz"), [(NANO, 76), (AGX_ORIN, 306), (TX2, None), ("", None)])
def test_gpu_clock(line, mhz):
    assert agent.gpu_mhz(line) == mhz


@pytest.mark.parametrize(("said", "held"), [(LOOSE, False), (HELD, True), ("Error: permission denied\n", None)])
def test_clocks_that_jetson_clocks_holds(said, held):
    assert agent.held_clocks(said) is held


def test_rails_of_a_raspberry_pi_5():
    rails = agent.rails_of_pmic(PI_5)
    assert set(rails) == {"3V7_WL_SW", "3V3_SYS", "VDD_CORE"}
    assert agent.whole_board(rails) == pytest.approx(0.2114 + 0.2029 + 4.5011, abs=1e-3)
    assert agent.whole_board(agent.rails_of_pmic('error=1 error_msg="Command not registered"\n')) is None


def tree(root: Path, files: dict[str, object]) -> agent.Machine:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return agent.Machine(str(root))


def test_sensors_of_a_jetson_with_jetpack_5(tmp_path):
    """The paths of NVIDIA's developer guide: millivolts and milliamperes a channel; unused ones are called NC."""
    folder = "sys/class/hwmon/hwmon3"
    channels = {1: ("VDD_IN", 5040, 1200), 2: ("VDD_CPU_GPU_CV", 5032, 400), 3: ("NC", 0, 0)}
    files: dict[str, object] = {f"{folder}/name": "ina3221"}
    for number, (label, millivolts, milliamperes) in channels.items():
        files[f"{folder}/in{number}_label"] = label
        files[f"{folder}/in{number}_input"] = millivolts
        files[f"{folder}/curr{number}_input"] = milliamperes
    machine = tree(tmp_path, files)
    assert machine.rails() == pytest.approx({"VDD_IN": 6.048, "VDD_CPU_GPU_CV": 2.0128})
    assert machine.power_w() == pytest.approx(6.048)
    (tmp_path / folder / "in1_label").unlink()
    assert machine.power_w() == pytest.approx(2.0128)


def test_sensors_of_a_jetson_nano_with_jetpack_4(tmp_path):
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rails = {0: ("POM_5V_IN", 1750), 1: ("POM_5V_GPU", 0), 2: ("POM_5V_CPU", 366)}
    files: dict[str, object] = {}
    for number, (name, milliwatts) in rails.items():
        files |= {f"{folder}/rail_name_{number}": name, f"{folder}/in_power{number}_input": milliwatts}
    assert tree(tmp_path, files).power_w() == 1.75


ZONE = "sys/class/powercap/intel-rapl:0"
RANGE_UJ = 262_143_328_850
"""Where the counter of a server's package starts again at 0."""


def test_energy_counters_of_x86_packages(tmp_path):
    machine = tree(
        tmp_path,
        {
            f"{ZONE}/energy_uj": 262_143_000_000,
            f"{ZONE}/max_energy_range_uj": RANGE_UJ,
            "sys/class/powercap/intel-rapl:0:0/energy_uj": 5,  # a part of the package
            "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": RANGE_UJ,
            f"{ZONE}/name": "package-0",
            "sys/class/powercap/intel-rapl:1/name": "psys",  # of the whole platform: the package again
            "sys/class/powercap/intel-rapl:1/energy_uj": 7,
            "sys/class/powercap/intel-rapl:1/max_energy_range_uj": RANGE_UJ,
        },
    )
    before = machine.packages_uj()
    assert list(before) == ["intel-rapl:0"]
    (tmp_path / ZONE / "energy_uj").write_text("19671150\n")  # it started again at 0 in between
    assert agent.mean_power_w([before, machine.packages_uj()], 2.0, []) == pytest.approx(10.0)


def test_energy_counters_that_start_again_more_than_once(tmp_path):
    """150 W for half an hour, read every minute: the counter starts again at 0 once in 29 of them."""
    counters = [{"package": (minute * 9_000_000_000 % RANGE_UJ, RANGE_UJ)} for minute in range(31)]
    assert agent.mean_power_w(counters, 1800.0, []) == pytest.approx(150.0)


def test_energy_counters_are_read_while_measuring(tmp_path):
    machine = tree(tmp_path, {f"{ZONE}/energy_uj": 0, f"{ZONE}/max_energy_range_uj": RANGE_UJ})
    took = []

    def times_ms(tick):
        start = time.perf_counter()
        for run in range(1, 4):  # 600 kJ, more than twice the range
            time.sleep(0.05)
            (tmp_path / ZONE / "energy_uj").write_text(str(run * 200_000_000_000 % RANGE_UJ))
            tick("steady", run, 0.05 * run)
        took.append(time.perf_counter() - start)
        return [50.0] * 3

    model = SimpleNamespace(
        load=lambda tick: [("pixels", (1, 3, 4, 4), "float32")],
        feed=lambda _inputs: None,
        first_ms=lambda: 1.0,
        warm_up=lambda _tick: [],
        times_ms=times_ms,
        quantization=(0.0, 0),
    )
    options = SimpleNamespace(outputs=None, evaluate=None)
    said = agent.timed_runs(model, machine, options, lambda *_, **__: None)
    assert said["power_w"] == pytest.approx(600e3 / took[0], rel=0.5)


def test_mean_power_of_samples():
    samples = [{"power_w": 4.0}, {"power_w": None}, {"power_w": 6.0}]
    assert agent.mean_power_w([{}, {}], 2.0, samples) == 5.0
    assert agent.mean_power_w([{}, {}], 2.0, [{"power_w": None}]) is None


def test_state_of_a_board(tmp_path):
    machine = tree(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 600000,
            "sys/devices/system/cpu/cpu4/cpufreq/scaling_governor": "performance",
            "sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq": 1800000,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 61835,
            "sys/class/thermal/thermal_zone1/type": "off",
            "sys/class/thermal/thermal_zone1/temp": "",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005",
            "proc/loadavg": "0.52 0.48 0.44 1/222 1234",
            "proc/meminfo": "MemTotal:        3884336 kB\nMemAvailable:    3210000 kB",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        },
    )
    assert machine.cpu_name() == "Raspberry Pi 4 Model B Rev 1.4"
    state = machine.state()
    assert (state["governor"], state["clock_mhz"]) == ("ondemand performance", 1800)
    assert state["temperatures_c"] == {"cpu-thermal": 61.835}
    assert (state["throttled"], state["load_1m"]) == (0x50005, 0.52)
    assert state["free_memory_mb"] == pytest.approx(3287.04)
    assert (state["power_w"], state["power_mode"], state["gpu_clock_mhz"]) == (None, None, None)


CPUINFO = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n"


@pytest.mark.parametrize(
    ("model", "flags", "name"),
    [
        (1, "fpu hypervisor avx2", "AMD EPYC, family 25 model 1"),
        (17, "fpu hypervisor avx2 avx512_bf16", "AMD EPYC, family 25 model 17"),
        (17, "fpu avx2", "AMD EPYC"),
    ],
)
def test_virtual_processors_of_one_name_are_told_apart(tmp_path, model, flags, name):
    """Of Zen 3 and Zen 4, both "AMD EPYC" there, only the second has AVX-512; names of real processors tell more."""
    text = "\n".join([CPUINFO.format(model=model, flags=flags)] * 2)
    assert tree(tmp_path, {"proc/cpuinfo": text}).cpu_name() == name


def test_tools_of_a_board_are_asked(tmp_path, monkeypatch):
    """Stand-ins that print what the tools print: tegrastats talks on until it is stopped."""
    tools = {
        "nvpmodel": "test $# = 1 && test $1 = -q && printf 'NV Power Mode: MAXN\\n0\\n'",
        "tegrastats": f"test \"$*\" = '--interval 100' && while echo '{NANO}'; do sleep 0.1; done",
        "jetson_clocks": f"test \"$*\" = --show && echo '{HELD}'",
        "vcgencmd": f"case $1 in get_throttled) echo throttled=0x50000;; *) echo '{PI_5}';; esac",
    }
    for name, text in tools.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    state = agent.Machine().state()
    assert (state["power_mode"], state["gpu_clock_mhz"], state["clocks_held"]) == ("MAXN", 76, True)
    assert state["power_w"] == pytest.approx(4.915, abs=1e-3)
    assert state["throttled"] == 0x50000


@pytest.mark.parametrize(("text", "cores"), [("0", [0]), ("0,2", [0, 2]), ("1,4-7", [1, 4, 5, 6, 7])])
def test_cores_of_a_range(text, cores):
    assert agent.core_numbers(text) == cores
