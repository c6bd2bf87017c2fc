"""Communication between the processes of a run."""

from typing import Any

import torch


def all_gather_objects(own: Any) -> list[Any]:
    """Gather the objects of all processes in the order of their ranks; all must call this together."""
    if not torch.distributed.is_initialized():
        return [own]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


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
