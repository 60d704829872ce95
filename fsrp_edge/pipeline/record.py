"""What a run leaves to read: report.json with its renderings, manifest.json, the verdict on each gate."""

import datetime
from collections.abc import Iterator, Mapping, Sequence

from fsrp_edge.bench.address import parse_address
from fsrp_edge.data.check import chance_threshold
from fsrp_edge.exporting.verified import Exported
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.size import measure_size
from fsrp_edge.pipeline.budgeting import verdict
from fsrp_edge.pipeline.run import Run
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.report import schema
from fsrp_edge.report.gates import judge, judge_regressions
from fsrp_edge.report.provenance import provenance
from fsrp_edge.report.shipped import manifest_of_run, write_manifest
from fsrp_edge.report.store import REPORT_JSON, write_report
from fsrp_edge.training.recovery import UNDONE


def write_records(
    run: Run,
    started_at: datetime.datetime,
    plan: PruningPlan,
    recovered: Classifier,
    recovery: schema.Recovery | None,
    rows: Sequence[schema.LedgerRow],
    exports: Mapping[str, Exported],
) -> schema.RunReport:
    """Write the report and the manifest of a run whose stages are done; `exports` are by folder."""
    options = run.options
    report = schema.RunReport(
        request=schema.Request(
            # Who logs in where is nobody's business but the user's.
            options=options.model_dump(mode="json") | {"bench_on": parse_address(options.bench_on).name},
            target=schema.TargetReference.of(run.target),
            seed=options.seed,
        ),
        source=run.source,
        data=schema.DataUsed.of(run.dataset),
        pruning=schema.Pruning.of(
            plan, measure_size(run.dense), measure_size(recovered), compensated=run.options.compensates
        ),
        recovery=recovery,
        ledger=tuple(rows),
        artifacts=exports["artifacts"].artifacts,
        stages=tuple(run.directory.history),
        warnings=tuple(_warnings(run, plan, recovery, rows)),
        provenance=provenance(started_at),
    )
    report = report.model_copy(update={"gates": _judged(run, report, plan, recovered)})
    directory = run.directory.path
    write_report(report, directory)
    # Not report.md and the like, which `fsrp-edge report` renders again.
    write_manifest(manifest_of_run(report, exports), directory, [*run.directory.files, REPORT_JSON])
    return report


def _judged(
    run: Run, report: schema.RunReport, plan: PruningPlan, recovered: Classifier
) -> tuple[schema.GateResult, ...]:
    gates = judge(report, run.options.gates)
    budgets = [verdict(run.place, recovered, each, report.ledger) for each in plan.budgets]
    gates = (*budgets, *gates)
    if run.baseline is None:
        return gates
    return gates + judge_regressions(report, run.baseline, run.options.max_regression)


def _warnings(
    run: Run, plan: PruningPlan, recovery: schema.Recovery | None, rows: Sequence[schema.LedgerRow]
) -> Iterator[str]:
    recovered = next(row.accuracies[0] for row in rows if row.name == "recovered")
    known = run.dataset.evaluation.label_kind == "ground truth"
    if recovered.accuracy <= chance_threshold(run.dense.spec.classes):
        yield (
            f"the recovered network {'is right on' if known else 'agrees with the dense one on'} "
            f"{recovered.accuracy:.1%} of the images, no better than guessing: "
            "remove less (--ratio), or recover longer (--recover-epochs) or at another --recover-learning-rate"
        )
    if recovery is not None and recovery.best_epoch == 0:
        yield (
            f"recovery: {UNDONE} (its batch norm recalibrated where that helped): recover with more images (--data), "
            "longer (--recover-epochs) or at another --recover-learning-rate"
        )
    asked = run.options.recovery
    if recovery is not None and recovery.diverged:
        yield f"recovery: {recovery.diverged}"
    if recovery is not None and asked is not None and recovery.recipe["method"] != asked.method:
        yield (
            "the dense network was not trained against attacks, so recovery used clean images; "
            f"--recover-method {asked.method} buys robust accuracy with clean accuracy"
        )
    if not known:
        yield "accuracy was not measured, as there were no labelled images: agreement with the dense network was"
    untouched = [group for group in plan.groups if len(group.kept) == group.channels and group.note]
    if len(untouched) > 1:
        yield f"{len(untouched)} of {len(plan.groups)} channel groups were not pruned; plan.json says why"
