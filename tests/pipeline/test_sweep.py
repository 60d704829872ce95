"""What a sweep makes of its runs; the runs themselves are told, not done."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.errors import BadInputError, ToolFailedError, WithinBudgetsError
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.rundir import RunDirectory
from fsrp_edge.pipeline.sweep import Variant, sweep
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.sweep import Sweep


def test_a_budget_that_the_dense_network_meets_is_no_miss(
    run_report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def compress(options: CompressOptions) -> Any:
        assert options.budgets.latency is not None
        if options.budgets.latency.amount > 10:
            raise WithinBudgetsError("nothing has to be removed, the dense network is within its budgets")
        return SimpleNamespace(report=run_report)

    monkeypatch.setattr("fsrp_edge.pipeline.sweep.compress", compress)
    monkeypatch.setenv("COLUMNS", "200")  # no cell is wrapped
    (tmp_path / "net.pt").touch()
    arguments = ["sweep", tmp_path / "net.pt", "--target", "generic-x86", "--out", tmp_path / "runs"]
    assert run(cli, [*map(str, arguments), "--over", "latency=20ms,5ms"]) == 0
    out = capfd.readouterr().out
    assert "dense is within" in out and "failed" not in out
    assert "latency=20ms: nothing has to be removed" in out
    _, loose, tight = Sweep.load(tmp_path / "runs" / "sweep.json").points
    assert loose.within and loose.problem is None and tight.within is None
    page = (tmp_path / "runs" / "sweep.html").read_text()
    assert "<li>latency=20ms: nothing has to be removed" in page and "✗ latency" not in page


def test_files_that_nothing_can_time_stand_in_the_table_without_a_picture(
    run_report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tuple(row.model_copy(update={"latency": ()}) for row in run_report.ledger)
    untimed = run_report.model_copy(update={"ledger": ledger, "speed_ups": ()})
    monkeypatch.setattr("fsrp_edge.pipeline.sweep.compress", lambda _options: SimpleNamespace(report=untimed))
    options = CompressOptions(checkpoint=tmp_path / "net.pt", target="generic-x86")
    found = sweep([Variant(name, options) for name in ("ratio=0.3", "ratio=0.5")], "ratio", tmp_path)
    assert found.measured == [] and not (tmp_path / "sweep.png").exists()
    assert "<p>2 runs side by side</p>" in (tmp_path / "sweep.html").read_text()  # the dense network is none


def test_a_sweep_goes_on_past_a_run_whose_tools_failed(
    run_report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def compress(options: CompressOptions) -> Any:
        if options.ratio == 0.5:
            raise ToolFailedError("the loss became infinite")
        return SimpleNamespace(report=run_report)

    monkeypatch.setattr("fsrp_edge.pipeline.sweep.compress", compress)
    (tmp_path / "net.pt").touch()
    arguments = ["sweep", tmp_path / "net.pt", "--target", "generic-x86", "--out", tmp_path / "runs"]
    assert run(cli, [*map(str, arguments), "--over", "ratio=0.3,0.5,0.7"]) == 1
    assert "1 of 3 runs failed or missed a budget or a gate: ratio=0.5" in capfd.readouterr().err
    points = Sweep.load(tmp_path / "runs" / "sweep.json").points
    assert [point.problem for point in points] == [None, None, "the loss became infinite", None]
    assert run(cli, [*map(str, arguments), "--over", "ratio=0.5", "--over", "ratio=0.50"]) == 3


def test_a_sweep_is_called_like_its_variant_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Path] = []

    def sweep(_variants: Any, _over: str, out: Path) -> Any:
        called.append(out)
        raise BadInputError("far enough")

    monkeypatch.setattr("fsrp_edge.pipeline.sweep.sweep", sweep)
    (tmp_path / "net.pt").touch()
    assert run(cli, ["sweep", str(tmp_path / "net.pt"), "--target", "raspberry-pi-4@1.5GHz", "--over", "ratio=0.3,0.5"])
    assert called == [Path("net-raspberry-pi-4@1.5GHz-sweep")]


@pytest.mark.parametrize("busy", ["", "ratio-0.5"])
def test_another_run_at_work_in_its_folders_ends_the_sweep(tmp_path: Path, busy: str) -> None:
    options = CompressOptions(checkpoint=tmp_path / "net.pt", target="generic-x86")
    with (
        RunDirectory(tmp_path / busy).locked(),
        pytest.raises(BadInputError, match=r"^another run is working in .*; wait for it"),
    ):
        sweep([Variant("ratio=0.5", options)], "ratio", tmp_path)
    assert not (tmp_path / "ratio-0.5" / "run.log").exists()
