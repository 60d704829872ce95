import copy
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from docs.generated import profile_schema
from fsrp_edge.exporting.artifact import Format, Precision
from fsrp_edge.targets.load import load_target, load_variants, target_names
from fsrp_edge.targets.profile import Sourced, Target

ROOT = Path(__file__).parents[2]
PROFILES = ROOT / "profiles"
PUBLISHED = ROOT / "docs" / "target.schema.json"


def plain(name: str) -> dict:
    return yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))


def sourced_values(node):
    if isinstance(node, Sourced):
        yield node
    elif isinstance(node, BaseModel):
        for field in type(node).model_fields:
            yield from sourced_values(getattr(node, field))
    elif isinstance(node, dict):
        for child in node.values():
            yield from sourced_values(child)
    elif isinstance(node, tuple):
        for child in node:
            yield from sourced_values(child)


PACKAGED = {target.name: target for name in target_names() for target in load_variants(name)}


@pytest.mark.parametrize("name", target_names())
class TestPackagedFile:
    def test_is_named_like_its_file(self, name):
        assert load_target(name).name == name

    def test_fulfils_the_published_schema(self, name):
        jsonschema.validate(plain(name), profile_schema())

    def test_tells_editors_where_the_schema_is(self, name):
        first = (PROFILES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")
        assert (PROFILES / first.partition("=")[2]).resolve() == PUBLISHED.resolve()

    def test_has_no_two_variants_of_one_content(self, name):
        digests = [target.model_copy(update={"name": name}).digest for target in load_variants(name)]
        assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("name", PACKAGED)
class TestPackagedProfile:
    def test_every_hardware_value_names_a_published_source(self, name):
        target = PACKAGED[name]
        for sourced in sourced_values(target):
            source = target.sources[sourced.source]
            assert "https://" in source or "http://" in source or " of " in source, source

    def test_offers_hold_each_pair_once_with_a_reason(self, name):
        offers = PACKAGED[name].offers
        pairs = [(offer.format, offer.precision) for offer in offers]
        assert pairs == [(format_, precision) for format_ in get_args(Format) for precision in get_args(Precision)]
        assert all(offer.reason for offer in offers)
        assert all(offer.offered for offer in offers if offer.default)

    def test_survives_its_own_json(self, name):
        target = PACKAGED[name]
        again = Target.model_validate_json(target.model_dump_json())
        assert again == target
        assert again.digest == target.digest


def test_the_devices_that_were_promised_are_there():
    expected = """
        raspberry-pi-zero-2w raspberry-pi-3b-plus raspberry-pi-4 raspberry-pi-5
        jetson-nano jetson-tx2 jetson-xavier-nx jetson-agx-xavier jetson-orin-nano jetson-agx-orin
        coral-dev-board coral-usb orange-pi-5 rock-5b pixel-3 pixel-4 generic-x86 generic-arm64
    """
    assert set(expected.split()) <= set(target_names())


def test_coral_takes_one_file():
    for name in ("coral-dev-board", "coral-usb"):
        offered = [(offer.format, offer.precision) for offer in load_target(name).offers if offer.offered]
        assert offered == [("tflite", "int8")]


def test_no_int8_file_for_a_gpu_without_int8():
    for name in ("jetson-nano", "jetson-nano@5W", "jetson-tx2", "jetson-tx2@MAXP"):
        target = load_target(name)
        assert target.artifacts.onnx.int8.status == "refused"
        assert not target.precisions.int8.useful


def test_peak_is_cores_times_clock_times_operations():
    cluster = load_target("raspberry-pi-4").cpu[0]
    assert cluster.peak_gops("fp32") == pytest.approx(57.6)
    assert cluster.peak_gops("int8") is None
    assert load_target("raspberry-pi-4@1.5GHz").cpu[0].peak_gops("fp32") == pytest.approx(48)


def test_jetson_nano_is_held_to_tensorrt_8_2_and_spared_int8():
    target = load_target("jetson-nano")
    assert target.choices.onnx_opset.value == 13
    assert target.choices.onnx_ir_version.value == 7
    refused = {(o.format, o.precision) for o in target.offers if not o.offered and o.format != "saved_model"}
    implied = {("onnx", "int8-dynamic"), ("ncnn", "int8"), ("ncnn", "int8-dynamic")}
    assert refused == {("onnx", "int8")} | implied


def test_x86_multiplies_uint8_by_int8_and_arm_int8_by_int8():
    assert load_target("generic-x86").choices.int8_activation.value == "uint8"
    assert load_target("raspberry-pi-4").choices.int8_activation.value == "int8"
    assert [load_target(name).choices.int8_weight_bits.value for name in ("generic-x86", "raspberry-pi-4")] == [7, 8]


def test_a_target_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_target("generic-x86").name = "other"


def test_digest_tells_two_contents_apart():
    content = plain("generic-x86")  # it stands alone
    changed = copy.deepcopy(content)
    changed["choices"]["threads"]["value"] = 2
    target, other = (Target.model_validate(data, strict=False) for data in (content, changed))
    assert target.digest == load_target("generic-x86").digest
    assert other.digest != target.digest


def test_schema_refuses_unknown_keys_as_the_loader_does():
    content = plain("raspberry-pi-4") | {"colour": "green"}
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(content, profile_schema())


def test_schema_lets_variants_and_extending_files_leave_keys_out():
    content = {"name": "mine", "description": "mine", "extends": "raspberry-pi-4"}
    validate = jsonschema.Draft202012Validator(profile_schema()).validate
    validate(content)
    validate(content | {"variants": {"slow": {"memory": {}}}})
    for bad in (
        {"variants": {"slow": {"momory": {}}}},
        {"memory": {"size": 1}},
        {"variants": {"slow": {"name": "x"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate(content | bad)
    del content["extends"]
    with pytest.raises(jsonschema.ValidationError, match="required"):
        validate(content)
