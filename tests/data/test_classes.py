import pytest

from fsrp_edge.data.classes import imagenet_wnids, match_classes
from fsrp_edge.errors import BadInputError


def test_wnids_are_the_thousand_in_order():
    wnids = imagenet_wnids()
    assert len(set(wnids)) == 1000 and list(wnids) == sorted(wnids)
    # tench is output 0, tabby 281, toilet tissue 999
    assert (wnids[0], wnids[281], wnids[999]) == ("n01440764", "n02123045", "n15075141")


def test_names_decide_before_order(spec):
    match = match_classes(["Cat", "big_dog"], spec(classes=3, class_names=("big dog", "ship", "cat")))
    assert match.indices == (2, 0) and match.rule == "by name"
    assert match.names == ("big dog", "ship", "cat")


def test_names_are_the_same_however_an_accent_is_written(spec):
    known = ("e\u0301clair", "n\u0303andu", "zebra")  # sorted as a Mac writes them
    names = ["zebra", "\xe9clair", "\xf1andu"]
    match = match_classes(names, spec(classes=3, class_names=known))
    assert match.indices == (2, 0, 1) and match.rule == "by name"
    match = match_classes(names[1:], spec(classes=2, class_names=("n\u0303andu", "e\u0301clair")))
    assert match.indices == (1, 0), "in their order, each class was taken for the other"


def test_some_imagenet_ids_are_enough(spec):
    match = match_classes(["n02123045", "n15075141"], spec(classes=1000))
    assert match.indices == (281, 999) and match.rule == "by ImageNet id"


def test_imagenet_ids_also_where_the_network_knows_other_names(spec):
    names = tuple(f"thing {index}" for index in range(1000))
    assert match_classes(["n01440764"], spec(classes=1000, class_names=names)).indices == (0,)


def test_order_where_counts_agree(spec):
    match = match_classes(["a", "b"], spec(classes=2))
    assert match.indices == (0, 1) and match.names == ("a", "b")


def test_a_synonym_in_its_place_is_no_obstacle(spec):
    match = match_classes(["airplane", "bird", "cat"], spec(classes=3, class_names=("plane", "bird", "cat")))
    assert match.indices == (0, 1, 2)


@pytest.mark.parametrize(
    ("names", "classes", "class_names", "told"),
    [
        (["a", "b", "c"], 10, None, r"3 classes \(a, b, c\), the network has 10.*--classes 3"),
        (["n01440764", "dog"], 1000, None, "2 classes"),
        (["boat", "cat", "dog"], 3, ("cat", "dog", "ship"), r"1 of the data's 3 .*\(boat\)"),
        (["Cat", "cat"], 2, ("cat", "dog"), "same name"),
        (["crane", "tench"], 3, ("crane", "crane", "tench"), r"\(crane\)"),
    ],
)
def test_refusals_say_what_was_seen(spec, names, classes, class_names, told):
    with pytest.raises(BadInputError, match=told):
        match_classes(names, spec(classes=classes, class_names=class_names))
