"""A user's checkpoint file becomes a Classifier."""

import inspect
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fsrp_edge import progress
from fsrp_edge.errors import BadInputError, first_line, first_problem
from fsrp_edge.models import registry
from fsrp_edge.models.classifier import Classifier, ModelSpec, tensors_of
from fsrp_edge.models.inference import Match, compare, infer_architecture, no_match
from fsrp_edge.models.layer_shapes import apply_layer_shapes
from fsrp_edge.models.reading import NORMALIZATIONS, STD_BESIDE, Contents, read_weights

_WRAPPERS = (
    "ema_model.",  # before the weights that it averages, which lie beside it
    *("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "classifier_model."),
    "1.",  # nn.Sequential(normalization, network)
    "attacker.",  # MadryLab's robustness, which saves every tensor twice
)
"""Prefixes that DataParallel, torch.compile, Lightning and wrapping modules put before every name."""

_LOSSES = ("criterion.", "loss.", "loss_fn.", "class_weight")
"""What starts the names of a loss's own tensors, where it was a part of the module that was saved."""

_RENAMED = (
    # As torchvision renames them when it loads its own published files.
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


@dataclass(frozen=True)
class Wishes:
    """What the user said about the network's input; None where nothing was said.

    Raises:
        BadInputError: a mean that no pixels in [0, 1] have.
    """

    input_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.mean and max(self.mean) > 1:
            asked, usual = (",".join(f"{value / over:.4g}" for value in self.mean) for over in (1, 255))
            raise BadInputError(
                f"the mean {asked} is not for pixels in [0, 1]; where it is for 0 to 255, divide it and the std by "
                f"255: --mean {usual}"
            )


@dataclass(frozen=True)
class _Found:
    """Weights as an architecture names them, the exact match, and the tensors beside them, which it does not have."""

    state: dict[str, Tensor]
    match: Match
    beside: dict[str, Tensor]


def load_classifier(
    path: Path,
    *,
    architecture: str | None = None,
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust_pickle: bool = False,
) -> Classifier:
    """Read a checkpoint and build its network; no code in the file is run.

    Args:
        path: a state dict (.pt, .pth, .th, .ckpt), bare or nested, a .safetensors file, or a file of our own.
        architecture: the network's name where it is neither recorded in the file nor to be inferred from the
            weights; a factory of the user's own always has to be named, because it is code.
        input_size: height and width in pixels, in place of the recorded or published one.
        mean: one value a channel of pixels in [0, 1], in place of the recorded or published one.
        std: as `mean`.
        trust_pickle: allow a file that holds a whole pickled module. Unpickling runs code from the file.

    Returns:
        The classifier in evaluation mode, float32, on the CPU.

    Raises:
        BadInputError: not a readable checkpoint, no architecture fits, or weights that are not finite.
    """
    if input_size is not None and input_size < 1:
        raise BadInputError(f"the input size is {input_size}; it has to be greater than 0")
    contents = read_weights(Path(path), trust_pickle=trust_pickle)
    wishes = Wishes(input_size, None if mean is None else tuple(mean), None if std is None else tuple(std))
    try:
        _check_finite(contents.state)
        if contents.spec is not None:
            classifier = _rebuild(contents.state, contents.spec, architecture, wishes)
        elif contents.module is not None:
            classifier = _adopt(contents.module, contents, architecture, wishes)
        else:
            classifier = _from_weights(contents, architecture, wishes)
    except BadInputError as error:
        raise BadInputError(f"{path}: {error}") from None
    return classifier.eval()


def _from_weights(contents: Contents, architecture: str | None, wishes: Wishes) -> Classifier:
    names = None if architecture is None else registry.possible_names(architecture)
    found = _identify(contents, names)
    if found is None:
        raise _unidentified(contents, names)
    return _with_weights(found, wishes)


def _adopt(module: nn.Module, contents: Contents, architecture: str | None, wishes: Wishes) -> Classifier:
    """An unpickled module as a known architecture that computes the same: nothing else can be built again."""
    if architecture is not None:
        return _from_weights(contents, architecture, wishes)
    found = _identify(contents, None)
    classifier = None if found is None else _with_weights(found, wishes)
    if classifier is None or not _compute_the_same(module.float().eval(), classifier):
        raise BadInputError(
            f"it holds a whole {type(module).__name__}, which could not be built again once it is pruned; "
            "name its factory with --arch package.module:factory or --arch file.py:factory"
        )
    return classifier


def _rebuild(state: dict[str, Tensor], spec: ModelSpec, architecture: str | None, wishes: Wishes) -> Classifier:
    """A network of our own files: architecture, then the shapes it was pruned to, then weights."""
    if architecture is not None:
        possible = registry.possible_names(architecture)
        chosen = spec.architecture if spec.architecture in possible else possible[0]
        spec = spec.model_copy(update={"architecture": chosen})
    elif registry.is_user_code(spec.architecture):
        raise BadInputError(
            f"this network is built by {spec.architecture}, which is code outside this package; "
            "if you trust it, name it: --arch PACKAGE.MODULE:FACTORY or --arch FILE.py:FACTORY"
        )
    # On shapes alone first, so that a damaged specification fails before it allocates what it asks for.
    expected = _recorded_shapes(spec)
    seen = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != seen:
        name = min(name for name in expected.keys() | seen.keys() if expected.get(name) != seen.get(name))
        raise BadInputError(
            f"the weights are not those of {spec.architecture} with the recorded shapes: {name} is "
            f"{seen.get(name, 'absent')}, not {expected.get(name, 'absent')}"
        )
    network = registry.build(spec.architecture, classes=spec.classes, input_channels=spec.input_shape[0])
    apply_layer_shapes(network, spec.layer_shapes)
    _load(network, state, spec.architecture)
    changed = spec.model_dump()
    if wishes.input_size is not None:
        changed["input_shape"] = (spec.input_shape[0], wishes.input_size, wishes.input_size)
        changed["preprocessing"] = registry.rescaled(spec.preprocessing, spec.input_shape[1], wishes.input_size)
    for name in ("mean", "std"):
        changed[name] = getattr(wishes, name) or changed[name]
    wanted = _validated(changed)
    if _count_logits(network, spec.architecture, wanted.input_shape) != spec.classes:
        raise BadInputError(f"{spec.architecture} does not return the {spec.classes} logits that were recorded")
    return Classifier(network, wanted)


def _recorded_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """What the weights of a network of our own files are like, by name."""
    try:
        frame = registry.build_without_weights(spec.architecture, spec.classes, spec.input_shape[0])
        apply_layer_shapes(frame, spec.layer_shapes)
    except (RuntimeError, TypeError) as error:  # torch, of sizes whose product or which themselves overflow
        raise BadInputError(
            f"damaged specification: no tensor can have the recorded sizes ({first_line(error)}); take "
            "another copy of the file"
        ) from None
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(frame).items()}


def classifier_of(network: nn.Module, architecture: str, channels: int, wishes: Wishes) -> Classifier:
    """Put together what was published and what the user said; see that the network takes such images."""
    shape, mean, std, preprocessing = registry.chosen_input(
        architecture, channels, size=wishes.input_size, mean=wishes.mean, std=wishes.std
    )
    spec = {
        "architecture": architecture,
        "input_shape": shape,
        "classes": _count_logits(network, architecture, shape),
        "mean": mean,
        "std": std,
        "preprocessing": preprocessing,
    }
    return Classifier(network, _validated(spec))


def _validated(fields: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        raise BadInputError(first_problem(error)) from None


def _count_logits(network: nn.Module, architecture: str, shape: tuple[int, int, int]) -> int:
    network.eval()
    try:
        inspect.signature(network.forward).bind("images")
    except TypeError as error:
        raise BadInputError(
            f"{architecture} takes more than images: {error}; name a factory that wraps it and fills in the others"
        ) from None
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *shape))
    except Exception as error:  # whatever a user's network raises
        reason = first_line(error)
        size = "x".join(map(str, shape))
        raise BadInputError(f"{architecture} does not take {size} images ({reason}); try --input-size") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadInputError(
            f"{architecture} returns {seen} for a batch of one image; a classifier returns logits (N, classes), "
            "classes > 1. Name a factory that wraps it, and save that wrapper's own state_dict()"
        )
    return logits.shape[1]


def _with_weights(found: _Found, wishes: Wishes) -> Classifier:
    match = found.match
    wishes = _completed(wishes, found.beside, match.input_channels)
    channels = match.input_channels
    if registry.is_user_code(match.architecture) and wishes.mean:
        channels = len(wishes.mean)  # a factory decides on its input itself
    network = registry.build(match.architecture, classes=match.classes, input_channels=channels)
    _load(network, found.state, match.architecture)
    return classifier_of(network, match.architecture, channels, wishes)


def _completed(wishes: Wishes, beside: Mapping[str, Tensor], channels: int) -> Wishes:
    """What the user said, and where that is nothing the normalization that was saved beside the network."""
    for name, mean in beside.items():
        wrapper, dot, last = name.rpartition(".")
        std = beside.get(f"{wrapper}{dot}{STD_BESIDE.get(last)}")
        if std is not None and mean.numel() == std.numel() == channels and not (wishes.mean and wishes.std):
            return _normalized_by(wishes, name, _values(mean), _values(std))
    return wishes


def _values(constants: Tensor) -> tuple[float, ...]:
    """With the digits that float32 tells apart: 0.485, not 0.48500001430511475."""
    return tuple(float(str(value)) for value in constants.flatten().numpy())


def _normalized_by(wishes: Wishes, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Wishes:
    values = ",".join(f"{value:.4g}" for value in (*mean, *std))
    if max(mean) > 1:
        raise BadInputError(
            f"the file's normalization ({name} and its std: {values}) is not for pixels in [0, 1]: "
            "give that with --mean and --std"
        )
    progress.log(f"the normalization is that of the file ({name} and its std: {values}), where none is given")
    return replace(wishes, mean=wishes.mean or mean, std=wishes.std or std)


def _compute_the_same(module: nn.Module, classifier: Classifier) -> bool:
    pixels = classifier.example_pixels(2)
    try:
        with torch.no_grad():
            return torch.allclose(module(pixels), classifier.network(pixels), rtol=1e-3, atol=1e-4)
    except Exception:  # whatever an unpickled network raises on images of this size
        return False


def _identify(contents: Contents, names: Sequence[str] | None) -> _Found | None:
    """The weights as an architecture names them, without wrappers' prefixes."""
    for view, beside in _views(contents):
        match = infer_architecture(view) if names is None else _nearest(names, view)
        if match is not None and match.exact:
            _require_last(match, beside)
            unused = registry.left_out(match.architecture)
            own = {name: tensor for name, tensor in view.items() if not name.startswith(unused)}
            return _Found(own, match, beside)
    return None


def _require_last(match: Match, beside: Mapping[str, Tensor]) -> None:
    """Refuse a known network whose logits another layer of the same file reads."""
    for name, tensor in beside.items():
        if tensor.ndim == 2 and tensor.shape[1] == match.classes and not _is_stranger(name):
            raise BadInputError(
                f"{name} seems to read the {match.classes} outputs of {match.architecture}: the network is more than "
                "that; name a factory that builds all of it with --arch FILE.py:FACTORY"
            )


def _unidentified(contents: Contents, names: Sequence[str] | None) -> BadInputError:
    views = [view for view, _ in _views(contents)]
    if names is None:
        return no_match(*views)
    match = min((_nearest(names, view) for view in views), key=lambda each: each.differences)
    text = f"these are not weights of {match.architecture}: {match.describe()}"
    if match.looks_pruned:
        text += "; channels were removed, and without their layout it cannot be rebuilt"
    return BadInputError(text)


def _nearest(names: Sequence[str], state: Mapping[str, Tensor]) -> Match:
    return min((compare(name, state) for name in names), key=lambda match: match.differences)


def _views(contents: Contents) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """What the network's weights may be, and what lies beside them: each time as they are named, then as today."""
    for view, beside in _unwrapped(contents.state, contents.beside):
        yield view, beside
        renamed = {_renamed(name): tensor for name, tensor in view.items()}
        if renamed.keys() != view.keys():
            yield renamed, beside


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _unwrapped(
    state: dict[str, Tensor], beside: dict[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The weights as they are, then step by step without what wraps them; and all that was left out for that."""
    while state:
        yield state, beside
        prefix = _wrapper_of(state)
        others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        if not prefix:
            others = {name: tensor for name, tensor in state.items() if _is_stranger(name)}
            if not others:
                return
        if others:
            taken = f"; {prefix}* is taken" if prefix else ""
            progress.log(f"{len(others)} tensors such as {next(iter(others))} are left out{taken}")
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in others}
        beside = beside | others


def _is_stranger(name: str) -> bool:
    """Whether a tensor's name, in no wrapper's, is that of a loss's own or of a normalization."""
    return name.startswith(_LOSSES) or name.rpartition(".")[2] in NORMALIZATIONS


def _wrapper_of(state: Mapping[str, Tensor]) -> str:
    """The prefix of a known wrapper that at least half of the names share, or any that all do; empty where none is."""
    for prefix in _WRAPPERS:
        if 2 * sum(name.startswith(prefix) for name in state) >= len(state):
            return prefix
    first, dot, _ = next(iter(state)).partition(".")
    return first + dot if dot and all(name.startswith(first + dot) for name in state) else ""


def _load(network: nn.Module, state: dict[str, Tensor], architecture: str) -> None:
    # A network whose layout changed once (MNASNet) asks for the version it would save itself. Its layers are not told
    # theirs: batch norm fills in the counters of old files where no version is given.
    built: Any = network.state_dict()
    others = {name: value for name, value in built.items() if not isinstance(value, Tensor)}  # stay as they are built
    versioned = OrderedDict(others | state)
    versioned._metadata = {"": built._metadata[""]}  # type: ignore[attr-defined]
    try:
        network.load_state_dict(versioned)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInputError(f"{architecture} does not take these weights: {reason[:300]}") from None


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise BadInputError(
                f"{name} holds {bad} values that are NaN or infinite: training diverged; take an earlier checkpoint"
            )
