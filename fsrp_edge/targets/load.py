"""Read device profiles, packaged or a user's own; every error names the file and the line.

A profile may have `variants` (`jetson-nano@5W`) and may extend another one (`extends: raspberry-pi-4`). Both are
merged before anything is validated.
"""

import json
import os
import re
from pathlib import Path

import click
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.document import Document, key_of, merged, read_document
from fsrp_edge.targets.problems import explain
from fsrp_edge.targets.profile import Target, source_keys
from fsrp_edge.wording import nearest

SUFFIXES = (".yaml", ".yml")


def load_target(name_or_path: str) -> Target:
    """Read a device profile.

    Args:
        name_or_path: a name such as `raspberry-pi-4`, packaged or in the user's `own_folder`, or a path that ends
            in `.yaml` or `.yml`; either may be followed by `@` and a variant, as in `jetson-nano@5W`.

    Raises:
        BadInputError: no such target, file or variant, or the file is not a valid profile; the text names the line.
    """
    base, variant = _split(name_or_path)
    targets = load_variants(base)
    name = f"{targets[0].name}@{variant}" if variant else targets[0].name
    for target in targets:
        if target.name == name:
            return target
    names = [target.name for target in targets]
    raise BadInputError(f"unknown variant {name_or_path!r}; {nearest(name, names)}")


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
    variants = _take_variants(document)
    if not document:  # then no key is left that could tell its line
        raise BadInputError(f"{path}, line 1: a profile needs values of its own beside variants")
    targets = [_validated(document)]
    for key, changes in variants.items():
        named = merged(document, changes) | {key_of(document, "name"): f"{targets[0].name}@{key}"}
        targets.append(_validated(_without_unused_sources(named)))
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


def _split(name_or_path: str) -> tuple[str, str]:
    """What stands before the variant, and the variant; a path may hold an @ of its own."""
    base, _, variant = name_or_path.rpartition("@")
    return (base, variant) if base and not name_or_path.endswith(SUFFIXES) else (name_or_path, "")


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
        f"unknown target {name_or_path!r}; {nearest(name_or_path, (*packaged, *own))}, "
        "or the path of a profile of your own that ends in .yaml"
    )


def _validated(document: Document) -> Target:
    try:
        # The strict mode of pydantic takes lists for tuples only from JSON.
        return Target.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        raise BadInputError(explain(error, document)) from None


def _resolved(path: Path, extended_by: tuple[Path, ...]) -> Document:
    """The document of a file, merged over the profile that it extends."""
    document = read_document(path)
    if "extends" not in document:
        return document
    where, extends = f"{key_of(document, 'extends').place} extends:", document.pop("extends")
    if not isinstance(extends, str) or not extends:
        raise BadInputError(f"{where} write the name or the path of one profile")
    name, variant = _split(extends)
    try:
        base_path = path.parent / name if name.endswith(SUFFIXES) else _path(name)
    except BadInputError as error:
        raise BadInputError(f"{where} {error}") from None
    chain = (*extended_by, path.resolve())
    if base_path.resolve() in chain:
        raise BadInputError(f"{where} {extends!r} comes back to this file")
    base = _resolved(base_path, chain)
    # Variants are not inherited: they speak of the device that they were written for.
    variants = _take_variants(base)
    if variant:
        if variant not in variants:
            if not variants:
                raise BadInputError(f"{where} saw {extends!r}, but {name} has no variants; write `extends: {name}`")
            raise BadInputError(f"{where} {name} has no variant {variant!r}; {nearest(variant, variants)}")
        base = merged(base, variants[variant])
    return _without_unused_sources(merged(base, document))


def _take_variants(document: Document) -> dict[str, Document]:
    """Remove the variants from a document, and check that each may be one."""
    if "variants" not in document:
        return {}
    where, variants = key_of(document, "variants").place, document.pop("variants")
    if not isinstance(variants, dict):
        raise BadInputError(f"{where} variants: a mapping of names to changed values is needed")
    for name, changes in variants.items():
        there = key_of(variants, name).place
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise BadInputError(f"{there} variants: the name {str(name)!r} may hold letters, digits, '.', '_' and '-'")
        if not isinstance(changes, dict):
            raise BadInputError(f"{there} variants.{name}: write the changed values as a mapping")
        for fixed in ("name", "extends", "variants"):
            if fixed in changes:
                raise BadInputError(
                    f"{key_of(changes, fixed).place} variants.{name}: a variant cannot change {fixed!r}; remove it"
                )
    return variants


def _without_unused_sources(document: Document) -> Document:
    """Drop the sources of values that a merge replaced; the model takes an unused source for a mistake."""
    sources = document.get("sources")
    if not isinstance(sources, dict):
        return document
    used = {key for _, key in source_keys({k: v for k, v in document.items() if k != "sources"}, ())}
    return document | {key_of(document, "sources"): {k: v for k, v in sources.items() if k in used}}
