import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from fsrp_edge.attacks import attackable
from fsrp_edge.models.channel_graph import ChannelGroup
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.saved import weights_sha256
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import removed_channels
from fsrp_edge.scoring.capture import scored_layers
from fsrp_edge.scoring.scores import FilterScores, LayerScores
from tests.nets import built


@pytest.fixture(scope="session")
def carried() -> Callable[..., Classifier]:
    """A network that the package builds, with norms as training leaves them: their shifts show what was mixed up."""

    def make(architecture: str, size: int = 32) -> Classifier:
        classifier = built(architecture, shape=(3, size, size))
        for module in classifier.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        return classifier

    return make


def random_scores(classifier: Classifier, seed: int = 0) -> FilterScores:
    generator = torch.Generator().manual_seed(seed)
    return FilterScores(
        criterion="random",
        options={},
        architecture=classifier.spec.architecture,
        model_sha256=weights_sha256(classifier.network),
        data_sha256=None,
        images=0,
        seed=seed,
        layers={
            name: LayerScores(scores=tuple(torch.rand(len(layer.weight), generator=generator).tolist()))
            for name, layer in scored_layers(classifier.network).items()
        },
    )


@pytest.fixture(scope="session")
def planned() -> Callable[..., PruningPlan]:
    def make(classifier: Classifier, **options: object) -> PruningPlan:
        return make_plan(classifier, random_scores(classifier), PlanOptions.model_validate(options))

    return make


def logits(classifier: Classifier, pixels: Tensor) -> Tensor:
    with torch.no_grad(), attackable(classifier):
        return classifier(pixels)


def masking_error(dense: Classifier, pruned: Classifier, groups: Sequence[ChannelGroup], plan: PruningPlan) -> float:
    """How far the pruned network is from the dense one whose layers do not read the removed channels."""
    kept = {group.root: group.kept for group in plan.groups}
    masked = copy.deepcopy(dense).double()
    for (name, side), channels in removed_channels(groups, kept).items():
        if side == "input":
            weight = masked.network.get_submodule(name).weight
            weight.data[:, [channel for channel in channels if channel < weight.shape[1]]] = 0
    pixels = dense.example_pixels(2).double()
    expected = logits(masked, pixels)
    error = (logits(copy.deepcopy(pruned).double(), pixels) - expected).abs().max()
    return float(error / expected.abs().max())


@pytest.fixture(scope="session")
def error_against_masking() -> Callable[..., float]:
    return masking_error


class CountsChannels(nn.Module):
    """Its code says how many channels there are, as that of torch's own tutorial does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Linear(16 * 8 * 8, 10)

    def forward(self, x):
        return self.head(self.second(self.first(x)).view(-1, 16 * 8 * 8))
