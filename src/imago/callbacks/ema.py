"""Exponential moving average (EMA) of the weights."""

from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from imago.callbacks.average import Average
from imago.errors import UserError
from imago.terminal import counted


class EMA(Average):
    """Average the weights after each optimizer step, the last ones most.

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
        super().__init__("ema", start, self._average)
        self.decay = decay
        self.warmup = warmup

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.has_begun(step_idx)

    @property
    def averaged(self) -> str:
        return f"the exponential moving average of {counted(self.updates, 'step')} (decay {self.decay:g})"

    def _average(self, averages: Any, current: Any, count: Tensor) -> None:
        """Update a list of averages, all floating-point or none: counters are copied."""
        if not averages[0].is_floating_point():
            for old, new in zip(averages, current, strict=True):
                old.copy_(new)
            return
        n = int(count)
        decay = min(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(averages, current, count)
