import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan, format_channels, parse_channels


def plan(**group: object) -> PruningPlan:
    values = {"root": "conv", "layers": ("conv",), "channels": 8, "kept": (0, 1, 2, 5)} | group
    return PruningPlan(
        architecture="tests:net",
        model_sha256="0" * 64,
        criterion="fsrp",
        scores_sha256="1" * 64,
        ratio=0.5,
        channel_multiple=4,
        groups=(GroupPlan.model_validate(values),),
    )


@given(st.sets(st.integers(0, 3000)))
def test_channels_survive_being_written(channels: set[int]) -> None:
    ascending = tuple(sorted(channels))
    assert parse_channels(format_channels(ascending)) == ascending


@given(st.sets(st.integers(0, 200), min_size=1))
def test_runs_are_as_few_as_can_be(channels: set[int]) -> None:
    starts = sum(channel - 1 not in channels for channel in channels)
    assert len(format_channels(tuple(sorted(channels))).split()) == starts


def test_runs_read_as_people_write_them() -> None:
    assert format_channels((0, 1, 2, 5)) == "0-2 5"
    assert parse_channels("0-2  5 ") == (0, 1, 2, 5)
    assert parse_channels("") == ()


@pytest.mark.parametrize("text", ["5-2", "-1", "1-", "a", "1,2", "0x4", "1--2", "٣", "1_0", "0-99999999999999"])
def test_runs_that_mean_nothing_are_refused_at_once(text: str) -> None:
    with pytest.raises(ValidationError, match="neither a channel"):
        plan(kept=text)


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ("0-2 2", "must ascend without repeats"),
        ("3 1", "must ascend without repeats"),
        ([2, 1], "must ascend without repeats"),
        ([-1, 2], "-1 to 2; at least one is needed, of 0 to 7"),
        ("0-8", "0 to 8; at least one is needed, of 0 to 7"),
        ("", "are none; at least one is needed"),
    ],
)
def test_channels_that_are_not_there_are_refused(kept: object, reason: str, tmp_path: Path) -> None:
    content = plan().model_dump(mode="json")
    content["groups"][0]["kept"] = kept
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(BadInputError, match=r"is not a pruning plan: groups\.0") as error:
        PruningPlan.load(tmp_path / "plan.json")
    assert reason in str(error.value) and "conv" in str(error.value) and "\n" not in str(error.value)


def test_a_group_that_stands_twice_is_refused() -> None:
    content = plan().model_dump(mode="json")
    content["groups"] *= 2
    with pytest.raises(ValidationError, match="group conv stands more than once"):
        PruningPlan.model_validate(content)


def test_a_plan_comes_back_from_its_file_with_the_same_digest(tmp_path: Path) -> None:
    saved = plan(note="a reason")
    saved.save(tmp_path / "plan.json")
    loaded = PruningPlan.load(tmp_path / "plan.json")
    assert loaded == saved and loaded.digest == saved.digest
    assert json.loads((tmp_path / "plan.json").read_text())["groups"][0]["kept"] == "0-2 5"
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert plan(kept="0-3").digest != saved.digest


def test_other_files_are_refused_in_a_line(tmp_path: Path) -> None:
    for text in ("{}", "3", '{"schema_version": 1, "colour": "red"}'):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(BadInputError, match=r"wrong.json is not a pruning plan: .+") as error:
            PruningPlan.load(tmp_path / "wrong.json")
        assert "\n" not in str(error.value) and "pydantic.dev" not in str(error.value)
