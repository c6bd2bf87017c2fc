"""The devices that `trainer.devices` names, and messages about those that this machine does not have."""

import os
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, open_dict

from imago.config.invocation import Invocation, override_key
from imago.config.launcher import TORCHRUN, Launch
from imago.config.setting_source import in_file, is_typed, is_users_own
from imago.errors import UserError
from imago.resources import usable_cores
from imago.terminal import counted

MOST_ON_CPU = 8
"""Processes on the CPU that are taken for a trial of DDP, however few cores there are."""


def follow_launch(cfg: DictConfig, invocation: Invocation, launch: Launch | None) -> None:
    """Complete the devices, nodes and strategy of the Trainer by what a launcher has started.

    Raises:
        UserError: Others were typed.
    """
    trainer, is_resumed = cfg.trainer, bool(cfg.get("resume") or cfg.get("replay"))
    is_own = is_typed if is_resumed else is_users_own  # the file of a resumed run has what was started then
    if launch is None:
        if trainer.get("num_nodes", 1) != 1 and not is_own("trainer.num_nodes", invocation):
            trainer.num_nodes = 1
        return
    started = {"devices": launch.local_processes, "num_nodes": launch.nodes}
    asked = {"devices": _asked(trainer.get("devices", "auto")), "num_nodes": trainer.get("num_nodes", 1)}
    for option, count in started.items():
        if asked[option] not in (None, count) and is_own(f"trainer.{option}", invocation):
            raise UserError(
                f"trainer.{option}={trainer[option]}{in_file(f'trainer.{option}', invocation)}: {launch.where}. Remove "
                f"the setting, which is {count} then, or change what is typed for {launch.launcher}."
            )
    with open_dict(trainer):
        if asked["devices"] != launch.local_processes or isinstance(trainer.devices, str):
            trainer.devices = launch.local_processes
        if asked["num_nodes"] != launch.nodes:
            trainer.num_nodes = launch.nodes
        if launch.processes > 1 and trainer.get("strategy", "auto") == "auto":
            trainer.strategy = "ddp"


def _asked(devices: Any) -> int | None:
    """How many devices a setting names; None for all."""
    return None if str(devices) in ("auto", "-1") else len(_device_numbers(devices))


def process_count(trainer: DictConfig, overrides: Sequence[str] = (), launch: Launch | None = None) -> int:
    """How many processes `trainer.devices` asks for, one for each device, or a launcher has started on all nodes;
    `overrides` were typed.

    Raises:
        ValueError: This machine does not have the devices.
    """
    if launch is not None and launch.processes > 1:
        check_gpus(trainer, launch)
        return launch.processes
    return _devices_here(trainer, overrides)


def check_gpus(trainer: DictConfig, launch: Launch) -> None:
    """Raise UserError if this node has fewer GPUs than processes. Where all see the same single GPU, only those behind
    the first of them can tell."""
    accelerator = str(trainer.get("accelerator", "auto"))
    if accelerator == "cpu":
        return
    import torch

    here = torch.cuda.device_count()
    if here >= launch.local_processes or (here == 1 and launch.has_own_device):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    if not here:
        why = f"this machine has no GPU{limit}. Add trainer=ddp_sim, which runs DDP on the CPU."
        raise UserError(f"{launch.where}, with trainer.accelerator={accelerator}: {why}")
    option = "--nproc_per_node" if launch.launcher == TORCHRUN else "--ntasks-per-node"
    raise UserError(
        f"{launch.where}, and this machine has {counted(here, 'GPU')}{limit}: each process needs one. Type "
        f"{launch.launcher} {option}={here}, or trainer=ddp_sim, which runs DDP on the CPU."
    )


def _devices_here(trainer: DictConfig, overrides: Sequence[str]) -> int:
    accelerator, devices = str(trainer.get("accelerator", "auto")), trainer.get("devices", "auto")
    if accelerator == "cpu":
        processes = 1 if str(devices) in ("auto", "-1") else len(_device_numbers(devices))
        if processes > max(MOST_ON_CPU, cores := usable_cores(most=1000)):
            raise UserError(
                f"trainer.devices={devices}: on the CPU this is the number of processes, and a single one uses all of "
                f"the {counted(cores, 'core')} here. Type trainer.devices=1, or trainer=ddp_sim to try DDP."
            )
        return processes
    import torch

    mps = torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps")
    here = 1 if mps else torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    numbers = list(range(max(here, 1))) if str(devices) in ("auto", "-1") else _device_numbers(devices)
    least = 1 if accelerator == "auto" else 0  # the CPU of a machine without GPUs
    if accelerator in ("auto", "gpu", "cuda", "mps") and max(numbers) >= max(here, least):
        raise UserError(_too_few_gpus(trainer, here, overrides))
    return len(numbers)


def _too_few_gpus(trainer: DictConfig, here: int, overrides: Sequence[str]) -> str:
    """Message for `trainer.devices` that this machine does not have: `here` is the number of its GPUs."""
    import torch

    accelerator, devices = str(trainer.get("accelerator", "auto")), str(trainer.get("devices", "auto"))
    typed = [word for word in overrides if override_key(word) in ("trainer", "trainer.accelerator", "trainer.devices")]
    what = " ".join(typed) or f"trainer.accelerator={accelerator}, trainer.devices={devices}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None and accelerator != "mps" else ""
    if here:
        numbered = "number 0" if here == 1 else f"numbers 0 to {here - 1}"
        count = f"{here} GPU{'s' if here > 1 else ''}, {numbered}"
        return f"{what}: this machine has {count}{limit}. Type trainer.devices={here}, or trainer=cpu."
    one = "trainer=cpu" if devices in ("1", "-1", "auto") else "trainer=cpu trainer.devices=1"
    several = "" if devices == "1" else ", or trainer=ddp_sim, which tries DDP in processes on the CPU"
    message = f"{what}: this machine has no GPU{limit}. Type {one}{several}."
    if accelerator != "mps" and torch.version.cuda is None and torch.version.hip is None:
        message += (
            f" PyTorch {torch.__version__} was built without CUDA and would not see one: install a build with CUDA "
            "(https://pytorch.org/get-started)."
        )
    elif "SLURM_JOB_ID" in os.environ:
        message += " The Slurm job has no GPU: ask for one with sbatch --gres=gpu:1."
    return message


def _device_numbers(devices: Any) -> list[int]:
    """`4` -> the first four, `"0,2"` or `[0, 2]` -> these two."""
    try:
        if isinstance(devices, str) and "," in devices:
            numbers = [int(number) for number in devices.split(",") if number.strip()]
        else:
            numbers = (
                list(range(int(devices))) if isinstance(devices, int | str) else [int(number) for number in devices]
            )
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"trainer.devices must be a number (1 or more), a list such as [0,2], or auto; got {devices}.")
    return numbers
