"""Progress of a run: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

log = logging.getLogger(__name__)


def progress_bar(seconds_between_lines: float = 10.0) -> ProgressBar:
    """Return Rich's bar on a terminal, or plain log lines if the output goes to a file or a pipe.

    Args:
        seconds_between_lines: Interval of the plain lines within an epoch; `EpochLog` logs one at its end anyway.
    """
    return TimedBar() if sys.stdout.isatty() else PlainProgress(seconds_between_lines)


class TimedBar(RichProgressBar):
    """Rich's bar, updated ten times a second: Lightning updates it after every batch, however short."""

    _moved = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._is_due(batch_idx + 1 == self.total_train_batches):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due(batch_idx + 1 == self.total_val_batches_current_dataloader):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due(batch_idx + 1 == self.total_test_batches_current_dataloader):
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._is_due(batch_idx + 1 == self.total_predict_batches_current_dataloader):
            super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def _is_due(self, last: bool) -> bool:
        now = time.monotonic()
        if not last and now - self._moved < 0.1:
            return False
        self._moved = now
        return True


class PlainProgress(ProgressBar):
    """Progress as log lines."""

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._last_line = 0.0

    def disable(self) -> None:
        """Do nothing: Lightning calls this in every process but the first, where nothing is logged anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._last_line = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._last_line >= self.seconds_between_lines:
            self._last_line = time.monotonic()
            log.info("epoch %d: batch %d of %s", trainer.current_epoch + 1, batch_idx + 1, self.total_train_batches)
