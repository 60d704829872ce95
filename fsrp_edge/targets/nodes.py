"""Profiles as YAML nodes, which remember their file and line until the last moment."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fsrp_edge.errors import BadInputError

Location = tuple[str | int, ...]

MAX_BYTES = 64 * 1024
"""The packaged profiles take about 5 KB; anything far beyond is not a profile."""

MAX_DEPTH = 20

ITEM_NAME = {"cpu": "name", "runtimes": "name", "accelerators": "kind"}
"""Lists whose items are merged where this key has the same value; any other list is replaced."""


def read_document(path: Path) -> yaml.MappingNode:
    """The nodes of a file, none of them built into an object yet.

    Raises:
        BadInputError: no such file, not YAML, not a mapping, a key that stands twice, or a trap.
    """
    text = _text(path)
    with _yaml_errors(path):
        _refuse_traps(path, text)
        loader = yaml.SafeLoader(text)
        loader.name = str(path)  # what the marks of the nodes call the file
        node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        raise BadInputError(f"{path}, line 1: a profile is a mapping of keys such as `name:` to values")
    places(node)
    return node


def construct(path: Path, document: yaml.MappingNode) -> Any:
    """Plain Python values of a document."""
    with _yaml_errors(path):
        return yaml.SafeLoader("").construct_document(document)


def place(node: yaml.Node) -> str:
    """How a message begins that speaks of a node: `FILE, line N:`."""
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}:"


def places(document: yaml.Node) -> dict[Location, yaml.Node]:
    """The node of every key and list item, by its location; refuses keys that stand twice."""
    found: dict[Location, yaml.Node] = {}
    _index(document, (), found)
    return found


def _index(node: yaml.Node, location: Location, found: dict[Location, yaml.Node]) -> None:
    found.setdefault(location, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*location, index), found)
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise BadInputError(f"{place(key)} a key must be a word")
        inner = (*location, key.value)
        if inner in found:
            first = found[inner].start_mark.line + 1
            raise BadInputError(f"{place(key)} the key {key.value!r} stands twice, first in line {first}")
        found[inner] = key
        _index(value, inner, found)


def take(document: yaml.MappingNode, name: str) -> yaml.Node | None:
    """Remove a key from the top of a document and return its value."""
    for number, (key, value) in enumerate(document.value):
        if key.value == name:
            del document.value[number]
            taken: yaml.Node = value
            return taken
    return None


def merged(base: yaml.MappingNode, changes: yaml.MappingNode, *, top: bool = True) -> yaml.MappingNode:
    """Mappings key by key, lists of `ITEM_NAME` item by item; any other value of `changes` replaces that of `base`.

    A mapping with a `value` is replaced as a whole: a source or a note speaks of one value only.
    """
    pairs = {key.value: (key, value) for key, value in base.value}
    for key, new in changes.value:
        value, old = new, pairs.get(key.value, (key, None))[1]
        both = isinstance(old, yaml.MappingNode) and isinstance(new, yaml.MappingNode)
        if both and all(inner.value != "value" for inner, _ in new.value):
            value = merged(old, new, top=False)
        elif top and key.value in ITEM_NAME and isinstance(old, yaml.SequenceNode):
            value = _merged_items(old, new, ITEM_NAME[key.value])
        pairs[key.value] = (key, value)
    return mapping_like(base if top else changes, list(pairs.values()))


def _merged_items(base: yaml.SequenceNode, changes: yaml.Node, identity: str) -> yaml.Node:
    if not isinstance(changes, yaml.SequenceNode):
        return changes
    items = list(base.value)
    names = [_value_of(item, identity) for item in items]
    for change in changes.value:
        name = _value_of(change, identity)
        if name is not None and name in names:
            items[names.index(name)] = merged(items[names.index(name)], change, top=False)
        else:
            items.append(change)
    return yaml.SequenceNode(base.tag, items, changes.start_mark, changes.end_mark)


def _value_of(node: yaml.Node, key: str) -> str | None:
    """The text under `key`, where `node` is a mapping that has it."""
    for inner, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if inner.value == key and isinstance(value, yaml.ScalarNode):
            return str(value.value)
    return None


def without_unused_sources(document: yaml.MappingNode) -> yaml.MappingNode:
    """Drop the sources of values that a merge replaced; the model takes an unused source for a mistake."""
    used = set(_source_texts(document))
    pairs = [
        (key, mapping_like(value, [pair for pair in value.value if pair[0].value in used]))
        if key.value == "sources" and isinstance(value, yaml.MappingNode)
        else (key, value)
        for key, value in document.value
    ]
    return mapping_like(document, pairs)


def _source_texts(node: yaml.Node) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "source" and isinstance(value, yaml.ScalarNode):
                yield value.value
            yield from _source_texts(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _source_texts(item)


def mapping_like(node: yaml.MappingNode, pairs: list[tuple[yaml.Node, yaml.Node]]) -> yaml.MappingNode:
    """A mapping of these keys and values that stands where `node` does."""
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInputError(f"{path} is larger than {MAX_BYTES // 1024} KB; a profile takes a few KB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInputError(f"no such file: {path}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def _yaml_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # A parser's mark speaks of a stream, a node's of the file that it came from.
        file = mark.name if mark and re.search(r"\.ya?ml$", mark.name) else path
        line = mark.line + 1 if mark else 1
        raise BadInputError(f"{file}, line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInputError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None


def _refuse_traps(path: Path, text: str) -> None:
    """Stop at what makes a small file cost gigabytes or minutes, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise BadInputError(f"{path}, line {line}: aliases are not allowed; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise BadInputError(f"{path}, line {line}: nested more than {MAX_DEPTH} deep; a profile is not")
