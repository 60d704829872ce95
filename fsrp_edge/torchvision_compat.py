"""Lets a torchvision built for another torch be imported: import this module before torchvision.

The package index's torchvision wheel is built against CUDA torch. Beside a CPU torch its compiled operators
do not load, and `import torchvision` then stops with "operator torchvision::nms does not exist", because it
registers derivatives and fake kernels for operators that nobody declared. Declaring the two schemas it asks
for is enough for its models, transforms and data sets; the operators themselves (`ops.nms`, detection models,
`decode_image`) stay missing.

Where torchvision's own operators load, on CPU and CUDA alike, nothing is declared.
"""

import importlib.util
from pathlib import Path

import torch


def _own_operators_load() -> bool:
    """Whether torchvision's compiled operators load into this torch; its own later load finds them loaded."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # There is no torchvision to cure; its own ImportError says so best.
    for library in sorted(Path(spec.origin).parent.glob("_C*")):
        if library.suffix in {".so", ".pyd", ".dylib"}:
            try:
                torch.ops.load_library(library)
            except OSError:
                continue
            return True
    return False


def _declare_missing_schemas() -> torch.library.Library | None:
    if hasattr(torch.ops.torchvision, "nms") or _own_operators_load():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# Kept alive for the life of the process: a library that is collected takes its declarations along.
_declared = _declare_missing_schemas()
