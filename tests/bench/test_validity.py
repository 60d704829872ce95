import pytest

from fsrp_edge.bench.results import Round, Sample, State
from fsrp_edge.bench.validity import disturbances

QUIET = State(
    governor="performance",
    clock_mhz=1500.0,
    temperatures_c={"cpu-thermal": 50.0},
    throttled=0,
    load_1m=0.1,
    free_memory_mb=500.0,
)


def round_with(*, before=None, after=None, clocks=(), foreign_cores: float | None = 0.0) -> Round:
    return Round(
        warmup_ms=(1.0,),
        times_ms=(1.0,),
        before=QUIET.model_copy(update=before or {}),
        during=tuple(Sample(seconds=i, clock_mhz=mhz, temperature_c=None) for i, mhz in enumerate(clocks)),
        after=QUIET.model_copy(update=after or {}),
        foreign_cores=foreign_cores,
        peak_memory_mb=None,
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"foreign_cores": 0.2}, None),
        ({"foreign_cores": None}, None),
        ({"foreign_cores": 1.5}, "other processes kept 1.5 of 4 cores busy"),
        ({"after": {"throttled": 0x4}}, "the device was throttled"),
        (
            {"before": {"throttled": 0x50005}, "after": {"throttled": 0x50005}},
            "the device was under-voltage, throttled",
        ),
        ({"before": {"throttled": 0x50000}, "after": {"throttled": 0x50000}}, None),  # long ago, not now
        ({"after": {"throttled": 0x40000}}, "the device was throttled"),  # in between, over by now
        ({"after": {"governor": "powersave"}}, "the clock governor changed from performance to powersave"),
        ({"clocks": (1500.0, 1480.0, None)}, None),
        ({"clocks": (1500.0, 1000.0)}, "the clock moved between 1000 and 1500 MHz"),
        ({"before": {"throttled": None}, "after": {"throttled": None}}, None),
    ],
)
def test_disturbances(changes, reason):
    assert list(disturbances([round_with(**changes)], cores=4)) == ([reason] if reason else [])


def test_what_changes_between_rounds_is_seen():
    rounds = [round_with(clocks=(mhz, mhz)) for mhz in (2400.0, 1608.0, 1200.0)]
    assert list(disturbances(rounds, cores=4)) == ["the clock moved between 1200 and 2400 MHz"]
    slower = {"governor": "powersave"}
    rounds = [round_with(), round_with(before=slower, after=slower)]
    assert list(disturbances(rounds, cores=4)) == ["the clock governor changed from performance to powersave"]
