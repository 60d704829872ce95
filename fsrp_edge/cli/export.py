"""`fsrp-edge export`: ONNX and TFLite files of a network, verified."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fsrp_edge.cli import options

if TYPE_CHECKING:
    from fsrp_edge.exporting.artifact import Artifact


@click.command()
@options.checkpoint_options
@options.target_option
@options.data_option
@options.format_options
@click.option(
    "--layer-errors",
    is_flag=True,
    help="Tell for int8 files what quantizing each layer alone does to the logits.",
)
@options.seed_option
@click.option("--out", type=options.NewFolder, default=Path("artifacts"), help="Folder of the files.")
@options.output_options
def export(
    checkpoint: Path,
    target: str,
    data: str | None,
    formats: tuple[Any, ...],
    precisions: tuple[Any, ...],
    layer_errors: bool,
    seed: int,
    out: Path,
    **given: Any,
) -> None:
    """Export a network for a device and check every file.

    Without --format and --precision the profile's defaults are made. A file that does not compute what the network
    computes is not written, and the exit code is 1. What an earlier export left in the folder stays where it is of the
    same network and target, and is removed otherwise; int8 files also have to be of the same data and, if int8 files
    are made again, of their calibration and allowed drop.

    \b
    fsrp-edge export recovered.safetensors --target raspberry-pi-4 --data cifar-10-batches-bin
    fsrp-edge export recovered.safetensors --target jetson-nano --format onnx --precision fp16
    fsrp-edge export net.pt --target raspberry-pi-5 --data photos/ --precision int8 --int8-max-drop 1 --layer-errors
    fsrp-edge export net.pt --target raspberry-pi-5 --format ncnn --format saved_model
    """
    from fsrp_edge.cli.console import print_rows, show_progress, shown_as_json
    from fsrp_edge.exporting.options import ExportOptions
    from fsrp_edge.exporting.tensorrt import write_engine_script
    from fsrp_edge.exporting.verified import export_verified
    from fsrp_edge.pipeline.inputs import choose_artifacts, load, load_data, require_int8
    from fsrp_edge.pipeline.options import CheckpointOptions
    from fsrp_edge.report.schema import DataUsed, Source, TargetReference
    from fsrp_edge.report.shipped import manifest_of_export, with_earlier_export, write_manifest
    from fsrp_edge.targets.load import load_target

    wanted = ExportOptions(**{name: given.pop(name) for name in ExportOptions.model_fields})
    with show_progress():
        profile = load_target(target)
        requests = choose_artifacts(profile, formats or None, precisions or None)
        require_int8(requests, {"int8-max-drop": wanted.int8_max_drop is not None, "layer-errors": layer_errors})
        classifier = load(CheckpointOptions(checkpoint=checkpoint, **given)).cpu()
        dataset = load_data(classifier, data, seed)
        exported = export_verified(
            classifier,
            requests,
            out,
            target=profile,
            calibration=dataset.train.sample(wanted.calibration_images, seed),
            images=dataset.evaluation,
            options=wanted,
            list_errors=layer_errors,
        )
        made = manifest_of_export(
            exported,
            source=Source.of(checkpoint, classifier.spec),
            target=TargetReference.of(profile),
            options=wanted.model_dump(mode="json") | {"data": data},
            seed=seed,
            data=DataUsed.of(dataset),
        )
        manifest = with_earlier_export(made, out)
        # Again, for earlier files too.
        script = write_engine_script(out, manifest.artifacts, profile, classifier.spec.input_shape)
        write_manifest(manifest, out, [script.name] if script else [])
    if shown_as_json(exported):
        return
    for name, errors in exported.layer_errors.items():
        print_rows(
            ("layer alone in int8", "change of the logits"),
            [(error.layer, f"{100 * error.relative_error:.2f} %") for error in errors],
            footer=f"{name}: root mean square by that of the logits",
        )
    print_rows(
        ("file", "bytes", "input", "checked by", "error", "top-1 agreement"),
        [
            (out / artifact.path, f"{artifact.bytes:,}", artifact.layout, parity.runtime,
             f"{parity.relative_error:.1e}", f"{100 * parity.top1_agreement:.1f} %")
            for artifact, checks in zip(exported.artifacts, exported.parities, strict=True)
            for parity in checks
            if parity.inputs == "real"
        ],
        footer="\n".join([
            *(f"{a.path}: {len(a.kept_in_float)} layers in float" for a in exported.artifacts if a.kept_in_float),
            *(f"{a.path}: TRANSPOSE {reason}" for a in exported.artifacts for reason in a.transpose_reasons),
            *(f"On the device: sh {script}" for script in exported.scripts),
            *next_steps(out, exported.artifacts, classifier.spec.input_shape),
        ]),
    )  # fmt: skip


def next_steps(out: Path, artifacts: Sequence["Artifact"], input_shape: tuple[int, ...]) -> Iterator[str]:
    """Measure the first file that can be, then pack all."""
    from fsrp_edge.bench.setup import SUFFIXES
    from fsrp_edge.cli.console import next_step

    measured = next((out / each.path for each in artifacts if each.path.suffix in SUFFIXES.values()), None)
    if measured is not None:
        untold = ("--input-shape", ",".join(map(str, input_shape))) if measured.suffix == ".ncnn" else ()
        yield next_step("fsrp-edge", "bench", measured, *untold)
    pack = next_step("fsrp-edge", "bundle", out)
    yield pack if measured is None else pack.replace("Next:", "     ")
