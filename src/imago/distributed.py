"""What the processes of a run exchange."""

from typing import Any

import torch


def all_gather_objects(own: Any) -> list[Any]:
    """What each process gives, in the order of their ranks; called by all of them together."""
    if not torch.distributed.is_initialized():
        return [own]
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, own)
    return everywhere


def divide_threads(processes: int) -> None:
    """Divides the CPU threads among the processes of a run: each has a device of its own, but the cores are shared."""
    if processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def leave_process_group(abort: bool = False) -> None:
    """So that the next job of a sweep can make a group of its own; `abort` does not wait for the others."""
    if not torch.distributed.is_initialized():
        return
    if abort and torch.distributed.get_backend() == "nccl":
        torch.distributed.distributed_c10d._abort_process_group()
    else:
        torch.distributed.destroy_process_group()
