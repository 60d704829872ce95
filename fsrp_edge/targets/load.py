"""Read device profiles, packaged or a user's own; every error names the file and the line."""

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.profile import Target, profile_json_schema

Location = tuple[str | int, ...]

MAX_BYTES = 64 * 1024
"""The packaged profiles take about 5 KB; anything far beyond is not a profile."""

MAX_DEPTH = 20


def load_target(name_or_path: str) -> Target:
    """Read a device profile.

    Args:
        name_or_path: a packaged name such as `raspberry-pi-4`, or a path that ends in `.yaml` or `.yml`.

    Raises:
        BadInputError: no such target or file, or the file is not a valid profile; the text names the line.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        return _read(Path(name_or_path))
    if name_or_path not in target_names():
        raise BadInputError(
            f"unknown target {name_or_path!r}; {_nearest(name_or_path, target_names())}, "
            "or the path of a profile of your own that ends in .yaml"
        )
    return _read(_folder() / f"{name_or_path}.yaml")


def target_names() -> tuple[str, ...]:
    """Names of the packaged profiles, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def _folder() -> Path:
    """`fsrp_edge/profiles` in an installed wheel, `profiles` at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "profiles"
    return packaged if packaged.is_dir() else package.parent / "profiles"


def _read(path: Path) -> Target:
    data, lines = _parse(path, _text(path))
    try:
        # The strict mode of pydantic takes lists for tuples only from JSON.
        return Target.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise BadInputError(_explain(path, error, lines)) from None


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


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[Location, int]]:
    """The content and the line (from 1) of every key and list item."""
    lines: dict[Location, int] = {}
    try:
        _refuse_traps(path, text)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise BadInputError(f"{path}, line 1: a profile is a mapping of keys such as `name:` to values")
        _index(node, (), lines, path)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInputError(f"{path}, line {line}: not valid YAML: {error.problem}") from None
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


def _index(node: yaml.Node, location: Location, lines: dict[Location, int], path: Path) -> None:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*location, index), lines, path)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BadInputError(f"{path}, line {line}: a key must be a word")
            inner = (*location, key.value)
            if inner in lines:
                raise BadInputError(
                    f"{path}, line {line}: the key {key.value!r} stands twice, first in line {lines[inner]}"
                )
            lines[inner] = line
            _index(value, inner, lines, path)


def _explain(path: Path, error: ValidationError, lines: dict[Location, int]) -> str:
    """One line on the first problem; unknown keys come first, as a misspelt key is also a missing one."""
    problems = sorted(
        (
            detail["type"] != "extra_forbidden",
            _line(location, lines),
            _dotted(location),
            _sentence(detail, location),
        )
        for detail in error.errors(include_url=False)
        for location in [tuple(detail.get("ctx", {}).get("location", detail["loc"]))]
    )
    _, line, where, sentence = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}, line {line}: {where}{sentence}{more}"


def _line(location: Location, lines: dict[Location, int]) -> int:
    while location not in lines and location:
        location = location[:-1]
    return lines.get(location, 1)


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
    schema = profile_json_schema()
    node: dict[str, Any] = schema
    for step in location:
        node = _resolve(node, schema)
        if isinstance(step, int):
            node = node.get("items", {})
        else:
            node = node.get("properties", {}).get(step) or node.get("additionalProperties", {})
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and the only alternative to null."""
    for option in node.get("anyOf", []):
        if option.get("type") != "null":
            node = option
    if "$ref" in node:
        return _resolve(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    return node


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
