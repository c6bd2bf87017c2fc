"""A learning-rate range test: the rate rises with each step, and the loss says where it is too low and too high.

Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017 (arXiv:1506.01186).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, Trainer

SMOOTHING = 0.9
"""Part of the smoothed loss that is kept in a step."""
DIVERGED = 4.0
"""Factor of the lowest smoothed loss at which the test ends."""
LEAST_STEPS = 10


@dataclass
class Curve:
    """Learning rates that were tried, in rising order, and the loss of the step with each."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def smoothed(self) -> list[float]:
        """Moving averages of the losses, corrected for their start."""
        values, average = [], 0.0
        for number, loss in enumerate(self.losses, 1):
            average = SMOOTHING * average + (1 - SMOOTHING) * loss
            values.append(average / (1 - SMOOTHING**number))
        return values

    @property
    def suggestion(self) -> float | None:
        """The rate at two thirds of the longest fall of the smoothed loss; None if it does not fall."""
        place = valley(self.smoothed)
        return float(f"{self.rates[place]:.2g}") if place is not None else None


def valley(losses: Sequence[float]) -> int | None:
    """Place in the longest fall of the losses, at two thirds of it, where the loss falls and is far from its rise
    (as fastai's `valley`); None without a fall."""
    lengths, before = [1] * len(losses), [-1] * len(losses)
    for end, loss in enumerate(losses):
        for start in range(end):
            if loss < losses[start] and lengths[start] >= lengths[end]:
                lengths[end], before[end] = lengths[start] + 1, start
    end = max(range(len(losses)), key=lengths.__getitem__, default=-1)
    if end < 0 or lengths[end] < LEAST_STEPS // 2:
        return None
    first = end
    while before[first] >= 0:
        first = before[first]
    return first + round((end - first) * 2 / 3)


class RangeTest(Callback):
    """Raise the learning rate with each optimizer step, from `lowest` to `highest` by a constant factor, and note the
    losses. The test ends early where they diverge.

    Groups of parameters keep the ratios of their rates.
    """

    def __init__(self, lowest: float, highest: float, steps: int) -> None:
        self.lowest, self.highest, self.steps = lowest, highest, steps
        self.curve = Curve()
        self.diverged = False
        self._ratios: list[float] = []
        self._losses: list[float] = []  # of the batches of a step

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self._ratios = [rate / max(rates) for rate in rates]
        self._set_rate(trainer, 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._losses.append(float(outputs["loss"]))
        step = trainer.global_step
        if step == len(self.curve.rates) and math.isfinite(self._losses[-1]):
            return  # gradients are accumulated
        loss = sum(self._losses) / len(self._losses)
        self._losses = []
        self.diverged = not math.isfinite(loss)
        if not self.diverged:
            self.curve.rates.append(self.rate(step - 1))
            self.curve.losses.append(loss)
            smoothed = self.curve.smoothed
            self.diverged = step > LEAST_STEPS and smoothed[-1] > DIVERGED * min(smoothed)
        if self.diverged or step >= self.steps:
            trainer.should_stop = True
        self._set_rate(trainer, step)

    def rate(self, step: int) -> float:
        """Learning rate of the optimizer step `step`, counted from 0."""
        return self.lowest * (self.highest / self.lowest) ** (step / max(1, self.steps - 1))

    def _set_rate(self, trainer: Trainer, step: int) -> None:
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = ratio * self.rate(step)
