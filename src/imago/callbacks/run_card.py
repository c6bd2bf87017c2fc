"""The card of a run: network, weights, optimizer, device and data, in plain types."""

import platform
from typing import Any, cast

import torch
from lightning.pytorch import Trainer

from imago.data.module import ImageDataModule
from imago.lightning_internals import data_of
from imago.model.module import DictModule


def run_card(trainer: Trainer, model: DictModule, network: str, weights: str) -> dict[str, Any]:
    """Facts about a training, once the optimizer has been made; `report.content.card_rows` formats them.

    Args:
        trainer: The Trainer of the run.
        model: Its model.
        network: Name of the network.
        weights: What training starts from: `from scratch`, or the name of the weights.
    """
    data = cast(ImageDataModule, data_of(trainer))
    groups = model.optimizer_settings.get("groups") or [{}]
    rate = groups[0].get("initial_lr", groups[0].get("lr"))  # a schedule may have lowered `lr` already
    if len(groups) > 1:
        rate = trainer.optimizers[0].defaults.get("lr")
    is_alone = model.probe == "only"
    return {
        "network": network,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"]),
        "weights": weights,
        "optimizer": "head alone" if is_alone else type(trainer.optimizers[0]).__name__,
        "learning_rate": None if is_alone or rate is None else float(rate),
        "head_learning_rate": None if is_alone else model.groups.head_lr,
        "batch_size": data.batch_size,
        "device": _device(trainer),
        "precision": str(trainer.precision),
        "images": data.sizes,
        "stamps": {name: split.stamp()[:16] for name, split in data.sets.splits.items() if name != "train"},
        "classes": len(data.class_names),
    }


def watch_gpu_memory(trainer: Trainer) -> None:
    """Begin to measure what `gpu_memory` returns."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)


def gpu_memory(trainer: Trainer) -> str | None:
    """Most memory that this process has reserved on its GPU, as nvidia-smi counts it; None without a GPU."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    return f"{torch.cuda.max_memory_reserved(device) / 2**30:.1f} of {_memory(device) / 2**30:.1f} GiB"


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = f"{device.type} ({platform.machine()})"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)} ({_memory(device) / 2**30:.0f} GiB)"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
