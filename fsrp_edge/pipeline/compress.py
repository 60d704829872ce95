"""compress(): the stages in order, each kept in the run directory."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from fsrp_edge import progress
from fsrp_edge.pipeline import evidence, files, networks
from fsrp_edge.pipeline.inputs import RECOVERED, prepare
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.pipeline.record import write_records
from fsrp_edge.pipeline.run import Run
from fsrp_edge.pipeline.rundir import RunDirectory
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.report.schema import RunReport


@dataclass(frozen=True)
class CompressResult:
    """What a run leaves.

    Args:
        directory: the run directory.
        report: everything that was measured; also there as report.json and report.md.
        plan: which channels were kept.
        artifacts: paths of the verified files.
        model: path of the recovered network, loadable by `fsrp_edge.load`.
    """

    directory: Path
    report: RunReport
    plan: PruningPlan
    artifacts: tuple[Path, ...]
    model: Path


def compress(options: CompressOptions) -> CompressResult:
    """Score, prune, recover, export, verify, measure and evaluate; resumes what an earlier run left.

    Raises:
        BadInputError: before anything long starts, where an input is wrong.
        GateFailedError: a file does not compute what the network computes; nothing is published then.
        ToolFailedError: a tool or an extra is missing or failed.
    """
    inputs = prepare(options)
    directory = RunDirectory(inputs.out)
    with directory.locked(), progress.log_to(inputs.out / "run.log"):
        return _stages(Run(**vars(inputs), directory=directory))


def _stages(run: Run) -> CompressResult:
    started_at = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    wanted, costs = networks.settle_budgets(run)
    dense = networks.judge(run, "dense", run.dense, networks.baseline(run))
    recipe = networks.choose_recipe(run, dense)
    scores = networks.score_filters(run)
    plan = networks.make_pruning_plan(run, scores, wanted, costs, recipe)
    pruned = networks.prune(run, plan)
    recovered, recovery = networks.recover_network(run, pruned, recipe)
    before, after = networks.judge(run, "pruned", pruned), networks.judge(run, "recovered", recovered)
    rows = [
        networks.network_row("dense", run.dense, dense, ()),
        networks.network_row("pruned", pruned, before, dense),
        networks.network_row("recovered", recovered, after, dense),
    ]
    dense_files = files.export(run, "dense", run.dense, files.references(run))
    own_files = files.export(run, "artifacts", recovered, run.requests)
    latencies = files.bench(run, (dense_files, own_files))
    rows += files.file_rows(run, "dense ", run.dense, dense, dense_files, latencies, attack=False)
    rows += files.file_rows(run, "", recovered, dense, own_files, latencies, attack=True)
    evidence.picture(run, scores, recovered, (dense[0], after[0]), own_files.artifacts)
    exports = {"dense": dense_files, "artifacts": own_files}
    report = write_records(run, started_at, plan, recovered, recovery, rows, exports)
    run.remove_unfinished()
    return CompressResult(
        directory=run.directory.path,
        report=report,
        plan=plan,
        artifacts=tuple(run.path(artifact.path) for artifact in own_files.artifacts),
        model=run.path(RECOVERED),
    )
