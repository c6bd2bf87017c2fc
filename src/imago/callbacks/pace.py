"""How long a training still takes."""

import math
import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from imago.lightning_internals import callbacks_of, position

LEAST_BATCHES = 5
"""Batches of the first epoch before which nothing is estimated."""


class Pace:
    """Estimate of the seconds until the last epoch ends, from the present epoch and the one before.

    Validation and checkpoints are part of it, as soon as an epoch has ended. Early stopping is not foreseen.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []  # (time, epochs trained), the last two ends of epochs

    def start(self, trainer: Trainer) -> None:
        """Begin to measure, in `on_train_start`."""
        epoch, batch = position(trainer)
        self._marks = [(time.monotonic(), epoch + batch / max(1, trainer.num_training_batches))]

    def seconds_left(self, trainer: Trainer, batches: int) -> float | None:
        """Seconds left after `batches` batches of the present epoch; None if unknown, or if the run has no end."""
        trained = trainer.current_epoch + batches / max(1, trainer.num_training_batches)
        if not self._marks or (len(self._marks) == 1 and batches < LEAST_BATCHES):
            return None
        return self._left(trainer, trained)

    def end_epoch(self, trainer: Trainer) -> tuple[float, float | None]:
        """End an epoch, in `on_train_epoch_end`. Returns its seconds, and those left as in `seconds_left`."""
        seconds = time.monotonic() - self._marks[-1][0]
        left = self._left(trainer, trainer.current_epoch + 1)
        self._marks = [self._marks[-1], (time.monotonic(), trainer.current_epoch + 1)]
        return seconds, left

    def _left(self, trainer: Trainer, trained: float) -> float | None:
        began, before = self._marks[0]
        epochs = _planned_epochs(trainer)
        if math.isinf(epochs) or trained <= before:
            return None
        left = (time.monotonic() - began) / (trained - before) * max(0.0, epochs - trained)
        limits = [timer.time_remaining() for timer in callbacks_of(trainer, Timer)]
        return min([left, *(max(0.0, limit) for limit in limits if limit is not None)])


def _planned_epochs(trainer: Trainer) -> float:
    """Epochs of the whole run, as a fraction if `trainer.max_steps` ends it within one."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    if trainer.max_steps < 0:
        return epochs
    return min(epochs, trainer.max_steps * trainer.accumulate_grad_batches / max(1, trainer.num_training_batches))


def format_duration(seconds: float) -> str:
    """Text such as `0:12`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
