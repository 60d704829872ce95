"""Work shared by the processes of `torchrun`; outside it there is one process and nothing to share."""

import os
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: one whose images fall early is hours ahead of one under AutoAttack, and
torch would give up after half an hour. Nobody waits for a process that died, as torchrun ends the others then."""


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes); joins the group that torchrun announces."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return 0, 1
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return distributed.get_rank(), size


def my_part(count: int) -> range:
    """The contiguous part of `count` items that this process works on; the parts differ by at most one item."""
    rank, size = processes()
    return range(rank * count // size, (rank + 1) * count // size)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor, the same in all of them."""
    if processes()[1] > 1:
        distributed.all_reduce(tensor)
    return tensor


def numbers_of_processes(number: int) -> list[int]:
    """Every process's number, in the order of their ranks, the same in all of them."""
    rank, size = processes()
    numbers = torch.zeros(size, dtype=torch.int64)
    numbers[rank] = number
    return [int(each) for each in sum_over_processes(numbers)]


def average(module: nn.Module) -> None:
    """Replace gradients and running statistics by their means over the processes, in one message."""
    size = processes()[1]
    if size == 1:  # nothing is gone through then: this is asked after every step
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    tensors = [*gradients, *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    together = sum_over_processes(torch.cat([tensor.reshape(-1) for tensor in tensors])) / size
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))
