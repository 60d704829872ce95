"""Pictures of scores: the spread in every layer, and the mean spectra of a layer's best and worst filters."""

from pathlib import Path
from typing import Any

import numpy as np

from fsrp_edge.data.images import ImageSet
from fsrp_edge.errors import ToolFailedError
from fsrp_edge.files import atomic_path, write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.explain import Explanation, explain, mean_spectra
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.scores import FilterScores


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ToolFailedError(
            'pictures need matplotlib; install it with: pip install "fsrp-edge[plots]"'
        ) from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def draw_scores(scores: FilterScores, path: Path) -> None:
    """A box for every layer: median, quartiles and range of its filters' scores, on a logarithmic axis."""
    pyplot = _pyplot()
    names = list(scores.layers)
    figure, axes = pyplot.subplots(figsize=(max(6.0, 0.35 * len(names)), 4.5), layout="constrained")
    positive = [np.maximum(scores.layers[name].scores, 1e-12) for name in names]
    axes.boxplot(positive, whis=(0, 100), tick_labels=names)
    axes.set(yscale="log", ylabel="score", title=f"{scores.criterion}: scores of the filters of each layer")
    axes.tick_params(axis="x", labelrotation=90)
    _write(figure, path)


def draw_spectra(
    scores: FilterScores, layer: str, chosen: list[int], spectra: np.ndarray, options: FSRP, path: Path
) -> None:
    """Mean log-spectra (filters, H, W) of one layer's chosen filters, worst first, with the low region drawn."""
    pyplot = _pyplot()
    from matplotlib.patches import Circle, Rectangle

    figure, axes = pyplot.subplots(
        1, len(chosen), figsize=(2.4 * len(chosen), 2.9), layout="constrained", squeeze=False
    )
    height, width = spectra.shape[1:]
    logarithms = np.log10(np.maximum(spectra, spectra.max() * 1e-8))
    for place, filter_, picture in zip(axes[0], chosen, logarithms, strict=True):
        place.imshow(
            picture, cmap="magma", vmin=logarithms.min(), vmax=logarithms.max(), origin="lower",
            extent=(*_edges(width), *_edges(height)),
        )  # fmt: skip
        radius = options.radius
        outline = (
            Circle((0, 0), radius, fill=False, color="white", linewidth=1.2)
            if options.region == "disk"
            else Rectangle(
                (-radius, -radius), 2 * radius, 2 * radius, fill=False, color="white", linewidth=1.2
            )
        )
        place.add_patch(outline)
        place.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        place.set_title(f"filter {filter_}\nscore {scores.layers[layer].scores[filter_]:.3g}", fontsize=9)
    figure.suptitle(
        f"{layer}, maps of {height}×{width}: worst to best; axes in fractions of the band", fontsize=9
    )
    _write(figure, path)


def _edges(length: int) -> tuple[float, float]:
    """Where the outermost bins end, in fractions of the band, so that DC is centred on 0."""
    return (-(length // 2) - 0.5) * 2 / length, ((length - 1) // 2 + 0.5) * 2 / length


def explain_into(
    folder: Path, classifier: Classifier, images: ImageSet, options: FSRP, *, seed: int, filters: int = 3
) -> tuple[FilterScores, Explanation]:
    """Score and explain a classifier; write explanation.json, scores.png and spectra-LAYER.png into `folder`.

    Args:
        folder: made where it is missing.
        classifier: the network.
        images: examples with labels.
        options: of the criterion.
        seed: of the random starts.
        filters: how many of the worst, and as many of the best, are drawn for each layer.
    """
    _pyplot()  # a missing library is to be known before the work
    scores, explanation = explain(classifier, images, options, seed=seed)
    chosen = {}
    for name, layer in scores.layers.items():
        order = np.argsort(layer.scores, kind="stable").tolist()
        chosen[name] = list(dict.fromkeys([*order[:filters], *order[-filters:]]))
    spectra = mean_spectra(classifier, images.first(options.batch_size), options, chosen, seed=seed)
    write_json(folder / "explanation.json", explanation.model_dump(mode="json"))
    draw_scores(scores, folder / "scores.png")
    for name, power in spectra.items():
        draw_spectra(scores, name, chosen[name], power, options, folder / f"spectra-{name}.png")
    return scores, explanation


def _write(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    _pyplot().close(figure)
