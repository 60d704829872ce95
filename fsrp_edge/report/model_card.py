"""MODEL_CARD.md: what a model hub and its readers ask of a model, in Hugging Face's form."""

from collections.abc import Sequence
from typing import Any

import yaml

from fsrp_edge import wording
from fsrp_edge.evaluation.results import Accuracy
from fsrp_edge.report.manifest import Manifest
from fsrp_edge.report.markdown import markdown_template
from fsrp_edge.report.summary import parity_figures


def render(manifest: Manifest) -> str:
    """Markdown with a YAML header of the fields that hubs index."""
    header = yaml.safe_dump(_header(manifest), sort_keys=False, allow_unicode=True)
    template = markdown_template("model_card.md.j2")
    body = template.render(manifest=manifest, wording=wording, parity_figures=parity_figures)
    return f"---\n{header}---\n\n{body}"


def _header(manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "library_name": "fsrp-edge",
        "tags": [
            *sorted({artifact.format for artifact in manifest.artifacts}),
            "filter-pruning",
            "adversarial-robustness",
            "edge",
        ],
    }
    if manifest.data.label_kind != "ground truth":
        return found
    files = {artifact.path.as_posix() for artifact in manifest.artifacts}
    judged = [(path, accuracies) for path, accuracies in manifest.accuracies.items() if path in files]
    return found | {"model-index": [_results(path, accuracies) for path, accuracies in judged]}


def _results(path: str, accuracies: Sequence[Accuracy]) -> dict[str, Any]:
    metrics = [
        {
            "type": "accuracy",
            "name": f"accuracy, {wording.attack(accuracy)}, n={accuracy.images}",
            "value": round(accuracy.accuracy, 4),
        }
        for accuracy in accuracies
    ]
    data = {"name": accuracies[0].data, "type": accuracies[0].data}
    task = {"type": "image-classification"}
    return {"name": path, "results": [{"task": task, "dataset": data, "metrics": metrics}]}
