"""Which class of the network each class of the data is."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fsrp_edge.errors import BadInputError
from fsrp_edge.models.classifier import ModelSpec


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of a data set map to those of a network.

    Args:
        indices: for each class of the data, in the data's order, its index in the network's output.
        names: one name a class of the network, where they are known.
        rule: how they were matched, for the report.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...] | None
    rule: str


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ILSVRC-2012 in the order of an ImageNet network's outputs."""
    # From timm 1.0.31 (Apache-2.0), timm/data/_info/imagenet_synsets.txt.
    return tuple((Path(__file__).parent / "imagenet_wnids.txt").read_text(encoding="ascii").split())


def match_classes(names: Sequence[str], spec: ModelSpec) -> ClassMatch:
    """Match the data's classes to the network's: by name, else as ImageNet ids, else in the given order.

    Args:
        names: one name a class of the data, in the data's own order (sorted, for folders).
        spec: the network; `class_names` and `classes` are used.

    Raises:
        BadInputError: only some names match, or no rule fits because the counts differ.
    """
    if spec.class_names is not None:
        known = _by_name(names, spec.class_names)
        if known is not None:
            return ClassMatch(known, spec.class_names, "by name")
    if spec.classes == 1000 and set(names) <= set(imagenet_wnids()):
        wnids = imagenet_wnids()
        return ClassMatch(tuple(wnids.index(name) for name in names), wnids, "by ImageNet id")
    if len(names) == spec.classes:
        return ClassMatch(tuple(range(len(names))), tuple(names), "in their order")
    own = f" ({_listed(spec.class_names)})" if spec.class_names else ""
    raise BadInputError(
        f"the data has {len(names)} classes ({_listed(names)}), the network has {spec.classes}{own}. Allowed: the "
        "same number of classes, names that are all among the network's, or ImageNet ids such as n01440764 for a "
        f"1,000-class network. Use the data the network was trained for, or train one with --classes {len(names)}."
    )


def _by_name(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
    """Index of each name in `known`; None where names do not decide."""
    plain = [_plain(name) for name in known]
    # ImageNet calls two classes "crane" and two "maillot": such a name says nothing.
    twice = {name for name, count in Counter(plain).items() if count > 1}
    index = {name: position for position, name in enumerate(plain) if name not in twice}
    strangers = [name for name in names if _plain(name) not in index]
    if len(strangers) == len(names):
        return None
    in_place = (index.get(_plain(name), position) == position for position, name in enumerate(names))
    if strangers and len(names) == len(known) and all(in_place):
        return None  # the same classes in the same order, some under a synonym
    if strangers:
        raise BadInputError(
            f"{len(strangers)} of the data's {len(names)} classes are not among the network's "
            f"({_listed(strangers)}), the others are. Rename or remove them; the network knows "
            f"{_listed(known)}"
        )
    matched = tuple(index[_plain(name)] for name in names)
    if len(set(matched)) < len(matched):
        raise BadInputError(f"two classes of the data have the same name but for case or punctuation: {_listed(names)}")
    return matched


def _plain(name: str) -> str:
    """Without what writing it down again may change; a Mac writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", name).casefold().replace("_", " ").replace("-", " ").strip()


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = ", …" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
