import json
from pathlib import Path, PureWindowsPath

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fsrp_edge.report.schema import RunReport, without_folders

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"


def test_report_fulfils_the_published_schema(run_report: RunReport) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))
    content = json.loads(run_report.model_dump_json())
    validator.validate(content)
    content["ledger"][0]["macs"] = -1
    assert not validator.is_valid(content)


def test_speed_up_is_measured_against_the_dense_file_of_the_same_runtime_and_threads(
    run_report: RunReport,
) -> None:
    found = {(s.name, s.threads): s for s in run_report.speed_ups}
    # tflite int8 has no dense .tflite beside it, so it gets no speed-up.
    assert set(found) == {("onnx fp32", 1), ("onnx fp32", 2)}
    assert found["onnx fp32", 1].latency_ratio == pytest.approx(1.234 / 0.412)
    assert found["onnx fp32", 2].latency_ratio == pytest.approx(0.701 / 0.301)
    assert found["onnx fp32", 1].macs_ratio == pytest.approx(40_813_184 / 10_430_000)
    assert found["onnx fp32", 1].against == "dense onnx fp32"


def test_speed_up_is_against_the_dense_fp32_file(run_report: RunReport) -> None:
    int8 = run_report.ledger[-1]
    fields = dict(run_report)
    del fields["speed_ups"]
    fields["ledger"] = (int8.model_copy(update={"name": "dense tflite fp32"}), int8)
    assert [s.against for s in RunReport(**fields).speed_ups] == ["dense tflite fp32"]


def test_a_report_names_no_folder_of_the_user(run_report: RunReport) -> None:
    text = run_report.model_dump_json()
    assert "/home" not in text and '"ada' not in text
    assert run_report.source.checkpoint == "resnet20_cifar10.th"
    assert run_report.source.model.architecture == "nets.py:resnet20"
    assert run_report.request.options["data"] == "cifar-10-batches-bin"


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=2, max_size=5))
def test_absolute_paths_lose_their_folders_wherever_they_stand(names: list[str]) -> None:
    posix, windows = "/" + "/".join(names), str(PureWindowsPath("C:\\", *names))
    seen = without_folders({"a": [posix, Path(posix)], "b": {"c": windows}, "d": "~/" + "/".join(names)})
    assert seen == {"a": [names[-1]] * 2, "b": {"c": names[-1]}, "d": names[-1]}


def test_other_options_stay_as_they_are() -> None:
    options = {"ratio": 0.5, "data": "data/cifar", "arch": "torchvision:resnet18", "none": None, "flag": True}
    assert without_folders(options) == options


def test_unknown_fields_are_refused(run_report: RunReport) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        RunReport.model_validate(dict(run_report) | {"surprise": 1})


def test_a_wrong_ledger_is_an_error_of_the_ledger(run_report: RunReport) -> None:
    fields = dict(run_report)
    del fields["speed_ups"]
    with pytest.raises(ValidationError, match="ledger"):
        RunReport.model_validate(fields | {"ledger": 3})
