"""`fsrp-edge bundle`: one archive to ship."""

import os
from pathlib import Path

import click

from fsrp_edge.cli import options


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=options.NewFile, help="Archive to write.  [default: DIRECTORY.zip]")
@options.output_options
def bundle(directory: Path, out: Path | None) -> None:
    """Pack the files of a run or an export into one archive to ship.

    Labels, preprocessing, an example for each runtime and the evidence come along.

    \b
    fsrp-edge bundle resnet18-jetson-nano
    unzip resnet18-jetson-nano.zip -d model
    python model/examples/run_onnxruntime.py model/artifacts/model-fp32.onnx cat.jpg
    """
    from fsrp_edge.cli.console import next_step, show_result
    from fsrp_edge.files import sha256_file
    from fsrp_edge.report.bundle import bundle as run

    folder = directory.resolve()  # `.` has no name
    archive = out or Path(os.path.relpath(folder.with_name(f"{folder.name}.zip")))
    manifest = run(directory, archive)
    show_result(
        {"archive": archive, "sha256": sha256_file(archive), "files": sorted(manifest.files)},
        ("in the archive", "bytes"),
        [(name, f"{entry.bytes:,}") for name, entry in sorted(manifest.files.items())],
        footer=f"{archive}\n{next_step('unzip', archive, '-d', 'model')} && fsrp-edge verify model",
    )
