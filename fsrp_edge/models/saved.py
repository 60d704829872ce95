"""Our own files: weights and specification together, without pickle; and the digest of weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import fsrp_edge
from fsrp_edge.errors import BadInputError
from fsrp_edge.files import atomic_path
from fsrp_edge.models import registry
from fsrp_edge.models.classifier import Classifier, tensors_of
from fsrp_edge.models.layer_shapes import with_layer_shapes

METADATA_KEY = "fsrp_edge"
"""One entry of a file's metadata holds everything: safetensors writes several in no fixed order."""
PT_SPEC_KEY = "fsrp_edge_spec"


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write one .safetensors file: the network's weights, and its specification as metadata.

    The same classifier gives the same bytes. `load_classifier` makes the same network from the file alone.

    Raises:
        BadInputError: the specification does not describe the network, so that the file could not be loaded.
    """
    _check_rebuildable(classifier)
    about = {"version": fsrp_edge.__version__, "spec": classifier.spec.model_dump(mode="json")}
    metadata = {METADATA_KEY: json.dumps(about, sort_keys=True)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(_weights(classifier.network), temporary, metadata=metadata)


def save_checkpoint_pt(classifier: Classifier, path: Path) -> None:
    """Write a .pt file that torch.load reads with weights_only=True.

    It holds the state dict, and the specification as JSON.

    Raises:
        BadInputError: the specification does not describe the network, so that the file could not be loaded.
    """
    _check_rebuildable(classifier)
    contents = {"state_dict": _weights(classifier.network), PT_SPEC_KEY: classifier.spec.model_dump_json()}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:  # as in training/checkpoint.py
        torch.save(contents, stream)


def weights_sha256(module: nn.Module) -> str:
    """Hex SHA-256 over names, types, shapes and values of the tensors in a network's state dict.

    It does not depend on the file format, the device or the order of the tensors. For a Classifier it is that
    of the network inside.
    """
    network = module.network if isinstance(module, Classifier) else module
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_of(network).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity_of(classifier: Classifier, weights: str | None = None) -> dict[str, Any]:
    """All that decides what a network computes, as JSON, for interrupted work to know it again.

    Weights (or what stands for them), the spec and, where a file of the user's own builds the network, that file. Not
    what its classes are called, which changes nothing that is computed.
    """
    spec = classifier.spec.model_copy(update={"class_names": None}).model_dump(mode="json")
    found = {"weights": weights or weights_sha256(classifier), "spec": spec}
    code = registry.code_sha256(classifier.spec.architecture)
    return found if code is None else {**found, "code": code}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors refuses other layouts and tensors that share memory."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of(network).items()
    }


def _check_rebuildable(classifier: Classifier) -> None:
    """Compare what the specification would build with what is there, without building weights.

    A user's factory is not run again just to be looked at.
    """
    spec = classifier.spec
    if registry.is_user_code(spec.architecture):
        return
    if with_layer_shapes(classifier.network, spec).layer_shapes != spec.layer_shapes:
        raise BadInputError(
            f"the network's layers are not those that its specification ({spec.architecture}) describes: "
            "take the specification from with_layer_shapes(network, spec) after pruning"
        )
