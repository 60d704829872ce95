"""`fsrp-edge evaluate`: accuracy of a network, clean, attacked or corrupted. `compare`: of two, image by image."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import resumable


@click.command()
@options.checkpoint_options
@options.data_option
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    default=("pgd-20",),
    help="fgsm, pgd-STEPS (cross-entropy), cw-STEPS (margin), either with xRESTARTS, or autoattack. Repeatable; with "
    "several, the worst case over them is told too.",
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
@click.option(
    "--norm",
    type=click.Choice(["Linf", "L2"]),
    default="Linf",
    is_eager=True,
    help="Of the attacks' ball.",
)
@options.ball_eps_option
@click.option(
    "--corruptions",
    is_flag=True,
    help="Also under 14 families of common corruptions (noise, blur, weather, compression), made here.",
)
@click.option("--images", type=options.COUNT, help="Only the first so many evaluation images.")
@options.seed_option
@click.option(
    "--out",
    type=options.NewFile,
    help="Write the results with the verdict on every image as JSON to this file. An interrupted run goes on where it "
    "stopped.",
)
@options.output_options
def evaluate(
    checkpoint: Path,
    data: str | None,
    attacks: tuple[str, ...],
    clean_only: bool,
    files: tuple[Path, ...],
    norm: str,
    eps: float | None,
    corruptions: bool,
    images: int | None,
    seed: int,
    out: Path | None,
    **given: Any,
) -> None:
    """Measure clean and robust accuracy, each with its 95 % interval.

    Under `torchrun` (python -m torch.distributed.run) the processes share the images.

    \b
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --attack pgd-20 --attack autoattack
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --images 200 --file artifacts/model-int8.tflite
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --attack autoattack --norm L2 --eps 0.5
    torchrun --nproc-per-node 4 -m fsrp_edge evaluate recovered.safetensors --data cifar-10-batches-bin --attack pgd-50
    """
    from fsrp_edge import wording
    from fsrp_edge.attacks import DEFAULT_EPS
    from fsrp_edge.cli.console import next_step, show_computing, show_result
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.evaluation.corruptions import FAMILIES
    from fsrp_edge.evaluation.evaluate import EvaluationPlan, evaluate_with_files
    from fsrp_edge.evaluation.results import EvaluationFile
    from fsrp_edge.evaluation.standing import discard_verdicts
    from fsrp_edge.exporting.parity import require_file_of
    from fsrp_edge.models.saved import weights_sha256
    from fsrp_edge.pipeline.inputs import load, load_data
    from fsrp_edge.pipeline.options import CheckpointOptions

    if clean_only:
        options.refuse_beside("--clean-only", {"attacks", "norm", "eps"})
    if files and norm != "Linf":
        raise click.UsageError("--file is judged in L-infinity only; leave --norm out")
    if len({file.name for file in files}) < len(files):
        raise click.UsageError("results are kept by file name, and two of these --file have the same; rename one")
    if norm == "L2" and eps is None and not clean_only:
        raise click.UsageError("--norm L2 has no default radius; give --eps, such as 0.5, which is usual for CIFAR-10")
    eps = DEFAULT_EPS if eps is None else eps
    plan = options.checked(
        EvaluationPlan,
        attacks=() if clean_only else attacks,
        norm=norm,
        eps=eps,
        seed=seed,
        corruptions=corruptions,
    )
    unfinished = out and out.with_suffix(".unfinished.json")
    if unfinished:
        resumable()
    with show_computing():
        classifier = load(CheckpointOptions(checkpoint=checkpoint, **given))
        evaluated = load_data(classifier, data, seed).evaluation
        if classifier.spec.layer_shapes and evaluated.label_kind != "ground truth":
            raise BadInputError(
                "without labels, this pruned network would be compared with itself; give labelled images with --data"
            )
        chosen = evaluated.first(images or len(evaluated))
        for file in files:  # its adversarial examples are those of the network
            require_file_of(classifier, file)
        judged = evaluate_with_files(classifier, chosen, plan, files, unfinished=unfinished)
    results = [(name, one.result) for name, evaluations in judged.items() for one in evaluations]
    warnings = dict.fromkeys(warning for _, result in results for warning in result.warnings)
    footer = [f"warning: {warning}" for warning in warnings]
    if corrupted := [result.accuracy for _, result in results if result.attack in FAMILIES]:
        footer.append(f"mean over {len(corrupted)} corruptions: {wording.percent(sum(corrupted) / len(corrupted))}")
    saved = EvaluationFile.of(checkpoint.name, weights_sha256(classifier), chosen.digest, judged)
    if out is not None:
        saved.save(out)
        discard_verdicts(unfinished)  # not before: the disk may be full
        footer += [str(out), next_step("fsrp-edge", "compare", "OTHER.json", out)]
    show_result(
        saved,
        ("of", "attack", "measure", "95 % interval", "images"),
        [(name or "network", wording.attack(r), f"{wording.percent(r.accuracy)} {wording.measure(r)}",
          wording.interval(r), r.images) for name, r in results],
        footer="\n".join(footer),
    )  # fmt: skip


@click.command()
@click.argument("first", type=options.ExistingFile)
@click.argument("second", type=options.ExistingFile)
@options.output_options
def compare(first: Path, second: Path) -> None:
    """Compare two networks image by image. Give the files that `evaluate --out` wrote for the same images.

    The difference is that of the second network from the first, with its paired 95 % interval and the exact McNemar
    test.

    \b
    fsrp-edge evaluate resnet20.th --data cifar-10-batches-bin --attack autoattack --out dense.json
    fsrp-edge evaluate recovered.safetensors --data cifar-10-batches-bin --attack autoattack --out pruned.json
    fsrp-edge compare dense.json pruned.json
    """
    from fsrp_edge import wording
    from fsrp_edge.cli.console import show_result
    from fsrp_edge.evaluation.paired import compare_files
    from fsrp_edge.evaluation.results import EvaluationFile

    rows = compare_files(EvaluationFile.load(first), EvaluationFile.load(second))
    show_result(
        [{"file": file, "attack": wording.attack(result), **paired.model_dump()} for file, result, paired in rows],
        ("of", "attack", "points", "95 % interval", "only first right", "only second right", "p"),
        [(file or "network", wording.attack(result), f"{100 * paired.difference:+.1f}",
          "{:+.1f} to {:+.1f}".format(*(100 * end for end in paired.interval)),
          paired.only_first, paired.only_second, f"{paired.p_value:.2g}")
         for file, result, paired in rows],
        footer=f"{second} against {first}, {rows[0][1].images} images",
    )  # fmt: skip
