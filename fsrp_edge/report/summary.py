"""What a report says, in the form that every rendering starts from: columns, verdict, totals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fsrp_edge import wording
from fsrp_edge.evaluation.paired import paired_change
from fsrp_edge.evaluation.results import ReportedAccuracy
from fsrp_edge.exporting.parity import Parity
from fsrp_edge.pruning.budgets import show
from fsrp_edge.report.gates import BY_TIME
from fsrp_edge.report.schema import DENSE, EstimatedLatency, LedgerRow, Recovery, RunReport, SpeedUp


@dataclass(frozen=True)
class Column:
    """One kind of accuracy in the ledger.

    Args:
        attack: such as `clean` or `PGD-20 L∞ 8/255`.
        measure: `accuracy`, or `agreement with the dense network` where no label was true.
    """

    attack: str
    measure: str

    @property
    def title(self) -> str:
        """`PGD-20 L∞ 8/255 accuracy`."""
        return f"{self.attack} {self.measure}"

    def of(self, row: LedgerRow) -> ReportedAccuracy | None:
        """The row's number in this column."""
        return next((accuracy for accuracy in row.accuracies if column_of(accuracy) == self), None)


def column_of(accuracy: ReportedAccuracy) -> Column:
    """The column that a number belongs to."""
    return Column(wording.attack(accuracy), wording.measure(accuracy))


def columns(ledger: Iterable[LedgerRow]) -> list[Column]:
    """The kinds of accuracy that occur, in the order of their first occurrence."""
    return list(dict.fromkeys(column_of(accuracy) for row in ledger for accuracy in row.accuracies))


def accuracy_was_measured(report: RunReport) -> bool:
    """Whether the evaluation labels were true."""
    return report.data.label_kind == "ground truth"


def title(report: RunReport) -> str:
    """`resnet18.pt → jetson-nano`."""
    return f"{report.source.checkpoint} → {report.request.target.name}"


def asked(report: RunReport) -> str:
    """What the run was asked to do, in one line."""
    pruning = report.pruning
    what = {"channels": "channels", "parameters": "parameters", "macs": "MACs"}[pruning.ratio_of]
    multiple = (f", channels in multiples of {pruning.channel_multiple}" if pruning.channel_multiple > 1 else "") + (
        ", compensated" if pruning.compensated else ""
    )
    if pruning.budgets:
        limits = ", ".join(f"{each.kind} at most {show(each.kind, each.limit)}" for each in pruning.budgets)
        return f"{limits} by criterion {pruning.criterion}, allocation {pruning.allocation}{multiple}"
    return f"{wording.percent(pruning.ratio)} of {what} removed by criterion {pruning.criterion}{multiple}"


def totals(report: RunReport) -> list[tuple[str, str, str, str]]:
    """(what, before, after, change) of channels, parameters and MACs."""
    before, after = report.pruning.before, report.pruning.after
    sizes = (
        ("channels", before.channels, after.channels),
        ("parameters", before.parameters, after.parameters),
        ("MACs", before.macs, after.macs),
    )
    return [(what, wording.count(old), wording.count(new), wording.fewer(old, new)) for what, old, new in sizes]


def parity_verdict(report: RunReport) -> tuple[bool | None, str]:
    """Whether every file passed parity (None where nothing was checked), and that in words."""
    checked = [row for row in report.ledger if row.parity_passed is not None]
    failed = [row.name for row in checked if not row.parity_passed]
    if not checked:
        return None, "parity of the files was not checked"
    if failed:
        return False, f"parity failed for {len(failed)} of {len(checked)} files: {', '.join(failed)}"
    return True, f"parity: {len(checked)} of {len(checked)} files compute what the network computes"


def parities(report: RunReport) -> list[tuple[str, Parity]]:
    """(ledger row, check) of every parity check."""
    return [(row.name, parity) for row in report.ledger for parity in row.parity]


def parity_figures(parity: Parity) -> str:
    """How far a file's logits are from the network's, in one line."""
    allowed = parity.tolerance
    agreement = wording.percent(parity.top1_agreement) + (
        f" (at least {wording.percent(allowed.top1_agreement)})" if allowed.top1_agreement is not None else ""
    )
    relative = f" (at most {allowed.relative_error:g})" if allowed.relative_error is not None else ""
    cosine = f" (at least {allowed.cosine:g})" if allowed.cosine is not None else ""
    return (
        f"largest error {parity.max_abs_error:.2g}, mean error {parity.mean_abs_error:.2g}, "
        f"relative error {parity.relative_error:.2g}{relative}, cosine {parity.cosine:.6f}{cosine}, "
        f"top-1 agreement {agreement}"
    )


def accuracy_verdicts(report: RunReport) -> list[str]:
    """For each kind of accuracy: the dense network's beside that of the last network in torch, and the change."""
    networks = [row for row in report.ledger if row.name in {"dense", "pruned", "recovered"}]
    lines = []
    for column in columns(networks):
        having = [(row.name, accuracy) for row in networks if (accuracy := column.of(row)) is not None]
        kept = having if len(having) < 3 else [having[0], having[-1]]
        figures = [f"{name} {wording.share_with_interval(accuracy)}" for name, accuracy in kept]
        since_dense = kept[-1][1].since_dense
        change = f"; {wording.change(since_dense)}, image by image" if since_dense else ""
        lines.append(f"{column.title}: {' → '.join(figures)}{change}")
    return lines


def speed_verdict(speed_up: SpeedUp) -> str:
    """A latency ratio beside the MACs ratio, in one line."""
    return (
        f"{speed_up.name} ({speed_up.runtime}, {wording.threads(speed_up.threads)}): "
        f"{wording.digits(speed_up.dense_p50_ms)} → {wording.digits(speed_up.p50_ms)} ms, "
        f"{wording.ratio(speed_up.latency_ratio)} {'faster' if speed_up.latency_ratio >= 1 else '(slower)'}; "
        f"MACs {wording.ratio(speed_up.macs_ratio)} fewer{'' if speed_up.valid else '; ✗ not valid, see below'}"
    )


def estimates(report: RunReport) -> list[str]:
    """For each file that is shipped, where latency was not measured on the target: what it should be there."""
    before = {row.name: row.estimate for row in report.ledger if row.is_dense}
    lines = []
    for row in report.ledger:
        if row.is_dense or (found := row.estimate) is None:
            continue
        dense = before.get(f"{DENSE} {row.name.split()[0]} fp32")
        since = f"{wording.digits(dense.milliseconds)} → " if dense else ""
        where = f"{found.runtime}, {wording.threads(found.threads)} on {report.request.target.name}"
        lines.append(f"{row.name} ({where}): {since}{estimated(found)}")
    return lines


def estimated(latency: EstimatedLatency) -> str:
    """`5.98 ms (4.88 to 7.32)`."""
    low, high = map(wording.digits, latency.interval)
    return f"{wording.digits(latency.milliseconds)} ms ({low} to {high})"


def notes(report: RunReport) -> list[str]:
    """The report's warnings and those of its figures, each once and said of its row."""
    found = list(report.warnings)
    timed = [gate.gate for gate in report.gates if gate.gate.startswith(BY_TIME)]
    if timed and any(row.estimate for row in report.ledger):  # there only where the target was not timed
        found.append(
            f"{' and '.join(timed)}: judged by the device that was timed, not by {report.request.target.name}; for the "
            "time there give --bench-on, or the budget --latency, which is judged by the estimate"
        )
    for artifact in report.artifacts:
        if kept := artifact.kept_in_float:
            layers = "1 layer is" if len(kept) == 1 else f"{len(kept)} layers are"
            found.append(f"{artifact.name}: {layers} in float, to keep its accuracy: {', '.join(kept)}")
    for row in report.ledger:
        for accuracy in row.accuracies:
            found += [f"{row.name}, {column_of(accuracy).title}: {text}" for text in accuracy.warnings]
        for latency in row.latency:
            if not latency.valid:
                reasons = "; ".join(latency.invalid_because) or "no reason given"
                where = f"{latency.runtime}, {wording.threads(latency.threads)}"
                found.append(f"{row.name}, latency ({where}) is not valid: {reasons}")
    return list(dict.fromkeys(found))


def side_by_side(reports: Sequence[RunReport]) -> list[tuple[str, ...]]:
    """What several runs were asked and reached: a row for each figure, a cell for each run.

    Accuracies are held against those of the first run, image by image, where both hold verdicts on the same images.
    """
    figures: list[dict[str, str]] = []
    before = {_figure_name(row, each): each for row in reports[0].ledger for each in row.accuracies}
    images = reports[0].data.evaluation.sha256
    for report in reports:
        found = {"asked": asked(report), "gates": _gates(report)}
        found |= {what: f"{new} ({change})" for what, _, new, change in totals(report)}
        for row in report.ledger:
            for accuracy in row.accuracies:
                name = _figure_name(row, accuracy)
                found[name] = f"{wording.percent(accuracy.accuracy)} ({wording.interval(accuracy)})"
                comparable = report is not reports[0] and report.data.evaluation.sha256 == images
                if comparable and name in before and (change := paired_change(before[name], accuracy)):
                    found[name] += f"; {wording.change(change)}"
            if row.bytes is not None:
                found[f"{row.name}: size"] = wording.size(row.bytes)
            for latency in row.latency:
                where = f"{latency.runtime}, {wording.threads(latency.threads)} on {latency.device}"
                name = f"{row.name}: p50, {where}"
                found[name] = f"{wording.digits(latency.p50_ms)} ms" + ("" if latency.valid else " (not valid)")
            if row.estimate is not None:
                where = (
                    f"{row.estimate.runtime}, {wording.threads(row.estimate.threads)} on {report.request.target.name}"
                )
                found[f"{row.name}: estimated, {where}"] = estimated(row.estimate)
        figures.append(found)
    names = dict.fromkeys(name for found in figures for name in found)
    return [(name, *(found.get(name, wording.NONE) for found in figures)) for name in names]


def _figure_name(row: LedgerRow, accuracy: ReportedAccuracy) -> str:
    return f"{row.name}: {column_of(accuracy).title}"


def _gates(report: RunReport) -> str:
    passed = sum(gate.passed for gate in report.gates)
    return f"{passed} of {len(report.gates)} passed" if report.gates else wording.NONE


def provenance(report: RunReport) -> list[tuple[str, str]]:
    """(what, value) of all that a run was made from and with."""
    source, data, machine = report.source, report.data, report.provenance.machine
    model, recovery = source.model, report.recovery
    names = model.class_names if model.class_names and model.classes <= 20 else ()
    sets = (("training images", data.train), ("evaluation images", data.evaluation))
    versions = {"fsrp-edge": report.provenance.fsrp_edge, "Python": report.provenance.python}
    versions |= report.provenance.libraries
    stages = (
        f"{stage.name} {wording.seconds(stage.seconds)}{' (resumed)' if stage.resumed else ''}"
        for stage in report.stages
    )
    return [
        ("checkpoint", f"{source.checkpoint}, SHA-256 {source.sha256}"),
        ("architecture", f"{model.architecture}, input {'×'.join(map(str, model.input_shape))}"),
        ("classes", f"{model.classes}{': ' if names else ''}{', '.join(names)}"),
        ("target", f"{report.request.target.name}, SHA-256 {report.request.target.sha256}"),
        ("data", data.description),
        *((what, f"{images.name}, n={images.images}, SHA-256 {images.sha256}") for what, images in sets),
        ("evaluation labels", data.label_kind),
        ("plan", f"SHA-256 {report.pruning.plan_sha256}"),
        ("recovery", "none" if recovery is None else _recovery(recovery)),
        ("options", "; ".join(f"{name}: {value}" for name, value in report.request.options.items())),
        ("seed", str(report.request.seed)),
        ("stages", ", ".join(stages)),
        (
            "machine",
            ", ".join(filter(None, (machine.gpu, machine.cpu, f"{machine.cores} cores", machine.os))),
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("started", report.provenance.started_at.isoformat()),
    ]


def _recovery(recovery: Recovery) -> str:
    kept = "" if recovery.best_epoch is None else f", kept epoch {recovery.best_epoch}"
    recipe = "".join(f"; {name}: {value}" for name, value in recovery.recipe.items())
    return f"{recovery.epochs} epochs{kept}{recipe}"
