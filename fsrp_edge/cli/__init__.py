"""The command line: parses, calls, renders. Heavy imports happen inside the command that needs them."""

import os
import sys

import click

from fsrp_edge import __version__
from fsrp_edge.cli.bench import bench
from fsrp_edge.cli.bundle import bundle
from fsrp_edge.cli.compress import compress
from fsrp_edge.cli.devices import devices
from fsrp_edge.cli.doctor import doctor
from fsrp_edge.cli.errors import run, unwind_when_terminated
from fsrp_edge.cli.estimate import estimate
from fsrp_edge.cli.evaluate import compare, evaluate
from fsrp_edge.cli.export import export
from fsrp_edge.cli.inspect import inspect
from fsrp_edge.cli.options import speaks
from fsrp_edge.cli.prune import prune
from fsrp_edge.cli.recover import recover
from fsrp_edge.cli.report import report
from fsrp_edge.cli.score import score
from fsrp_edge.cli.sweep import sweep
from fsrp_edge.cli.targets import targets
from fsrp_edge.cli.train import train
from fsrp_edge.cli.verify import verify
from fsrp_edge.errors import BadInputError

SHARED = ("train", "score", "recover", "evaluate")
"""Commands whose work the processes of `torchrun` share."""

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


class _InOrder(click.Group):
    """Lists its commands as they were added, not by the alphabet."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="fsrp-edge")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a trained image classifier into small, fast, attack-resistant models for edge devices.

    \b
    fsrp-edge compress resnet18.pt --target jetson-nano
    fsrp-edge inspect resnet18.pt --target raspberry-pi-4
    fsrp-edge targets list
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and context.invoked_subcommand not in SHARED:
        raise BadInputError(
            f"{context.invoked_subcommand} does not run under torchrun, where each process would do all of it; "
            f"{', '.join(SHARED[:-1])} and {SHARED[-1]} share their work there"
        )


for _command in (
    compress, sweep, train, inspect, score, prune, recover, export, verify, bundle, evaluate, compare, bench, devices,
    estimate, targets, report, doctor,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Entry point of the console script; of the processes of `torchrun`, only the first one speaks."""
    _open_closed_streams()
    if not speaks():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 -- for the life of the process
    unwind_when_terminated()
    sys.exit(run(cli))


def _open_closed_streams() -> None:
    """The null device takes the place of streams that a shell closed, as by `2>&-`; else some file of ours would."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115, PTH123 -- gets the lowest number, that of the closed one
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)
