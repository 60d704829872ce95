"""What is left after surgery computes what the dense network computes with the removed channels silenced."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fsrp_edge.errors import BadInputError
from fsrp_edge.models.checkpoint import load_classifier
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.registry import build
from fsrp_edge.models.saved import save_classifier, weights_sha256
from fsrp_edge.pruning.options import PlanOptions
from fsrp_edge.pruning.plan import GroupPlan, PruningPlan
from fsrp_edge.pruning.planning import make_plan
from fsrp_edge.pruning.surgery import apply_plan
from fsrp_edge.scoring.capture import scored_layers
from fsrp_edge.scoring.scores import FilterScores, LayerScores
from tests.nets import as_classifier, built


def random_classifier(architecture: str) -> Classifier:
    """A network whose batch norms all do something, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(architecture, classes=10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.2, 1)
    return as_classifier(network, architecture)


def random_plan(classifier: Classifier, ratio: float = 0.4) -> PruningPlan:
    generator = torch.Generator().manual_seed(1)
    layers = {
        name: LayerScores(scores=tuple(torch.rand(layer.weight.shape[0], generator=generator).tolist()))
        for name, layer in scored_layers(classifier.network).items()
    }
    scores = FilterScores(
        criterion="random",
        options={},
        architecture=classifier.spec.architecture,
        model_sha256=weights_sha256(classifier.network),
        data_sha256=None,
        images=0,
        seed=1,
        layers=layers,
    )
    return make_plan(classifier, scores, PlanOptions(ratio=ratio, channel_multiple=4))


def logits(classifier: Classifier) -> torch.Tensor:
    with torch.no_grad():
        return classifier(classifier.example_pixels(4))


def silence(classifier: Classifier, plan: PruningPlan, norms: dict[str, str]) -> None:
    """Set what the norm after each layer makes of the removed channels to zero."""
    for group in plan.groups:
        gone = sorted(set(range(group.channels)) - set(group.kept))
        for layer in group.layers if gone else ():
            norm = classifier.network.get_submodule(norms[layer])
            with torch.no_grad():
                norm.weight[gone] = 0
                norm.bias[gone] = 0


def norms_after(network: nn.Module) -> dict[str, str]:
    """The batch norm that is defined right after each convolution, by name."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    return dict(zip(names[::2], names[1::2], strict=True))


@pytest.mark.parametrize("architecture", ["cifar:vgg16_bn-w0.125", "cifar:resnet20-b", "cifar:mobilenet_v2"])
def test_a_pruned_network_is_the_dense_one_with_channels_silenced(architecture: str, tmp_path: Path) -> None:
    dense = random_classifier(architecture)
    before = weights_sha256(dense.network)
    plan = random_plan(dense)
    pruned = apply_plan(dense, plan)
    assert weights_sha256(dense.network) == before
    pruned_logits = logits(pruned)
    norms = norms_after(dense.network) if "resnet" not in architecture else _resnet_norms(dense.network)
    silence(dense, plan, norms)
    torch.testing.assert_close(pruned_logits, logits(dense), rtol=1e-4, atol=1e-4)
    for group in plan.groups:
        assert len(group.kept) % 4 == 0 or len(group.kept) == group.channels
    save_classifier(pruned, tmp_path / "pruned.safetensors")
    assert torch.equal(logits(load_classifier(tmp_path / "pruned.safetensors")), pruned_logits)


def _resnet_norms(network: nn.Module) -> dict[str, str]:
    return {
        name: name.replace("conv", "bn") if "shortcut" not in name else name.replace("shortcut.0", "shortcut.1")
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def test_a_network_can_be_pruned_saved_and_pruned_again(tmp_path: Path) -> None:
    network = random_classifier("cifar:resnet20-a")
    parameters = []
    for round_ in range(3):
        network = apply_plan(network, random_plan(network, ratio=0.25))
        save_classifier(network, tmp_path / f"{round_}.safetensors")
        loaded = load_classifier(tmp_path / f"{round_}.safetensors")
        assert torch.equal(logits(loaded), logits(network))
        parameters.append(sum(parameter.numel() for parameter in network.parameters()))
        network = loaded
    assert parameters[0] > parameters[1] > parameters[2]


def test_a_plan_that_parts_a_unit_is_refused():
    dense = built("torchvision:resnext50_32x4d", shape=(3, 32, 32))
    kept = tuple(range(1, 128))
    plan = PruningPlan(
        architecture=dense.spec.architecture, model_sha256=weights_sha256(dense.network), criterion="l1",
        scores_sha256="", ratio=0.1, channel_multiple=1,
        groups=(GroupPlan(root="layer1.0.conv1", layers=("layer1.0.conv1",), channels=128,
                          kept=tuple(k for k in kept if k not in (6, 11, 12))),),
    )  # fmt: skip
    with pytest.raises(BadInputError, match="units of 4"):
        apply_plan(dense, plan)
