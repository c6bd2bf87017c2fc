"""Stochastic weight averaging (SWA): the mean of the weights at the ends of the last epochs."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from imago.callbacks.average import Average
from imago.lightning_internals import is_last_batch
from imago.terminal import counted


class SWA(Average):
    """Average the weights after the last step of each epoch, all alike
    ([Izmailov et al. 2018](https://arxiv.org/abs/1803.05407)).

    The schedule is that of the run: a learning rate that stays above zero to the end lets the weights move.

    Args:
        start: Fraction of the run's steps after which the average starts.
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__("swa", start, _mean)
        self._ends_epoch = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._ends_epoch = is_last_batch(trainer)  # the validation that follows is of the new average
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self._ends_epoch and self.has_begun(step_idx)

    @property
    def averaged(self) -> str:
        return f"the mean of the weights after {counted(self.updates, 'epoch')} (stochastic weight averaging)"


@torch.no_grad()
def _mean(averages: Any, current: Any, count: Tensor) -> None:
    """Update a list of means, all floating-point or none: counters are copied."""
    for old, new in zip(averages, current, strict=True):
        if old.is_floating_point():
            old.lerp_(new.to(old.dtype), 1 / (int(count) + 1))
        else:
            old.copy_(new)
