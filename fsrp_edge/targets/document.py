"""A profile's file as plain values whose keys remember their file and line, also after they were merged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fsrp_edge.errors import BadInputError, first_line

Location = tuple[str | int, ...]
Document = dict[str, Any]
"""Its keys are of the type `Key`."""

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
ITEM_NAME = {"cpu": "name", "runtimes": "name", "accelerators": "kind"}
"""Lists whose items are merged where this key has the same value; any other list is replaced."""


class Key(str):
    """A key, and where it stands.

    Args:
        node: what the parser made of it.
    """

    __slots__ = ("file", "line")

    def __new__(cls, node: yaml.ScalarNode) -> "Key":
        """The key's text."""
        key = super().__new__(cls, node.value)
        key.file, key.line = node.start_mark.name, node.start_mark.line + 1
        return key

    file: str
    line: int

    @property
    def place(self) -> str:
        """How a message begins that speaks of it: `FILE, line N:`."""
        return f"{self.file}, line {self.line}:"


class _Loader(yaml.SafeLoader):
    """Makes dicts with a `Key` for each key; refuses keys that stand twice, aliases, tags, and deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Stop at what makes a small file cost gigabytes or minutes: a few aliases, or thousands of brackets.

        And at tags, since the parser's own constructors raise errors of all types where a value is none of the tag's.
        """
        event = self.peek_event()  # type: ignore[no-untyped-call]
        where = f"{self.name}, line {event.start_mark.line + 1}:"
        if isinstance(event, yaml.AliasEvent):
            raise BadInputError(f"{where} aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise BadInputError(f"{where} tags such as !!int are not allowed; write the value alone, text in quotes")
        nested = isinstance(event, yaml.CollectionStartEvent)
        self.depth += nested
        if self.depth > MAX_DEPTH:
            raise BadInputError(f"{where} nested more than {MAX_DEPTH} deep; a profile is not")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= nested
        return node

    def document_of(self, node: yaml.MappingNode) -> Document:
        """The values of a mapping, each by its `Key`."""
        found: dict[str, Key] = {}
        values: Document = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                line = key_node.start_mark.line + 1
                raise BadInputError(f"{self.name}, line {line}: a key must be a word")
            key = Key(key_node)
            if key in found:
                first = found[key].line
                raise BadInputError(f"{key.place} the key {str(key)!r} stands twice, first in line {first}")
            found[key] = key
            values[key] = self.construct_object(value, deep=True)
        return values


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.document_of)


def read_document(path: Path) -> Document:
    """The values of a file.

    Raises:
        BadInputError: no such file, not YAML, not a mapping, a key that stands twice, an alias, or a tag.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        loader.name = str(path)  # what marks call the file
        document = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInputError(f"{path}, line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInputError(f"{path} is not valid YAML: {first_line(error)}") from None
    if not isinstance(document, dict) or not document:
        raise BadInputError(f"{path}, line 1: a profile is a mapping of keys such as `name:` to values")
    return document


def places(values: Any, location: Location = ()) -> Iterator[tuple[Location, Key]]:
    """The key of every value of a document by its location; a list's item stands where its first key does."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*location, str(key)), key
            yield from places(value, (*location, str(key)))
    elif isinstance(values, list):
        for index, item in enumerate(values):
            if isinstance(item, dict) and item:
                yield (*location, index), next(iter(item))
            yield from places(item, (*location, index))


def key_of(document: Document, name: str) -> Key:
    """The key of that name at the top of a document that has it."""
    return next(key for key in document if isinstance(key, Key) and key == name)


def merged(base: Document, changes: Document, *, top: bool = True) -> Document:
    """Mappings key by key, lists of `ITEM_NAME` item by item; any other value of `changes` replaces that of `base`.

    A mapping with a `value` is replaced as a whole: a source or a note speaks of one value only.
    """
    pairs = {str(key): (key, value) for key, value in base.items()}
    for key, new in changes.items():
        value, (_, old) = new, pairs.get(key, (key, None))
        if isinstance(old, dict) and isinstance(new, dict) and "value" not in new:
            value = merged(old, new, top=False)
        elif top and key in ITEM_NAME and isinstance(old, list) and isinstance(new, list):
            value = _merged_items(old, new, ITEM_NAME[key])
        pairs[str(key)] = (key, value)
    return dict(pairs.values())


def _merged_items(base: list[Any], changes: list[Any], identity: str) -> list[Any]:
    items = list(base)
    names = [item.get(identity) if isinstance(item, dict) else None for item in items]
    for change in changes:
        name = change.get(identity) if isinstance(change, dict) else None
        if name is not None and name in names:
            place = names.index(name)
            items[place] = merged(items[place], change, top=False)
        else:
            items.append(change)
    return items


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
