"""Where tensors are computed: device, reduced precision where the hardware gains from it, seeds."""

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def default_device() -> torch.device:
    """CUDA where there is one (under torchrun the one of this process), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's first parameter (CPU for a module without any)."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def gains_from_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there.

    On a CPU that is so only with bfloat16 instructions (AVX512-BF16 or AMX): without them autocast is slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def autocast(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[object]:
    """bfloat16 autocast where it pays, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and gains_from_bfloat16(device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor's copy on a device; a GPU is not waited for, as it would be with memory that can be paged out."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def full_float32() -> AbstractContextManager[object]:
    """Convolutions in all of float32's precision; left to itself, CUDA rounds what they read to TF32's 10 bits."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy for inference and input gradients with every batch norm folded into the convolution before it.

    The network itself is returned where it cannot be traced, or where the copy computes something else.

    Args:
        network: in evaluation mode.
        example: input to compare the copy's output on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what the module imports itself
            from torch.fx.experimental.optimization import fuse
        copied: nn.Module = fuse(network)
        with torch.no_grad():
            agrees = torch.allclose(copied(example), network(example), rtol=1e-3, atol=1e-3)
    except Exception:  # a user's own network: tracing runs its code on proxies, which may raise anything
        return network
    return copied if agrees else network


def worker_thread() -> ThreadPoolExecutor:
    """A thread to prepare in what this thread computes with next; torch takes one core there.

    With a second team of OpenMP threads there are more threads than cores, and then all of them sleep at every
    barrier instead of waiting awake.
    """
    threads = torch.get_num_threads()
    worker = ThreadPoolExecutor(1)
    # A thread takes the number that was set last in any of them when it is first asked, so it is asked before.
    worker.submit(torch.get_num_threads).result()
    worker.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)
    return worker


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


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Hooks that are gone after the block."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.enter_context(hook)
        yield


@contextmanager
def attention_step_by_step() -> Iterator[None]:
    """Attention in operators that are known: torch makes a single one of its own of it in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own, so that stages do not disturb each other's draws; devices draw differently."""
    return torch.Generator(device).manual_seed(seed)


def own_draws() -> AbstractContextManager[None]:
    """Let the global generators of torch go on after the block as if nothing had drawn from them inside.

    Those of the CPU and of this process's GPU: left to itself, torch sets up every GPU of the machine, and warns of it.
    """
    device = default_device()
    return torch.random.fork_rng([] if device.type == "cpu" else [device])


def seed_global_draws(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of a device.

    `torch.manual_seed` also notes a stack trace for every kind of device that is not there, too slow for every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def seed_of(*parts: int) -> int:
    """One seed from several numbers, such as (seed, epoch, step), whose draws have nothing in common."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
