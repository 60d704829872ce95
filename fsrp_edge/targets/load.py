"""Read device profiles, packaged or a user's own; every error names the file and the line.

A profile may have `variants` (`jetson-nano@5W`) and may extend another one (`extends: raspberry-pi-4`). Both are
merged as YAML nodes, which remember their file and line, before anything is validated.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.profile import Target

Location = tuple[str | int, ...]
Place = tuple[str, int]
"""A file and a line, from 1."""

MAX_BYTES = 64 * 1024
"""The packaged profiles take about 5 KB; anything far beyond is not a profile."""

MAX_DEPTH = 20

SUFFIXES = (".yaml", ".yml")

ITEM_NAME = {"cpu": "name", "runtimes": "name", "accelerators": "kind"}
"""Lists whose items are merged where this key has the same value; any other list is replaced."""


def load_target(name_or_path: str) -> Target:
    """Read a device profile.

    Args:
        name_or_path: a name such as `raspberry-pi-4`, packaged or in the user's `own_folder`, or a path that ends
            in `.yaml` or `.yml`; either may be followed by `@` and a variant, as in `jetson-nano@5W`.

    Raises:
        BadInputError: no such target, file or variant, or the file is not a valid profile; the text names the line.
    """
    base, _, variant = name_or_path.rpartition("@")
    if not base or name_or_path.endswith(SUFFIXES):
        base, variant = name_or_path, ""
    targets = load_variants(base)
    name = f"{targets[0].name}@{variant}" if variant else targets[0].name
    for target in targets:
        if target.name == name:
            return target
    names = [target.name for target in targets]
    raise BadInputError(f"unknown variant {name_or_path!r}; {_nearest(name, names)}")


def load_variants(name_or_path: str) -> tuple[Target, ...]:
    """Read a profile and all its variants.

    Args:
        name_or_path: as for `load_target`, without a variant.

    Returns:
        The profile as it stands, then its variants in the order of the file.

    Raises:
        BadInputError: as for `load_target`; a mistake in any variant counts.
    """
    path = _path(name_or_path)
    document = _resolved(path, ())
    variants = list(_variant_nodes(_take(document, "variants")))
    targets = [_validated(path, document)]
    for key, changes in variants:
        targets.append(_validated(path, _variant(document, targets[0].name, key, changes)))
    if not name_or_path.endswith(SUFFIXES) and targets[0].name != name_or_path:
        raise BadInputError(
            f"{path} has the name {targets[0].name!r} inside; a profile in this folder is called like its file"
        )
    return tuple(targets)


def target_names() -> tuple[str, ...]:
    """Names of the packaged profiles, sorted."""
    return tuple(sorted(path.stem for path in _packaged_folder().glob("*.yaml")))


def own_target_names() -> tuple[str, ...]:
    """Names of the profiles in the user's own folder, sorted."""
    return tuple(sorted(path.stem for path in own_folder().glob("*.yaml")))


def own_folder() -> Path:
    """Where a user's own profiles are found by name: $FSRP_EDGE_PROFILES, else a folder in the user's configuration.

    On Linux that is `~/.config/fsrp-edge/profiles`; it need not exist.
    """
    named = os.environ.get("FSRP_EDGE_PROFILES")
    return Path(named) if named else Path(click.get_app_dir("fsrp-edge")) / "profiles"


def _packaged_folder() -> Path:
    """`fsrp_edge/profiles` in an installed wheel, `profiles` at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "profiles"
    return packaged if packaged.is_dir() else package.parent / "profiles"


def _path(name_or_path: str) -> Path:
    if name_or_path.endswith(SUFFIXES):
        return Path(name_or_path)
    packaged, own = target_names(), own_target_names()
    if name_or_path in packaged and name_or_path in own:
        # Neither may win: a name in a report has to mean one thing.
        raise BadInputError(
            f"{own_folder() / name_or_path}.yaml has the name of a packaged profile; give yours another name "
            f"(it may say `extends: {name_or_path}`)"
        )
    for folder, names in ((_packaged_folder(), packaged), (own_folder(), own)):
        if name_or_path in names:
            return folder / f"{name_or_path}.yaml"
    raise BadInputError(
        f"unknown target {name_or_path!r}; {_nearest(name_or_path, (*packaged, *own))}, "
        "or the path of a profile of your own that ends in .yaml"
    )


def _validated(path: Path, document: yaml.MappingNode) -> Target:
    places: dict[Location, Place] = {}
    _index(document, (), places)
    data = _constructed(path, document)
    try:
        # The strict mode of pydantic takes lists for tuples only from JSON.
        return Target.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise BadInputError(_explain(error, places)) from None


def _resolved(path: Path, extended_by: tuple[Path, ...]) -> yaml.MappingNode:
    """The document of a file, merged over the profile that it extends."""
    document = _document(path)
    extends = _take(document, "extends")
    if extends is None:
        return document
    place = _place(extends)
    if not isinstance(extends, yaml.ScalarNode) or not extends.value:
        raise BadInputError(f"{_at(place)} extends: write the name or the path of one profile")
    name, _, variant = extends.value.partition("@")
    try:
        base_path = path.parent / name if name.endswith(SUFFIXES) else _path(name)
    except BadInputError as error:
        raise BadInputError(f"{_at(place)} extends: {error}") from None
    chain = (*extended_by, path.resolve())
    if base_path.resolve() in chain:
        raise BadInputError(f"{_at(place)} extends: {extends.value!r} comes back to this file")
    base = _resolved(base_path, chain)
    # Variants are not inherited: they speak of the device that they were written for.
    variants = dict(_variant_nodes(_take(base, "variants")))
    if variant:
        if variant not in variants:
            raise BadInputError(
                f"{_at(place)} extends: no variant {variant!r}; {_nearest(variant, variants)}"
            )
        base = _merged(base, variants[variant], ())
    return _without_unused_sources(_merged(base, document, ()))


def _variant_nodes(variants: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    if variants is None:
        return
    if not isinstance(variants, yaml.MappingNode):
        raise BadInputError(
            f"{_at(_place(variants))} variants: a mapping of names to changed values is needed"
        )
    for key, changes in variants.value:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", key.value):
            raise BadInputError(
                f"{_at(_place(key))} variants: the name {key.value!r} may hold letters, digits, '.', '_' and '-'"
            )
        if not isinstance(changes, yaml.MappingNode):
            raise BadInputError(
                f"{_at(_place(key))} variants.{key.value}: write the changed values as a mapping"
            )
        for inner, _ in changes.value:
            if inner.value in ("name", "extends", "variants"):
                raise BadInputError(
                    f"{_at(_place(inner))} variants.{key.value}: a variant cannot change {inner.value!r}; remove it"
                )
        yield key.value, changes


def _variant(base: yaml.MappingNode, name: str, variant: str, changes: yaml.MappingNode) -> yaml.MappingNode:
    full_name = yaml.ScalarNode(
        "tag:yaml.org,2002:str", f"{name}@{variant}", changes.start_mark, changes.end_mark
    )
    merged = _merged(base, changes, ())
    pairs = [(key, full_name if key.value == "name" else value) for key, value in merged.value]
    return _without_unused_sources(_mapping_like(merged, pairs))


def _merged(base: yaml.MappingNode, changes: yaml.MappingNode, location: Location) -> yaml.MappingNode:
    """Mappings key by key, lists of `ITEM_NAME` item by item; any other value of `changes` replaces that of `base`.

    A mapping with a `value` is replaced as a whole: a source or a note speaks of one value only.
    """
    pairs = {key.value: (key, value) for key, value in base.value}
    for key, value in changes.value:
        old = pairs.get(key.value, (key, None))[1]
        if (
            isinstance(old, yaml.MappingNode)
            and isinstance(value, yaml.MappingNode)
            and all(inner.value != "value" for inner, _ in value.value)
        ):
            pairs[key.value] = (key, _merged(old, value, (*location, key.value)))
        elif not location and key.value in ITEM_NAME and isinstance(old, yaml.SequenceNode):
            pairs[key.value] = (key, _merged_items(old, value, ITEM_NAME[key.value]))
        else:
            pairs[key.value] = (key, value)
    return _mapping_like(changes if location else base, list(pairs.values()))


def _merged_items(base: yaml.SequenceNode, changes: yaml.Node, identity: str) -> yaml.Node:
    if not isinstance(changes, yaml.SequenceNode):
        return changes
    items = list(base.value)
    names = [_value_of(item, identity) for item in items]
    for change in changes.value:
        name = _value_of(change, identity)
        if name is not None and name in names:
            items[names.index(name)] = _merged(items[names.index(name)], change, (identity,))
        else:
            items.append(change)
    return yaml.SequenceNode(base.tag, items, changes.start_mark, changes.end_mark)


def _value_of(node: yaml.Node, key: str) -> str | None:
    """The text under `key`, where `node` is a mapping that has it."""
    for inner, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if inner.value == key and isinstance(value, yaml.ScalarNode):
            return str(value.value)
    return None


def _without_unused_sources(document: yaml.MappingNode) -> yaml.MappingNode:
    """Drop the sources of values that a merge replaced; the model takes an unused source for a mistake."""
    used = set(_source_texts(document))
    pairs = [
        (key, _mapping_like(value, [pair for pair in value.value if pair[0].value in used]))
        if key.value == "sources" and isinstance(value, yaml.MappingNode)
        else (key, value)
        for key, value in document.value
    ]
    return _mapping_like(document, pairs)


def _source_texts(node: yaml.Node) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "source" and isinstance(value, yaml.ScalarNode):
                yield value.value
            yield from _source_texts(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _source_texts(item)


def _mapping_like(node: yaml.MappingNode, pairs: list[tuple[yaml.Node, yaml.Node]]) -> yaml.MappingNode:
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark)


def _take(document: yaml.MappingNode, name: str) -> yaml.Node | None:
    """Remove a key from the top of a document and return its value."""
    for number, (key, value) in enumerate(document.value):
        if key.value == name:
            del document.value[number]
            taken: yaml.Node = value
            return taken
    return None


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


def _document(path: Path) -> yaml.MappingNode:
    """The YAML nodes of a file, none of them built into an object yet."""
    text = _text(path)
    with _yaml_errors(path):
        _refuse_traps(path, text)
        loader = yaml.SafeLoader(text)
        loader.name = str(path)  # what the marks of the nodes call the file
        node = loader.get_single_node()
    if not isinstance(node, yaml.MappingNode):
        raise BadInputError(f"{path}, line 1: a profile is a mapping of keys such as `name:` to values")
    _index(node, (), {})
    return node


def _constructed(path: Path, document: yaml.MappingNode) -> Any:
    with _yaml_errors(path):
        return yaml.SafeLoader("").construct_document(document)


@contextmanager
def _yaml_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        name, line = _mark_place(error.problem_mark) if error.problem_mark else (str(path), 1)
        file = name if name.endswith(SUFFIXES) else path
        raise BadInputError(f"{file}, line {line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInputError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None


def _mark_place(mark: yaml.Mark) -> Place:
    return mark.name, mark.line + 1


def _place(node: yaml.Node) -> Place:
    return _mark_place(node.start_mark)


def _at(place: Place) -> str:
    return f"{place[0]}, line {place[1]}:"


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


def _index(node: yaml.Node, location: Location, places: dict[Location, Place]) -> None:
    """Note the place of every key and list item; refuse keys that stand twice."""
    places.setdefault(location, _place(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*location, index), places)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise BadInputError(f"{_at(_place(key))} a key must be a word")
            inner = (*location, key.value)
            if inner in places:
                raise BadInputError(
                    f"{_at(_place(key))} the key {key.value!r} stands twice, first in line {places[inner][1]}"
                )
            places[inner] = _place(key)
            _index(value, inner, places)


def _explain(error: ValidationError, places: dict[Location, Place]) -> str:
    """One line on the first problem; unknown keys come first, as a misspelt key is also a missing one."""
    problems = sorted(
        (
            detail["type"] != "extra_forbidden",
            _nearest_place(location, places),
            _dotted(location),
            _sentence(detail, location),
        )
        for detail in error.errors(include_url=False)
        for location in [tuple(detail.get("ctx", {}).get("location", detail["loc"]))]
    )
    _, place, where, sentence = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{_at(place)} {where}{sentence}{more}"


def _nearest_place(location: Location, places: dict[Location, Place]) -> Place:
    while location not in places:
        location = location[:-1]
    return places[location]


def _dotted(location: Location) -> str:
    return ".".join(map(str, location)) + ": " if location else ""


def _sentence(detail: Any, location: Location) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return (
                f"unknown key {location[-1]!r}; {_nearest(str(location[-1]), _allowed_keys(location[:-1]))}"
            )
        case "missing":
            return f"the key {location[-1]!r} is missing; add it"
        case "contradiction":
            return str(detail["msg"])
        case _:
            return f"saw {_shorten(detail['input'])}; {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _nearest(seen: str, allowed: Iterable[str]) -> str:
    allowed = sorted(allowed)
    near = difflib.get_close_matches(seen, allowed, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def _allowed_keys(location: Location) -> list[str]:
    """Keys that the schema allows at a place."""
    schema = Target.model_json_schema()
    node: dict[str, Any] = schema
    for step in location:
        node = _referred(node, schema)
        if isinstance(step, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(step) or node.get("additionalProperties", {})
    return [*_referred(node, schema).get("properties", {}), *(() if location else ("extends", "variants"))]


def _referred(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and the only alternative to null."""
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            node = option
    if "$ref" in node:
        return _referred(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    return node


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
