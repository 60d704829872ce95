"""The network as every stage sees it: pixels in [0, 1] go in, logits come out, normalization is inside."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fsrp_edge.attacks import attackable
from fsrp_edge.records import Record

Positive = Annotated[int, Field(gt=0)]


class LayerShape(Record):
    """What differs in one module from what the architecture's factory builds, by name.

    `attributes` are the module's own integers, such as `in_channels`, `groups` or `normalized_shape`;
    `tensors` are the shapes of its own parameters and buffers. This covers every kind of layer, bare
    parameters included.
    """

    attributes: dict[str, int | tuple[int, ...]] = {}
    tensors: dict[str, tuple[Positive, ...]] = {}


class Preprocessing(Record):
    """How an image file becomes pixels in [0, 1]: resize the shorter side, take the central crop.

    `resize` is the length of the shorter side in pixels before the central crop of the network's input size.
    """

    resize: Positive
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class ModelSpec(Record):
    """All that is needed, beside the weights, to build a classifier again and to feed it.

    `architecture` is an identifier that `fsrp_edge.models.registry` can build: `torchvision:resnet18`,
    `cifar:resnet20-a`, `timm:…`, `package.module:factory` or `file.py:factory`.
    `layer_shapes` is empty for a dense network.
    """

    architecture: str
    input_shape: tuple[Positive, Positive, Positive]
    """(channels, height, width) of one image."""
    classes: Annotated[int, Field(ge=2)]
    mean: tuple[float, ...]
    """Per-channel mean of pixels in [0, 1] that the network's normalization subtracts."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    data: str | None = None
    """Name of the embedded data set it was trained on, used when the user names no data."""
    layer_shapes: dict[str, LayerShape] = {}
    """Modules whose channels were pruned, by their name in the network (`""` is the network itself)."""

    def fed_whole(self) -> "ModelSpec":
        """The same, for images that are resized to the input as a whole: nothing is cut off but for the aspect."""
        preprocessing = self.preprocessing.model_copy(update={"resize": max(self.input_shape[1:])})
        return self.model_copy(update={"preprocessing": preprocessing})

    @model_validator(mode="after")
    def _lengths_agree(self) -> "ModelSpec":
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need {channels} values each, one a channel of the input")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.classes} classes")
        return self


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Its state dict without the values of another kind that modules may keep there (`get_extra_state`)."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


class Classifier(nn.Module):
    """A network with its normalization inside.

    Args:
        network: takes normalized images (N, C, H, W) and returns logits (N, classes).
        spec: what the network is; `spec.mean` and `spec.std` become buffers.

    Attributes:
        layout: of its tensors, once `to_fast_layout` has decided; None before.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.layout: torch.memory_format | None = None
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, classes) of pixels (N, C, H, W) in [0, 1]."""
        normalized = (pixels - self.mean) / self.std
        if self.layout == torch.contiguous_format:
            normalized = normalized.contiguous()
        logits: Tensor = self.network(normalized)
        return logits

    def to_fast_layout(self, device: torch.device) -> None:
        """Move to `device` and to channels_last, the faster layout for convolutions on CPU and CUDA.

        Code of a user's own may not run in that, such as `x.view(len(x), -1)`; the network then stays contiguous for
        good.
        """
        if self.layout is None:
            self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.layout = torch.channels_last if self._runs() else torch.contiguous_format
        self.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]

    def _runs(self) -> bool:
        try:
            with torch.no_grad(), attackable(self):
                self(self.example_pixels(2).contiguous(memory_format=torch.channels_last))
        except Exception:  # whatever a user's network raises
            return False
        return True

    def example_pixels(self, count: int = 1) -> Tensor:
        """Uniform random pixels (count, C, H, W) in [0, 1] on the network's device, always the same."""
        pixels = torch.rand((count, *self.spec.input_shape), generator=torch.Generator().manual_seed(0))
        return pixels.to(self.mean.device)
