"""`fsrp-edge train`: adversarial training of a dense network, to have something robust to compress."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import resumable


@click.command()
@click.option("--arch", "architecture", required=True, metavar="NAME", help="As for compress.")
@click.option(
    "--data",
    type=options.source,
    required=True,
    metavar="SOURCE",
    help="As for compress; `digits` needs the extra samples.",
)
@click.option(
    "--classes", type=click.IntRange(2), default=10, help="Of the network to be made; as many as the data has."
)
@click.option(
    "--input-size",
    type=options.COUNT,
    help="Height and width in pixels.  [default: the architecture's own]",
)
@options.normalization_options
@click.option("--method", type=click.Choice(["n-fgsm", "pgd", "trades", "natural"]), default="n-fgsm")
@options.eps_option
@click.option("--epochs", type=options.COUNT, default=10)
@click.option("--batch-size", type=click.IntRange(2), default=128)
@click.option("--crop-padding", type=options.NUMBER, default=4, help="Of random crops, in pixels.")
@click.option("--learning-rate", type=options.POSITIVE, default=0.1)
@options.flip_option
@options.recipe_option
@options.seed_option
@click.option("--out", type=options.NewFile, required=True, help="A .pt or .safetensors file.")
@options.output_options
def train(
    architecture: str,
    data: str,
    method: str,
    eps: float,
    epochs: int,
    batch_size: int,
    crop_padding: int,
    learning_rate: float,
    flip: bool,
    recipe: Path | None,
    out: Path,
    **network: Any,
) -> None:
    """Train a network against adversarial examples. Goes on where it stopped when interrupted.

    \b
    fsrp-edge train --arch resnet18 --data digits --input-size 32 --out resnet18.pt
    fsrp-edge train --arch cifar:vgg16_bn --data cifar-10-batches-bin --epochs 30 --out vgg16.safetensors
    """
    if out.suffix not in {".pt", ".safetensors"}:
        raise click.UsageError(f"--out {out.name}: give a name that ends in .pt or .safetensors")
    from fsrp_edge.cli.console import next_step, read_saved, show_computing, show_result
    from fsrp_edge.data.open import EMBEDDED
    from fsrp_edge.models.saved import save_checkpoint_pt, save_classifier
    from fsrp_edge.training.dense import train_dense

    chosen = options.checked_recipe(**{
        "method": method, "eps": eps, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "flip": flip, "crop_padding": crop_padding,
    } | options.read_recipe(recipe))  # fmt: skip
    unfinished = out.with_suffix(".unfinished.pt")
    resumable()
    with show_computing():
        result = train_dense(architecture, data, chosen, checkpoint=unfinished, **network)
        (save_checkpoint_pt if out.suffix == ".pt" else save_classifier)(result.classifier, out)
        unfinished.unlink(missing_ok=True)
    best = result.history[result.best_epoch - 1]
    of_own = None if data in EMBEDDED else data
    next_command = ["fsrp-edge", "compress", str(out), *read_saved(architecture, of_own)]
    if of_own and not chosen.flip:
        next_command.append("--no-flip")
    show_result(
        {"best_epoch": result.best_epoch, "history": result.history},
        ("epoch kept", "held-out clean %", "held-out robust %", "images/s"),
        [
            (
                best.epoch,
                f"{100 * best.clean:.1f}",
                f"{100 * best.robust:.1f}",
                f"{best.images_per_second:.0f}",
            )
        ],
        footer=(f"warning: {result.diverged}\n" if result.diverged else "")
        + f"{out}\n{next_step(*next_command, '--target', 'NAME')}",
    )
