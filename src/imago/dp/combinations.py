"""Settings that strategy=dp cannot be combined with, checked before the first step."""

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

from imago.data.module import ImageDataModule
from imago.dp.secret import PoissonBatchSampler
from imago.errors import UserError
from imago.lightning_internals import callbacks_of, data_of, option_of
from imago.model.module import DictModule

Is = Callable[[Trainer, DictModule, ImageDataModule], bool]
REFUSED: tuple[tuple[Is, str], ...] = (
    (
        lambda trainer, model, data: trainer.world_size > 1,
        "trainer.devices: noise and batches cannot be divided among several processes. Type trainer.devices=1",
    ),
    (
        lambda trainer, model, data: trainer.gradient_clip_val is not None,
        "trainer.gradient_clip_val: the gradient of each image is clipped already. "
        "Type strategy.max_grad_norm= instead, and trainer.gradient_clip_val=null",
    ),
    (
        lambda trainer, model, data: (
            trainer.accumulate_grad_batches != 1 or _has(trainer, GradientAccumulationScheduler)
        ),
        "trainer.accumulate_grad_batches: noise is added in every step. Type a larger data.batch_size=, with "
        "strategy.physical_batch_size= for the number that fits into memory, and trainer.accumulate_grad_batches=1",
    ),
    (
        lambda trainer, model, data: trainer.precision not in ("32-true", "64-true", "bf16-mixed"),
        "trainer.precision: with loss scaling (16-mixed) the scaled gradients would be clipped, and sums of noise need "
        "more than 16 bits. Type trainer.precision=bf16-mixed, or 32-true",
    ),
    (
        lambda trainer, model, data: torch.get_float32_matmul_precision() != "highest",
        "matmul_precision: clipping norms need full 32-bit precision. Type matmul_precision=highest",
    ),
    (
        lambda trainer, model, data: any(module._compiled_call_impl is not None for module in model.net.modules()),
        "model.compile: a compiled network hides its layers. Type model.compile=false",
    ),
    (
        lambda trainer, model, data: model.on_bad_loss == "skip",
        "model.on_bad_loss=skip: which batches are skipped depends on private images. Type model.on_bad_loss=error",
    ),
    (
        lambda trainer, model, data: data.train_transform.batch_draws,
        "data.train_transform.batch has steps that may mix images (MixUp, CutMix): then a gradient does not belong to "
        "one image. Remove them; Imago's own RandomHorizontalFlip and Normalize can stay",
    ),
    (
        lambda trainer, model, data: option_of(trainer, "overfit_batches") > 0,
        "trainer.overfit_batches: repeating the same batches is not Poisson sampling. "
        "Type trainer.overfit_batches=0, or strategy=none",
    ),
    (
        lambda trainer, model, data: not isinstance(data.train_dataloader().batch_sampler, PoissonBatchSampler),
        "train batches that it does not draw (a weighted sampler, or a train_dataloader of your own): the reported "
        "privacy would be wrong. Use the batches of Imago's data modules, or strategy=none",
    ),
    (
        lambda trainer, model, data: _has(trainer, StochasticWeightAveraging) or _has(trainer, WeightAveraging),
        "callbacks that average weights (SWA, EMA): other weights than those that were accounted for would be saved "
        "and scored. Remove them",
    ),
    (
        lambda trainer, model, data: _has(trainer, BaseFinetuning),
        "callbacks that unfreeze layers later: their gradients would not be clipped. Remove them; "
        "model.freeze=backbone trains the head",
    ),
    (
        lambda trainer, model, data: any(name.startswith("train/") for name in _watched(trainer, model)),
        "a monitor of train/: training metrics have no noise, and would choose the weights, the learning rate or the "
        "end. Type monitor=val/loss, or another metric of val/",
    ),
    (
        lambda trainer, model, data: not any(parameter.requires_grad for parameter in model.parameters()),
        "a network without trained parameters: all are frozen. Type model.freeze=backbone, or null",
    ),
    (
        lambda trainer, model, data: isinstance(trainer.optimizers[0], LBFGS),
        "model.optimizer: LBFGS evaluates a batch several times per step. Type model/optimizer=adamw, or sgd",
    ),
    (
        lambda trainer, model, data: bool(trainer.fit_loop.min_epochs or trainer.fit_loop.min_steps),
        "trainer.min_epochs or trainer.min_steps: the privacy budget may end training earlier. "
        "Type trainer.min_epochs=null trainer.min_steps=null",
    ),
)
"""Tests, and the messages for those that are true."""


def check_combinations(trainer: Trainer, model: DictModule) -> None:
    """Raise ValueError with all settings that cannot be combined."""
    data = cast(ImageDataModule, data_of(trainer))
    refusals = [f"strategy=dp and {say}." for is_given, say in REFUSED if is_given(trainer, model, data)]
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
