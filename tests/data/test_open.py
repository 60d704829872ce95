import pytest

from fsrp_edge.data.open import open_dataset
from fsrp_edge.errors import BadInputError


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is an empty folder"),
        (lambda path: path.write_text("x"), r"is a file, but not \.npz"),
        (lambda path: path.symlink_to(path), "does not exist|cannot be read"),
    ],
)
def test_unknown_sources_are_told_what_is_allowed(tmp_path, spec, make, told):
    path = tmp_path / "source"
    make(path)
    with pytest.raises(BadInputError, match=told) as refused:
        open_dataset(path, spec(), seed=0)
    message = str(refused.value)
    assert "\n" not in message and str(path) in message
    assert "cannot be read" in message or all(
        word in message for word in ("digits", "photographs", "train/", "cifar-10-batches-bin", ".npz")
    )


def test_no_source(spec):
    with pytest.raises(BadInputError, match="no data was named; allowed: digits or photographs"):
        open_dataset("", spec(), seed=0)


def test_images_without_class_folders(tmp_path, spec):
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"a folder without class folders \(0\.png, .*, …\)"):
        open_dataset(tmp_path, spec(), seed=0)


def test_a_folder_of_an_embedded_set_s_name(tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    with pytest.raises(BadInputError, match="is an empty folder"):
        open_dataset("./digits", spec(), seed=0)


def test_a_home_that_does_not_exist_is_refused(spec):
    with pytest.raises(BadInputError, match="cannot be read"):
        open_dataset("~nobody-of-this-name/x", spec((3, 8, 8)), seed=0)
