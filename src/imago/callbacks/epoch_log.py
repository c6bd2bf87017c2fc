"""The rows of `metrics.jsonl` (all metrics of each epoch), and the best value of the monitored metric."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor

from imago.callbacks.epoch_table import EpochTable
from imago.callbacks.pace import Pace
from imago.files import log_write_errors, strict, write_text
from imago.report.content import HEAD_EPOCH
from imago.report.plots import curves_figure, save
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Write `metrics.jsonl`, log a line per epoch, and plot `plots/curves.png` at the end; part of every training.

    `history` has one row per epoch with all logged metrics, "epoch" and "step"; before them one of the head alone, if
    it came first.
    """

    def __init__(self, run: RunFolder, monitor: str, mode: str) -> None:
        self.run = run
        self.monitor = monitor
        self.mode = mode
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        """The best value of `monitor` so far, including validations within epochs."""
        self.best_epoch: int | None = None
        """Its epoch, counted from 1; None if unknown."""
        self._pace = Pace()
        self._table: EpochTable | None = None

    @property
    def best_row(self) -> int | None:
        """Epoch of the best value of `monitor`, counted from 1; None if a validation within an epoch was better."""
        best = (row for row in self.history if self.best is not None and row.get(self.monitor) == self.best)
        return next((int(row["epoch"]) + 1 for row in best), None)

    @property
    def trained(self) -> int:
        """Number of trained epochs."""
        return sum(row["epoch"] != HEAD_EPOCH for row in self.history)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._pace.start(trainer)
        self.write(trainer)

    def add_head(self, trainer: Trainer, values: Mapping[str, float], seconds: float, is_shown: bool = True) -> None:
        """Add the row of the head alone: its val metrics, and the seconds that it took. Without epochs after it, the
        table of epochs need not be `is_shown`."""
        self.history = [{"epoch": HEAD_EPOCH, "step": trainer.global_step, **values}]
        self.best = self.best_epoch = None  # its validation was noted as that of the first epoch
        self._note_best(values.get(self.monitor), HEAD_EPOCH + 1)
        self._pace.start(trainer)
        self.write(trainer)
        if is_shown:
            self._show(trainer, seconds, None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning would end without validating the last steps, within an epoch

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and self.monitor.startswith("val/") and not trainer.sanity_checking:
            self._note_best(float(value), trainer.current_epoch + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **pl_module.epoch_metrics()})
        self._note_best(self.history[-1].get(self.monitor), trainer.current_epoch + 1)
        self._log_epoch(trainer)
        self.write(trainer)
        self._show(trainer, *self._pace.end_epoch(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.history and trainer.is_global_zero and self.run.plots.formats:
            with log_write_errors("plots/curves"):
                figure = curves_figure(self.history, self.best_row)
                save(figure, self.run.path / "plots" / "curves", self.run.plots)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Restore the rows and the best value of the run that wrote `checkpoint`."""
        entry = checkpoint["imago"]
        self.history = [dict(row) for row in entry["history"]]
        for row in self.history:
            self._note_best(row.get(self.monitor), int(row["epoch"]) + 1)
        if entry.get("monitor") == self.monitor:  # it may be that of a validation within an epoch
            self._note_best(entry.get("best_value"), None)

    def write(self, trainer: Trainer) -> None:
        """Rewrite the whole of `metrics.jsonl`."""
        if trainer.is_global_zero:
            with log_write_errors("The record in the run folder"):
                lines = "".join(json.dumps(strict(row)) + "\n" for row in self.history)
                write_text(self.run.path / "metrics.jsonl", lines)

    def _note_best(self, value: float | None, epoch: int | None) -> None:
        best = best_of([self.best, value], self.mode)
        if best != self.best:
            self.best, self.best_epoch = best, epoch

    def _show(self, trainer: Trainer, seconds: float, left: float | None) -> None:
        """Log the line of the last row, and before the first one the header."""
        row, epochs = self.history[-1], trainer.max_epochs
        if self._table is None:
            self._table = EpochTable(self.monitor, row)
            log.info("%s", self._table.header(epochs))
        log.info("%s", self._table.line(row, epochs, (self.best, self.best_epoch), seconds, left))

    def _log_epoch(self, trainer: Trainer) -> None:
        """Log the epoch now: Lightning would wait for the epoch's checkpoint, and a kill in between would lose it."""
        known = ("val/", "step")  # Lightning logged val/ when validation ended
        row = {name: value for name, value in self.history[-1].items() if not name.startswith(known)}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=max(0, trainer.global_step - 1))


class LRMonitor(LearningRateMonitor):
    """Log the learning rate; unlike its parent it also works without a logger (`logger=[]`)."""

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.loggers:
            super().on_train_start(trainer, *args, **kwargs)


def best_of(values: Sequence[float | None], mode: str) -> float | None:
    """Return the best finite value, None without one; `mode` is `max` or `min`."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if mode == "max" else min(finite)
