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
    return {
        "network": network,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "weights": weights,
        "optimizer": type(trainer.optimizers[0]).__name__,
        "learning_rate": float(rate) if rate is not None else None,
        "batch_size": data.batch_size,
        "device": _device(trainer),
        "precision": str(trainer.precision),
        "images": data.sizes,
        "classes": len(data.class_names),
    }


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return f"{trainer.world_size} x {name}" if trainer.world_size > 1 else name
