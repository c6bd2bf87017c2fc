"""A trial of a search reports each validation, and stops after an epoch if the search says so."""

from typing import Any

from lightning.pytorch import Callback, Trainer

from imago.distributed import decided_by_first
from imago.lightning_internals import batches_so_far, position
from imago.run.search_place import Report


class Pruning(Callback):
    """Report the monitored value after each validation, and end the training after the epoch in which it is pruned.

    The first process reports, and tells the answer to the others. The run ends between two epochs, with its
    checkpoint, so that it can be resumed to the bits of a run that was never pruned. It is not stopped in its last
    epoch, nor before `trainer.min_epochs` and `trainer.min_steps`.

    Args:
        monitor: The metric.
        report: Given the number of the validation and the value, returns whether to stop; None in other processes.
    """

    def __init__(self, monitor: str, report: Report | None) -> None:
        self.monitor = monitor
        self.report = report
        self.is_pruned = False
        self._is_asked = False

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and self.monitor.startswith("val/"):
            self._ask(trainer, validation_number(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not self.monitor.startswith("val/"):
            self._ask(trainer, trainer.current_epoch)
        if self._is_asked and _can_stop(trainer):
            self.is_pruned = trainer.should_stop = True

    def _ask(self, trainer: Trainer, number: int) -> None:
        """Ask whether to stop; all processes call this together."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or number < 0:  # the head alone is validated before the first epoch
            return
        answer = self.report is not None and self.report(number, float(value))
        (stops,) = decided_by_first([int(answer)], trainer.world_size, trainer.strategy.root_device)
        self._is_asked |= bool(stops)


def _can_stop(trainer: Trainer) -> bool:
    """Whether a run may end after this epoch, and would not end by itself."""
    epochs, steps = trainer.current_epoch + 1, trainer.global_step
    is_late = epochs >= (trainer.min_epochs or 0) and steps >= (trainer.min_steps or 0)
    most_epochs, most_steps = trainer.max_epochs or -1, trainer.max_steps
    return is_late and (most_epochs < 0 or epochs < most_epochs) and (most_steps < 0 or steps < most_steps)


def validation_number(trainer: Trainer) -> int:
    """Number of the validation that ends, from 0, as if the run had never been interrupted; -1 before training."""
    epoch, batch = position(trainer)
    interval = trainer.val_check_batch
    if not interval or interval == float("inf"):
        return epoch
    if trainer.check_val_every_n_epoch is None:  # the interval runs on across epochs
        return int((batches_so_far(trainer) + 1) // interval) - 1
    per_epoch = max(1, int(trainer.num_training_batches // interval))
    return epoch // trainer.check_val_every_n_epoch * per_epoch + int(batch // interval) - 1
