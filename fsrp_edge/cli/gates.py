"""How gates end a command: the exit code, and what GitHub shows where the command runs there."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fsrp_edge.errors import GateFailedError

if TYPE_CHECKING:
    from fsrp_edge.report.schema import GateResult, RunReport


def finish(report: "RunReport", gates: Sequence["GateResult"]) -> None:
    """Tell GitHub Actions, where there is one, and fail where a gate failed; the last thing a command does.

    Raises:
        GateFailedError: at least one gate was not passed.
    """
    _tell_github(report, gates)
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        lines = "\n".join(f"{gate.gate}: {gate.message}" for gate in failed)
        raise GateFailedError(f"{len(failed)} of {len(gates)} gates failed\n{lines}")


def _tell_github(report: "RunReport", gates: Sequence["GateResult"]) -> None:
    """The report as the job's summary, and an annotation for each gate that failed."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        from fsrp_edge.report.markdown import render_markdown

        text = render_markdown(report.model_copy(update={"gates": tuple(gates)}))
        try:
            with Path(summary).open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        except OSError as error:  # as in a container, which has the variable and not the file
            click.echo(f"warning: no summary of the job in {summary}: {error.strerror}", err=True)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for gate in gates:
            if not gate.passed:
                # On stderr, where GitHub reads commands too, so that --json stays JSON.
                title, message = _escaped(gate.gate, more=":,"), _escaped(gate.message)
                click.echo(f"::error title={title}::{message}", err=True)


def _escaped(text: str, more: str = "") -> str:
    """As a workflow command takes it: its separators percent-encoded."""
    return "".join(f"%{ord(letter):02X}" if letter in "%\r\n" + more else letter for letter in text)
