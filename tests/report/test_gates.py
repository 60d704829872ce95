import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge.cli import cli
from fsrp_edge.cli.errors import run
from fsrp_edge.errors import BadInputError
from fsrp_edge.evaluation.results import Evaluation, Judged
from fsrp_edge.evaluation.statistics import wilson_interval
from fsrp_edge.report.gates import (
    Gate,
    Seen,
    difference,
    judge,
    judge_regressions,
    parse_gate,
    parse_regression,
)
from fsrp_edge.report.junit import render_junit
from fsrp_edge.report.markdown import render_markdown
from fsrp_edge.report.schema import EstimatedLatency, RunReport
from fsrp_edge.report.store import write_report
from fsrp_edge.report.summary import notes, side_by_side


def changed(report: RunReport, row: str, **update: Any) -> RunReport:
    ledger = tuple(each.model_copy(update=update) if each.name == row else each for each in report.ledger)
    return report.model_copy(update={"ledger": ledger})


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("robust_accuracy>=40%", Gate("robust_accuracy", None, 0.4)),
        (" latency_p50 [onnx fp32] <= 0.02 s ", Gate("latency_p50", "onnx fp32", 20.0)),
        ("size<=2MB", Gate("size", None, 2e6)),
        ("size<=2MiB", Gate("size", None, 2.0**21)),
        ("clean_drop<=1.0", Gate("clean_drop", None, 0.01)),
        ("macs<=10.5M", Gate("macs", None, 10.5e6)),
        ("speed_up>=2x", Gate("speed_up", None, 2.0)),
    ],
)
def test_gates_are_read_with_their_units(text: str, gate: Gate) -> None:
    found = parse_gate(text)
    assert (found.metric, found.row) == (gate.metric, gate.row)
    assert found.bound == pytest.approx(gate.bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robust_accuracy", "is no gate: give METRIC>=NUMBER"),
        ("robust_acuracy>=40%", "'robust_acuracy' is not known to gates; allowed: clean_accuracy"),
        ("robust_accuracy>=0.4", "'0.4' is not a number with one of these units: %"),
        ("robust_accuracy<=40%", "robust_accuracy takes >="),
        ("latency_p50>=20ms", "latency_p50 takes <="),
        ("latency_p50<=20", "'20' is not a number with one of these units: us, ms, s"),
        ("size<=1.2.3MB", "'1.2.3MB' is not a number"),
    ],
)
def test_what_is_no_gate_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse_gate(text)


@pytest.mark.parametrize("text", ["clean_drop=1", "latency_p50=5ms", "robust_accuracy", "size=-1%"])
def test_what_is_no_regression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no METRIC=AMOUNT|one of these units: "):
        parse_regression(text)


@pytest.mark.parametrize(
    ("gate", "passed", "row"),
    [
        ("robust_accuracy>=39%", True, "recovered"),
        ("robust_accuracy>=40%", False, "recovered"),  # 42.1 %, but 39.1 at its low end
        ("clean_accuracy>=71%", True, "tflite int8"),  # the worst of the network and its files
        ("clean_accuracy[onnx fp32]>=71.5%", True, "onnx fp32"),
        ("latency_p50<=0.415ms", False, "onnx fp32"),  # 0.412 ms, but 0.416 at its high end
        ("latency_p50[tflite int8]<=0.4ms", True, "tflite int8"),
        ("latency_p99<=0.6ms", True, "onnx fp32"),
        ("size<=300kB", True, "onnx fp32"),
        ("size<=0.2MB", False, "onnx fp32"),
        ("macs<=10M", False, "recovered"),
        ("speed_up>=2.3", False, "onnx fp32"),  # 2.33×, but 2.28 at its low end
    ],
)
def test_the_unfavourable_end_of_the_worst_figure_decides(
    run_report: RunReport, gate: str, passed: bool, row: str
) -> None:
    (result,) = judge(run_report, [gate])
    assert (result.passed, result.row) == (passed, row)
    assert result.judged is not None and result.message.startswith(row)


def test_a_file_attacked_on_few_images_can_refute_a_gate_on_everything_but_need_not_show_it(
    run_report: RunReport,
) -> None:
    (clean, robust) = run_report.ledger[2].accuracies[:2]

    def with_file(correct: int) -> RunReport:
        accuracy, interval = correct / 32, wilson_interval(correct, 32)
        update = {
            "attack": "transfer+square",
            "images": 32,
            "correct": correct,
            "accuracy": accuracy,
            "interval": interval,
        }
        return changed(run_report, "tflite int8", accuracies=(clean, robust.model_copy(update=update)))

    (unsure,) = judge(with_file(13), ["robust_accuracy>=39%"])  # 40.6 %, which may be 25 %
    assert unsure.passed and unsure.row == "recovered"
    (refuted,) = judge(with_file(5), ["robust_accuracy>=39%"])  # 15.6 %, at most 32 %
    assert not refuted.passed and refuted.row == "tflite int8"
    (strict,) = judge(with_file(13), ["robust_accuracy[tflite int8]>=39%"])
    assert not strict.passed


def test_a_drop_is_judged_image_by_image(run_report: RunReport) -> None:
    (exact,) = judge(run_report, ["clean_drop[recovered]<=17.1"])
    assert exact.value == pytest.approx(0.171) and not exact.passed
    # Of networks on images of their own the drop could be 20.4 points.
    assert exact.judged is not None and 0.19 < exact.judged < 0.2
    assert judge(run_report, ["clean_drop[recovered]<=20"])[0].passed
    (worst,) = judge(run_report, ["clean_drop<=20"])
    assert (worst.row, worst.value) == ("tflite int8", pytest.approx(0.176))
    (gain,) = judge(run_report, ["robust_drop<=0"])
    assert gain.passed and gain.value == pytest.approx(-0.419)


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_interval_of_a_difference_holds_it_and_turns_with_it(first: int, second: int) -> None:
    seen = [Seen("", "", count / 400, wilson_interval(count, 400)) for count in (first, second)]
    value, (low, high) = difference(*seen)
    back, (other_low, other_high) = difference(*seen[::-1])
    assert low <= value <= high and low >= -1.01 and high <= 1.01
    assert (back, other_low, other_high) == pytest.approx((-value, -high, -low))


def test_newcombes_worked_example() -> None:
    """Newcombe 1998, table II, method 10: 56/70 − 48/80 is 0.2 with 0.0524 to 0.3339."""
    pair = [Seen("", "", k / n, wilson_interval(k, n)) for k, n in ((56, 70), (48, 80))]
    value, (low, high) = difference(*pair)
    assert (value, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_what_fails_by_little_is_told_apart_from_what_was_asked(run_report: RunReport) -> None:
    clean, pgd = run_report.ledger[2].accuracies
    near = changed(
        run_report, "recovered", bytes=40_040, accuracies=(clean, pgd.model_copy(update={"interval": (0.39996, 0.452)}))
    )
    robust, size = judge(near, ["robust_accuracy>=40%", "size[recovered]<=40kB"])
    assert robust.message.endswith("42.100 % (39.996 % to 45.200 %); at least 40.000 % asked")
    assert size.message.endswith("40.04 kB; at most 40.00 kB asked")
    (grown,) = judge_regressions(changed(run_report, "onnx fp32", bytes=287_010), run_report, ["size=0%"])
    assert grown.message == "onnx fp32: 287.01 kB; baseline 287.00 kB"


def test_what_was_not_measured_is_not_passed(run_report: RunReport, agreement_report: RunReport) -> None:
    bare = changed(run_report, "recovered", accuracies=run_report.ledger[2].accuracies[:1])
    messages = {
        "robust_accuracy>=1%": "robust_accuracy was not measured: not passed",
        "size[onnx int8]<=1MB": "there is no row 'onnx int8'; there are 'recovered', 'onnx fp32', 'tflite int8'",
    }
    for gate, message in messages.items():
        (result,) = judge(bare, [gate])
        assert not result.passed and message in result.message and result.value is None
    (result,) = judge(agreement_report, ["clean_accuracy>=1%"])
    assert not result.passed and "no true labels" in result.message


def test_a_disturbed_measurement_can_pass_but_never_fails_silently(run_report: RunReport) -> None:
    (latency,) = run_report.ledger[-1].latency
    disturbed = latency.model_copy(update={"valid": False, "invalid_because": ("throttled",)})
    report = changed(run_report, "tflite int8", latency=(disturbed,))
    passed, failed = judge(report, ["latency_p50[tflite int8]<=1ms", "latency_p50[tflite int8]<=0.1ms"])
    assert passed.passed and not failed.passed
    assert "not valid (throttled): measure again" in failed.message and "valid" not in passed.message


def test_what_a_disturbance_may_have_flattered_is_not_passed(run_report: RunReport) -> None:
    def disturbed(row: str) -> RunReport:
        invalid = {"invalid_because": ("throttled",)}
        found = next(each for each in run_report.ledger if each.name == row).latency
        return changed(run_report, row, latency=tuple(each.model_copy(update=invalid) for each in found))

    slow_dense, slow_file = disturbed("dense onnx fp32"), disturbed("onnx fp32")
    for report, passes in ((run_report, True), (slow_file, True), (slow_dense, False)):
        (result,) = judge(report, ["speed_up>=2x"])
        assert result.passed is passes and ("measure again" in result.message) is not passes
    for baseline, metric, passes in (
        (run_report, "latency_p50", True),
        (slow_file, "latency_p50", False),
        (slow_file, "speed_up", False),
        (slow_dense, "speed_up", True),
    ):
        (result,) = judge_regressions(run_report, baseline, [f"{metric}=5%"])
        assert result.passed is passes and ("the baseline's: throttled" in result.message) is not passes
    (result,) = judge_regressions(slow_dense, run_report, ["speed_up=5%"])
    assert not result.passed and "measure again" in result.message


def test_a_regression_is_more_than_chance(run_report: RunReport) -> None:
    clean, pgd = run_report.ledger[2].accuracies
    low = pgd.model_copy(update={"accuracy": 0.41, "interval": wilson_interval(410, 1000)})
    far = pgd.model_copy(update={"accuracy": 0.35, "interval": wilson_interval(350, 1000)})
    for accuracy, allowed, passed in ((pgd, 0, True), (low, 0, True), (far, 0, False), (far, 7, True)):
        new = changed(run_report, "recovered", accuracies=(clean, accuracy))
        (result,) = judge_regressions(new, run_report, [f"robust_accuracy={allowed}"])
        assert result.passed is passed, (accuracy.accuracy, allowed)
        assert "baseline 42.1 %" in result.message


def with_verdicts(run_report: RunReport, standing: int) -> RunReport:
    """The first so many of 1,000 images withstand the attack, and the report says which."""
    clean, pgd = run_report.ledger[2].accuracies
    update = {"correct": standing, "accuracy": standing / 1000, "interval": wilson_interval(standing, 1000)}
    judged = Judged.of(Evaluation(pgd.model_copy(update=update), torch.arange(1000) < standing))
    return changed(run_report, "recovered", accuracies=(clean, judged.kept_with(None)))


def test_accuracies_of_two_runs_are_compared_image_by_image(run_report: RunReport) -> None:
    """23 images lost of 1,000 are within chance of two samples, and not of the same images."""
    before, after = (with_verdicts(run_report, standing) for standing in (421, 398))
    (unsure,) = judge_regressions(after, run_report, ["robust_accuracy=1"])
    assert unsure.passed  # the baseline's report holds no verdicts
    (found,) = judge_regressions(after, before, ["robust_accuracy=1"])
    assert not found.passed and found.judged == pytest.approx(0.004, abs=0.001)
    assert found.gate == "robust_accuracy against the baseline, 1.00 points allowed"
    assert found.message.endswith("; baseline 42.1 %; −2.3 points (−3.2 to −1.3), image by image")
    (allowed,) = judge_regressions(after, before, ["robust_accuracy=2"])
    assert allowed.passed
    rows = {name: figures for name, *figures in side_by_side((before, after, run_report))}
    first, second, without = rows["recovered: PGD-20 L∞ 8/255 accuracy"]
    assert (first, without) == ("42.1 % (39.1–45.2)", "42.1 % (39.1–45.2)")
    assert second == "39.8 % (36.8–42.9); −2.3 points (−3.2 to −1.3)"  # by hand: -2.295 ± 0.948


def test_latency_and_size_regress_by_their_share(run_report: RunReport) -> None:
    last = run_report.ledger[-1]
    slower = last.latency[0].model_copy(update={"p50_ms": 0.435, "p50_interval_ms": (0.431, 0.439)})
    new = changed(run_report, "tflite int8", latency=(slower,), bytes=100_000)
    allowed = ["latency_p50=5%", "latency_p50=12%", "size=1%", "size=2%"]
    assert judge_regressions(new, run_report, allowed)[0].gate == "latency_p50 against the baseline, 5.0 % allowed"
    assert [each.passed for each in judge_regressions(new, run_report, allowed)] == [False, True, False, True]


def test_a_figure_exactly_at_its_limit_passes_however_decimals_are_rounded(run_report: RunReport) -> None:
    latency = run_report.ledger[-1].latency[0]
    before, after, over = (
        changed(run_report, "tflite int8", bytes=size, latency=(latency.model_copy(update={"p99_ms": p99}),))
        for size, p99 in ((8_200_000, 0.09), (8_200_000, 0.0918), (8_200_001, 0.091801))
    )
    at_limit, above = (judge(report, ["size<=8.2MB"])[0].passed for report in (after, over))
    assert at_limit and not above
    at_limit, above = (judge_regressions(new, before, ["latency_p99=2%"])[0].passed for new in (after, over))
    assert at_limit and not above


def test_runs_that_cannot_be_compared_are_refused(run_report: RunReport) -> None:
    data = run_report.data
    other = data.model_copy(update={"evaluation": data.evaluation.model_copy(update={"sha256": "9" * 64})})
    with pytest.raises(BadInputError, match="evaluated on other images"):
        judge_regressions(run_report, run_report.model_copy(update={"data": other}), ["size=1%"])
    ledger = tuple(row.model_copy(update={"latency": ()}) for row in run_report.ledger)
    (result,) = judge_regressions(run_report, run_report.model_copy(update={"ledger": ledger}), ["latency_p50=5%"])
    assert not result.passed and "in common" in result.message
    ledger = tuple(
        row.model_copy(
            update={"latency": tuple(each.model_copy(update={"device": "ssh://other"}) for each in row.latency)}
        )
        for row in run_report.ledger
    )
    elsewhere = run_report.model_copy(update={"ledger": ledger})
    for result in judge_regressions(run_report, elsewhere, ["latency_p50=5%", "speed_up=5%"]):
        assert not result.passed and "in common" in result.message


def test_what_the_baseline_has_and_the_run_lacks_is_a_regression(run_report: RunReport) -> None:
    without_file = run_report.model_copy(update={"ledger": run_report.ledger[:-1]})
    (size,) = judge_regressions(without_file, run_report, ["size=1%"])
    assert not size.passed
    assert size.message == "size: the baseline's tflite int8 is missing in this run: not passed"
    (clean, pgd) = run_report.ledger[2].accuracies
    stronger = changed(run_report, "recovered", accuracies=(clean, pgd, pgd.model_copy(update={"attack": "pgd-50"})))
    (robust,) = judge_regressions(run_report, stronger, ["robust_accuracy=1"])
    assert not robust.passed and "the baseline's recovered, PGD-50 L∞ 8/255 is missing" in robust.message
    allowed = ["size=1%", "clean_accuracy=1", "latency_p50=5%"]
    assert all(each.passed for each in judge_regressions(run_report, without_file, allowed))  # more is no loss
    assert judge_regressions(stronger, run_report, ["robust_accuracy=1"])[0].passed


def test_junit_has_a_case_for_each_gate(run_report: RunReport) -> None:
    gates = judge(run_report, ["size<=1MB", "size[<\x1b&]<=1kB", "robust_accuracy>=40%"])
    suite = ElementTree.fromstring(render_junit(gates, "a <b>"))[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("a <b>", "3", "2")
    cases = {case.get("name"): case.find("failure") for case in suite}
    assert cases["size<=1MB"] is None and {case.get("classname") for case in suite} == {"a <b>"}
    failure = cases["robust_accuracy>=40%"]
    assert failure is not None and "42.1 % (39.1 % to 45.2 %)" in (failure.get("message") or "")


def test_a_gate_that_says_nothing_of_the_device_is_told(run_report: RunReport) -> None:
    estimate = EstimatedLatency(runtime="litert", threads=1, milliseconds=9.0, interval=(5.0, 20.0), basis="a fit")
    for gates, told in ((["latency_p50<=20s", "size<=1GB"], True), (["size<=1GB"], False)):
        ledger = tuple(row.model_copy(update={"estimate": estimate}) for row in run_report.ledger)
        report = run_report.model_copy(update={"gates": judge(run_report, gates), "ledger": ledger})
        found = [note for note in notes(report) if "judged by the device that was timed" in note]
        assert [note.partition(":")[0] for note in found] == (gates[:1] if told else [])
    assert not any("judged by the device" in note for note in notes(run_report))


def test_speed_ups_of_a_report_from_before_they_told_what_was_disturbed(run_report: RunReport) -> None:
    rows = [
        row.model_copy(update={"latency": tuple(each.model_copy(update={"valid": False}) for each in row.latency)})
        for row in run_report.ledger
    ]
    content = run_report.model_copy(update={"ledger": tuple(rows)}).model_dump(mode="json")
    for each in content["speed_ups"]:
        del each["valid"]
    read = RunReport.model_validate(content)
    assert read.speed_ups and not any(each.valid for each in read.speed_ups)
    assert "× ✗" in render_markdown(read)


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(run_report: RunReport, tmp_path: Path) -> Path:
    write_report(run_report, tmp_path / "run")
    return tmp_path / "run"


def test_gates_decide_the_exit_code(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (directory / "report.json").read_bytes()
    assert run(cli, ["report", str(directory), "--require", "size<=1MB"]) == 0
    assert "✓ size<=1MB" in capsys.readouterr().out
    assert run(cli, ["report", str(directory), "--require", "size<=1MB", "--require", "speed_up>=9"]) == 1
    found = capsys.readouterr()
    assert "error: 1 of 2 gates failed\n  speed_up>=9: onnx fp32" in found.err
    assert "- ✗ speed\\_up&gt;=9" in (directory / "report.md").read_text()
    assert (directory / "report.json").read_bytes() == before
    assert len(ElementTree.parse(directory / "junit.xml").getroot()[0]) == 2


def test_a_report_that_lies_among_other_files_leaves_them_alone(directory: Path, tmp_path: Path) -> None:
    beside = tmp_path / "ci"
    beside.mkdir()
    (directory / "report.json").rename(beside / "baseline.json")
    (beside / "junit.xml").write_text("of pytest")
    assert run(cli, ["report", str(beside / "baseline.json"), "--require", "size<=1MB"]) == 0
    assert {path.name for path in beside.iterdir()} == {"baseline.json", "junit.xml"}
    assert (beside / "junit.xml").read_text() == "of pytest"


def test_a_run_whose_pages_cannot_be_renewed_is_judged_all_the_same(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (directory / "report.md").unlink()
    (directory / "report.md").mkdir()  # refuses also root, whom no permission stops
    assert run(cli, ["report", str(directory), "--require", "size<=1kB"]) == 1
    found = capfd.readouterr()
    assert "size<=1kB" in found.out and "error: 1 of 1 gates failed" in found.err
    assert f"the pages in {directory} could not be renewed: {directory / 'report.md'} is a folder" in found.err


def test_a_baseline_on_the_command_line(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["report", str(directory), "--baseline", str(directory), "--max-regression"]
    assert run(cli, [*against, "size=0%"]) == 0
    assert run(cli, [*against, "latency=0%"]) == 2
    assert "'latency' is not known to gates" in capsys.readouterr().err


def test_a_baseline_leaves_the_verdict_on_the_runs_own_gates(
    run_report: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(run_report.model_copy(update={"gates": judge(run_report, ["size<=1kB"])}), tmp_path / "red")
    against = ["report", str(tmp_path / "red"), "--baseline", str(tmp_path / "red"), "--max-regression", "size=0%"]
    assert run(cli, against) == 1
    assert "error: 1 of 2 gates failed\n  size<=1kB: " in capsys.readouterr().err
    assert run(cli, [*against, "--require", "size<=1MB"]) == 0
    assert "size<=1kB" not in capsys.readouterr().out


def test_github_gets_a_summary_and_annotations(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run(cli, ["report", str(directory), "--json", "--require", "clean_accuracy>=99%"]) == 1
    found = capsys.readouterr()
    assert json.loads(found.out)["gates"][0]["passed"] is False
    assert "::error title=clean_accuracy>=99%25::tflite int8, clean: 74.1 %25 (71.3 %25" in found.err
    written = summary.read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "of the host" / "summary.md"))
    assert run(cli, ["report", str(directory), "--require", "clean_accuracy>=99%"]) == 1
    found = capsys.readouterr()
    assert "no summary of the job" in found.err and "1 of 1 gates failed" in found.err and "::error" in found.err
    assert written.startswith("before\n# fsrp-edge: ") and "- ✗ clean\\_accuracy&gt;=99%" in written


def test_runs_stand_side_by_side(
    directory: Path, run_report: RunReport, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(run_report, "onnx fp32", bytes=111_000)
    write_report(other.model_copy(update={"gates": judge(other, ["size<=1kB"])}), tmp_path / "other")
    assert run(cli, ["report", str(directory), str(tmp_path / "other")]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "onnx fp32: size 287 kB 111 kB" in lines and "gates – 0 of 1 passed" in lines
    assert run(cli, ["report", str(directory), str(tmp_path / "other"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert run(cli, ["report", str(directory), str(directory), "--require", "size<=1MB"]) == 2
