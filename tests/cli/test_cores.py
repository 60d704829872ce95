import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsrp_edge.bench import agent
from fsrp_edge.cli.cores import advice, free_cores, quota


def test_cores_that_others_keep_busy_are_not_free() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        try:
            free = free_cores()
        finally:
            spinning.kill()
    assert 0 <= free < (os.cpu_count() or 1) - 0.3


class Readings(agent.Machine):
    """Processor seconds, the machine's and this process's, from before and after."""

    def __init__(self, root: Path, *readings: tuple[float, float]) -> None:
        super().__init__(str(root))
        self.readings = list(readings)

    def busy_seconds(self) -> tuple[float, float]:
        return self.readings.pop(0)


def test_what_this_process_does_itself_is_not_counted(tmp_path: Path) -> None:
    own_work = Readings(tmp_path, (100.0, 5.0), (200.0, 105.0))
    assert free_cores(own_work, seconds=0.01) == agent.cores()
    work_of_others = Readings(tmp_path, (100.0, 5.0), (200.0, 5.0))
    assert free_cores(work_of_others, seconds=0.01) == 0


def test_all_cores_of_a_still_machine_are_free(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text("cpu 900 0 100 5000 0 0 0 0 0 0\n")
    assert free_cores(agent.Machine(str(tmp_path)), seconds=0.01) == agent.cores()


def test_without_figures_all_cores_are_taken_for_free(tmp_path: Path) -> None:
    assert free_cores(agent.Machine(str(tmp_path)), seconds=0.01) == agent.cores()


@pytest.mark.parametrize(("text", "expected"), [("max 100000", float("inf")), ("150000 100000", 1.5)])
def test_the_quota_of_a_container_is_read(tmp_path: Path, text: str, expected: float) -> None:
    folder = tmp_path / "sys" / "fs" / "cgroup"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(text + "\n")
    assert quota(agent.Machine(str(tmp_path))) == expected
    assert free_cores(agent.Machine(str(tmp_path)), seconds=0.01) == min(expected, agent.cores())


@pytest.mark.parametrize(
    ("threads", "free", "fewer"),
    [(2, 2.0, None), (2, 1.7, None), (2, 1.1, 1), (8, 5.8, 6), (1, 0.0, None), (4, 0.0, 1)],
)
def test_more_threads_than_free_cores_are_advised_against(threads: int, free: float, fewer: int | None) -> None:
    said = advice(threads, free)
    assert said.endswith(f"OMP_NUM_THREADS={fewer}") if fewer else said == ""
