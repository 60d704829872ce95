"""`fsrp-edge sweep`: several ratios or budgets in one run, side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.compress import options_from, run_options
from fsrp_edge.cli.errors import resumable
from fsrp_edge.errors import GateFailedError

if TYPE_CHECKING:
    from fsrp_edge.report.sweep import Sweep

VARIED = {
    "ratio": "ratio", "latency": "latency", "macs": "macs", "params": "parameters", "size": "size",
    "memory": "memory",
}  # fmt: skip


def _variants(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    found = [
        (option, value.strip())
        for text in texts
        for option, _, values in [text.partition("=")]
        for value in values.split(",")
    ]
    for option, value in found:
        if option not in VARIED or not value:
            raise click.BadParameter(
                f"{option}={value} is not OPTION=VALUE,VALUE… with one of {', '.join(VARIED)}: latency=75%,50%,25%"
            )
    if len(found) < 2 or len(set(found)) < len(found):
        raise click.BadParameter("give at least two values, each once: ratio=0.3,0.5,0.7")
    return found


@click.command()
@run_options
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="OPTION=VALUE,VALUE…",
    callback=_variants,
    help=f"What to vary ({', '.join(VARIED)}) and its values. Repeatable.",
)
@options.gate_options
@options.seed_option
@click.option("--out", type=options.NewFolder, help="Folder of the runs.  [default: CHECKPOINT-TARGET-sweep]")
@options.output_options
def sweep(
    over: list[tuple[str, str]],
    out: Path | None,
    **given: Any,
) -> None:
    """Compress at several ratios or budgets, side by side. What each costs: a table, a picture, the knee.

    Each is a run of `fsrp-edge compress` in a folder of its own; scores and all that concerns the dense network are
    made once. The same command resumes after an interruption.

    \b
    fsrp-edge sweep resnet20.th --target raspberry-pi-4 --data cifar-10-batches-bin --over ratio=0.3,0.5,0.7
    fsrp-edge sweep net.pt --target my-board.yaml --over latency=75%,50%,25%
    """
    from fsrp_edge.cli.console import show_computing, shown_as_json
    from fsrp_edge.pipeline.sweep import Variant
    from fsrp_edge.pipeline.sweep import sweep as run
    from fsrp_edge.targets.load import load_target

    for option, _ in over:
        options.refuse_beside(f"--over {option}", {VARIED[option]})
    fixed = [f"--{option}" for option, name in VARIED.items() if name != "ratio" and given[name] is not None]
    if fixed and any(option == "ratio" for option, _ in over):
        raise click.UsageError(f"--over ratio does not go with {fixed[0]}, which decides that itself")
    variants = [
        Variant(
            f"{option}={value}",
            options_from(given | {VARIED[option]: value}),
        )
        for option, value in over
    ]
    first = variants[0].options
    folder = out or Path(f"{first.checkpoint.stem}-{load_target(first.target).name}-sweep")
    varied = ", ".join(dict.fromkeys(option for option, _ in over))
    resumable()
    with show_computing():
        found = run(variants, varied, folder)
    if not shown_as_json(found):
        _print(found, folder)
    missed = [point.name for point in found.points if point.gates_passed is False or point.problem]
    if missed:
        names = ", ".join(missed)
        raise GateFailedError(f"{len(missed)} of {len(variants)} runs failed or missed a budget or a gate: {names}")


def _print(found: "Sweep", folder: Path) -> None:
    from fsrp_edge import wording
    from fsrp_edge.cli.console import next_step, print_rows
    from fsrp_edge.report.sweep import SWEEP_JSON, SWEEP_PAGE

    def percent(value: float | None) -> str:
        return wording.NONE if value is None else f"{100 * value:.1f}"

    estimated = any(point.estimated_ms is not None for point in found.points)
    rows = []
    for point in found.points:
        marks = [
            "knee" if point.name == found.knee else "pareto" if point.pareto else "",
            "missed" if point.gates_passed is False else "",
            "failed" if point.problem else "",
            "dense is within" if point.within else "",
        ]
        rows.append((
            point.name, percent(point.clean_accuracy), percent(point.robust_accuracy), point.file or wording.NONE,
            wording.marked(wording.digits(point.latency_ms), valid=point.valid),
            *([wording.digits(point.estimated_ms)] if estimated else []),
            wording.size(point.bytes), wording.count(point.macs), ", ".join(filter(None, marks)),
        ))  # fmt: skip
    footer = [f"pareto: no other run is better in {found.measure} ({found.accuracy}), latency and size at once"]
    if estimated:
        footer.append(f"est. ms: estimated for the same file on {found.target}, where nothing was measured")
    if not all(point.valid for point in found.points):
        footer.append("✗ behind a p50: something disturbed the measurement; the run's report says what")
    footer += [f"{point.name}: {why}" for point in found.points if (why := point.problem or point.within)]
    footer += [str(folder / SWEEP_JSON), next_step("xdg-open", folder / SWEEP_PAGE)]
    print_rows(
        (
            "run", "clean %", f"{found.accuracy} %", "fastest file", "p50 ms",
            *(["est. ms"] if estimated else []), "size", "MACs", "",
        ),
        rows,
        footer="\n".join(footer),
    )  # fmt: skip
