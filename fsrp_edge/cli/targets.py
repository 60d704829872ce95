"""`fsrp-edge targets`: the device profiles."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fsrp_edge.cli import options
from fsrp_edge.cli.errors import traceback_option

if TYPE_CHECKING:
    from fsrp_edge.targets.coefficients import Group


@click.group()
def targets() -> None:
    """List, show, validate and write device profiles.

    A profile of your own is used by its path, or by its name when it lies as NAME.yaml in
    ~/.config/fsrp-edge/profiles (or in the folder named by $FSRP_EDGE_PROFILES). It may start from another
    one: `extends: raspberry-pi-4`.
    """


@targets.command("list")
@options.output_options
def list_() -> None:
    """List the packaged profiles, your own, and their variants."""
    from fsrp_edge.cli.console import show_result
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.targets.load import load_variants, own_folder, own_target_names, target_names

    found, broken = [], []
    for name, place in [
        *((n, "packaged") for n in target_names()),
        *((n, "own") for n in own_target_names()),
    ]:
        try:
            found += [(target, place) for target in load_variants(name)]
        except BadInputError as error:
            broken.append(str(error))
    files = {t.name: [f"{o.format} {o.precision}" for o in t.offers if o.default] for t, _ in found}
    show_result(
        [{"name": t.name, "description": t.description, "from": place} for t, place in found],
        ("name", "device", "from", "files made by default"),
        [(t.name, t.description, place, ", ".join(files[t.name])) for t, place in found],
        footer=f"Your own are read from {own_folder()}\nNext: fsrp-edge targets show NAME",
    )
    for problem in broken:
        click.echo(f"not listed: {problem}", err=True)


@targets.command()
@click.argument("target", metavar="NAME|FILE")
@options.output_options
def show(target: str) -> None:
    """Show a profile: the device, what is decided for it, and why.

    \b
    fsrp-edge targets show jetson-nano
    fsrp-edge targets show jetson-nano@5W
    """
    from fsrp_edge.cli.console import print_rows, shown_as_json
    from fsrp_edge.targets.load import load_target
    from fsrp_edge.targets.rows import choice_rows, file_rows, value_rows

    profile = load_target(target)
    if shown_as_json(profile.model_dump(mode="json", exclude_none=True)):
        return
    print_rows(("value", "", "source"), value_rows(profile), footer=f"{profile.name}: {profile.description}")
    print_rows(("choice", "value", "reason"), choice_rows(profile))
    print_rows(
        ("file", "made", "reason"),
        file_rows(profile),
        footer="\n".join(f"{key}: {source}" for key, source in profile.sources.items()),
    )


@targets.command()
@click.argument("file", type=options.ExistingFile)
@traceback_option
def validate(file: Path) -> None:
    """Check a profile file of your own and its variants. Errors name the line.

    \b
    fsrp-edge targets validate my-board.yaml
    """
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.targets.load import SUFFIXES, load_variants

    if file.suffix not in SUFFIXES:
        raise BadInputError(f"{file} does not end in {' or '.join(SUFFIXES)}; rename it")
    base, *variants = load_variants(str(file))
    more = f", with {', '.join(variant.name for variant in variants)}" if variants else ""
    click.echo(f"{file}: valid profile of {base.name} ({base.description}){more}")


@targets.command()
@click.argument("name")
@click.option(
    "--out",
    type=options.NewFile,
    help="File to write.  [default: NAME.yaml in the folder of your own profiles]",
)
@traceback_option
def new(name: str, out: Path | None) -> None:
    """Write a profile of this machine. Cores, clock, SIMD, caches and memory are its own; the rest is inherited.

    \b
    fsrp-edge targets new my-board
    """
    from fsrp_edge.errors import BadInputError
    from fsrp_edge.files import atomic_path
    from fsrp_edge.targets.load import SUFFIXES, load_target, own_folder, target_names
    from fsrp_edge.targets.this_machine import skeleton

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise BadInputError(f"{name!r} is not a name such as my-board: small letters and digits, with hyphens between")
    path = out or own_folder() / f"{name}.yaml"
    if path.suffix not in SUFFIXES:
        raise BadInputError(f"{path} does not end in {' or '.join(SUFFIXES)}; a profile does")
    if name in target_names():
        raise BadInputError(f"{name} is a packaged profile; give yours another name")
    if path.exists():
        raise BadInputError(f"{path} is there already and is not overwritten; move it away or choose another name")
    text = skeleton(name)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        load_target(str(temporary))
    from fsrp_edge.cli.console import next_step

    click.echo(f"wrote {path}\n{next_step('fsrp-edge', 'targets', 'show', path if out else name)}")


@targets.command()
@click.argument("target", metavar="NAME|FILE")
@click.option(
    "--from",
    "results",
    multiple=True,
    required=True,
    type=options.ExistingFile,
    help="What `fsrp-edge bench … --out FILE` wrote for networks of several kinds. Repeatable.",
)
@click.option(
    "--models",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the measured files.  [default: those of the results] Repeatable.",
)
@click.option(
    "--statistic",
    type=click.Choice(["p50", "min"]),
    default="p50",
    help="What to estimate from now on. With min, disturbed measurements count too.",
)
@options.output_options
def calibrate(
    target: str,
    results: tuple[Path, ...],
    models: tuple[Path, ...],
    statistic: str,
) -> None:
    """Fit the latency estimate to your measurements.

    `estimate` and budgets use it from then on, for the runtime and the threads that were measured: take those that you
    ship.

    \b
    fsrp-edge bench *.onnx --device ssh://pi@raspberrypi --threads 4 --out bench.json
    fsrp-edge targets calibrate raspberry-pi-4 --from bench.json
    """
    from typing import cast

    from fsrp_edge.cli.console import next_step, show_progress, show_result
    from fsrp_edge.targets.coefficients import Calibration, calibrated_groups, calibration_file
    from fsrp_edge.targets.load import load_target
    from fsrp_edge.targets.own_costs import Statistic
    from fsrp_edge.targets.own_costs import calibrate as fit

    profile = load_target(target)
    with show_progress():
        found = fit(profile, results, models, cast(Statistic, statistic))
    new = {each.group.setting: each.group for each in found}
    kept = [group for group in calibrated_groups(profile.name) if group.setting not in new]
    path = calibration_file(profile.name)
    Calibration(groups=(*kept, *new.values())).save(path)
    show_result(
        found,
        ("runtime", "threads", "precision", "networks", "error before", "after", "on networks left out"),
        [
            (
                each.group.runtime, each.group.threads, each.group.precision, each.group.networks,
                "no estimate" if each.before is None else f"{each.before:.1%}",
                f"{each.after:.1%}", f"{each.group.mape:.1%}",
            )
            for each in found
        ],
        footer=f"mean absolute errors; {path}\n{_on_threads(profile.threads, {each.group.threads for each in found})}"
        + next_step("fsrp-edge", "estimate", "MODEL.onnx", "--target", target, *_setting(found[0].group)),
    )  # fmt: skip


def _on_threads(wanted: int, measured: set[int]) -> str:
    """That budgets will not use what was measured with another number of threads than theirs; 0 stands for any."""
    from fsrp_edge import wording

    if measured & {0, wanted}:
        return ""
    return f"budgets are for {wording.threads(wanted)}: measure with --threads {wanted} for them\n"


def _setting(group: "Group") -> list[object]:
    """The options of `estimate` that lead to a group."""
    return ["--runtime", group.runtime, *(("--threads", group.threads) if group.threads else ())]
