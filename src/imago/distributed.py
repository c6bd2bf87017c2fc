"""Communication between the processes of a run."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def all_gather_objects(own: Any) -> list[Any]:
    """Gather the objects of all processes in the order of their ranks; all must call this together."""
    if not torch.distributed.is_initialized():
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def decided_by_first(numbers: list[int], processes: int, device: torch.device) -> list[int]:
    """The numbers of the first of a run's processes, which call this together."""
    if processes < 2:
        return numbers
    tensor = torch.tensor(numbers, device=device)
    torch.distributed.broadcast(tensor, src=0)
    return [int(number) for number in tensor]


def mean_of_processes(value: Tensor, weight: float) -> Tensor:
    """Mean of the weighted values of all processes, which call this together; for a single one its own value."""
    if not torch.distributed.is_initialized():
        return value
    total = value * weight
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def mean_of_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes, which call this together; a missing one counts as 0."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    present = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=trained[0].device)
    torch.distributed.all_reduce(present)
    for parameter, count in zip(trained, present.tolist(), strict=True):
        if count:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(gradient)
            parameter.grad = gradient.div_(torch.distributed.get_world_size())


def divide_threads(processes: int) -> None:
    """Divide the CPU threads among the run's processes: each has its own device, but they share the cores."""
    if processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def leave_process_group(abort: bool = False) -> None:
    """Leave the process group, so that the next job of a sweep can make its own; with `abort`, wait for no process."""
    if not torch.distributed.is_initialized():
        return
    if abort and torch.distributed.get_backend() == "nccl":
        torch.distributed.distributed_c10d._abort_process_group()
    else:
        torch.distributed.destroy_process_group()
