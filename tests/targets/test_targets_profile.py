import copy
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from fsrp_edge.export.artifact import Format, Precision
from fsrp_edge.targets.load import load_target, target_names
from fsrp_edge.targets.profile import Sourced, Target, profile_json_schema

PROFILES = Path(__file__).parents[2] / "profiles"


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


@pytest.mark.parametrize("name", target_names())
class TestPackagedProfile:
    def test_is_named_like_its_file(self, name):
        assert load_target(name).name == name

    def test_every_hardware_value_names_a_published_source(self, name):
        target = load_target(name)
        for sourced in sourced_values(target):
            source = target.sources[sourced.source]
            assert source.startswith("https://") or " of " in source, source

    def test_offers_hold_each_pair_once_with_a_reason(self, name):
        offers = load_target(name).offers
        pairs = [(offer.format, offer.precision) for offer in offers]
        assert pairs == [
            (format_, precision) for format_ in get_args(Format) for precision in get_args(Precision)
        ]
        assert all(offer.reason for offer in offers)
        assert all(offer.offered for offer in offers if offer.default)

    def test_fulfils_the_published_schema(self, name):
        jsonschema.validate(plain(name), profile_json_schema())

    def test_survives_its_own_json(self, name):
        target = load_target(name)
        again = Target.model_validate_json(target.model_dump_json())
        assert again == target
        assert again.digest == target.digest


def test_the_first_five_devices_are_there():
    expected = {"raspberry-pi-4", "raspberry-pi-5", "jetson-nano", "jetson-orin-nano", "generic-x86"}
    assert expected <= set(target_names())


def test_jetson_nano_is_held_to_tensorrt_8_2_and_spared_int8():
    target = load_target("jetson-nano")
    assert target.onnx_opset == 13
    assert target.onnx_ir_version == 7
    refused = {(offer.format, offer.precision) for offer in target.offers if not offer.offered}
    assert refused == {("onnx", "int8")}


def test_x86_multiplies_uint8_by_int8_and_arm_int8_by_int8():
    assert load_target("generic-x86").int8_activation == "uint8"
    assert load_target("raspberry-pi-4").int8_activation == "int8"


def test_a_target_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_target("generic-x86").name = "other"


def test_digest_tells_two_contents_apart():
    content = plain("raspberry-pi-4")
    changed = copy.deepcopy(content)
    changed["choices"]["threads"]["value"] = 2
    target, other = (Target.model_validate(data, strict=False) for data in (content, changed))
    assert target.digest == load_target("raspberry-pi-4").digest
    assert other.digest != target.digest


def test_schema_refuses_unknown_keys_as_the_loader_does():
    content = plain("raspberry-pi-4") | {"colour": "green"}
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(content, profile_json_schema())
