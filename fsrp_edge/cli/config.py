"""`--config` and `--save-config`: a YAML file that says what a command's options say."""

import difflib
from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options
from fsrp_edge.errors import BadInputError

NOT_SAVED = {"dry_run"}
"""Options that are about this one call, beside those that are not exposed."""


def save_config() -> None:
    """Write the options of the running command where `--save-config` asked for it."""
    import yaml

    from fsrp_edge.files import write_text

    path = options.remembered("save_config")
    if path is not None:
        values = {
            name: _plain(value)
            for name, value in click.get_current_context().params.items()
            if name not in NOT_SAVED and value not in (None, ())
        }
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _read(context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    content = options.read_yaml(path, "target: jetson-nano")
    known = {
        name.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        if parameter.expose_value and parameter.name not in NOT_SAVED
        for name in (parameter.name or "", *parameter.opts)
    }
    context.default_map = {}
    for key, value in content.items():
        parameter = known.get(str(key).replace("-", "_"))
        if parameter is None:
            near = difflib.get_close_matches(str(key).replace("-", "_"), known, n=1, cutoff=0)
            raise BadInputError(f"{path}: unknown key {key!r}; the nearest known one is {near[0]!r}")
        if parameter.name in context.default_map:
            raise BadInputError(f"{path}: {key!r} says again what another key says; give one of the two")
        if value is None:  # all of its lines are commented out
            continue
        context.default_map[str(parameter.name)] = _as_typed(value, parameter, f"{path}: {key}")


def _as_typed(value: Any, parameter: click.Parameter, place: str) -> Any:
    """A YAML value as the command line would give it: `{a: 1}` as `a=1`, a list where one text is meant as `1,2`."""
    if isinstance(parameter.type, click.types.BoolParamType) and not isinstance(value, bool | str):
        raise BadInputError(f"{place} is {value}; give true or false")
    if isinstance(value, bool | float) and isinstance(parameter.type, click.types.IntParamType):
        raise BadInputError(f"{place} is {value}; give a whole number")
    repeated = parameter.multiple if isinstance(parameter, click.Option) else False
    if isinstance(value, dict):
        value = [f"{key}={each}" for key, each in value.items()]
    if isinstance(value, str):
        value = options.from_home(value)
    if isinstance(value, list):
        if any(isinstance(each, list | dict) for each in value):
            raise BadInputError(f"{place} holds a list inside a list; give a list of plain values")
        return [str(each) for each in value] if repeated else ",".join(map(str, value))
    return [value] if repeated else value


def _plain(value: Any) -> Any:
    """A parsed option as YAML can hold it and `--config` reads it back."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


config_options = options.stack(
    click.option(
        "--config",
        type=options.ExistingFile,
        callback=_read,
        is_eager=True,
        expose_value=False,
        help="Take options from a YAML file, such as `recover-epochs: 20`; those given here too win.",
    ),
    click.option(
        "--save-config",
        type=options.NewFile,
        callback=options.remember,
        expose_value=False,
        help="Write all options of this run to a YAML file that --config takes.",
    ),
)
