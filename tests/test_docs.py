"""The documentation: its commands exist, its links lead somewhere, its site builds; test_docs_run.py runs it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fsrp_edge.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NOTES = [ROOT / "ARCHITECTURE.md", ROOT / "benchmarks" / "README.md"]
"""Pages whose code blocks nobody is told to run."""
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, file name, text) of every code block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    """Those of its code blocks, and those that stand in its text and tables."""
    lines = (line for _, _, text in blocks(page) for line in text.splitlines())
    inline = re.findall(r"`(fsrp-edge [^`]+)`", page.read_text(encoding="utf-8"))
    return [*(line for line in lines if line.startswith("fsrp-edge ")), *(" ".join(each.split()) for each in inline)]


def parse(line: str) -> None:
    """Raises what click says of a command with options that there are not."""
    command: click.Command = cli
    words = shlex.split(line, comments=True)[1:]
    context = click.Context(command, info_name="fsrp-edge")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None and name is not None, line
        command, context = found, click.Context(found, parent=context, info_name=name)
        if isinstance(command, click.Group) and name == "bench" and words[0] not in command.commands:
            words = ["measure", *words]  # its default
    command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_has_these_options(page: Path) -> None:
    for line in commands(page):
        parse(line)


@pytest.mark.parametrize("line", ["bench m.onnx --devise pi", "bench compare a --out b", "report run --jsn"])
def test_a_mistyped_option_is_seen(line: str) -> None:
    with pytest.raises(click.NoSuchOption):
        parse(f"fsrp-edge {line}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page: Path) -> None:
    for language, _, text in blocks(page):
        if language == "python":
            compile(text, str(page), "exec")


def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "commands" / "index.html").read_text()
    assert "--max-regression" in commands and "Sentinel" not in commands
    assert "CompressOptions" in (tmp_path / "api" / "index.html").read_text()
