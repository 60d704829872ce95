"""`fsrp-edge prune`: a plan from scores, and the smaller network from the plan."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options

PROBE_IMAGES = 256


@click.command()
@options.checkpoint_options
@click.option(
    "--scores", type=options.ExistingFile, help="Scores of this checkpoint, from `fsrp-edge score`."
)
@click.option(
    "--plan", type=options.ExistingFile, help="A finished plan to apply as it is, instead of scores."
)
@click.option("--target", metavar="NAME|FILE", help="Device profile: its channel multiple, what budgets are.")
@options.plan_options
@click.option(
    "--data",
    metavar="SOURCE",
    help="Images to measure on what each layer is worth, for the knapsack: as for fsrp-edge score.",
)
@click.option("--out", type=options.NewFile, default=Path("pruned.safetensors"))
@options.output_options
def prune(
    scores: Path | None,
    plan: Path | None,
    target: str | None,
    data: str | None,
    out: Path,
    **given: Any,
) -> None:
    """Remove the filters with the lowest scores, physically; writes the network and the plan beside it.

    \b
    fsrp-edge prune resnet20.th --scores scores.json --target raspberry-pi-4 --ratio 0.5
    fsrp-edge prune resnet20.th --scores scores.json --ratio 0.9 --ratio-of parameters --keep 'layer3.*'
    fsrp-edge prune resnet20.th --scores scores.json --target raspberry-pi-4 --latency 5ms
    fsrp-edge prune resnet20.th --plan pruned.plan.json
    """
    if (scores is None) == (plan is None):
        raise click.UsageError("give either --scores or --plan")
    from fsrp_edge.cli.console import show_progress, show_result
    from fsrp_edge.data.open import open_dataset
    from fsrp_edge.models.saved import save_classifier
    from fsrp_edge.models.size import measure_size
    from fsrp_edge.pipeline.budgeting import costing, log_plan, named_graph
    from fsrp_edge.pipeline.inputs import load
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.pruning.budgets import Budgets, show
    from fsrp_edge.pruning.options import PlanOptions
    from fsrp_edge.pruning.plan import PruningPlan
    from fsrp_edge.pruning.planning import make_plan
    from fsrp_edge.pruning.sensitivity import measure_sensitivity
    from fsrp_edge.pruning.surgery import apply_plan
    from fsrp_edge.scoring.scores import FilterScores
    from fsrp_edge.targets.load import load_target

    if plan is not None:
        options.refuse_beside("--plan", {*PlanOptions.model_fields, *Budgets.model_fields, "target"})
    with show_progress():
        budgets = options.budgets_from(given)
        asked = {name: given.pop(name) for name in PlanOptions.model_fields if name in given}
        dense = load(CheckpointOptions(**given))
        if plan is not None:
            chosen = PruningPlan.load(plan)
        else:
            assert scores is not None
            profile = load_target(target) if target else None
            wanted = PlanOptions(
                **asked, budgets=budgets, channel_multiple=profile.channel_multiple if profile else 1
            )
            costs = None
            if profile is not None and budgets.asked.keys() - {"macs", "parameters"}:
                runtimes = [each.name for each in profile.runtimes]
                absolute = budgets.latency is not None
                costs = costing(named_graph(dense), profile, "fp32", runtimes, absolute=absolute)
            found, worth = FilterScores.load(scores), None
            if wanted.chosen_allocation == "knapsack":
                images = open_dataset(data or dense.spec.data or "photographs", dense.spec, seed=0).train
                multiple = wanted.channel_multiple
                worth = measure_sensitivity(dense, found, images.sample(PROBE_IMAGES, 0), multiple)
            chosen = make_plan(dense, found, wanted, costs, worth)
            log_plan(chosen)
        pruned = apply_plan(dense, chosen)
        save_classifier(pruned, out)
        chosen.save(out.with_suffix(".plan.json"))
    before, after = measure_size(dense), measure_size(pruned)
    show_result(
        {"before": before, "after": after, "plan": chosen},
        ("", "before", "after", "removed"),
        [
            (name, f"{old:,}", f"{new:,}", f"{1 - new / old:.1%}")
            for name, old, new in (
                ("channels", before.channels, after.channels),
                ("parameters", before.parameters, after.parameters),
                ("MACs", before.macs, after.macs),
            )
        ]
        + [
            (
                f"{each.kind}, {'counted' if each.kind in ('macs', 'parameters') else 'estimated'}",
                show(each.kind, each.dense),
                show(each.kind, each.planned),
                f"at most {show(each.kind, each.limit)}",
            )
            for each in chosen.budgets
        ],
        footer=f"{out}\n{out.with_suffix('.plan.json')}\nNext: fsrp-edge recover {out} --data SOURCE",
    )
