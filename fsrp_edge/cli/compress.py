"""`fsrp-edge compress`: the whole way from a checkpoint to verified files and a report."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.config import config_options, save_config
from fsrp_edge.cli.errors import resumable
from fsrp_edge.cli.gates import finish

if TYPE_CHECKING:
    from fsrp_edge.pipeline.compress import CompressResult
    from fsrp_edge.pipeline.options import CompressOptions


run_options = options.stack(
    options.checkpoint_options,
    options.target_option,
    options.data_option,
    options.plan_options,
    options.strategy_options,
    click.option(
        "--round-epochs",
        type=options.NUMBER,
        default=0,
        help="Epochs of recovery after each round of the gradual strategy, except the last.",
    ),
    options.criterion_options,
    options.compensate_option,
    options.recovery_options,
    options.format_options,
    click.option(
        "--attack",
        "attacks",
        multiple=True,
        default=("pgd-20",),
        help="Judge by fgsm, pgd-STEPS, pgd-STEPSxRESTARTS or autoattack. Repeatable.",
    ),
    options.eps_option,
    click.option(
        "--robust-images",
        type=options.COUNT,
        help="Evaluation images to attack.  [default: 1000, or 128 for large inputs]",
    ),
    click.option(
        "--file-images",
        type=options.NUMBER,
        default=32,
        help="Evaluation images to attack each file on, in its runtime; 0: none. About half a second each.",
    ),
    click.option(
        "--bench-on",
        default="local",
        metavar="ADDRESS",
        help="Measure latency on this device, such as ssh://pi@raspberrypi.local; see fsrp-edge bench measure --help.",
    ),
    click.option("--quick-bench", is_flag=True, help="Measure latency for 2 seconds a file instead of 10."),
)
"""What one run takes, but for gates, seed and place."""


@click.command()
@run_options
@options.gate_options
@options.seed_option
@click.option("--out", type=options.NewFolder, help="Run directory.  [default: CHECKPOINT-TARGET]")
@click.option("--dry-run", is_flag=True, help="Say what would be done, how long it would take and how much room.")
@config_options
@options.output_options
def compress(dry_run: bool, **given: Any) -> None:
    """Compress a classifier for a device and report what it kept.

    Scores every filter, removes the channels with the lowest scores, recovers, exports, verifies every file, measures
    latency and robust accuracy. The run directory keeps each stage: the same command resumes after an interruption.

    \b
    fsrp-edge compress resnet18.pt --target jetson-nano
    fsrp-edge compress resnet20.th --target raspberry-pi-4 --data cifar-10-batches-bin --latency 5ms --size 200KB
    fsrp-edge compress net.pt --arch net.py:build --data photos/ --target my-board.yaml --ratio 0.6
    fsrp-edge compress resnet18.pt --target jetson-nano --data imagenet/ --require "robust_accuracy>=40%" --dry-run
    fsrp-edge compress --config run.yaml --ratio 0.7
    """
    from fsrp_edge.cli.console import show_computing, shown_as_json
    from fsrp_edge.cli.preview_table import show_preview
    from fsrp_edge.cli.report_table import print_report
    from fsrp_edge.pipeline.compress import compress as run

    wanted = options_from(given)
    save_config()
    if dry_run:
        show_preview(wanted)
        return
    resumable()
    with show_computing():
        result = run(wanted)
    if not shown_as_json(result.report):
        print_report(result.report, result.directory, _next_commands(result, wanted))
    finish(result.report, result.report.gates)


def _next_commands(result: "CompressResult", wanted: "CompressOptions") -> list[str]:
    from fsrp_edge import wording
    from fsrp_edge.cli.console import read_saved

    commands = [f"xdg-open {shlex.quote(str(result.directory / 'report.html'))}"]
    if result.report.data.label_kind == "ground truth":
        # Of the command line, as the report keeps no folders.
        chosen = read_saved(wanted.architecture, wanted.data)
        # As much as the run attacked: on all images, AutoAttack may take days.
        if attacked := next((each for each in result.report.ledger[0].accuracies if each.eps), None):
            radius = wording.radius(wanted.eps)  # rounded where it is no fraction of 255
            chosen += ["--eps", radius if "/" in radius else str(wanted.eps), "--images", str(attacked.images)]
        commands.append(shlex.join(["fsrp-edge", "evaluate", str(result.model), *chosen, "--attack", "autoattack"]))
    if any(not latency.valid for row in result.report.ledger for latency in row.latency):
        measured = shlex.quote(str(result.directory / "stages" / "bench.json"))
        commands.append(f"rm {measured}  # on a quiet machine; the same command then measures latency again")
    return commands


def options_from(given: dict[str, Any]) -> "CompressOptions":
    """The options of a run that the command line names; `given` are its parameters."""
    from fsrp_edge.bench.setup import QUICK, Method
    from fsrp_edge.pipeline.options import CompressOptions

    given = dict(given)
    recipe = options.read_recipe(given.pop("recipe"))
    if given["strategy"] != "gradual":
        options.refuse_beside(f"--strategy {given['strategy']}", {"rounds"})
    if given["precisions"] and "int8" not in given["precisions"]:
        options.refuse_beside(f"--precision {given['precisions'][0]}", {"int8_max_drop"})
    if given["round_epochs"] and given["compensate"]:
        options.refuse_beside("--round-epochs", {"compensate"})
    wanted: CompressOptions = options.checked(
        CompressOptions,
        criterion=options.criterion_from(given),
        budgets=options.budgets_from(given),
        natural_if_undefended=given["recover_method"] == "auto" and "method" not in recipe,
        recovery=options.recipe_from(given, recipe),
        formats=given.pop("formats") or None,
        precisions=given.pop("precisions") or None,
        method=QUICK if given.pop("quick_bench") else Method(),
        **given,
    )
    return wanted
