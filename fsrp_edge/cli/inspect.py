"""`fsrp-edge inspect`: what a checkpoint is, and what of it can be pruned."""

from typing import Any

import click

from fsrp_edge.cli import options


@click.command()
@options.checkpoint_options
@click.option("--target", metavar="NAME|FILE", help="Device profile whose channel multiple is kept.")
@options.output_options
def inspect(target: str | None, **checkpoint: Any) -> None:
    """Show what a network is and what of it can be pruned.

    Architecture, size and channel groups: which layers lose channels together, and which lose none and why.

    The last line tells the least that pruning can leave, which bounds --ratio.

    \b
    fsrp-edge inspect resnet18.pt --target jetson-nano
    """
    from fsrp_edge.cli.console import next_step, read_alike, show_progress, show_result
    from fsrp_edge.pipeline.inputs import load
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.pruning.overview import inspect_network
    from fsrp_edge.targets.load import load_target

    with show_progress():
        classifier = load(CheckpointOptions(**checkpoint))
        multiple = load_target(target).channel_multiple if target else 1
        overview = inspect_network(classifier, multiple)
    spec, dense, least = classifier.spec, overview.dense, overview.minimum
    show_result(
        {
            "spec": spec,
            "channel_multiple": multiple,
            "size": dense,
            "minimum": least,
            "groups": overview.groups,
        },
        ("layers", "channels", "step", "MACs", "parameters", "prunable"),
        [
            (
                ", ".join(group.layers),
                group.channels,
                group.step,
                f"{group.macs:,}",
                f"{group.parameters:,}",
                group.reason_to_keep or "yes",
            )
            for group in overview.groups
        ],
        footer=(
            f"{spec.architecture}: input {'x'.join(map(str, spec.input_shape))}, {spec.classes} classes, "
            f"{dense.parameters:,} parameters, {dense.macs:,} MACs\n"
            f"at channel multiple {multiple} pruning can leave as little as "
            f"{least.parameters:,} parameters (-{1 - least.parameters / dense.parameters:.1%}) and "
            f"{least.macs:,} MACs (-{1 - least.macs / dense.macs:.1%})\n"
            + next_step("fsrp-edge", "compress", checkpoint["checkpoint"], *read_alike(), "--target", target or "NAME")
        ),
    )
