"""`compress --dry-run`: what a run would do, as a table."""

from fsrp_edge import wording
from fsrp_edge.cli.console import show_progress, show_result
from fsrp_edge.errors import GateFailedError
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.preview import Preview, preview


def show_preview(options: CompressOptions) -> None:
    """Print what a run with these options would do.

    Raises:
        GateFailedError: a gate can't be met, or the disk is too small.
    """
    with show_progress():
        found = preview(options)
    show_result(
        vars(found) | {"seconds": found.seconds},
        ("step", "about", "what"),
        [(step.name, wording.seconds(step.seconds), step.detail) for step in found.steps],
        footer="\n".join(_below(found)),
    )
    missed = [text for text, reached, _ in found.gates if reached is False]
    if missed:
        raise GateFailedError(f"out of reach with these options: {', '.join(missed)}; remove more, or ask for less")
    if found.disk_bytes > found.free_bytes:
        raise GateFailedError(f"{wording.size(found.disk_bytes)} are needed; {wording.size(found.free_bytes)} are free")


def _below(found: Preview) -> list[str]:
    about = "" if found.exact else "about "
    marks = {True: "✓", False: "✗", None: "?"}
    return [
        f"in all about {wording.seconds(found.seconds)} on this machine, extrapolated from a few batches",
        *(
            f"{what} {wording.count(before)} → {about}{wording.count(after)}"
            for what, (before, after) in (("parameters", found.parameters), ("MACs", found.macs))
        ),
        "files, weights alone: " + ", ".join(f"{name} {wording.size(size)}" for name, size in found.files),
        f"disk: about {wording.size(found.disk_bytes)} in {found.directory}; {wording.size(found.free_bytes)} are free",
        *(each.told for each in found.budgets),
        *filter(None, [found.latency]),
        *(f"{marks[reached]} {text}: {why}" for text, reached, why in found.gates),
        *(
            [f"already there, and used again where nothing changed: {', '.join(found.resumes)}"]
            if found.resumes
            else []
        ),
    ]
