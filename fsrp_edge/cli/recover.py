"""`fsrp-edge recover`: batch-norm recalibration and fine-tuning of a pruned network."""

from pathlib import Path
from typing import Any

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import resumable


@click.command()
@options.checkpoint_options
@options.data_option
@click.option(
    "--teacher",
    type=options.ExistingFile,
    help="Dense network whose soft labels are learnt in place of the data's.",
)
@options.recovery_options
@options.eps_option
@options.seed_option
@click.option("--out", type=options.NewFile, default=Path("recovered.safetensors"))
@options.output_options
def recover(
    data: str | None,
    teacher: Path | None,
    seed: int,
    out: Path,
    **given: Any,
) -> None:
    """Fine-tune a pruned network. An interrupted run goes on where it stopped.

    Epochs for int8 round weights to 8 bits. Those of `compress` know the target, whose ONNX files may have 7, as on
    generic-x86.

    \b
    fsrp-edge recover pruned.safetensors --data cifar-10-batches-bin --recover-epochs 10
    fsrp-edge recover pruned.safetensors --teacher resnet20.th
    fsrp-edge recover pruned.safetensors --teacher resnet20.th --data cifar-10-batches-bin --recover-method rslad
    fsrp-edge recover recovered.safetensors --data cifar-10-batches-bin --recover-epochs 0 --int8-epochs 2 \\
      --out for-int8.safetensors
    """
    from fsrp_edge.cli.console import next_step, read_saved, show_computing, show_result
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.models.saved import save_classifier
    from fsrp_edge.pipeline.inputs import load, load_data
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.training.recovery import UNDONE, fit_recipe, int8_checkpoint, require_same_task
    from fsrp_edge.training.recovery import recover as run

    chosen = options.recipe_from(given, options.read_recipe(given.pop("recipe")))
    del given["eps"]
    unfinished = out.with_suffix(".unfinished.pt")
    resumable()
    with show_computing():
        pruned = load(CheckpointOptions(**given))
        dense = load(CheckpointOptions(**given | {"checkpoint": teacher})) if teacher else None
        if dense is not None:
            require_same_task(pruned, dense)
        dataset = load_data(dense or pruned, data, seed)
        if dense is not None:  # images come as the teacher takes them
            pruned.spec = pruned.spec.model_copy(update={"preprocessing": dense.spec.preprocessing})
        if chosen is not None:
            if dense is None and dataset.train.label_kind != "ground truth":
                raise BadInputError(
                    "these images have no labels to learn: name the dense network with --teacher, or labelled "
                    "images with --data"
                )
            if dense is not None and "distillation" not in chosen.model_fields_set:
                chosen = chosen.distilling(1.0)
            chosen = fit_recipe(chosen, dataset, has_teacher=dense is not None)
        # Where there are no labels, the dense network gives them, whether or not the method takes a teacher.
        labels_only = chosen is not None and not chosen.needs_teacher and dataset.train.label_kind != "ground truth"
        learnt_from = None if labels_only else dense
        result = run(pruned, dataset.train, chosen, seed=seed, teacher=learnt_from, checkpoint=unfinished)
        save_classifier(result.classifier, out)
        for checkpoint in (unfinished, int8_checkpoint(unfinished)):
            checkpoint.unlink(missing_ok=True)
    show_result(
        {"best_epoch": result.best_epoch, "history": result.history},
        ("epoch", "loss", "clean %", "robust %", "kept"),
        [
            (
                record.epoch,
                f"{record.loss:.3f}",
                f"{100 * record.clean:.1f}",
                f"{100 * record.robust:.1f}",
                "*" if record.epoch == result.best_epoch else "",
            )
            for record in result.history
        ],
        footer=(f"{UNDONE}\n" if result.history and not result.best_epoch else "")
        + (f"warning: {result.diverged}\n" if result.diverged else "")
        + f"{out}\n"
        + next_step("fsrp-edge", "export", out, *read_saved(given["architecture"], data), "--target", "NAME"),
    )
