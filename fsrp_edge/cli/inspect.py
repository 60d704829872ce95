"""`fsrp-edge inspect`: what a checkpoint is, and what of it can be pruned."""

from typing import Any, NamedTuple

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option


class GroupSummary(NamedTuple):
    """One row of the table."""

    layers: tuple[str, ...]
    channels: int
    macs: int
    reason_to_keep: str | None


@click.command()
@options.checkpoint_options
@click.option("--target", metavar="NAME|FILE", help="Device profile whose channel multiple is kept.")
@options.output_options
@traceback_option
def inspect(target: str | None, as_json: bool, quiet: bool, **checkpoint: Any) -> None:
    """Show architecture, size and channel groups: which layers lose channels together, and which lose none and why.

    \b
    fsrp-edge inspect resnet18.pt --target jetson-nano
    """
    from fsrp_edge.cli.console import print_json, print_rows, show_progress
    from fsrp_edge.models.size import macs_by_layer, measure_size
    from fsrp_edge.pipeline import CheckpointOptions, load
    from fsrp_edge.pruning.graph import PruningGraph
    from fsrp_edge.pruning.planning import reason_to_keep
    from fsrp_edge.targets.load import load_target

    with show_progress(quiet=quiet):
        classifier = load(CheckpointOptions(**checkpoint))
        multiple = load_target(target).channel_multiple if target else 1
        macs = macs_by_layer(classifier)
        groups = [
            GroupSummary(
                layers=tuple(member.layer for member in group.members),
                channels=group.channels,
                macs=sum(macs.get(member.layer, 0) for member in group.members),
                reason_to_keep=reason_to_keep(group, multiple),
            )
            for group in PruningGraph(classifier).groups()
        ]
    size = measure_size(classifier)
    if as_json:
        rows = [group._asdict() for group in groups]
        print_json(
            {"spec": classifier.spec.model_dump(mode="json"), "size": size.model_dump(), "groups": rows}
        )
        return
    print_rows(
        ("layers", "channels", "MACs", "prunable"),
        [
            (", ".join(group.layers), group.channels, f"{group.macs:,}", group.reason_to_keep or "yes")
            for group in groups
        ],
        footer=(
            f"{classifier.spec.architecture}: input {'x'.join(map(str, classifier.spec.input_shape))}, "
            f"{classifier.spec.classes} classes, {size.parameters:,} parameters, {size.macs:,} MACs, "
            f"channel multiple {multiple}"
        ),
    )
