"""`fsrp-edge prune`: a plan from scores, and the smaller network from the plan."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options


@click.command()
@options.checkpoint_options
@click.option("--scores", type=options.ExistingFile, help="Scores of this checkpoint, from `fsrp-edge score`.")
@click.option("--plan", type=options.ExistingFile, help="A finished plan to apply as it is, instead of scores.")
@click.option("--target", metavar="NAME|FILE", help="Device profile: its channel multiple, what budgets are.")
@options.plan_options
@click.option(
    "--compensate",
    is_flag=True,
    help="Fit what stays to the dense network, layer by layer, by least squares on images; `recover` "
    "is expected to follow.",
)
@click.option(
    "--data",
    type=options.source,
    metavar="SOURCE",
    help="Images for --compensate, and for the knapsack to weigh plans on: as for fsrp-edge score.",
)
@click.option("--out", type=options.NewFile, default=Path("pruned.safetensors"))
@options.seed_option
@options.output_options
def prune(
    scores: Path | None,
    plan: Path | None,
    target: str | None,
    data: str | None,
    compensate: bool,
    seed: int,
    out: Path,
    **given: Any,
) -> None:
    """Remove the filters with the lowest scores, physically. Writes the network and the plan beside it.

    \b
    fsrp-edge prune resnet20.th --scores scores.json --target raspberry-pi-4 --ratio 0.5
    fsrp-edge prune resnet20.th --scores scores.json --ratio 0.9 --ratio-of parameters --keep 'layer1.*'
    fsrp-edge prune resnet20.th --scores scores.json --target raspberry-pi-4 --latency 5ms
    fsrp-edge prune resnet20.th --plan pruned.plan.json --compensate --data cifar-10-batches-bin
    """
    if (scores is None) == (plan is None):
        raise click.UsageError("give either --scores or --plan")
    from fsrp_edge.cli.console import next_step, read_saved, show_computing, show_result
    from fsrp_edge.models.saved import save_classifier
    from fsrp_edge.models.size import measure_size
    from fsrp_edge.pipeline.budgeting import plan_outside_of_runs
    from fsrp_edge.pipeline.inputs import load, load_data
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.pruning.budgets import Budgets, show
    from fsrp_edge.pruning.compensation import DenseOutputs, most_images
    from fsrp_edge.pruning.options import ChannelOptions
    from fsrp_edge.pruning.plan import PruningPlan
    from fsrp_edge.pruning.surgery import apply_plan
    from fsrp_edge.scoring.scores import FilterScores
    from fsrp_edge.training.recovery import without_held_out

    if plan is not None:
        options.refuse_beside("--plan", {*ChannelOptions.model_fields, *Budgets.model_fields, "target"})
    budgets = options.budgets_from(given)
    asked = {name: given.pop(name) for name in ChannelOptions.model_fields if name in given}
    wanted = options.checked(ChannelOptions, budgets=budgets, **asked)
    needs_images = compensate or (plan is None and wanted.chosen_allocation == "knapsack")
    if data is not None and not needs_images:
        raise click.UsageError(
            "--data is of no use here: add --compensate to fit what stays on these images, or leave --data out"
        )
    with show_computing():
        dense = load(CheckpointOptions(**given))
        images = without_held_out(load_data(dense, data, seed).train, seed) if needs_images else None
        if plan is not None:
            chosen = PruningPlan.load(plan)
        else:
            assert scores is not None
            chosen = plan_outside_of_runs(
                dense, FilterScores.load(scores), wanted, target, images, seed=seed, compensated=compensate
            )
        outputs = None
        if compensate and images is not None:
            outputs = DenseOutputs(dense, images.sample(most_images(dense.spec), seed), trained_after=True)
        pruned = apply_plan(dense, chosen, outputs)
        save_classifier(pruned, out)
        chosen.save(out.with_suffix(".plan.json"))
    before, after = measure_size(dense), measure_size(pruned)
    counts = [
        (what, getattr(before, field), getattr(after, field))
        for what, field in (("channels", "channels"), ("parameters", "parameters"), ("MACs", "macs"))
    ]
    show_result(
        {"before": before, "after": after, "plan": chosen},
        ("", "before", "after", "removed"),
        [(what, f"{old:,}", f"{new:,}", f"{1 - new / old:.1%}") for what, old, new in counts]
        + [
            (
                f"{each.kind}, {'counted' if each.kind in ('macs', 'parameters') else 'estimated'}",
                show(each.kind, each.dense),
                show(each.kind, each.planned),
                f"at most {show(each.kind, each.limit)}",
            )
            for each in chosen.budgets
        ],
        footer=f"{out}\n{out.with_suffix('.plan.json')}\n"
        + next_step("fsrp-edge", "recover", out, *read_saved(given["architecture"], data or "SOURCE")),
    )
