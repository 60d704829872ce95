"""fsrp-edge: small, fast, attack-resistant image classifiers for edge devices.

The Python API mirrors the command line. Names are imported when they are first used, so that `import fsrp_edge` is
quick and training runs where no exporter is installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fsrp_edge.bench.measure import measure
    from fsrp_edge.data.open import open_dataset
    from fsrp_edge.evaluation.evaluate import evaluate
    from fsrp_edge.exporting.verified import export_verified as export
    from fsrp_edge.models.checkpoint import load_classifier as load
    from fsrp_edge.models.saved import save_classifier as save
    from fsrp_edge.pipeline.compress import CompressResult, compress
    from fsrp_edge.pipeline.options import CompressOptions
    from fsrp_edge.pruning.planning import make_plan as plan
    from fsrp_edge.pruning.surgery import apply_plan as prune
    from fsrp_edge.scoring.fsrp import FSRP
    from fsrp_edge.scoring.score import score
    from fsrp_edge.targets.load import load_target
    from fsrp_edge.training.recovery import recover

_HOMES = {
    "CompressOptions": "fsrp_edge.pipeline.options:CompressOptions",
    "CompressResult": "fsrp_edge.pipeline.compress:CompressResult",
    "FSRP": "fsrp_edge.scoring.fsrp:FSRP",
    "compress": "fsrp_edge.pipeline.compress:compress",
    "evaluate": "fsrp_edge.evaluation.evaluate:evaluate",
    "export": "fsrp_edge.exporting.verified:export_verified",
    "load": "fsrp_edge.models.checkpoint:load_classifier",
    "load_target": "fsrp_edge.targets.load:load_target",
    "measure": "fsrp_edge.bench.measure:measure",
    "open_dataset": "fsrp_edge.data.open:open_dataset",
    "plan": "fsrp_edge.pruning.planning:make_plan",
    "prune": "fsrp_edge.pruning.surgery:apply_plan",
    "recover": "fsrp_edge.training.recovery:recover",
    "save": "fsrp_edge.models.saved:save_classifier",
    "score": "fsrp_edge.scoring.score:score",
}

__all__ = [  # noqa: RUF022 -- in the order of the pipeline
    "__version__", "load", "save", "open_dataset", "load_target", "FSRP", "score", "plan", "prune", "recover",
    "export", "measure", "evaluate", "compress", "CompressOptions", "CompressResult",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fsrp_edge' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
