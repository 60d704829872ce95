import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrp_edge.report.html import render_html
from fsrp_edge.report.markdown import escape, render_markdown
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.summary import side_by_side


def tables(markdown: str) -> list[list[list[str]]]:
    """The cells of each table: a cell ends at a `|` that no backslash escapes."""
    found: list[list[list[str]]] = [[]]
    for line in markdown.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_the_verdict_comes_first(run_report: RunReport) -> None:
    lines = render_markdown(run_report).splitlines()
    assert lines[0] == r"# fsrp-edge: resnet20\_cifar10.th → raspberry-pi-4"
    assert lines[2] == "- **✓ parity: 2 of 2 files compute what the network computes**"
    assert "- asked: 50.0 % of channels removed by criterion fsrp, channels in multiples of 4" in lines
    assert (
        "- clean accuracy: dense 91.7 % (89.8–93.2), n=1000 → recovered 74.6 % (71.8–77.2), n=1000; "
        "−17.1 points (−19.7 to −14.4), image by image" in lines
    )
    assert "- MACs: 40.8 M → 10.4 M (−74.4 %, 3.91× fewer)" in lines
    assert "- latency of onnx fp32 (onnxruntime, 1 thread): 1.23 → 0.412 ms, 3.00× faster; MACs 3.91× fewer" in lines


def test_every_accuracy_stands_with_interval_and_n(run_report: RunReport) -> None:
    ledger = tables(render_markdown(run_report))[0]
    assert ledger[0][1:3] == ["clean accuracy", "PGD-20 L∞ 8/255 accuracy"]
    rows = {row[0]: row[1:] for row in ledger[2:]}
    assert rows["recovered"][:2] == ["74.6 % (71.8–77.2), n=1000", "42.1 % (39.1–45.2), n=1000"]
    assert rows["onnx fp32"] == ["74.6 % (71.8–77.2), n=1000", "–", "68.7 k", "10.4 M", "287 kB"]


def test_latency_stands_with_runtime_threads_and_macs_ratio(run_report: RunReport) -> None:
    latency = tables(render_markdown(run_report))[1]
    row = dict(zip(latency[0], latency[5], strict=True))
    assert (row["file"], row["runtime"], row["threads"]) == ("onnx fp32", "onnxruntime 1.32.0", "2")
    assert (row["p50 (ms)"], row["p90 (ms)"], row["p99 (ms)"]) == ("0.301 (0.298–0.304)", "0.316", "0.391")
    assert (row["speed-up"], row["MACs ratio"]) == ("2.33×", "3.91×")


def test_every_row_of_every_table_has_the_cells_of_its_header(run_report: RunReport) -> None:
    found = tables(render_markdown(run_report))
    assert len(found) == 5
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


def test_a_failed_parity_leads_the_report(run_report: RunReport) -> None:
    *others, last = run_report.ledger
    failing = tuple(check.model_copy(update={"passed": False}) for check in last.parity)
    ledger = (*others, last.model_copy(update={"parity": failing}))
    markdown = render_markdown(run_report.model_copy(update={"ledger": ledger}))
    assert markdown.splitlines()[2] == "- **✗ parity failed for 1 of 2 files: tflite int8**"
    assert "- [✓] onnx fp32 (onnxruntime), 8 random images" in markdown
    assert "- [✗] tflite int8 (litert), 64 real images" in markdown


def test_agreement_is_never_called_accuracy(agreement_report: RunReport) -> None:
    markdown = render_markdown(agreement_report)
    (note,) = (line for line in markdown.splitlines() if line.startswith("> **Note:**"))
    assert "accuracy was not measured" in note
    header = tables(markdown)[0][0]
    assert header[1:3] == [
        "clean agreement with the dense network",
        "PGD-20 L∞ 8/255 agreement with the dense network",
    ]
    assert "The data has no true labels." in markdown
    rest = markdown.replace(note, "").replace("Accuracies stand with", "")
    assert "accuracy" not in rest.lower()


def test_an_invalid_latency_says_why(run_report: RunReport) -> None:
    *others, last = run_report.ledger
    (latency,) = last.latency
    throttled = latency.model_copy(update={"valid": False, "invalid_because": ("the CPU was throttled",)})
    ledger = (*others, last.model_copy(update={"latency": (throttled,)}))
    markdown = render_markdown(run_report.model_copy(update={"ledger": ledger}))
    assert "0.395 (0.391–0.399) ✗ not valid" in markdown
    assert "tflite int8, latency (litert, 1 thread) is not valid: the CPU was throttled" in markdown


def test_layers_in_float_are_named(run_report: RunReport) -> None:
    *others, last = run_report.artifacts
    mixed = last.model_copy(update={"kept_in_float": ("stem", "head")})
    markdown = render_markdown(run_report.model_copy(update={"artifacts": (*others, mixed)}))
    assert f"{last.name}: 2 layers are in float, to keep its accuracy: stem, head" in markdown


def test_what_is_estimated_says_so(run_report: RunReport, estimated_report: RunReport) -> None:
    assert "stimated for" not in render_markdown(run_report)
    markdown = render_markdown(estimated_report)
    assert "## Latency, estimated for raspberry-pi-4\n" in markdown and "Nothing was measured there." in markdown
    estimates = tables(markdown)[2]
    assert estimates[3] == ["onnx fp32", "onnxruntime", "4", "5.98 ms (2.99 to 12.0)", "35 measurements"]
    assert '<td data-label="estimate">5.98\N{NO-BREAK SPACE}ms (2.99 to 12.0)</td>' in render_html(estimated_report)
    rows = {name: figures for name, *figures in side_by_side((run_report, estimated_report))}
    assert rows["onnx fp32: estimated, onnxruntime, 4 threads on raspberry-pi-4"] == ["–", "5.98 ms (2.99 to 12.0)"]


def test_what_was_not_done_is_said(run_report: RunReport) -> None:
    ledger = tuple(row.model_copy(update={"latency": (), "parity": ()}) for row in run_report.ledger)
    bare = run_report.model_copy(update={"ledger": ledger, "speed_ups": (), "recovery": None, "artifacts": ()})
    markdown = render_markdown(bare)
    assert "– parity of the files was not checked" in markdown
    assert "Latency was not measured." in markdown
    assert "Parity was not checked." in markdown
    assert "| recovery | none |" in markdown


def test_hostile_names_stay_text(run_report: RunReport) -> None:
    markdown = render_markdown(run_report)
    assert "<script" not in markdown and "\x1b" not in markdown
    (classes,) = (row[1] for row in tables(markdown)[-1] if row[0] == "classes")
    assert classes == (
        r"4: &lt;script&gt;alert(1)&lt;/script&gt;\|x\|, \`a\` # b, \[link\](http://x),  \[31mred\_\*bold\*"
    )


@settings(deadline=None)
@given(st.text())
def test_escaped_text_has_no_markup_and_loses_no_letter(text: str) -> None:
    escaped = escape(text)
    assert len(escaped.splitlines()) <= 1
    assert not re.search(r"[<>]", escaped)
    assert not re.search(r"(?<!\\)[`*_\[\]|~$]", escaped.replace(r"\\", ""))
    plain = re.sub(r"\\(.)", r"\1", escaped)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        plain = plain.replace(entity, character)
    assert plain == "".join(character if character.isprintable() else " " for character in text)


@pytest.mark.parametrize("text", ["~~gone~~", "$x$", "a|b", "<b>", "&lt;"])
def test_markup_of_github_is_escaped(text: str) -> None:
    assert escape(text) != text
