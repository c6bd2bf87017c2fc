"""Exponential moving average (EMA) of the weights."""

import math
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imago.errors import UserError
from imago.lightning_internals import average_of
from imago.model.optimizers import planned_steps


class EMA(WeightAveraging):
    """Average the weights after each optimizer step; the average is validated, saved as the network's, and scored.

    The statistics of BatchNorm are averaged too. Until the average starts, it equals the current weights: Lightning's
    EMAWeightAveraging would validate and save the untrained network. Checkpoints also hold the current weights, from
    which training is resumed.

    Args:
        decay: Fraction of the average that is kept in a step.
        start: Fraction of the run's steps after which the average starts.
        warmup: Keep at most (1 + n) / (10 + n) in the n-th step of the average, as TensorFlow and timm do: otherwise
            the weights of the first 1 / (1 - decay) steps weigh heavily.

    Raises:
        UserError: A value is out of range, or `start` is above 0 in a run without an end.
    """

    def __init__(self, decay: float = 0.999, start: float = 0.0, warmup: bool = True) -> None:
        if not 0 < decay < 1:
            raise UserError(f"callbacks.ema.decay must be above 0 and below 1, got {decay}.")
        if not 0 <= start < 1:
            raise UserError(f"callbacks.ema.start must be a fraction of the run, 0 or more and below 1, got {start}.")
        super().__init__(use_buffers=True, multi_avg_fn=self._average)
        self.decay = decay
        self.start = start
        self.warmup = warmup
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.start > 0:
            steps = planned_steps(trainer)
            if math.isinf(steps):
                raise UserError("callbacks.ema.start needs a run that ends. Type trainer.max_epochs=, or start=0.")
            self._first_step = int(self.start * steps)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        average = average_of(self)  # one that has started goes on if a resumed run has more steps
        has_started = average is not None and bool(average.n_averaged > 0)
        return step_idx is not None and (has_started or step_idx >= self._first_step)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, pl_module: Any) -> None:
        """Copy the current weights to an average that has not started."""
        average = average_of(self)
        if average is not None and average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())

    def _average(self, averages: Any, current: Any, count: Tensor) -> None:
        """Update a list of averages, all floating-point or none: counters are copied."""
        if not averages[0].is_floating_point():
            for old, new in zip(averages, current, strict=True):
                old.copy_(new)
            return
        n = int(count)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(averages, current, count)
