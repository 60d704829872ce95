"""report.html: what stands in it, and how it looks in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsrp_edge.bench.results import BenchResults, Measurement, Round, State
from fsrp_edge.report import evidence, figures
from fsrp_edge.report.evidence import Evidence, Pictured
from fsrp_edge.report.gates import judge
from fsrp_edge.report.html import render_html, render_runs
from fsrp_edge.report.schema import RunReport
from fsrp_edge.report.store import write_renderings
from fsrp_edge.report.sweep import SideBySide, dense_point, point_of
from fsrp_edge.scoring.scores import FilterScores, LayerScores
from tests.conftest import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IDLE = State(governor=None, clock_mhz=None, temperatures_c={}, throttled=None, load_1m=None, free_memory_mb=None)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with everything that pictures are drawn from."""
    run_report, tmp_path = make_report(), tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    accuracy = run_report.ledger[0].accuracies[1]
    spectra = evidence.Spectra(
        layer="layer1.<b>&$x$",
        filters=(3, 1, 0, 2),
        scores=(0.5, 0.7, 3, 4),
        radius=0.25,
        region="disk",
    )
    found = Evidence(
        curve=tuple(
            evidence.CurvePoint(network=network, eps=eps, accuracy=accuracy)
            for network in ("dense", "recovered")
            for eps in (0.0, 4 / 255, 8 / 255)
        ),
        classes=tuple(
            evidence.ClassCounts(label=label, images=20, dense=18 - label, recovered=10 + label) for label in range(4)
        ),
        spectra=(spectra,),
        breakdown=evidence.Breakdown(
            file="model.onnx",
            basis="9 measurements",
            runtime="ncnn",
            milliseconds=4.0,
            operators=(evidence.OperatorShare(name="/conv1/Conv", kind="winograd", milliseconds=3.0),),
        ),
        examples=(evidence.Example(label=0, clean=0, adversarial=3),),
        example_eps=8 / 255,
    )
    arrays = {
        "spectra/layer1.<b>&$x$": generator.random((4, 8, 8)).astype(np.float32),
        "examples/clean": generator.random((1, 3, 16, 16)).astype(np.float16),
        "examples/adversarial": generator.random((1, 3, 16, 16)).astype(np.float16),
    }
    Pictured(found, arrays).save(tmp_path)
    FilterScores(
        criterion="fsrp", options={}, architecture="x", model_sha256="0" * 64, data_sha256=None, images=8, seed=0,
        layers={"conv1": LayerScores(scores=(0.1, 2.0, 3.0))},
    ).save(tmp_path / "scores.json")  # fmt: skip
    times = tuple((1 + generator.random(50)).tolist())
    part = Round(
        warmup_ms=(),
        times_ms=times,
        before=IDLE,
        during=(),
        after=IDLE,
        foreign_cores=None,
        peak_memory_mb=None,
    )
    latency = run_report.ledger[-1].latency[0]
    measured = Measurement(address="local", latency=latency, rounds=(part,))
    results = BenchResults(fsrp_edge="0", measurements=(measured,))
    (tmp_path / "bench.json").write_text(results.model_dump_json())
    gates = judge(run_report, ["size<=1MB", "robust_accuracy>=40%"])
    write_renderings(run_report.model_copy(update={"gates": gates}), tmp_path)
    return tmp_path


class Page(HTMLParser):
    """The text, the tags with their attributes, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_page_is_whole_and_leads_with_the_verdict(directory: Path) -> None:
    page = Page((directory / "report.html").read_text(encoding="utf-8"))
    assert page.open == [] and page.count("h1") == 1
    text = " ".join(" ".join(page.text).split())
    assert "✗ 1 of 2 gates passed; parity: 2 of 2 files compute what the network computes" in text
    assert text.index("gates passed") < text.index("From dense to shipped") < text.index("Provenance")
    assert "robust_accuracy>=40% : recovered, PGD-20 L∞ 8/255: 42.1 % (39.1 % to 45.2 %); at least 40.0 %" in text


def test_every_picture_has_words(directory: Path) -> None:
    page = Page((directory / "report.html").read_text(encoding="utf-8"))
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 7
    for attributes in pictures:
        assert attributes["role"] == "img" and len(attributes["aria-label"] or "") > 30
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert page.count("figcaption") == 7 and page.count("img") == 3


@pytest.mark.parametrize(
    ("recovered", "begins", "figures_of_it"),
    [((18, 9), "Most was lost on", "50 % → 45 %"), ((19, 13), "No class has lost; least was gained on", "90 % → 95 %")],
)
def test_the_class_that_changed_for_the_worst_is_named(
    run_report: RunReport, recovered: tuple[int, int], begins: str, figures_of_it: str
) -> None:
    counts = tuple(
        evidence.ClassCounts(label=label, images=20, dense=dense, recovered=recovered[label])
        for label, dense in enumerate((18, 10))
    )
    text = figures.classes(run_report, Pictured(Evidence(classes=counts), {})).text
    assert text.startswith(begins) and text.endswith(f"{figures_of_it} of 20 images.")


def test_the_page_needs_nothing_from_outside_and_follows_the_colour_scheme(directory: Path) -> None:
    html = (directory / "report.html").read_text(encoding="utf-8")
    outside = re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|url\((?!#|data:)[^)]*\)|<script|@import', html)
    assert outside == []
    assert "var(--ink)" in html and not re.search(r"#(1f2328|818b98|0969da)", html.partition("</style>")[2])
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text(directory: Path) -> None:
    html = (directory / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<b>&" not in html and "\x1b" not in html
    text = " ".join(Page(html).text)
    assert "<script>alert(1)</script>|x|" in text and "layer1.<b>&$x$" in text


def test_a_report_without_its_run_directory_still_renders(
    run_report: RunReport, agreement_report: RunReport, tmp_path: Path
) -> None:
    assert Page(render_html(run_report)).count("svg") == 1
    assert "agreement with the dense network" in render_html(agreement_report, tmp_path)
    (tmp_path / "evidence.json").write_text("{}")
    (tmp_path / "evidence.npz").write_text("no archive")
    (tmp_path / "bench.json").write_text(BenchResults(fsrp_edge="0", measurements=()).model_dump_json())
    assert Page(render_html(run_report, tmp_path)).count("svg") == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_bad_part_takes_only_its_own_pictures_along(
    directory: Path, run_report: RunReport, tmp_path: Path, content: bytes
) -> None:
    run = Path(shutil.copytree(directory, tmp_path / "run"))
    whole = Page(render_html(run_report, run)).count("svg")
    (run / "bench.json").write_bytes(content)
    assert Page(render_html(run_report, run)).count("svg") == whole - 1
    (run / "evidence.npz").write_bytes(content)
    assert Page(render_html(run_report, run)).count("svg") == 2  # channels and scores


def test_rendering_again_gives_the_same_page(directory: Path, run_report: RunReport) -> None:
    assert render_html(run_report, directory) == render_html(run_report, directory)


MEASURE = """<!doctype html><iframe id="f" src="{page}" width="{width}" height="30000" style="border:0"></iframe>
<pre id="found"></pre><script>
document.getElementById("f").onload = function () {{
  const page = this.contentDocument, late = [];
  for (const each of page.querySelectorAll("body *")) {{
    const box = each.getBoundingClientRect();
    const apart = each.closest("svg svg, defs, thead, .wide table");
    if (box.width && !apart && (box.right > {width} + 0.5 || box.left < -0.5))
      late.push(each.tagName + " " + box.right);
  }}
  document.getElementById("found").textContent = JSON.stringify({{
    cut: late.slice(0, 9), wide: page.documentElement.scrollWidth, headings: page.querySelectorAll("h2").length,
    broken: [...page.images].filter(image => !image.naturalWidth).length,
  }});
}};</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize(("page", "headings"), [("report.html", 7), ("runs.html", 2)])
def test_nothing_is_cut_off_in_a_browser(
    directory: Path, run_report: RunReport, page: str, headings: int, width: int, tmp_path: Path
) -> None:
    name = "latency=50%, a run with a long name"
    both = SideBySide.of("pgd-20", [dense_point(run_report), point_of(name, "a", run_report)])
    runs = render_runs("net → board: sweep", both, dict.fromkeys("abcdef", run_report), [name])
    (directory / "runs.html").write_text(runs)
    (directory / "measure.html").write_text(MEASURE.format(page=page, width=width))
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--enable-logging=stderr", "--window-size=1600,1000", "--virtual-time-budget=5000",
            f"--user-data-dir={tmp_path}", "--dump-dom", (directory / "measure.html").as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout)[1])  # type: ignore[index]
    assert found == {"cut": [], "wide": width, "headings": headings, "broken": 0}
