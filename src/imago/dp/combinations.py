"""What strategy=dp cannot be combined with, in the objects of a run, checked before the first step.

`imago.config.private` refuses most of it earlier, by the config.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from imago.config.private import REASONS
from imago.data.module import ImageDataModule
from imago.dp.secret import PoissonBatchSampler
from imago.errors import UserError
from imago.lightning_internals import callbacks_of, data_of, option_of
from imago.model.module import DictModule

Is = Callable[[Trainer, DictModule, ImageDataModule], bool]
REFUSED: dict[str, Is] = {
    "devices": lambda trainer, model, data: trainer.world_size > 1,
    "gradient_clip_val": lambda trainer, model, data: trainer.gradient_clip_val is not None,
    "accumulate_grad_batches": lambda trainer, model, data: (
        trainer.accumulate_grad_batches != 1 or _has(trainer, GradientAccumulationScheduler)
    ),
    "precision": lambda trainer, model, data: trainer.precision not in ("32-true", "64-true", "bf16-mixed"),
    "matmul_precision": lambda trainer, model, data: torch.get_float32_matmul_precision() != "highest",
    "compile": lambda trainer, model, data: any(
        module._compiled_call_impl is not None for module in model.net.modules()
    ),
    "on_bad_loss": lambda trainer, model, data: model.on_bad_loss == "skip",
    "mixing": lambda trainer, model, data: data.train_transform.batch_draws,
    "overfit_batches": lambda trainer, model, data: option_of(trainer, "overfit_batches") > 0,
    "sampler": lambda trainer, model, data: data.draw_weights is not None,
    "batches": lambda trainer, model, data: not isinstance(data.train_dataloader().batch_sampler, PoissonBatchSampler),
    "averages": lambda trainer, model, data: _has(trainer, StochasticWeightAveraging) or _has(trainer, WeightAveraging),
    "unfreezing": lambda trainer, model, data: _has(trainer, BaseFinetuning),
    "monitor": lambda trainer, model, data: any(name.startswith("train/") for name in _watched(trainer, model)),
    "frozen": lambda trainer, model, data: not any(parameter.requires_grad for parameter in model.parameters()),
    "lbfgs": lambda trainer, model, data: isinstance(trainer.optimizers[0], LBFGS),
    "least": lambda trainer, model, data: bool(trainer.fit_loop.min_epochs or trainer.fit_loop.min_steps),
}
"""Name in `REASONS` -> test of the objects."""


def check_combinations(trainer: Trainer, model: DictModule) -> None:
    """Raise ValueError with all settings that cannot be combined."""
    data = cast(ImageDataModule, data_of(trainer))
    refusals = [
        f"strategy=dp and {REASONS[name]}." for name, is_given in REFUSED.items() if is_given(trainer, model, data)
    ]
    if refusals:
        raise UserError("\n".join(refusals))


def _has(trainer: Trainer, kind: type) -> bool:
    return bool(callbacks_of(trainer, kind))


def _watched(trainer: Trainer, model: DictModule) -> list[str]:
    """Return the metrics that callbacks and the learning rate follow."""
    callbacks: list[Any] = [*callbacks_of(trainer, EarlyStopping), *callbacks_of(trainer, ModelCheckpoint)]
    names = [callback.monitor for callback in callbacks]
    plateau = any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs)
    return [name for name in [*names, *([model.monitor] if plateau else [])] if name is not None]
