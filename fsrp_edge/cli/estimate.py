"""`fsrp-edge estimate`: how long a file should take on a device nobody has plugged in."""

from pathlib import Path

import click

from fsrp_edge.cli import options


@click.command()
@click.argument("model", type=options.ExistingFile)
@options.target_option
@click.option("--runtime", metavar="NAME", help="One of the target's.  [default: the first with published figures]")
@click.option("--threads", type=options.COUNT, help="[default: the target's]")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]),
              help="Arithmetic of the device; a file with quantized operators counts as int8.  "
                   "[default: fp16 for a file in it where the device gains from that and "
                   "figures are known, else fp32]")  # fmt: skip
@click.option("--top", type=options.COUNT, default=12, help="Operators to list.")
@options.output_options
def estimate(
    model: Path,
    target: str,
    runtime: str | None,
    threads: int | None,
    precision: str | None,
    top: int,
) -> None:
    """Estimate latency and memory of an ONNX file on a device. Operator by operator; nothing is measured.

    \b
    fsrp-edge estimate resnet18.onnx --target raspberry-pi-4
    """
    from typing import cast

    from fsrp_edge import wording
    from fsrp_edge.cli.console import show_result
    from fsrp_edge.exporting.artifact import Precision
    from fsrp_edge.targets.estimate import estimate as estimate_latency
    from fsrp_edge.targets.graph_cost import read_graph
    from fsrp_edge.targets.load import load_target

    profile, graph = load_target(target), read_graph(model)
    found = estimate_latency(
        graph, profile, runtime=runtime, threads=threads, precision=cast(Precision | None, precision)
    )
    ranked = sorted(found.operators, key=lambda each: -each.milliseconds)[:top]
    low, high = found.interval
    prunable = sum(each.prunable for each in found.operators)
    at_once = "" if graph.batch == 1 else f", all {graph.batch} images that the file takes at once"
    fits = {None: "memory size unknown", True: "fits", False: "DOES NOT FIT"}[found.fits]
    show_result(
        {"estimated": True, "target": profile.name, "batch": graph.batch, "macs": graph.macs} | vars(found),
        ("operator", "class", "M MACs", "estimated\nms", "share", "mostly", "prunable\nms"),
        [
            (each.operator.layer, each.operator.kind,
             f"{each.operator.macs / 1e6:.1f}", f"{each.milliseconds:.3f}",
             f"{each.share:.1%}", each.mostly, f"{each.prunable:.3f}")
            for each in ranked
        ],
        footer=(
            f"estimated {found.milliseconds:.2f} ms ({low:.2f} to {high:.2f} ms, 90 %) on {profile.name}, "
            f"{found.runtime}, {wording.threads(found.threads)}, {found.precision}{at_once}\n"
            f"from {found.basis}\n"
            f"worth pruning: {prunable:.2f} ms go with channels; starting {len(graph.operators)} operators takes "
            f"{found.milliseconds - prunable:.2f} ms however few there are\n"
            f"{graph.macs / 1e6:,.0f} M MACs in {len(graph.operators)} operators; "
            f"weights {found.weight_bytes / 2**20:.1f} MiB, "
            f"activations {found.arena_bytes / 2**20:.1f} MiB at peak: {fits}"
        ),
    )  # fmt: skip
