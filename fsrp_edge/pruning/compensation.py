"""What removed channels carried, fitted into the weights that stay.

Layer by layer, in the order in which the network runs: the weights of each are changed so that its outputs, from what
it reads now, come closest to those of the dense network, by least squares over a sample of images and places. So a
layer makes up for the inputs that it lost and for what the layers before it could not make up for. In the manner of
channel pruning by reconstruction (He et al., arXiv 1707.06168; ThiNet, arXiv 1707.06342), for all layers in one forward
pass of either network.

Weights that stand in for many become large. Before a batch norm their size does nothing but divide what they learn from
a step, so there it stays as it was and the statistics of the batch norm take up the factor.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsrp_edge import compute
from fsrp_edge.attacks import attackable
from fsrp_edge.data.images import ImageSet
from fsrp_edge.models.batch_norms import BatchNorm, batch_norms_behind
from fsrp_edge.models.classifier import Classifier, ModelSpec
from fsrp_edge.models.maps import as_maps, first_argument

Fitted = nn.Conv2d | nn.Linear

ROWS = 8192
"""Places, over all images, that a layer is fitted at."""
CHECKED = 8
"""One place in so many only judges whether the fit holds for images that it did not see."""
GROWTH = 2.5
"""Between a ResNet-18 without half of its channels (1.9), which does better with its last layer fitted, and ResNet-20s
(3 to 4), which do better without; to VGG16s (1.7) it is about the same."""
RIDGE = 0.1
"""Of the mean square of what is read: the pull towards the weights as they were."""
BATCH = 64


def most_images(spec: ModelSpec) -> int:
    """How many images a network is fitted on: they run through it at once."""
    height, width = spec.input_shape[1:]
    return min(max(2**21 // (height * width), 64), 512)


@dataclass(frozen=True)
class _Sample:
    """What a layer of the dense network put out at some places.

    Args:
        image, place: (rows,) where; places count row by row through a map.
        width: of the map.
        outputs: (rows, channels) float32.
    """

    image: Tensor
    place: Tensor
    width: int
    outputs: Tensor


class DenseOutputs:
    """What the layers of a dense network put out, for smaller copies of it to be fitted to.

    Args:
        classifier: the dense network, on the device to compute on.
        images: `most_images` suffice; labels are not needed.
        fitted: how many of them, the first ones, smaller networks are fitted on; None for all.
        rows: places that are sampled for each layer.
        trained_after: the last layer is then left as it is where its weights would become GROWTH times as large: such
            weights make for sure answers, from which a training gets less far.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: ImageSet,
        *,
        fitted: int | None = None,
        rows: int = ROWS,
        trained_after: bool = False,
    ) -> None:
        device = compute.device_of(classifier)
        self.pixels = torch.cat([pixels for pixels, _ in images.batches(BATCH)]).to(device)
        self._fitted, self._rows = fitted or len(self.pixels), rows
        self._generator = torch.Generator().manual_seed(0)
        self._samples: dict[str, _Sample] = {}
        self._norms = batch_norms_behind(classifier)
        calls = Counter[str]()

        def record(name: str, layer: Fitted, _: Any, output: Tensor) -> None:
            calls[name] += 1
            self._samples[name] = self._sample(as_maps(layer, output))

        hooks = (layer.register_forward_hook(partial(record, name)) for name, layer in _fittable(classifier))
        with torch.no_grad(), attackable(classifier), compute.hooked(hooks):
            self.logits: Tensor = classifier(self.pixels).float()
        for name, count in calls.items():
            if count > 1:  # it would have to serve several inputs
                del self._samples[name]
        self._limited = next(reversed(calls), None) if trained_after else None

    def fit(self, pruned: Classifier, gone: Mapping[str, Collection[int]]) -> Tensor:
        """Change a smaller copy's weights in place.

        A layer stays as it is where the fit would not serve the places that judge it.

        Args:
            pruned: of the same layers with fewer channels.
            gone: output channels that layers lost, by the layer's name.

        Returns:
            The smaller network's logits for all images, (N, classes).
        """

        def fit(name: str, layer: Fitted, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            sample = self._samples.get(name)
            if sample is None:
                return
            lost = set(gone.get(name, ()))
            stay = [channel for channel in range(sample.outputs.shape[1]) if channel not in lost]
            size = _size(layer)
            before = copy.deepcopy(layer.state_dict()) if name == self._limited else None
            _fit(layer, _reads(layer, first_argument(arguments, named), sample), sample.outputs[:, stay])
            if name in self._norms:
                _keep_size(layer, size, pruned.network.get_submodule(self._norms[name]))
            elif before is not None and _size(layer).norm() > GROWTH * size.norm():
                layer.load_state_dict(before)

        hooks = (
            layer.register_forward_pre_hook(partial(fit, name), with_kwargs=True) for name, layer in _fittable(pruned)
        )
        with torch.no_grad(), attackable(pruned), compute.hooked(hooks):
            logits: Tensor = pruned(self.pixels).float()
        return logits

    def _sample(self, maps: Tensor) -> _Sample:
        """Maps (N, C, H, W); the first dimension may be windows of images."""
        places = maps.shape[2] * maps.shape[3]
        there = maps.shape[0] * self._fitted // len(self.pixels) * places
        chosen = torch.randperm(there, generator=self._generator)[: self._rows].sort().values.to(maps.device)
        image, place = chosen // places, chosen % places
        return _Sample(image, place, maps.shape[3], maps.flatten(2)[image, :, place].float())


def _fittable(classifier: Classifier) -> Iterator[tuple[str, Fitted]]:
    """The layers that can be fitted, by name.

    Not those whose weight is computed at each use (a parametrization), nor those that share it with another layer: what
    is fitted to the inputs of one would be undone by the other.
    """
    weights = (module._parameters.get("weight") for module in classifier.network.modules())
    owners = Counter(id(weight) for weight in weights if weight is not None)
    for name, layer in classifier.network.named_modules():
        own = isinstance(layer, Fitted) and owners[id(layer._parameters.get("weight"))] == 1
        if own and _computes_as_torch_does(layer):
            yield name, layer


def _computes_as_torch_does(layer: Fitted) -> bool:
    """Not so where a subclass, say, pads its inputs itself or standardizes its weight: what it reads is not known."""
    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    methods = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    return all(getattr(getattr(layer, name), "__func__", None) is getattr(kind, name) for name in methods)


def _reads(layer: Fitted, inputs: Tensor, sample: _Sample) -> Tensor:
    """What a layer reads for each of the sampled outputs, (rows, input channels, taps)."""
    if isinstance(layer, nn.Linear):
        return as_maps(layer, inputs).flatten(2)[sample.image, :, sample.place, None].float()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    maps = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
    top = sample.place // sample.width * layer.stride[0]
    left = sample.place % sample.width * layer.stride[1]
    taps = [
        maps[sample.image, :, top + down * layer.dilation[0], left + right * layer.dilation[1]]
        for down in range(layer.kernel_size[0])
        for right in range(layer.kernel_size[1])
    ]
    return torch.stack(taps, 2).float()


def _fit(layer: Fitted, reads: Tensor, wanted: Tensor) -> None:
    """Ridge regression of what is missing, in each group of a grouped convolution."""
    groups, rows = getattr(layer, "groups", 1), len(reads)
    learnt = rows - rows // CHECKED
    taps = reads.reshape(rows, groups, -1).transpose(0, 1)  # (groups, rows, taps)
    weight = layer.weight.float().reshape(groups, -1, taps.shape[2]).transpose(1, 2)  # (groups, taps, outputs)
    missing = wanted.reshape(rows, groups, -1).transpose(0, 1) - taps @ weight
    taps_mean, missing_mean = torch.zeros_like(taps[:, :1]), torch.zeros_like(missing[:, :1])
    if layer.bias is not None:
        missing = missing - layer.bias.float().reshape(groups, 1, -1)
        taps_mean, missing_mean = taps[:, :learnt].mean(1, True), missing[:, :learnt].mean(1, True)
    known, error = taps[:, :learnt] - taps_mean, missing[:, :learnt] - missing_mean
    change = _ridge_regression(known, error)
    constant = missing_mean - taps_mean @ change
    left = missing[:, learnt:] - taps[:, learnt:] @ change - constant
    if not left.square().sum() < missing[:, learnt:].square().sum():
        return
    layer.weight += change.transpose(1, 2).reshape(layer.weight.shape).to(layer.weight)
    if layer.bias is not None:
        layer.bias += constant.flatten().to(layer.bias)


def _size(layer: Fitted) -> Tensor:
    """(outputs,) norm of each output channel's weights."""
    sizes: Tensor = layer.weight.flatten(1).norm(dim=1)
    return sizes


def _keep_size(layer: Fitted, before: Tensor, norm: nn.Module) -> None:
    """Give each output channel's weights the size they had, and batch norm the statistics that go with that.

    Batch norm divides by the root of variance + eps, so it is this sum that takes up the factor. Where eps is most of
    it, weights shrink only as far as leaves the variance at 0.
    """
    now = _size(layer)
    assert isinstance(norm, BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    divided = norm.running_var + norm.eps
    factor = torch.where((before > 0) & (now > 0), before / now, 1.0).maximum((norm.eps / divided).sqrt())
    layer.weight *= factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
    if layer.bias is not None:
        layer.bias *= factor
    norm.running_mean *= factor
    norm.running_var.copy_((divided * factor.square() - norm.eps).clamp_min(0))  # rounding may end below 0


def _ridge_regression(known: Tensor, wanted: Tensor) -> Tensor:
    """(groups, taps, outputs) from (groups, rows, taps) and (groups, rows, outputs), by the smaller system."""
    rows, taps = known.shape[1:]
    across = known.transpose(1, 2)
    products = (across @ known if taps <= rows else known @ across).double()
    ridge = RIDGE * products.diagonal(dim1=1, dim2=2).sum(1) / taps
    ridge = torch.where(ridge > 0, ridge, 1.0)  # nothing varies
    factor = torch.linalg.cholesky(products + torch.diag_embed(ridge[:, None].expand(-1, products.shape[1])))
    if taps <= rows:
        return torch.cholesky_solve((across @ wanted).double(), factor).float()
    return across @ torch.cholesky_solve(wanted.double(), factor).float()
