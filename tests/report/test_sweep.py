import pytest

from fsrp_edge import plots
from fsrp_edge.report.html import render_runs
from fsrp_edge.report.sweep import Point, SideBySide, Sweep, dense_point, draw_front, point_of


def run(name: str, accuracy: float, milliseconds: float, size: int) -> Point:
    return Point(name=name, directory=name, robust_accuracy=accuracy, latency_ms=milliseconds, bytes=size)


DENSE = Point(name="dense", directory=None, robust_accuracy=0.5, latency_ms=20.0, bytes=900)
POINTS = (
    DENSE,
    run("a", 0.49, 10.0, 500),
    run("b", 0.48, 5.0, 300),
    run("c", 0.30, 4.0, 200),
    run("d", 0.29, 6.0, 400),
    Point(name="e", directory=None, problem="cannot be reached"),
)


def test_what_another_run_beats_in_everything_is_not_worth_having_and_the_knee_is_before_the_fall():
    runs = SideBySide.of("pgd-20", POINTS)
    assert [point.name for point in runs.points if point.pareto] == ["a", "b", "c"]
    assert runs.knee == "b"


@pytest.mark.parametrize("middle", [(), (run("middle", 0.45, 12.0, 400),)])
def test_a_front_that_no_run_lies_above_has_no_knee(middle):
    assert SideBySide.of("pgd-20", (run("slow", 0.7, 14.0, 500), *middle, run("fast", 0.4, 11.0, 300))).knee is None


@pytest.mark.parametrize("times", [(60, 68), (150, 190), (0.61, 0.68), (8.1, 9.6), (11, 12, 14, 18.4), (2, 60)])
def test_the_latency_axis_has_numbers(times):
    points = [run(str(time), 0.4 + time / 1e3, float(time), 100) for time in times]
    figure = draw_front(SideBySide.of("pgd-20", points))
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    axis = figure.axes[0].xaxis
    labels = [*axis.get_majorticklabels(), *axis.get_minorticklabels()]
    assert sum(bool(each.get_text()) and low <= each.get_position()[0] <= high for each in labels) >= 2


def test_a_smaller_file_is_worth_having_though_it_is_slower():
    runs = SideBySide.of("pgd-20", (*POINTS, run("small", 0.3, 9.0, 100)))
    assert runs.points[-1].pareto


def test_without_attacks_clean_accuracy_decides_and_one_run_has_no_knee():
    clean = [
        Point(name=name, directory=name, clean_accuracy=accuracy, latency_ms=time, bytes=1)
        for name, accuracy, time in (("a", 0.9, 3.0), ("b", 0.8, 4.0))
    ]
    assert [point.pareto for point in SideBySide.of("clean", clean).points] == [True, False]
    assert SideBySide.of("pgd-20", (DENSE, POINTS[1])).knee is None


def test_the_picture_is_a_png_and_the_record_reads_back(tmp_path):
    sweep = Sweep.of("pgd-20", POINTS, checkpoint="net.pt", target="t", over="ratio")
    plots.save_png(draw_front(sweep), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


def test_the_page_has_the_front_and_a_link_to_each_run_that_has_a_page(run_report):
    page = render_runs("net <b>", SideBySide.of("pgd-20", POINTS), {"a": run_report, "b": run_report}, "abcd")
    assert "<h1>net &lt;b&gt;</h1>" in page and "b is the knee" in page
    assert [f'<a href="{name}/report.html">{name}</a>' in page for name in "abcde"] == [True] * 4 + [False]
    assert 'aria-label="Accuracy (pgd-20) against the median latency' in page
    assert "✗ e: cannot be reached" in page
    odd = POINTS[1].model_copy(update={"directory": "../a#b: 20 ms"})
    assert 'href="../a%23b%3A%2020%20ms/report.html"' in render_runs(
        "net", SideBySide.of("pgd-20", (DENSE, odd)), {"a": run_report}, ["a"]
    )
    assert "report.html" not in render_runs("net", SideBySide.of("pgd-20", POINTS), {"a": run_report}, [])
    assert "<script" not in page and '="http' not in page.replace('="http://www.w3.org', "")


@pytest.mark.parametrize("text", ["ratio=0.5", "ratio=0.5,0.5", "width=1,2", "latency=,20ms"])
def test_what_cannot_be_swept_is_refused(text):
    from click.testing import CliRunner

    from fsrp_edge.cli.sweep import sweep

    outcome = CliRunner().invoke(sweep, [__file__, "--target", "generic-x86", "--over", text])
    assert outcome.exit_code == 2 and "--over" in outcome.output


def test_report_writes_the_page_of_several_runs(run_report, tmp_path):
    from fsrp_edge.cli import cli
    from fsrp_edge.cli.errors import run as call
    from fsrp_edge.report.store import write_report

    for name in ("half", "quarter"):
        write_report(run_report, tmp_path / "runs" / name)
    runs = [str(tmp_path / "runs" / "half"), str(tmp_path / "runs" / "quarter" / "report.json")]
    page = tmp_path / "page.html"
    assert call(cli, ["report", *runs, "--page", str(page)]) == 0
    text = page.read_text()
    assert '<a href="runs/half/report.html">half</a>' in text and '<a href="runs/quarter/report.html">' in text
    assert str(tmp_path) not in text and "<td>dense</td>" in text  # both came from one network
    (tmp_path / "runs" / "quarter" / "report.html").unlink()  # a report.json alone, copied
    assert call(cli, ["report", *runs, "--page", str(page)]) == 0
    assert "half/report.html" in page.read_text() and "quarter/report.html" not in page.read_text()
    assert call(cli, ["report", runs[0], "--page", str(page)]) == 2


def test_a_run_in_a_folder_called_dense_is_not_the_dense_network(run_report, tmp_path, monkeypatch):
    from fsrp_edge.cli import cli
    from fsrp_edge.cli.errors import run as call
    from fsrp_edge.report.store import write_report

    for name in ("dense", "half"):
        write_report(run_report, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert call(cli, ["report", "dense", "half", "--page", "page.html"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert '<a href="dense/report.html">dense/</a>' in text and "None/report.html" not in text
    assert "<td>dense</td>" in text and '<th scope="col">dense/</th><th scope="col">half/</th>' in text


def test_estimates_stand_beside_what_was_measured_elsewhere(estimated_report, run_report):
    points = [dense_point(estimated_report), point_of("half", "half", estimated_report)]
    assert [point.estimated_ms for point in points] == [8.35, None]  # the fastest file, of TFLite, has no estimate
    page = render_runs("net", SideBySide.of("pgd-20", points), {"half": estimated_report}, [])
    assert '<td data-label="estimated (ms)">8.35</td>' in page and "not on the target" in page
    assert "stimated" not in render_runs("net", SideBySide.of("pgd-20", POINTS), {"a": run_report}, [])


def test_a_disturbed_latency_is_marked_on_the_page_and_the_console(run_report, tmp_path, capsys):
    from fsrp_edge.cli.sweep import _print

    disturbed = {"valid": False, "invalid_because": ("the CPU was throttled",)}
    ledger = tuple(
        row.model_copy(update={"latency": tuple(each.model_copy(update=disturbed) for each in row.latency)})
        for row in run_report.ledger
    )
    point = point_of("half", "half", run_report.model_copy(update={"ledger": ledger}))
    for points, marked in (((DENSE, point), True), ((DENSE, point_of("half", "half", run_report)), False)):
        page = render_runs("net", SideBySide.of("pgd-20", points), {"half": run_report}, [])
        assert ("✗ behind a p50" in page) == ("0.395 ✗</td>" in page) == marked
        _print(Sweep.of("pgd-20", points, checkpoint="net.pt", target="t", over="ratio"), tmp_path)
        shown = capsys.readouterr().out
        assert ("✗ behind a p50" in shown) == ("0.395 ✗" in shown) == marked


def test_runs_under_other_attacks_are_not_ranked(run_report, tmp_path, capsys):
    from fsrp_edge.cli import cli
    from fsrp_edge.cli.errors import run as call
    from fsrp_edge.report.store import write_report

    ledger = [
        row.model_copy(
            update={
                "accuracies": tuple(
                    each if each.eps is None else each.model_copy(update={"eps": 0.001}) for each in row.accuracies
                )
            }
        )
        for row in run_report.ledger
    ]
    weaker = run_report.model_copy(update={"ledger": tuple(ledger)})
    for name, report in (("one", run_report), ("two", weaker)):
        write_report(report, tmp_path / name)
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert call(cli, ["report", *runs, "--page", str(tmp_path / "page.html")]) == 2
    assert "these differ in attack" in capsys.readouterr().err and not (tmp_path / "page.html").exists()
    assert call(cli, ["report", *runs]) == 0
