"""What is wrong with a profile, in one line: where, what was seen, what is allowed."""

import json
from typing import Any

from pydantic import ValidationError

from fsrp_edge.targets.document import Document, Key, Location, places
from fsrp_edge.targets.profile import Target
from fsrp_edge.wording import nearest


def explain(error: ValidationError, document: Document) -> str:
    """The first problem of a document; unknown keys come first, as a misspelt key is also a missing one."""
    keys = dict(places(document))
    keys[()] = next(iter(keys.values()))  # what is missing at the top is told where the file begins
    problems = sorted(
        (
            detail["type"] != "extra_forbidden",
            *_position(location, keys),
            ".".join(map(str, location)) + ": " if location else "",
            _sentence(detail, location),
        )
        for detail in error.errors(include_url=False)
        for location in [tuple(detail.get("ctx", {}).get("location", detail["loc"]))]
    )
    *_, where, name, sentence = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where} {name}{sentence}{more}"


def _position(location: Location, keys: dict[Location, Key]) -> tuple[str, int, str]:
    """Where a location stands, or what encloses it: file and line to sort by, and in words."""
    while location not in keys:
        location = location[:-1]
    key = keys[location]
    return key.file, key.line, key.place


def _sentence(detail: Any, location: Location) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {location[-1]!r}; {nearest(str(location[-1]), _allowed_keys(location[:-1]))}"
        case "missing":
            return f"the key {location[-1]!r} is missing; add it"
        case "contradiction":
            return str(detail["msg"])
        case _:
            seen = json.dumps(detail["input"], default=str)
            short = seen if len(seen) <= 60 else seen[:57] + "..."
            return f"saw {short}; {detail['msg'][0].lower()}{detail['msg'][1:]}"


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
