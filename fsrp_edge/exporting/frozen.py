"""The copy of a network that exporters work on."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fsrp_edge import compute
from fsrp_edge.models.classifier import Classifier
from fsrp_edge.models.maps import first_argument


def frozen_copy(classifier: Classifier) -> Classifier:
    """An independent copy on the CPU, in evaluation mode: exporters patch what they trace.

    It is laid out contiguously, because litert-torch 0.10 ignores strides: from channels_last weights it
    writes, without a word, a file that computes something else.
    """
    network = copy.deepcopy(classifier).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    frozen: Classifier = network.eval().requires_grad_(False)
    _write_out_padding(frozen)
    return frozen


def _write_out_padding(network: nn.Module) -> None:
    """`padding="same"` in numbers where both sides get as much: onnxruntime refuses the word beside dilation."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
            left, right, top, bottom = module._reversed_padding_repeated_twice
            if (left, top) == (right, bottom):
                module.padding = (top, left)


def as_exported(classifier: Classifier, *, uint8_input: bool, batch: int = 1) -> tuple[nn.Module, Tensor]:
    """A frozen copy that takes what the file shall take, and an example of that: (batch, C, H, W)."""
    frozen = frozen_copy(classifier)
    pixels = frozen.example_pixels(batch)
    _write_out_parametrizations(frozen)
    _replace_uneven_pooling(frozen, pixels)
    _write_out_plain_averages(frozen, pixels)
    if not uint8_input:
        return frozen, pixels
    return FromBytes(frozen), (255 * pixels).round().byte()


def _write_out_parametrizations(network: nn.Module) -> None:
    """Weights as they are used, where they are computed: exporters lack what spectral norms or rotations need."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type] # a ModuleDict
                parametrize.remove_parametrizations(module, name)


def _write_out_plain_averages(network: nn.Module, pixels: Tensor) -> None:
    """Average pooling without padding as such, whatever it says of padding that its maps do not need.

    LiteRT's converter makes two reductions and a division of it otherwise, as in ResNet-D's shortcuts.
    """
    plain = {
        module
        for module in network.modules()
        if isinstance(module, nn.AvgPool2d) and module.padding in (0, (0, 0)) and not module.count_include_pad
    }

    def look(module: nn.AvgPool2d, given: tuple[Any, ...], named: dict[str, Any], made: Tensor) -> None:
        maps = first_argument(given, named)
        if nn.functional.avg_pool2d(maps, module.kernel_size, module.stride).shape != made.shape:
            plain.discard(module)

    if plain:
        hooks = [module.register_forward_hook(look, with_kwargs=True) for module in plain]
        with torch.no_grad(), compute.hooked(hooks):
            network(pixels)
    for module in plain:
        module.ceil_mode, module.count_include_pad = False, True


def _replace_uneven_pooling(network: nn.Module, pixels: Tensor) -> None:
    """Exporters only know adaptive pooling whose bins are equal; VGG and AlexNet below 224 pixels have others."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)}
    calls: dict[str, dict[str, UnevenPooling]] = {name: {} for name in names.values()}
    uneven: set[str] = set()

    def look(module: nn.AdaptiveAvgPool2d, given: tuple[Any, ...], named: dict[str, Any], made: Tensor) -> None:
        before, after = (tuple(map(int, maps.shape[2:])) for maps in (first_argument(given, named), made))
        calls[names[module]][_written(before)] = UnevenPooling(before, after)
        if any(one % other for one, other in zip(before, after, strict=True)):
            uneven.add(names[module])

    if names:
        hooks = (module.register_forward_hook(look, with_kwargs=True) for module in names)
        with torch.no_grad(), compute.hooked(hooks):
            network(pixels)
    for name in uneven:
        network.set_submodule(name, PoolingBySize(calls[name]))


def _written(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


class PoolingBySize(nn.ModuleDict):
    """Adaptive average pooling of maps of one or several sizes, each in a way of its own: `3x4` and so on."""

    def forward(self, input: Tensor) -> Tensor:  # called as torch's pooling is, also by name
        """Maps (N, C, made) of maps (N, C, given)."""
        pooled: Tensor = self[_written(tuple(map(int, input.shape[2:])))](input)
        return pooled


class UnevenPooling(nn.Module):
    """Adaptive average pooling between two fixed sizes, as a matrix product along each axis.

    Args:
        given: (H, W) of the maps that come in.
        made: (H, W) of those that go out.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, given: tuple[int, ...], made: tuple[int, ...]) -> None:
        super().__init__()
        for name, before, after in zip(("rows", "columns"), given, made, strict=True):
            means = nn.functional.adaptive_avg_pool1d(torch.eye(before)[None], after)[0]
            self.register_buffer(name, means)  # (before, after)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, *made) of maps (N, C, *given)."""
        pooled: Tensor = (input @ self.columns).transpose(2, 3) @ self.rows
        return pooled.transpose(2, 3)


class FromBytes(nn.Module):
    """A classifier that takes images as bytes; their scale goes into the normalization, so no operator is added.

    Args:
        classifier: its normalization is changed.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        classifier.mean.mul_(255)
        classifier.std.mul_(255)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of uint8 images (N, C, H, W)."""
        logits: Tensor = self.classifier(images.float())
        return logits
