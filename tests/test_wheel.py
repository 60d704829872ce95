"""The package as it is installed, away from its checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout, unpacked into a folder for PYTHONPATH."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("fsrp_edge-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_everything_that_is_read_at_run_time_is_in_the_wheel(installed: Path) -> None:
    package = installed / "fsrp_edge"
    profiles = {path.name for path in (ROOT / "profiles").glob("*.yaml")}
    assert {path.name for path in (package / "profiles").glob("*.yaml")} == profiles and len(profiles) >= 5
    tracked = subprocess.run(["git", "ls-files", "fsrp_edge"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in (*tracked.stdout.split(), "fsrp_edge/py.typed", "fsrp_edge/bench/agent.py"):
        assert (installed / name).is_file(), name
    assert not (installed / "tests").exists() and not (installed / "benchmarks").exists()
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    assert "fsrp-edge = fsrp_edge.cli:main" in entry_points.read_text()


def test_the_installed_package_finds_its_profiles_templates_and_classes(installed: Path, tmp_path: Path) -> None:
    program = (
        "import sys, fsrp_edge; from pathlib import Path\n"
        "from fsrp_edge.cli import cli; from fsrp_edge.cli.errors import run\n"
        "from fsrp_edge.data.classes import imagenet_wnids\n"
        "from jinja2 import Environment, PackageLoader\n"
        "assert Path(fsrp_edge.__file__).is_relative_to(sys.argv[1]), fsrp_edge.__file__\n"
        "assert len(imagenet_wnids()) == 1000\n"
        "Environment(loader=PackageLoader('fsrp_edge.report')).get_template('report.md.j2')\n"
        "sys.exit(run(cli, ['targets', 'list']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(installed)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "jetson-nano" in done.stdout
