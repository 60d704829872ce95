"""Pictures of scores: the spread in every layer, and the mean spectra of a layer's best and worst filters."""

from pathlib import Path

from fsrp_edge import plots
from fsrp_edge.data.images import ImageSet
from fsrp_edge.files import write_json
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.scoring.explain import FILTERS, Explanation, explain, mean_spectra
from fsrp_edge.scoring.fsrp import FSRP
from fsrp_edge.scoring.scores import FilterScores


def explain_into(
    folder: Path, classifier: Classifier, images: ImageSet, options: FSRP, *, seed: int
) -> tuple[FilterScores, Explanation]:
    """Score and explain a classifier; write explanation.json, scores.png and spectra-LAYER.png into `folder`.

    Args:
        folder: made where it is missing.
        classifier: the network.
        images: examples with labels.
        options: of the criterion.
        seed: of the random starts.
    """
    scores, explanation = explain(classifier, images, options, seed=seed)
    chosen = {name: layer.worst_and_best(FILTERS) for name, layer in scores.layers.items()}
    spectra = mean_spectra(classifier, images.first(options.batch_size), options, chosen, seed=seed)
    write_json(folder / "explanation.json", explanation.model_dump(mode="json"))
    by_layer = {name: layer.scores for name, layer in scores.layers.items()}
    plots.save_png(plots.score_boxes(by_layer), folder / "scores.png")
    for name, power in spectra.items():
        values = [by_layer[name][filter_] for filter_ in chosen[name]]
        figure = plots.spectra(chosen[name], values, power, radius=options.radius, region=options.region)
        figure.suptitle(f"{name}: worst to best; axes in fractions of the band", fontsize=9)
        plots.save_png(figure, folder / f"spectra-{name}.png")
    return scores, explanation
