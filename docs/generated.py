"""What of the documentation is made of the package: the page of device profiles, and the schemas of its files.

`python -m docs.generated` writes all of it again.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fsrp_edge.bench.results import BenchResults
from fsrp_edge.files import write_json, write_text
from fsrp_edge.records import Document
from fsrp_edge.report.schema import RunReport
from fsrp_edge.targets.load import load_variants, target_names
from fsrp_edge.targets.profile import Target
from fsrp_edge.targets.rows import Row, choice_rows, file_rows, value_rows

FOLDER = Path(__file__).parent
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def markdown(profiles: Iterable[Sequence[Target]]) -> str:
    """The page: a list of all profiles, then one section each.

    Args:
        profiles: each a profile followed by its variants.
    """
    profiles = list(profiles)
    listed = [
        (
            f"[{base.name}](#{base.name})",
            base.description,
            ", ".join(f"`@{_mode(variant)}`" for variant in variants),
        )
        for base, *variants in profiles
    ]
    return "\n".join([INTRODUCTION, *_table(("profile", "device", "variants"), listed), *map(_section, profiles)])


INTRODUCTION = """\
# Device profiles

<!-- Made from profiles/*.yaml by `python -m docs.generated`; change those. -->

A profile says what a device accepts and what is fast on it. Each value names its source; what nobody could source is
absent. `fsrp-edge targets new NAME` writes one for the machine it runs on, and
[target.schema.json](target.schema.json) describes the files.
"""


def _section(targets: Sequence[Target]) -> str:
    base, *variants = targets
    lines = ["", f"## {base.name}", "", f"{base.description[0].upper()}{base.description[1:]}.", ""]
    lines += _table(("value", "", "source"), [_linked(row, base) for row in value_rows(base)])
    lines += ["", *_table(("choice", "value", "reason"), choice_rows(base))]
    lines += ["", *_table(("file", "made", "reason"), file_rows(base))]
    notes = [
        f"- {runtime.name} on the {runtime.runs_on.upper()}: {note}"
        for runtime in base.runtimes
        for note in runtime.notes
    ]
    lines += ["", *notes] if notes else []  # right below a table they would be its rows
    for variant in variants:
        same = {(label, value) for label, value, _ in value_rows(base)}
        changed = [_linked(row, variant) for row in value_rows(variant) if row[:2] not in same]
        lines += ["", f"### {variant.name}", "", f"{variant.description}. Changed:", ""]
        lines += _table(("value", "", "source"), changed)
    return "\n".join(lines)


def _linked(row: Row, target: Target) -> Row:
    label, value, key = row
    source = target.sources.get(key, key)
    address = re.search(r"https?://\S+", source)
    return label, value, f"[{key}]({address[0].rstrip(',;)')})" if address else source


def _mode(variant: Target) -> str:
    return variant.name.partition("@")[2]


def _table(header: Row, rows: Iterable[Row]) -> list[str]:
    cells = [header, ("---", "---", "---"), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").strip() for cell in row) + " |" for row in cells]


def packaged_page() -> str:
    """The page of the packaged profiles."""
    return markdown(load_variants(name) for name in target_names()) + "\n"


def document_schema(document: type[Document]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a file that the package writes."""
    schema = document.model_json_schema(mode="serialization") | {"title": f"{document.called}, version 1"}
    return {"$schema": DRAFT} | schema


def profile_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a profile file, for editors and other tools.

    A variant, and a file that extends another profile, may leave out any key.
    """
    full = Target.model_json_schema()
    definitions = full.pop("$defs")
    definitions |= {f"Changed{name}": _without_required(schema) for name, schema in definitions.items()}
    changed = _without_required(full)
    variant = {name: schema for name, schema in changed["properties"].items() if name != "name"}
    file_keys = {
        "extends": {
            "type": "string",
            "minLength": 1,
            "description": "Name or path of the profile to start from.",
        },
        "variants": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Variant"}},
    }
    return {
        "$schema": DRAFT,
        "title": "fsrp-edge device profile",
        "if": {"required": ["extends"]},
        "then": {
            **changed,
            "required": ["name", "description"],
            "properties": changed["properties"] | file_keys,
        },
        "else": {**full, "properties": full["properties"] | file_keys},
        "$defs": definitions | {"Variant": {**changed, "properties": variant}},
    }


def _without_required(schema: Any) -> Any:
    """A copy in which no key is required, here and in what it refers to."""
    if isinstance(schema, dict):
        return {
            key: f"#/$defs/Changed{value.rsplit('/', 1)[-1]}" if key == "$ref" else _without_required(value)
            for key, value in schema.items()
            if key != "required"
        }
    return [_without_required(item) for item in schema] if isinstance(schema, list) else schema


SCHEMAS = {
    "report.schema.json": document_schema(RunReport),
    "bench.schema.json": document_schema(BenchResults),
    "target.schema.json": profile_schema(),
}

if __name__ == "__main__":
    write_text(FOLDER / "targets.md", packaged_page())
    for name, schema in SCHEMAS.items():
        write_json(FOLDER / name, schema)
