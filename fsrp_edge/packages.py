"""The packages that this one works with, by the extra that brings them, and their installed versions."""

from importlib.metadata import PackageNotFoundError, version

CORE = ("torch", "torchvision", "torch-pruning", "pyautoattack", "numpy")
EXTRAS = {
    "onnx": ("onnx", "onnxsim", "onnxruntime", "onnxscript", "onnxconverter-common"),
    "tflite": ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
    "tensorflow": ("tensorflow",),
    "ncnn": ("ncnn", "pnnx"),
    "samples": ("scikit-image", "scikit-learn"),
    "timm": ("timm",),
}
EXPORTERS = ("onnx", "tflite", "tensorflow", "ncnn")
"""Extras whose packages make or run files."""


def installed_version(distribution: str) -> str | None:
    """Version of a distribution by its name on the package index; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def extra_of(module: str) -> str:
    """The extra that brings a module."""
    distribution = module.partition(".")[0].replace("_", "-")
    return next(extra for extra, packages in EXTRAS.items() if distribution in packages)
