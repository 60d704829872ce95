"""Architecture identifiers: what they are called, how they are built, what input they were published with."""

import difflib
import importlib
import importlib.util
import inspect
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fsrp_edge import progress, torchvision_compat  # noqa: F401 (applies the cure before torchvision is imported)
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import sha256_file
from fsrp_edge.models import cifar
from fsrp_edge.models.classifier import Preprocessing
from fsrp_edge.runtimes import require

PublishedInput = tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...], Preprocessing]
"""(channels, height, width), mean, std, preprocessing."""

_AUXILIARY_HEADS = {"torchvision:googlenet": ("aux1.", "aux2."), "torchvision:inception_v3": ("AuxLogits.",)}
"""Key prefixes of heads that only serve training from scratch. They are never built, so that every network
returns logits in training mode as in evaluation mode."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_KUANGLIU = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


@cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's image classifiers."""
    return tuple(_torchvision_models().list_models(module=_torchvision_models()))


def family_of(name: str) -> str:
    """The torchvision module that builds a classifier, such as `resnet` for `wide_resnet50_2`."""
    return str(_torchvision_models().get_model_builder(name).__module__).rpartition(".")[2]


def left_out(architecture: str) -> tuple[str, ...]:
    """Key prefixes in published files of what the logits do not depend on, and what is therefore never built.

    They are auxiliary heads, and the second first group that TRADES' wide residual networks hold and never run.
    """
    if architecture.startswith("cifar:wide_resnet"):
        return ("sub_block1.",)
    return _AUXILIARY_HEADS.get(architecture, ())


def is_user_code(architecture: str) -> bool:
    """Whether building the architecture runs code that is neither ours, torchvision's nor timm's."""
    return architecture.partition(":")[0] not in {"torchvision", "cifar", "timm"}


def code_sha256(architecture: str) -> str | None:
    """Hex SHA-256 of the file of the user's own that builds the architecture; None where none does."""
    location = architecture.rpartition(":")[0]
    if not is_user_code(architecture) or not location:
        return None
    path = location if location.endswith(".py") else getattr(sys.modules.get(location), "__file__", None)
    return sha256_file(Path(path)) if path and Path(path).is_file() else None


def possible_names(name: str) -> tuple[str, ...]:
    """Identifiers that a name given by a user can stand for, the most usual first.

    `resnet18` can be torchvision's or that for 32x32 images; an identifier with its prefix stands for itself.

    Raises:
        BadInputError: no such network; the text names the nearest ones.
    """
    prefix, colon, rest = name.partition(":")
    if colon and (prefix == "timm" or is_user_code(name)):
        return (name,)
    bare = rest if colon else name
    found = []
    if prefix != "cifar" and bare in torchvision_names():
        found.append(f"torchvision:{bare}")
    if prefix != "torchvision" and cifar.factory(bare) is not None:
        found.append(f"cifar:{bare}")
    if not found:
        raise BadInputError(f"unknown architecture {name!r}; {_suggestion(name)}")
    return tuple(found)


def normalize_name(name: str) -> str:
    """The identifier of a name given by a user: `resnet18` is `torchvision:resnet18`.

    Raises:
        BadInputError: no such network; the text names the nearest ones.
    """
    return possible_names(name)[0]


def build(architecture: str, *, classes: int, input_channels: int = 3) -> nn.Module:
    """A new network with random weights, in training mode, on the CPU.

    Args:
        architecture: `torchvision:NAME`, `cifar:NAME`, `timm:NAME`, `package.module:factory` or
            `path/file.py:factory`; a factory is called with `num_classes` if it takes that, else with
            nothing, and decides its input channels itself.
        classes: logits.
        input_channels: channels of an image.

    Returns:
        A network that takes normalized images (N, input_channels, H, W) and returns logits (N, classes), in
        training mode too: auxiliary heads are left out.

    Raises:
        BadInputError: no such architecture, or the code of a user's own failed.
        ToolFailedError: a timm network is asked for where timm is not installed.
    """
    home, _, name = normalize_name(architecture).partition(":")
    if home == "torchvision":
        return _build_torchvision(name, classes, input_channels)
    if home == "cifar":
        factory = cifar.factory(name)
        assert factory is not None  # normalize_name saw to it
        return factory(classes, input_channels)
    if home == "timm":
        return _build_timm(name, classes, input_channels)
    return _build_user(architecture, classes)


def build_without_weights(architecture: str, classes: int, input_channels: int = 3) -> nn.Module:
    """The same with parameters that have shapes but no values: quick, for comparing shapes.

    A user's factory is built as it is, because it may compute with the weights it makes.
    """
    if is_user_code(architecture):
        return build(architecture, classes=classes)
    with _EmptyTensorsOnMeta():
        return build(architecture, classes=classes, input_channels=input_channels)


def published_input(architecture: str, input_channels: int = 3) -> PublishedInput:
    """What the published weights of an architecture were trained on.

    Args:
        architecture: an identifier.
        input_channels: where it is not 3, mean and std are the averages over the published ones.

    Returns:
        Input shape, mean, std and preprocessing: those of torchvision's default weights, of timm's, or of the
        repositories that the CIFAR networks come from.

    Raises:
        BadInputError: a user's own factory publishes nothing.
    """
    home, _, name = normalize_name(architecture).partition(":")
    if home == "torchvision":
        size, mean, std, preprocessing = _torchvision_input(name)
    elif home == "cifar":
        size, (mean, std), preprocessing = 32, _cifar_normalization(name), Preprocessing(resize=32)
    elif home == "timm":
        size, mean, std, preprocessing = _timm_input(name)
    else:
        raise BadInputError(
            f"{architecture} does not say what input it was trained on: give the input size, mean and std "
            "(--input-size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
        )
    if input_channels != len(mean):
        mean, std = (statistics.mean(mean),) * input_channels, (statistics.mean(std),) * input_channels
    return (input_channels, size, size), mean, std, preprocessing


def chosen_input(
    architecture: str,
    input_channels: int,
    *,
    size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> PublishedInput:
    """What a user said of a network's input, and `published_input` where they said nothing."""
    if is_user_code(architecture) and size and mean and std:
        return (input_channels, size, size), mean, std, Preprocessing(resize=size)
    (_, usual, _), published_mean, published_std, preprocessing = published_input(architecture, input_channels)
    if (mean or std) and architecture in _AUXILIARY_HEADS:
        progress.log(
            f"{architecture}: --mean and --std are those that the network itself reads; torchvision's own weights need "
            "neither: images normalized as ImageNet's are normalized anew inside (transform_input)"
        )
    size = size or usual
    fitted = rescaled(preprocessing, usual, size)
    return (input_channels, size, size), mean or published_mean, std or published_std, fitted


def rescaled(preprocessing: Preprocessing, usual: int, wished: int) -> Preprocessing:
    """The same share of the image in the central crop, at another size."""
    return preprocessing.model_copy(update={"resize": max(wished, round(preprocessing.resize * wished / usual))})


class _EmptyTensorsOnMeta(TorchFunctionMode):
    """Parameters take no memory and no time.

    Unlike under `torch.device("meta")`, small computations inside a factory (the block widths of a RegNet,
    drop rates) still have values.
    """

    ALLOCATIONS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in self.ALLOCATIONS and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def _torchvision_models() -> Any:
    from torchvision import models

    return models


def _build_torchvision(name: str, classes: int, input_channels: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if f"torchvision:{name}" in _AUXILIARY_HEADS:
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = _torchvision_models().get_model(name, weights=None, **options)
    if input_channels != 3:
        _replace_stem(network, input_channels)
    return network


def stem_of(network: nn.Module) -> str | None:
    """Name of the convolution that sees the image: the first one with 3 input channels."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return str(name)
    return None


def _replace_stem(network: nn.Module, channels: int) -> None:
    name = stem_of(network)
    assert name is not None  # every torchvision classifier starts with a convolution
    stem: Any = network.get_submodule(name)
    stem.in_channels = channels
    stem.weight = nn.Parameter(stem.weight.new_empty(stem.out_channels, channels, *stem.kernel_size))
    stem.reset_parameters()


def _torchvision_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...], Preprocessing]:
    published = _torchvision_models().get_model_weights(name)
    transforms = published.DEFAULT.transforms()
    if family_of(name) == "vision_transformer":
        # Their factory fixes the input size at 224, for which the default weights of vit_h_14 are not.
        transforms = min((weights.transforms() for weights in published), key=lambda each: int(each.crop_size[0]))
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if f"torchvision:{name}" in _AUXILIARY_HEADS:
        # Published weights of these two go with `transform_input=True`, which turns ImageNet's normalization
        # into this one inside the network; stated here, the network is built without that detour.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(resize=transforms.resize_size[0], interpolation=transforms.interpolation.value)
    return transforms.crop_size[0], mean, std, preprocessing


def _cifar_normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """resnet20 to resnet110 were published with ImageNet's constants, TRADES' wide_resnet34_10 without any.

    The published resnet20 scores 91.73 % on the test set with them, 91.69 % with CIFAR-10's.
    """
    if name.startswith("wide_resnet"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if name.endswith(("-a", "-b")):
        return _IMAGENET
    return _CIFAR if name.startswith("vgg") else _KUANGLIU


def _build_timm(name: str, classes: int, input_channels: int) -> nn.Module:
    timm = require("timm")
    if not timm.is_model(name):
        near = ", ".join(f"timm:{each}" for each in difflib.get_close_matches(name, timm.list_models()))
        raise BadInputError(f"timm has no network {name!r}" + (f"; did you mean {near}?" if near else ""))
    network: nn.Module = timm.create_model(name, num_classes=classes, in_chans=input_channels)
    return network


def _timm_input(name: str) -> tuple[int, tuple[float, ...], tuple[float, ...], Preprocessing]:
    config = require("timm").get_pretrained_cfg(name)
    size = int(config.input_size[1])
    interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    preprocessing = Preprocessing(resize=int(size / config.crop_pct), interpolation=interpolation)
    return size, tuple(config.mean), tuple(config.std), preprocessing


def _build_user(architecture: str, classes: int) -> nn.Module:
    location, _, name = architecture.rpartition(":")
    factory = getattr(_import(location), name, None)
    if not callable(factory):
        raise BadInputError(f"{location} has no function {name!r}: name a factory as {location}:FUNCTION")
    try:
        network = factory(num_classes=classes) if _takes_classes(factory) else factory()
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise BadInputError(
            f"{architecture} failed: {_said(error)}; a factory is called with num_classes if it takes that, else with "
            "nothing, and returns a torch.nn.Module"
        ) from error
    if not isinstance(network, nn.Module):
        raise BadInputError(f"{architecture} returned {type(network).__name__}, not a torch.nn.Module")
    if any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        raise BadInputError(
            f"{architecture} has layers whose size is not known yet, such as nn.LazyLinear: let the factory run it "
            "once, as by network(torch.zeros(1, 3, 224, 224))"
        )
    return network.float()  # whatever it was trained in


def _takes_classes(factory: Callable[..., Any]) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    return any(each.name == "num_classes" or each.kind is each.VAR_KEYWORD for each in parameters)


def _import(location: str) -> ModuleType:
    """A module by its dotted name, or from a file that the user named."""
    path = Path(location)
    if path.suffix == ".py" and not path.is_file():
        raise BadInputError(f"no such file: {location}")
    try:
        _find_beside(path)
        return _import_file(path) if path.suffix == ".py" else importlib.import_module(location)
    except (Exception, SystemExit) as error:  # whatever a user's code raises, a syntax error included
        raise BadInputError(
            f"cannot import {location!r}: {_said(error)}; name a factory as package.module:FUNCTION, with the package "
            "in this folder or on PYTHONPATH, or as path/file.py:FUNCTION"
        ) from error


def _find_beside(path: Path) -> None:
    """Let a user's code import what `python path/file.py` and `python -m package.module` find: after what is installed.

    For good, since functions import, too.
    """
    for folder in map(str, (path.absolute().parent, Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def _import_file(path: Path) -> ModuleType:
    name = f"fsrp_edge_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # so it is for every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses inside the file look themselves up there
    spec.loader.exec_module(module)
    return module


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _suggestion(name: str) -> str:
    bare = name.rpartition(":")[2]
    known = {each: f"cifar:{each}" for each in cifar.FACTORIES} | {
        each: f"torchvision:{each}" for each in torchvision_names()
    }
    near = [known[each] for each in difflib.get_close_matches(bare, known, n=3, cutoff=0.5)]
    other = "timm:NAME, package.module:factory or file.py:factory also work"
    return f"nearest: {', '.join(near)}; {other}" if near else other
