"""`fsrp-edge score`: one number a filter."""

from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options

if TYPE_CHECKING:
    from fsrp_edge.scoring.explain import Explanation


@click.command()
@options.checkpoint_options
@options.data_option
@options.criterion_options
@options.eps_option
@options.seed_option
@click.option("--out", type=options.NewFile, default=Path("scores.json"))
@click.option(
    "--explain",
    "explain_to",
    type=options.NewFolder,
    metavar="FOLDER",
    help="Also tell how stable the ranking is, and draw scores and spectra into this folder (fsrp only).",
)
@options.output_options
def score(
    data: str | None,
    score_images: int | None,
    seed: int,
    out: Path,
    explain_to: Path | None,
    **given: Any,
) -> None:
    """Score every filter by FSRP or another criterion.

    FSRP is the low- to high-frequency ratio of the response to adversarial examples.

    \b
    fsrp-edge score resnet20.th --data cifar-10-batches-bin --out scores.json
    fsrp-edge score resnet20.th --data cifar-10-batches-bin --explain pictures/
    """
    if explain_to is not None and given["criterion"] != "fsrp":
        raise click.UsageError(
            f"--explain speaks of fsrp's spectra; it does not go with --criterion {given['criterion']}"
        )
    if not given["criterion"].startswith("fsrp"):
        options.refuse_beside(f"--criterion {given['criterion']}", {"eps"})
    from fsrp_edge.cli.console import next_step, print_rows, read_alike, show_computing, shown_as_json
    from fsrp_edge.models.channel_graph import require_convolutions
    from fsrp_edge.pipeline.inputs import default_score_images, load, load_data
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.scoring.pictures import explain_into
    from fsrp_edge.scoring.score import score as run
    from fsrp_edge.training.recovery import without_held_out

    chosen = options.criterion_from(given)
    del given["eps"]
    with show_computing():
        classifier = load(CheckpointOptions(**given))
        require_convolutions(classifier)
        images = without_held_out(load_data(classifier, data, seed).train, seed)
        sample = images.sample(score_images or default_score_images(classifier.spec), seed)
        if explain_to is None:
            scores, explanation = run(classifier, sample, chosen, seed=seed), None
        else:
            scores, explanation = explain_into(explain_to, classifier, sample, chosen, seed=seed)
        scores.save(out)
    if shown_as_json(scores):
        return
    if explanation is not None:
        _print_explanation(explanation)
    print_rows(
        ("layer", "filters", "map", "lowest", "median", "highest"),
        [
            (
                name,
                len(layer.scores),
                "x".join(map(str, layer.map_size or ())),
                *(f"{of(layer.scores):.3g}" for of in (min, median_high, max)),
            )
            for name, layer in scores.layers.items()
        ],
        footer=f"{out}\n"
        + next_step(
            *("fsrp-edge", "prune", given["checkpoint"], *read_alike()),
            *("--scores", out, "--compensate", "--target", "NAME"),
        ),
    )


def _print_explanation(explanation: "Explanation") -> None:
    from fsrp_edge.cli.console import print_rows

    print_rows(
        ("layer", "filters", "rank correlation", "same lower half", "overlap with L1"),
        [
            (
                row.layer,
                row.filters,
                f"{row.rank_correlation:.3f}",
                f"{row.same_lower_half:.2f}",
                f"{row.overlap_with_l1:.2f}",
            )
            for row in explanation.layers
        ],
        footer="between two halves of the images; for overlap and lower half, 0.5 is chance",
    )
    print_rows(
        ("images", "rank correlation", "same lower half"),
        [(row.images, f"{row.rank_correlation:.3f}", f"{row.same_lower_half:.2f}") for row in explanation.by_images],
        footer="between two disjoint sets of so many images, mean over layers",
    )
