"""`fsrp-edge targets`: the device profiles."""

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option


@click.group()
def targets() -> None:
    """List, show and validate device profiles."""


@targets.command("list")
@options.output_options
@traceback_option
def list_(as_json: bool, quiet: bool) -> None:
    """List the packaged profiles."""
    from fsrp_edge.cli.console import print_json, print_rows
    from fsrp_edge.targets.load import load_target, target_names

    found = [load_target(name) for name in target_names()]
    if as_json:
        print_json([{"name": target.name, "description": target.description} for target in found])
        return
    print_rows(
        ("name", "device", "files made by default"),
        [
            (
                target.name,
                target.description,
                ", ".join(f"{offer.format} {offer.precision}" for offer in target.offers if offer.default),
            )
            for target in found
        ],
        footer="Next: fsrp-edge targets show NAME",
    )


@targets.command()
@click.argument("target", metavar="NAME|FILE")
@options.output_options
@traceback_option
def show(target: str, as_json: bool, quiet: bool) -> None:
    """Show a profile: what is decided for the device, and why.

    \b
    fsrp-edge targets show jetson-nano
    """
    from fsrp_edge.cli.console import print_json, print_rows
    from fsrp_edge.targets.load import load_target

    profile = load_target(target)
    if as_json:
        print_json(profile.model_dump(mode="json", exclude_none=True))
        return
    print_rows(
        ("choice", "value", "reason"),
        [(name.replace("_", " "), choice.value, choice.reason) for name, choice in profile.choices],
        footer=profile.description,
    )
    print_rows(
        ("file", "made", "reason"),
        [
            (
                f"{offer.format} {offer.precision}",
                "by default" if offer.default else "on request" if offer.offered else "no",
                offer.reason,
            )
            for offer in profile.offers
        ],
    )


@targets.command()
@click.argument("file", type=options.ExistingFile)
@traceback_option
def validate(file: click.Path) -> None:
    """Check a profile file of your own; errors name the line.

    \b
    fsrp-edge targets validate my-board.yaml
    """
    from fsrp_edge.targets.load import load_target

    profile = load_target(str(file))
    click.echo(f"{file}: valid profile of {profile.name} ({profile.description})")
