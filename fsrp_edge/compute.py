"""Where tensors are computed: device, reduced precision where the hardware gains from it, memory layout, seeds."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's first parameter (CPU for a module without any)."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def gains_from_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there.

    On a CPU that is so only with bfloat16 instructions (AVX512-BF16 or AMX): without them autocast was measured at
    0.3 to 0.9 times the speed of float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    )


def autocast(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[object]:
    """bfloat16 autocast where it pays, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and gains_from_bfloat16(device))


def to_fast_layout(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to `device` in channels_last, the faster layout for convolutions on CPU and CUDA."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@contextmanager
def all_trainable(module: nn.Module) -> Iterator[None]:
    """Let every parameter have gradients inside the block, frozen ones included.

    Tracing that follows autograd, and criteria that read gradients, would not see frozen layers.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def generator(seed: int) -> torch.Generator:
    """A CPU random generator of its own, so that stages do not disturb each other's draws."""
    return torch.Generator().manual_seed(seed)
