"""Read device profiles, packaged or a user's own; every error names the file and the line.

A profile may have `variants` (`jetson-nano@5W`) and may extend another one (`extends: raspberry-pi-4`). Both are
merged as YAML nodes, which remember their file and line, before anything is validated.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import yaml
from pydantic import ValidationError

from fsrp_edge.errors import BadInputError
from fsrp_edge.targets.nodes import (
    construct,
    mapping_like,
    merged,
    place,
    places,
    read_document,
    take,
    without_unused_sources,
)
from fsrp_edge.targets.problems import explain, nearest
from fsrp_edge.targets.profile import Target

SUFFIXES = (".yaml", ".yml")


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
    variants = list(_variant_nodes(take(document, "variants")))
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
        f"unknown target {name_or_path!r}; {nearest(name_or_path, (*packaged, *own))}, "
        "or the path of a profile of your own that ends in .yaml"
    )


def _validated(path: Path, document: yaml.MappingNode) -> Target:
    data = construct(path, document)
    try:
        # The strict mode of pydantic takes lists for tuples only from JSON.
        return Target.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise BadInputError(explain(error, places(document))) from None


def _resolved(path: Path, extended_by: tuple[Path, ...]) -> yaml.MappingNode:
    """The document of a file, merged over the profile that it extends."""
    document = read_document(path)
    extends = take(document, "extends")
    if extends is None:
        return document
    where = f"{place(extends)} extends:"
    if not isinstance(extends, yaml.ScalarNode) or not extends.value:
        raise BadInputError(f"{where} write the name or the path of one profile")
    name, _, variant = extends.value.partition("@")
    try:
        base_path = path.parent / name if name.endswith(SUFFIXES) else _path(name)
    except BadInputError as error:
        raise BadInputError(f"{where} {error}") from None
    chain = (*extended_by, path.resolve())
    if base_path.resolve() in chain:
        raise BadInputError(f"{where} {extends.value!r} comes back to this file")
    base = _resolved(base_path, chain)
    # Variants are not inherited: they speak of the device that they were written for.
    variants = dict(_variant_nodes(take(base, "variants")))
    if variant:
        if variant not in variants:
            raise BadInputError(f"{where} no variant {variant!r}; {nearest(variant, variants)}")
        base = merged(base, variants[variant])
    return without_unused_sources(merged(base, document))


def _variant_nodes(variants: yaml.Node | None) -> Iterator[tuple[str, yaml.MappingNode]]:
    if variants is None:
        return
    if not isinstance(variants, yaml.MappingNode):
        raise BadInputError(f"{place(variants)} variants: a mapping of names to changed values is needed")
    for key, changes in variants.value:
        name, where = key.value, f"{place(key)} variants"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise BadInputError(f"{where}: the name {name!r} may hold letters, digits, '.', '_' and '-'")
        if not isinstance(changes, yaml.MappingNode):
            raise BadInputError(f"{where}.{name}: write the changed values as a mapping")
        for inner, _ in changes.value:
            if inner.value in ("name", "extends", "variants"):
                raise BadInputError(
                    f"{place(inner)} variants.{name}: a variant cannot change {inner.value!r}; remove it"
                )
        yield name, changes


def _variant(base: yaml.MappingNode, name: str, variant: str, changes: yaml.MappingNode) -> yaml.MappingNode:
    full_name = yaml.ScalarNode(
        "tag:yaml.org,2002:str", f"{name}@{variant}", changes.start_mark, changes.end_mark
    )
    both = merged(base, changes)
    pairs = [(key, full_name if key.value == "name" else value) for key, value in both.value]
    return without_unused_sources(mapping_like(both, pairs))
