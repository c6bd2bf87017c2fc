"""Progress: a bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

log = logging.getLogger(__name__)


def progress_bar(seconds_between_lines: float = 10.0) -> ProgressBar:
    """Rich's bar on a terminal; plain lines through the log where the output goes to a file or a pipe.

    Args:
        seconds_between_lines: Of the plain lines, within an epoch; at its end the run record writes one anyway.
    """
    return RichProgressBar() if sys.stdout.isatty() else PlainProgress(seconds_between_lines)


class PlainProgress(ProgressBar):
    """Progress as lines of the log."""

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._last_line = 0.0

    def disable(self) -> None:
        """Lightning asks for it in every process but the first: there, nothing is logged anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._last_line = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._last_line >= self.seconds_between_lines:
            self._last_line = time.monotonic()
            log.info("epoch %d: batch %d of %s", trainer.current_epoch + 1, batch_idx + 1, self.total_train_batches)
