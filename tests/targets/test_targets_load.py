import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.document import MAX_BYTES
from fsrp_edge.targets.load import load_target, load_variants, own_target_names, target_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "profiles" / "jetson-nano.yaml").read_text(encoding="utf-8")


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


@pytest.fixture
def write(tmp_path):
    def writer(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return writer


def test_a_path_and_a_name_give_the_same_target():
    assert load_target(str(ROOT / "profiles" / "jetson-nano.yaml")) == load_target("jetson-nano")


def test_unknown_name_lists_the_nearest():
    with pytest.raises(BadInputError, match=r"unknown target 'jetson-nan'; did you mean jetson-nano"):
        load_target("jetson-nan")


BAD_EDITS = {
    "unknown key": ("    cores:", "    core:", ["unknown key 'core'", "did you mean cores", "clock_ghz"]),
    "unknown key at the top": ("thermal:", "termal:", ["unknown key 'termal'", "did you mean thermal"]),
    "text for a number": ("value: 472,", "value: fast,", ['saw "fast"', "valid number"]),
    "number in quotes": ("value: 472,", 'value: "472",', ['saw "472"', "valid number"]),
    "yes for a number": (
        "{value: 8, reason: TensorRT packs",
        "{value: yes, reason: TensorRT packs",
        ["saw true"],
    ),
    "not a number": ("value: 472,", "value: .nan,", ["finite number"]),
    "no cores": ("cores: {value: 4,", "cores: {value: 0,", ["saw 0", "greater than or equal to 1"]),
    "impossible clock": ("value: 1.479", "value: 1479", ["saw 1479", "less than or equal to 8"]),
    "unknown runtime": ("- name: litert", "- name: litertt", ['saw "litertt"', "'onnxruntime', 'litert'"]),
    "unknown status": ("{status: refused,", "{status: no,", ["saw false", "'refused'"]),
    "unknown source": (
        "value: 25.6, source: data-sheet",
        "value: 25.6, source: data-shee",
        ["'data-shee' is not a key"],
    ),
    "source nobody uses": (
        "  torch2trt: https",
        "  spare: https://a.b\n  torch2trt: https",
        ["no value uses the source"],
    ),
    "opset beyond the runtime": (
        "  onnx_opset: {value: 13,",
        "  onnx_opset: {value: 17,",
        ["newer than tensorrt", "at most 13"],
    ),
    "more threads than cores": ("threads: {value: 4,", "threads: {value: 5,", ["5 threads on 4 cores"]),
    "useless default": ("    int8: {status: refused,", "    int8: {status: default,", ["calls int8 useless"]),
    "no source": ("value: 25.6, source: data-sheet", "value: 25.6", ["'source' is missing"]),
    "bad name": ("name: jetson-nano", "name: Jetson Nano", ['saw "Jetson Nano"', "pattern"]),
    "twice the same key": (
        "description:",
        "name: again\ndescription:",
        ["'name' stands twice", "first in line 2"],
    ),
    "alias": ("soc: {", "soc: *a\nold: {", ["aliases are not allowed"]),
    "broken YAML": ("soc: {", "soc: {{", ["not valid YAML"]),
    "a list for a mapping": (
        "thermal:",
        "memory2: []\nthermal:",
        ["unknown key 'memory2'", "did you mean memory"],
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), BAD_EDITS.values(), ids=BAD_EDITS)
def test_bad_edit_is_refused_with_its_line(write, old, new, expected):
    text = TEXT.replace(old, new, 1)
    assert text != TEXT
    marker = new if "again" not in new else "name: again"
    with pytest.raises(BadInputError) as caught:
        load_target(write(text))
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message
    if "broken" not in new and "{{" not in new:
        assert f"mine.yaml, line {line_of(text, marker)}:" in message


def test_int8_onnx_is_not_offered_in_an_opset_that_cannot_write_it(write):
    older = TEXT.replace("onnx_opset: {value: 13,", "onnx_opset: {value: 12,")
    load_target(write(older))  # int8 is refused there
    with pytest.raises(BadInputError, match=r"onnx\.int8\.status: int8 needs onnx_opset 13 or newer, not 12"):
        load_target(write(older.replace("    int8: {status: refused,", "    int8: {status: offered,", 1)))


def test_missing_section_is_named(write):
    text = TEXT[: TEXT.index("artifacts:")] + TEXT[TEXT.index("thermal:") :]
    with pytest.raises(BadInputError, match="the key 'artifacts' is missing"):
        load_target(write(text))


BAD_FILES = {
    "empty": ("", "line 1: a profile is a mapping"),
    "a list": ("- a\n- b\n", "line 1: a profile is a mapping"),
    "python object": ("name: !!python/object/apply:os.system [echo]\n", "line 1: tags such as"),
    "tag of no number": (
        "name: x\ncpu: !!int ''\n",
        "line 2: tags such as !!int are not allowed; write the value alone",
    ),
    "tag of no answer": ("name: !!bool x\n", "line 1: tags"),
    "tag of no date": ("name: !!timestamp foo\n", "line 1: tags"),
    "tag of no mapping": ("name: !!map [a]\n", "line 1: tags"),
    "tag of a key": ("!!int '': x\n", "line 1: tags"),
    "complex key": ("? [a, b]\n: c\n", "line 1: a key must be a word"),
    "two documents": ("a: 1\n---\nb: 2\n", "not valid YAML"),
    "too deep": ("a: " + "[" * 20_000 + "]" * 20_000, "line 1: nested more than 20 deep"),
    "too large": ("a: " + "x" * MAX_BYTES, "larger than 64 KB"),
    "variants alone": (
        "variants:\n  slow:\n    description: slow\n",
        "line 1: a profile needs values of its own",
    ),
    "control character": ("a: \x00\n", "not valid YAML"),
    "impossible date": ("name: 2024-13-45\n", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_refused(write, text, expected):
    with pytest.raises(BadInputError, match=expected) as caught:
        load_target(write(text))
    assert "\n" not in str(caught.value)


def test_alias_bomb_is_refused_at_once(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(BadInputError, match="line 2: aliases are not allowed"):
        load_target(write("\n".join(lines)))


def test_missing_file_and_bytes_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="no such file"):
        load_target(str(tmp_path / "none.yaml"))
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInputError, match="not UTF-8"):
        load_target(str(path))
    with pytest.raises(BadInputError, match="cannot read"):
        (tmp_path / "folder.yaml").mkdir()
        load_target(str(tmp_path / "folder.yaml"))


VARIANT = """\
name: mine
description: my board
extends: jetson-nano
sources: {me: https://example.org/me}
cpu:
  - {name: Cortex-A57, clock_ghz: {value: 1.2, source: me}}
variants:
  slow:
    description: my board, slow
    cpu: [{name: Cortex-A57, cores: {value: 2, source: me}}]
    choices: {threads: {value: 2, reason: two cores are on}}
"""


def test_a_variant_changes_what_it_names_and_nothing_else(write):
    base, slow = load_variants(write(VARIANT))
    assert (base.name, slow.name) == ("mine", "mine@slow")
    assert (base.threads, slow.threads) == (4, 2)
    assert slow.cpu[0].cores.value == 2
    assert slow.cpu[0].clock_ghz == base.cpu[0].clock_ghz
    assert slow.cpu[0].caches == base.cpu[0].caches
    assert slow.digest != base.digest
    assert load_target(write(VARIANT) + "@slow") == slow


def test_an_extending_profile_inherits_the_rest_and_leaves_unused_sources_behind(write):
    mine, nano = load_target(write(VARIANT)), load_target("jetson-nano")
    assert mine.accelerators == nano.accelerators
    assert mine.cpu[0].clock_ghz.value == 1.2
    # A note speaks of one value, so a new value does not keep it.
    assert mine.cpu[0].clock_ghz.note is None
    assert mine.sources.keys() == nano.sources.keys() - {"lscpu"} | {"me"}
    assert [target.name for target in load_variants(write(VARIANT))] == ["mine", "mine@slow"]


def test_a_profile_extends_a_variant_or_a_file_beside_it(write, tmp_path):
    assert load_target(write(VARIANT.replace(": jetson-nano\n", ": jetson-nano@5W\n"))).cpu[0].cores.value == 2
    (tmp_path / "other.yaml").write_text(VARIANT.replace("name: mine", "name: other"), encoding="utf-8")
    child = "name: child\ndescription: a child\nextends: other.yaml@slow\n"
    assert load_target(write(child)).threads == 2


def test_a_path_may_hold_an_at_sign(write, tmp_path):
    folder = tmp_path / "board@home"
    folder.mkdir()
    (folder / "other.yaml").write_text(VARIANT.replace("name: mine", "name: other"), encoding="utf-8")
    child = "name: child\ndescription: a child\nextends: board@home/other.yaml"
    assert load_target(write(child)).threads != load_target(write(child + "@slow")).threads == 2


BAD_VARIANTS = {
    "unknown key": (
        "choices: {threads",
        "choises: {threads",
        ["unknown key 'choises'", "did you mean choices"],
    ),
    "impossible value": ("cores: {value: 2", "cores: {value: 0", ["cpu.0.cores.value: saw 0"]),
    "contradiction": ("threads: {value: 2", "threads: {value: 3", ["3 threads on 2 cores"]),
    "unknown source": (
        "cores: {value: 2, source: me",
        "cores: {value: 2, source: you",
        ["'you' is not a key"],
    ),
    "bad name": ("  slow:", "  s low:", ["'s low' may hold"]),
    "name in a variant": ("description: my board, slow", "name: x", ["cannot change 'name'"]),
    "no mapping": ("variants:\n", "variants: [a]\ncpu2:\n", ["variants: a mapping of names"]),
    "extends nothing": (
        "extends: jetson-nano",
        "extends: jetson-nan",
        ["unknown target", "did you mean jetson-nano"],
    ),
    "extends itself": ("extends: jetson-nano", "extends: mine.yaml", ["comes back to this file"]),
    "extends a list": ("extends: jetson-nano", "extends: [a]", ["write the name or the path"]),
    "extends no variant": (
        "extends: jetson-nano",
        "extends: jetson-nano@9W",
        ["jetson-nano has no variant '9W'", "5W"],
    ),
    "extends what has no variants": (
        "extends: jetson-nano",
        "extends: coral-usb@9W",
        ["saw 'coral-usb@9W', but coral-usb has no variants; write `extends: coral-usb`"],
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), BAD_VARIANTS.values(), ids=BAD_VARIANTS)
def test_bad_variant_or_base_is_refused_with_its_line(write, old, new, expected):
    text = VARIANT.replace(old, new, 1)
    assert text != VARIANT
    with pytest.raises(BadInputError) as caught:
        load_target(write(text))
    message = str(caught.value)
    assert "\n" not in message
    assert f"mine.yaml, line {line_of(text, new)}:" in message
    for part in expected:
        assert part in message


def test_a_mistake_in_the_extended_file_is_placed_there(write, tmp_path):
    other = VARIANT.replace("clock_ghz: {value: 1.2", "clock_ghz: {value: 1200")
    (tmp_path / "other.yaml").write_text(other, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"other\.yaml, line 6: cpu\.0\.clock_ghz\.value: saw 1200"):
        load_target(write("name: child\ndescription: a child\nextends: other.yaml\n"))


def test_unknown_variant_lists_those_there_are():
    with pytest.raises(BadInputError, match=r"unknown variant 'jetson-nano@6W'; did you mean jetson-nano@5W"):
        load_target("jetson-nano@6W")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FSRP_EDGE_PROFILES", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def test_own_profiles_are_found_by_name(own_folder):
    (own_folder / "mine.yaml").write_text(VARIANT, encoding="utf-8")
    assert own_target_names() == ("mine",)
    assert load_target("mine@slow").threads == 2
    with pytest.raises(BadInputError, match="did you mean mine"):
        load_target("mien")


def test_an_own_profile_has_its_file_name_and_no_packaged_one(own_folder):
    (own_folder / "other.yaml").write_text(VARIANT, encoding="utf-8")
    with pytest.raises(BadInputError, match="has the name 'mine' inside"):
        load_target("other")
    (own_folder / "jetson-nano.yaml").write_text(VARIANT, encoding="utf-8")
    with pytest.raises(BadInputError, match="name of a packaged profile"):
        load_target("jetson-nano")


def test_no_own_folder_is_no_own_profile():
    assert own_target_names() == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_ends_in_a_target_or_one_clear_line(write, data):
    start = data.draw(st.integers(0, len(TEXT) - 1))
    length = data.draw(st.integers(0, 40))
    text = TEXT[:start] + data.draw(st.text(max_size=12)) + TEXT[start + length :]
    try:
        target = load_target(write(text.encode("utf-8", "replace").decode()))
    except BadInputError as error:
        assert "\n" not in str(error)
    else:
        assert len(target.offers) == len(load_target("generic-x86").offers)


def test_profiles_are_found_inside_an_installed_package(tmp_path):
    shutil.copytree(ROOT / "fsrp_edge", tmp_path / "fsrp_edge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "profiles", tmp_path / "fsrp_edge" / "profiles")
    code = "from fsrp_edge.targets.load import target_names; print(*target_names())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == target_names()
