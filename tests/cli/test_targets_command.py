import json

import pytest
from click.testing import CliRunner

from fsrp_edge.cli.targets import targets
from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.load import load_target, target_names


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FSRP_EDGE_PROFILES", str(tmp_path / "own"))
    return tmp_path / "own"


def run(*arguments: str) -> str:
    return CliRunner().invoke(targets, arguments, catch_exceptions=False).output


def test_new_writes_a_profile_that_list_and_show_know(own_folder):
    assert f"wrote {own_folder / 'my-board.yaml'}" in run("new", "my-board")
    listed = {row["name"]: row["from"] for row in json.loads(run("list", "--json"))}
    assert listed["my-board"] == "own"
    assert listed["jetson-nano@5W"] == "packaged"
    assert set(target_names()) < listed.keys()
    assert json.loads(run("show", "my-board", "--json"))["name"] == "my-board"
    assert "valid profile of my-board" in run("validate", str(own_folder / "my-board.yaml"))


def test_new_refuses_to_overwrite_and_names_that_are_none(own_folder, tmp_path):
    run("new", "my-board")
    before = (own_folder / "my-board.yaml").read_text()
    for arguments, problem in (
        (("new", "my-board"), "not overwritten"),
        (("new", "My_Board"), "not a name such as my-board"),
        (("new", "jetson-nano"), "packaged"),
        (("new", "other", "--out", str(tmp_path / "other.txt")), "does not end in .yaml"),
    ):
        with pytest.raises(BadInputError, match=problem):
            run(*arguments)
    assert (own_folder / "my-board.yaml").read_text() == before
    assert [path.name for path in own_folder.iterdir()] == ["my-board.yaml"]


def test_a_broken_profile_of_ones_own_does_not_hide_the_others(own_folder):
    own_folder.mkdir()
    (own_folder / "broken.yaml").write_text("name: broken\n")
    result = CliRunner().invoke(targets, ["list", "--json"], catch_exceptions=False)
    assert {row["name"] for row in json.loads(result.stdout)} >= set(target_names())
    assert "not listed: " in result.stderr and "broken.yaml, line 1" in result.stderr


def test_show_names_values_choices_files_and_sources():
    output = run("show", "jetson-nano@5W")
    for part in ("GPU clock, GHz", "0.64", "the Maxwell GPU has no int8", "nvpmodel_t210_jetson-nano.conf"):
        assert part in output


def test_validate_counts_the_variants(own_folder, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndescription: d\nextends: raspberry-pi-4\nvariants: {hot: {description: hot}}\n")
    assert "with mine@hot" in run("validate", str(path))
    assert load_target(f"{path}@hot").description == "hot"
