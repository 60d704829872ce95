import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fsrp_edge.cli.report_table import print_report, render_report
from fsrp_edge.report.schema import RunReport


def rendered(report: RunReport, width: int) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(render_report(report, width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 99, 100, 120, 200])
def test_no_figure_is_cut_off(run_report: RunReport, width: int) -> None:
    text = rendered(run_report, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    (recovered,) = (line.split() for line in text.splitlines() if line.strip().startswith("recovered"))
    (onnx,) = (line.split() for line in text.splitlines() if line.strip().startswith("onnx fp32 "))
    if width < 100:
        assert recovered == ["recovered", "–", "–", "74.6", "42.1", "–", "–"]
        assert onnx == ["onnx", "fp32", "✓", "287", "kB", "74.6", "–", "0.412", "3.00×"]
    else:
        assert recovered == ["recovered", "–", "–", "74.6", "(71.8–77.2)", "42.1", "(39.1–45.2)", "–", "–"]
    assert "MACs 40.8 M → 10.4 M (−74.4 %, 3.91× fewer)" in text
    assert "1.23 → 0.412 ms, 3.00× faster; MACs 3.91× fewer" in " ".join(text.split())


def test_four_attacks_still_fit_into_80_columns(run_report: RunReport) -> None:
    first, *others = run_report.ledger
    pgd = first.accuracies[1]
    more = tuple(pgd.model_copy(update={"attack": name}) for name in ("fgsm", "autoattack"))
    ledger = (first.model_copy(update={"accuracies": (*first.accuracies, *more)}), *others)
    text = rendered(run_report.model_copy(update={"ledger": ledger}), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert re.search(r"dense +– +– +91\.7 +0\.2 +0\.2 +0\.2 ", text)


def test_agreement_is_never_called_accuracy(agreement_report: RunReport) -> None:
    text = " ".join(rendered(agreement_report, 120).split())
    assert "agreement %" in text and "clean agreement with the dense network: n=1000" in text
    (warning,) = re.findall("note: accuracy was not measured[^.]*instead", text)
    assert "accuracy" not in text.replace(warning, "")


def test_a_failed_parity_shows(run_report: RunReport) -> None:
    *others, last = run_report.ledger
    failing = tuple(check.model_copy(update={"passed": False}) for check in last.parity)
    ledger = (*others, last.model_copy(update={"parity": failing}))
    text = rendered(run_report.model_copy(update={"ledger": ledger}), 80)
    assert re.search(r"tflite int8 +✗", text)
    assert "parity failed for 1 of 2 files: tflite int8" in text


def test_a_file_that_became_slower_is_said_to_be_slower(run_report: RunReport) -> None:
    fields = dict(run_report)
    del fields["speed_ups"]
    (dense,) = (row for row in run_report.ledger if row.name == "dense onnx fp32")
    slow = dense.latency[0].model_copy(update={"p50_ms": 0.206})
    fields["ledger"] = (dense.model_copy(update={"latency": (slow,)}), *run_report.ledger[4:])
    text = " ".join(rendered(RunReport(**fields), 120).split())
    assert "onnx fp32 (onnxruntime, 1 thread): 0.206 → 0.412 ms, 0.500× (slower); MACs 3.91× fewer" in text


def test_what_was_disturbed_is_marked_where_it_stands(run_report: RunReport) -> None:
    fields = dict(run_report)
    del fields["speed_ups"]
    disturbed = {"valid": False, "invalid_because": ("the CPU was throttled",)}
    fields["ledger"] = tuple(
        row.model_copy(update={"latency": tuple(each.model_copy(update=disturbed) for each in row.latency)})
        if row.name == "dense onnx fp32"
        else row
        for row in run_report.ledger
    )
    report = RunReport(**fields)
    (onnx,) = (line.split() for line in rendered(report, 80).splitlines() if line.strip().startswith("onnx fp32 "))
    assert onnx[-3:] == ["0.412", "3.00×", "✗"]
    text = " ".join(rendered(report, 120).split())
    assert " 1.23 ✗ " in text and "MACs 3.91× fewer; ✗ not valid, see below" in text
    assert "something disturbed the measurement, see the notes" in text
    assert "note: dense onnx fp32, latency (onnxruntime, 1 thread) is not valid: the CPU was throttled" in text
    assert "✗" not in rendered(run_report, 80)


def test_what_is_estimated_says_so(estimated_report: RunReport) -> None:
    text = " ".join(rendered(estimated_report, 80).split())
    assert (
        "estimated, not measured: onnx fp32 (onnxruntime, 4 threads on raspberry-pi-4): 8.35 → 5.98 ms (2.99 to 12.0)"
    ) in text
    (row,) = (row for row in estimated_report.ledger if row.name == "onnx fp32")
    assert row.estimate is not None and f"basis of the estimate of onnx fp32: {row.estimate.basis}" in text
    assert text.count("nine of ten measurements are expected within the brackets") == 1


def test_names_are_neither_markup_nor_escape_sequences(run_report: RunReport) -> None:
    hostile = run_report.source.model_copy(update={"checkpoint": "[red]\x1b[2J[/nope]\n.pt"})
    text = rendered(run_report.model_copy(update={"source": hostile}), 80)
    assert "[red] [2J[/nope] .pt → raspberry-pi-4" in text
    assert "\x1b" not in text


def test_what_a_foreign_report_calls_its_files_steers_no_terminal(
    run_report: RunReport, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = run_report.artifacts[0].model_copy(update={"path": "a\x1b[2Jb.onnx"})
    print_report(run_report.model_copy(update={"artifacts": (artifact,)}), Path("run"))
    assert "run/a [2Jb.onnx" in capsys.readouterr().out


SHOW = """
import sys
from pathlib import Path
from fsrp_edge.cli.report_table import print_report
from fsrp_edge.report.store import load_report
print_report(load_report(Path(sys.argv[1])), Path("runs/a b"), ["fsrp-edge report 'runs/a b' " + "x" * 100])
"""


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}])
def test_the_printed_report_respects_no_color(
    run_report: RunReport, tmp_path: Path, on_a_terminal: Callable[..., str], variables: dict[str, str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(run_report.model_dump_json())
    text = on_a_terminal([sys.executable, "-c", SHOW, str(path)], **variables)
    colours = re.findall(r"\x1b\[(?:[0-9;]*;)?3[0-9]m", text)
    assert bool(colours) == (not variables)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "  runs/a b/artifacts/model_int8.tflite" in plain
    assert f"  fsrp-edge report 'runs/a b' {'x' * 100}" in plain  # whole, ready to be pasted
