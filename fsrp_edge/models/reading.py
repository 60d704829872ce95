"""Weights out of a file, without running code that the file brings along."""

import argparse
import datetime
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fsrp_edge import progress
from fsrp_edge.errors import BadInputError, first_problem
from fsrp_edge.models.classifier import ModelSpec
from fsrp_edge.models.saved import METADATA_KEY, PT_SPEC_KEY

_NESTED = (
    # Averaged weights first: they are the ones that training scripts report.
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params"),
)
"""Names under which training scripts put the weights, in the order of preference."""

STD_BESIDE = {"mean": "std", "new_mean": "new_std", "mu": "sigma"}
"""What modules that normalize call the standard deviation, by what they call the mean."""

NORMALIZATIONS = (*STD_BESIDE, *STD_BESIDE.values())

_PATHS = {
    **dict.fromkeys(("PosixPath", "PurePosixPath"), PurePosixPath),
    **dict.fromkeys(("WindowsPath", "PureWindowsPath"), PureWindowsPath),
}
"""What stands in for a path beside the weights: one that can open nothing."""

_COUNTERS = ("n_averaged", "total_ops", "total_params")
"""What averaging and profiling tools leave among the weights."""


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        state: weights by name.
        spec: our specification.
        module: a whole module, where a pickle was trusted.
        beside: a normalization that a training script saved beside the weights.
    """

    state: dict[str, Tensor]
    spec: ModelSpec | None = None
    module: nn.Module | None = None
    beside: dict[str, Tensor] = field(default_factory=dict)


def read_weights(path: Path, *, trust_pickle: bool) -> Contents:
    """Read a checkpoint of any supported format.

    Raises:
        BadInputError: not a readable checkpoint, or a pickle that is not trusted.
    """
    if _is_safetensors(path):
        return _read_safetensors(path)
    loaded = _unpickle(path, trust_pickle=trust_pickle)
    if isinstance(loaded, dict) and isinstance(loaded.get(PT_SPEC_KEY), str):
        spec = _parse_spec(path, loaded[PT_SPEC_KEY])
        return Contents(_clean(path, loaded.get("state_dict")), spec)
    weights, beside = _find_weights(path, loaded)
    if isinstance(weights, nn.Module):
        module = weights.module if isinstance(weights, nn.DataParallel) else weights
        return Contents(_clean(path, module.state_dict()), module=module, beside=beside)
    return Contents(_clean(path, weights), beside=beside)


def _is_safetensors(path: Path) -> bool:
    """Look at the first bytes, which tell more than the name.

    Raises:
        BadInputError: absent, not a file, empty, or one of the things that are downloaded by mistake.
    """
    if path.is_dir():
        raise BadInputError(f"{path} is a folder; name the checkpoint file inside it")
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
    except FileNotFoundError:
        raise BadInputError(f"no such file: {path}") from None
    except OSError as error:
        raise BadInputError(f"cannot read {path}: {error.strerror}") from None
    if not start:
        raise BadInputError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise BadInputError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadInputError(f"{path} is a web page, not weights: the download needs a direct link or a login")
    if start[8:9] == b"{":
        return True
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise BadInputError(
            f"{path} is neither a torch checkpoint nor safetensors (it starts with {start[:8]!r}); "
            "allowed are .pt, .pth, .th, .ckpt and .safetensors files"
        )
    return False


def _read_safetensors(path: Path) -> Contents:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            # safetensors' save_model keeps tied weights once, and notes under which name.
            tensors |= {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInputError(f"{path} is a truncated or damaged safetensors file ({error})") from None
    spec = _parse_spec(path, metadata[METADATA_KEY], "spec") if METADATA_KEY in metadata else None
    return Contents(_clean(path, tensors), spec)


def _unpickle(path: Path, *, trust_pickle: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_harmless_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises anything on damaged bytes
        message = str(error)
    if "TorchScript" in message:
        raise BadInputError(f"{path} is a TorchScript archive; save the network's state_dict() instead")
    refused = re.search(r"(?:GLOBAL|global:|class) (?!GLOBAL)(\S+)", message)
    if refused is None:
        raise BadInputError(f"{path} is a truncated or damaged checkpoint")
    if not trust_pickle:
        raise BadInputError(
            f"{path} holds pickled Python objects ({refused[1].rstrip('.,')}), and unpickling them runs code "
            "from the file: save the network's state_dict() instead, or pass --trust-pickle if you trust it"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever the code inside raises
        raise BadInputError(
            f"{path} could not be unpickled ({type(error).__name__}: {error}); "
            "the module's own source has to be importable (PYTHONPATH)"
        ) from None


def _harmless_globals() -> list[Any]:
    """Values beside the weights that many training scripts save and that cannot run code when loaded."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
        argparse.Namespace,
        *(datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone),
        # A machine of another kind has no class for such a path; Python 3.13 calls the module pathlib._local.
        *((kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()),
    ]


def _find_weights(path: Path, loaded: Any) -> tuple[Any, dict[str, Tensor]]:
    """The state dict or module in what was loaded, through at most two levels of nesting; the constants passed by."""
    beside: dict[str, Tensor] = {}
    for _ in range(3):
        if isinstance(loaded, nn.Module) or _is_state(loaded):
            return loaded, beside
        if not isinstance(loaded, Mapping):
            break
        beside |= _normalization_in(loaded)
        names = [name for name in _NESTED if _leads_to_weights(loaded.get(name))]
        names = names or [name for name, value in loaded.items() if _is_state(value)]
        if not names:
            break
        # Averages of the parameters alone lack what batch norms count.
        counted = {name: _statistics(loaded[name]) for name in names}
        names = [name for name in names if counted[name] == max(counted.values())]
        if len(names) > 1:
            progress.log(f"the checkpoint holds {', '.join(map(str, names))}: {names[0]!r} is taken")
        loaded = loaded[names[0]]
    if isinstance(loaded, Mapping):
        seen = f"a dict with {', '.join(map(repr, list(loaded)[:8])) or 'nothing in it'}"
    else:
        seen = f"a {type(loaded).__name__}"
    raise BadInputError(f"{path} holds no weights: {seen}; needed is a state dict, bare or under 'state_dict'")


def _normalization_in(saved: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Mean and standard deviation among what a training script saved."""
    found = {}
    for name in NORMALIZATIONS:
        value = saved.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(each, float | int) for each in value):
            value = torch.tensor(value)
        if isinstance(value, Tensor) and value.numel():
            found[name] = value.detach().float()
    return found


def _leads_to_weights(value: Any) -> bool:
    """Whether it is a module or a state dict, or a mapping that holds one: not settings under the same name."""
    if isinstance(value, nn.Module) or _is_state(value):
        return True
    return isinstance(value, Mapping) and any(isinstance(each, nn.Module) or _is_state(each) for each in value.values())


def _statistics(value: Any) -> int:
    """How many running statistics of batch norms there are in a module, a state dict or what holds one."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        return 0
    own = sum(str(name).rpartition(".")[2] in {"running_mean", "running_var"} for name in value)
    return max((own, *map(_statistics, value.values())))


def _is_state(value: Any) -> bool:
    """Whether it maps names to tensors, perhaps with a few other things among them, but no larger such mapping."""
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = sum(isinstance(each, Tensor) for each in value.values())
    larger = any(_is_state(each) and len(each) > tensors for each in value.values())
    return tensors * 2 > len(value) and not larger


def _clean(path: Path, weights: Any) -> dict[str, Tensor]:
    """Tensors only, floating ones as float32."""
    if not _is_state(weights):
        raise BadInputError(f"{path} holds no weights")
    state = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or str(name).rpartition(".")[2] in _COUNTERS:
            continue
        if tensor.is_quantized or tensor.layout is not torch.strided:
            raise BadInputError(f"{path}: {name} is quantized or sparse; load the float32 checkpoint instead")
        state[str(name)] = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    return state


def _parse_spec(path: Path, text: str, inside: str | None = None) -> ModelSpec:
    """The specification in a JSON text, or under a key of it."""
    try:
        found = json.loads(text)
        return ModelSpec.model_validate(found if inside is None else found[inside])
    except ValidationError as error:
        raise BadInputError(
            f"{path} has a specification that this version does not read: {first_problem(error)}"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BadInputError(f"{path} has a damaged specification: {error!r}") from None
