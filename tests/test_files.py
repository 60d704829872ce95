from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrp_edge.errors import BadInputError
from fsrp_edge.files import atomic_path, read_json, sha256_file, sha256_json, write_json, write_text

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.onnx"
    with atomic_path(target) as temporary:
        assert temporary.name == "model.onnx" and temporary.parent.parent == target.parent
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_path(tmp_path / "private") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_does_not_take_the_place_of_a_file_nor_a_file_that_of_a_folder(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.ncnn", tmp_path / "b.ncnn"
    file.write_text("old")
    (folder / "in").mkdir(parents=True)
    with (
        pytest.raises(BadInputError, match=r"a\.ncnn is a file, and a folder is to be"),
        atomic_path(file) as temporary,
    ):
        temporary.mkdir()
    with (
        pytest.raises(BadInputError, match=r"b\.ncnn is a folder, and a file is to be"),
        atomic_path(folder) as temporary,
    ):
        temporary.touch()
    assert file.read_text() == "old" and (folder / "in").is_dir()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_where_nobody_may_write_is_bad_input() -> None:
    for path in (Path("/sys/fsrp-edge.json"), Path("/sys/fsrp-edge/new.json")):
        with pytest.raises(BadInputError, match=f"^{path} can't be written: .*; name another place, as with --out"):
            write_text(path, "")


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == "old"


@given(values)
def test_the_digest_depends_on_content_not_on_order(value: object) -> None:
    other = dict(reversed(value.items())) if isinstance(value, dict) else value
    assert sha256_json(value) == sha256_json(other)
    assert sha256_json([value]) != sha256_json([value, None])


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe ✓"})
    assert read_json(tmp_path / "a.json") == {"name": "Größe ✓"}
    write_text(tmp_path / "a.txt", "abc")
    assert sha256_file(tmp_path / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_that_cannot_be_read_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "number.json").write_text('{"loss": NaN}')
    with pytest.raises(BadInputError, match="is not valid JSON: it has no NaN"):
        read_json(tmp_path / "number.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(BadInputError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")
