import json
import math
from pathlib import Path

import pytest

from fsrp_edge.errors import BadInputError
from fsrp_edge.report.gates import judge
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.store import load_report, write_report


def test_a_report_comes_back_as_it_was_written(run_report: RunReport, tmp_path: Path) -> None:
    write_report(run_report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    back = load_report(tmp_path / "report.json")
    assert load_report(tmp_path) == back  # the run directory will do
    assert back.model_dump(exclude={"recovery"}) == run_report.model_dump(exclude={"recovery"})
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# fsrp-edge")


def test_the_verdict_on_earlier_gates_does_not_stay(run_report: RunReport, tmp_path: Path) -> None:
    gates = judge(run_report, ["size<=1MB"])
    write_report(run_report.model_copy(update={"gates": gates}), tmp_path)
    assert (tmp_path / "junit.xml").is_file()
    write_report(run_report, tmp_path)
    assert not (tmp_path / "junit.xml").exists()


def test_a_diverged_recovery_still_leaves_valid_json(run_report: RunReport, tmp_path: Path) -> None:
    assert run_report.recovery is not None
    loss = run_report.recovery.history[1]["loss"]
    assert isinstance(loss, float) and math.isnan(loss)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    write_report(run_report, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["recovery"]["history"][1]["loss"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, r"schema version 2; this fsrp-edge reads version 1: upgrade"),
        ({"schema_version": "x"}, r"schema version 'x'.*run compress again"),
        ({"surprise": 1}, r"not a valid report: surprise: Extra inputs"),
        ({"ledger": 3, "stages": None}, r"not a valid report: ledger: .*\(and \d more\)"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(
    run_report: RunReport, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(run_report.model_dump_json()) | change))
    with pytest.raises(BadInputError, match=message) as caught:
        load_report(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "3", "not json", ""])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"report\.json is not"):
        load_report(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"has no report\.json; give the directory of a finished run"):
        load_report(tmp_path)
