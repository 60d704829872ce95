import pytest

from fsrp_edge.report.sweep import Point, Sweep, draw_sweep, with_verdicts


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
    points, knee = with_verdicts(POINTS)
    assert [point.name for point in points if point.pareto] == ["a", "b", "c"]
    assert knee == "b"


def test_a_smaller_file_is_worth_having_though_it_is_slower():
    points, _ = with_verdicts((*POINTS, run("small", 0.3, 9.0, 100)))
    assert points[-1].pareto


def test_without_attacks_clean_accuracy_decides_and_one_run_has_no_knee():
    clean = [
        Point(name=name, directory=name, clean_accuracy=accuracy, latency_ms=time, bytes=1)
        for name, accuracy, time in (("a", 0.9, 3.0), ("b", 0.8, 4.0))
    ]
    points, _ = with_verdicts(clean)
    assert [point.pareto for point in points] == [True, False]
    assert with_verdicts((DENSE, POINTS[1]))[1] is None


def test_the_picture_is_a_png_and_the_record_reads_back(tmp_path):
    points, knee = with_verdicts(POINTS)
    sweep = Sweep(checkpoint="net.pt", target="t", over="ratio", accuracy="pgd-20", points=points, knee=knee)
    draw_sweep(sweep, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep


@pytest.mark.parametrize("text", ["ratio=0.5", "ratio=0.5,0.5", "width=1,2", "latency=,20ms"])
def test_what_cannot_be_swept_is_refused(text):
    from click.testing import CliRunner

    from fsrp_edge.cli.sweep import sweep

    outcome = CliRunner().invoke(sweep, [__file__, "--target", "generic-x86", "--over", text])
    assert outcome.exit_code == 2 and "--over" in outcome.output
