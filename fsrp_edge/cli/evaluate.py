"""`fsrp-edge evaluate`: accuracy of a network or a file, clean and under attack."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option


@click.command()
@options.checkpoint_options
@options.data_option
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    default=("pgd-20",),
    show_default=True,
    help="fgsm, pgd-STEPS, pgd-STEPSxRESTARTS or autoattack. Repeatable. Attacks need gradients, so a network.",
)
@click.option("--clean-only", is_flag=True, help="No attack.")
@click.option(
    "--file",
    "files",
    multiple=True,
    type=options.ExistingFile,
    help="An ONNX or TFLite file of this network, to be judged in its own runtime: clean, and the worst case of the "
    "network's adversarial examples and Square. Repeatable.",
)
@options.eps_option
@click.option("--images", type=click.IntRange(1), help="Only the first so many evaluation images.")
@options.seed_option
@click.option("--out", type=options.NewFile, help="Write the results as JSON to this file too.")
@options.output_options
@traceback_option
def evaluate(
    checkpoint: Path,
    data: str | None,
    attacks: tuple[str, ...],
    clean_only: bool,
    files: tuple[Path, ...],
    eps: float,
    images: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure clean and robust accuracy, each with its 95 % interval.

    \b
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --attack pgd-20 --attack autoattack
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --images 200 --file model-int8.tflite
    """
    from fsrp_edge.cli.console import print_json, print_rows, show_progress
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.evaluation.evaluate import EvaluationPlan
    from fsrp_edge.evaluation.evaluate import evaluate as run
    from fsrp_edge.evaluation.files import evaluate_file
    from fsrp_edge.files import write_json
    from fsrp_edge.pipeline import CheckpointOptions, load, load_data
    from fsrp_edge.report import wording

    plan = options.checked(EvaluationPlan, attacks=() if clean_only else attacks, eps=eps, seed=seed)
    with show_progress(quiet=quiet):
        classifier = load(CheckpointOptions(checkpoint=checkpoint, **given))
        evaluated = load_data(classifier, data, seed).evaluation
        if classifier.spec.layer_shapes and evaluated.label_kind != "ground truth":
            raise BadInputError(
                "without labels, this pruned network would be compared with itself; give labelled images with --data"
            )
        chosen = evaluated.first(images or len(evaluated))
        results = [("", evaluation.result) for evaluation in run(classifier, chosen, plan)]
        for file in files:
            judged = evaluate_file(file, classifier, chosen, eps=0 if clean_only else eps, seed=seed)
            results += [(file.name, evaluation.result) for evaluation in judged]
    records = [result.model_dump(mode="json") | ({"file": f} if f else {}) for f, result in results]
    if out is not None:
        write_json(out, records)
    if as_json:
        print_json(records)
        return
    print_rows(
        ("of", "attack", "measure", "95 % interval", "images"),
        [(name or "network", wording.attack(r), f"{wording.percent(r.accuracy)} {wording.measure(r)}",
          wording.interval(r), r.images) for name, r in results],
        footer="\n".join(f"warning: {warning}" for _, result in results for warning in result.warnings),
    )  # fmt: skip
