"""Which architecture a state dict belongs to, found by comparing names and shapes of its tensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from fsrp_edge.errors import BadInputError
from fsrp_edge.models import cifar, registry
from fsrp_edge.models.classifier import tensors_of

Shape = tuple[int, ...]

_UNLIKELY_CLASSES = 1237
"""A number that no layer has as its width: tensors with so many rows belong to the last layer."""

_FAMILY_KEYS = {
    "alexnet": ("features.0.weight", "classifier.6.weight"),
    "convnext": ("features.0.0.weight", "classifier.2.weight"),
    "densenet": ("features.conv0.weight", "classifier.weight"),
    "efficientnet": ("features.0.0.weight", "classifier.1.weight"),
    "googlenet": ("conv1.conv.weight", "fc.weight"),
    "inception": ("Conv2d_1a_3x3.conv.weight", "fc.weight"),
    "maxvit": ("stem.0.0.weight", "classifier.5.weight"),
    "mnasnet": ("layers.0.weight", "classifier.1.weight"),
    "mobilenetv2": ("features.0.0.weight", "classifier.1.weight"),
    "mobilenetv3": ("features.0.0.weight", "classifier.3.weight"),
    "regnet": ("stem.0.weight", "fc.weight"),
    "resnet": ("conv1.weight", "fc.weight"),
    "shufflenetv2": ("conv1.0.weight", "fc.weight"),
    "squeezenet": ("features.0.weight", "classifier.1.weight"),
    "swin_transformer": ("features.0.0.weight", "head.weight"),
    "vgg": ("features.0.weight", "classifier.6.weight"),
    "vision_transformer": ("conv_proj.weight", "heads.head.weight"),
}
"""First and last weight of each of torchvision's families: a cheap look before networks are built."""


@dataclass(frozen=True)
class Match:
    """How well a state dict fits an architecture.

    Args:
        architecture: the identifier.
        classes: rows of the classifier's weight in the state dict; where the architecture's number of classes
            is fixed or the weight is absent, an arbitrary number.
        input_channels: channels that the first convolution takes.
        shared: number of tensors that agree in name.
        missing: names that the architecture has and the state dict has not.
        unexpected: names that only the state dict has.
        reshaped: name, the architecture's shape and the state dict's shape, where they differ.
    """

    architecture: str
    classes: int
    input_channels: int
    shared: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, Shape, Shape], ...]

    @property
    def exact(self) -> bool:
        """Whether the weights can be loaded."""
        return not (self.missing or self.unexpected or self.reshaped)

    @property
    def differences(self) -> int:
        """Number of tensors that do not agree."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    @property
    def looks_pruned(self) -> bool:
        """Whether every tensor is there, and those of another shape have fewer channels."""
        return (
            bool(self.reshaped)
            and not (self.missing or self.unexpected)
            and all(
                (len(seen), seen[2:]) == (len(built), built[2:])
                and all(a <= b for a, b in zip(seen, built, strict=True))
                for _, built, seen in self.reshaped
            )
        )

    def describe(self) -> str:
        """What differs, with counts and an example of each kind."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} tensors missing, such as {self.missing[0]}")
        if self.unexpected:
            parts.append(f"{len(self.unexpected)} unexpected, such as {self.unexpected[0]}")
        if self.reshaped:
            name, built, seen = self.reshaped[0]
            sizes = f"{'x'.join(map(str, seen))}, not {'x'.join(map(str, built))}"
            parts.append(f"{len(self.reshaped)} of another shape, such as {name} ({sizes})")
        return "; ".join(parts)


def infer_architecture(state: Mapping[str, Tensor]) -> Match | None:
    """The architecture whose tensors have exactly these names and shapes, whatever the number of classes.

    Args:
        state: the weights, without prefixes of wrappers.

    Returns:
        The first exact match; None where there is none. No two networks carried here, or by torchvision,
        share names and shapes, so that there is never a choice to make.
    """
    matches = (compare(name, state) for name in _candidates(state))
    return next((match for match in matches if match.exact), None)


def no_match(*views: Mapping[str, Tensor]) -> BadInputError:
    """The error for weights that fit no architecture, with up to three that have most of their names.

    Args:
        views: the weights as they are, and without what may be a wrapper's prefix.
    """
    matches = {name: compare(name, view) for view in views for name in dict.fromkeys(_kin(view))}
    alike = (match for match in matches.values() if match.shared > len(match.missing) + len(match.unexpected))
    nearest = sorted(alike, key=lambda match: match.differences)[:3]
    if nearest and nearest[0].looks_pruned:
        return BadInputError(
            f"these weights are those of {nearest[0].architecture} with channels removed "
            f"({nearest[0].describe()}): such a network cannot be rebuilt without its channel layout; "
            "load a file saved by fsrp-edge, or name a factory that builds the pruned network (--arch)"
        )
    listed = " | ".join(f"{match.architecture}: {match.describe()}" for match in nearest)
    return BadInputError(
        f"no known architecture has just this file's tensors ({len(views[0])}, the first {next(iter(views[0]))}); "
        "name it with --arch NAME, package.module:factory or file.py:factory"
        + (f". Nearest: {listed}" if listed else "")
    )


def compare(architecture: str, state: Mapping[str, Tensor]) -> Match:
    """How well a state dict fits one architecture, with as many classes and input channels as it has."""
    skeleton = _skeleton(architecture)
    unused = registry.left_out(architecture)
    seen = {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith(unused)}
    classes = next((seen[name][0] for name in skeleton.heads if seen.get(name)), _UNLIKELY_CLASSES)
    channels = 3
    if skeleton.stem is not None and len(seen.get(skeleton.stem, ())) == 4:
        channels = seen[skeleton.stem][1]
    built = skeleton.shapes_for(classes, channels)
    common = built.keys() & seen.keys()
    reshaped = [(name, built[name], seen[name]) for name in built if name in common and built[name] != seen[name]]
    return Match(
        architecture,
        classes,
        channels,
        shared=len(common),
        missing=tuple(name for name in built if name not in seen and name not in skeleton.optional),
        unexpected=tuple(name for name in seen if name not in built),
        reshaped=tuple(reshaped),
    )


@dataclass(frozen=True)
class _Skeleton:
    """Shapes of an architecture's tensors, built for `_UNLIKELY_CLASSES`.

    Args:
        shapes: of every tensor of the state dict.
        heads: names whose number of rows is the number of classes.
        stem: name of the weight whose second dimension is the image's channels; None where that is fixed.
        optional: names that published files may lack.
    """

    shapes: dict[str, Shape]
    heads: tuple[str, ...]
    stem: str | None
    optional: frozenset[str]

    def shapes_for(self, classes: int, channels: int) -> dict[str, Shape]:
        shapes = dict(self.shapes)
        for name in self.heads:
            shapes[name] = (classes, *shapes[name][1:])
        if self.stem is not None:
            rows, _, *kernel = shapes[self.stem]
            shapes[self.stem] = (rows, channels, *kernel)
        return shapes


@cache
def _skeleton(architecture: str) -> _Skeleton:
    network = registry.build_without_weights(architecture, _UNLIKELY_CLASSES)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(network).items()}
    fixed = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, cifar.PadShortcut)}
    stem = None if registry.is_user_code(architecture) else registry.stem_of(network)
    return _Skeleton(
        shapes,
        heads=tuple(name for name, shape in shapes.items() if shape and shape[0] == _UNLIKELY_CLASSES),
        stem=None if stem is None else f"{stem}.weight",
        optional=frozenset(fixed | {name for name in shapes if name.endswith("num_batches_tracked")}),
    )


def _candidates(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Architectures worth building, by the names of a few tensors."""
    if "linear.weight" in state:
        yield from (f"cifar:{name}" for name in cifar.FACTORIES if not name.startswith(("vgg", "wide")))
    if "block1.layer.0.conv1.weight" in state:
        multiplier = len(state["block1.layer.0.conv1.weight"]) // cifar.WideResNet.STEM
        blocks = sum(name.startswith("block1.") and name.endswith(".conv1.weight") for name in state)
        name = f"wide_resnet{6 * blocks + 4}_{multiplier}"
        yield from [f"cifar:{name}"] if cifar.factory(name) else []
    if "classifier.weight" in state and "features.0.weight" in state:
        width = len(state["features.0.weight"]) / cifar.VGG.PLAN[0]
        name = "vgg16_bn" if width == 1 else f"vgg16_bn-w{width:.9g}"
        yield from [f"cifar:{name}"] if cifar.factory(name) else []
    yield from _of_families(family for family, keys in _FAMILY_KEYS.items() if all(key in state for key in keys))


def _kin(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Architectures that weights which are those of none may come from: candidates, and those that begin alike."""
    yield from _candidates(state)
    for name in cifar.FACTORIES:
        if next(iter(_skeleton(f"cifar:{name}").shapes)) in state:
            yield f"cifar:{name}"
    yield from _of_families(family for family, (first, _) in _FAMILY_KEYS.items() if first in state)


def _of_families(names: Iterable[str]) -> Iterator[str]:
    families = set(names)
    if families:  # torchvision takes two seconds to import
        yield from (
            f"torchvision:{name}" for name in registry.torchvision_names() if registry.family_of(name) in families
        )
