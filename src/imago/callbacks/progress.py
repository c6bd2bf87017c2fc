"""Progress of a run: a bar on a terminal, log lines elsewhere."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from imago.callbacks.pace import Pace, format_duration
from imago.definitions import SPLITS
from imago.lightning_internals import EpochBar, data_of

log = logging.getLogger(__name__)


def progress_bar(seconds_between_lines: float = 10.0) -> ProgressBar:
    """Return Rich's bar on a terminal, or plain log lines if the output goes to a file or a pipe.

    Args:
        seconds_between_lines: Interval of the plain lines within an epoch. There is none for an epoch that is about to
            end, because `EpochLog` logs its end.
    """
    return TimedBar() if sys.stdout.isatty() else PlainProgress(seconds_between_lines)


class TimedBar(EpochBar):
    """Rich's bar with the time that the run still takes, updated ten times a second: Lightning updates it after every
    batch, however short. While weights are scored, it names the split."""

    _moved = 0.0
    _batches = 0

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()

    @property
    def validation_description(self) -> str:
        return "Validating"

    @property
    def test_description(self) -> str:
        return f"Scoring {data_of(self.trainer).scored_split('test')}"

    @property
    def predict_description(self) -> str:
        split = getattr(data_of(self.trainer), "predict_split", None)
        return f"Scoring {split}" if split is not None else "Predicting"

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """Values beside the bar: the ETA of the whole run, and what is no metric of a split: `EpochLog` logs these."""
        items = super().get_metrics(trainer, pl_module)
        left = self._pace.seconds_left(trainer, self._batches)
        eta = {"ETA": format_duration(left) if left is not None else "-:--"}
        kept = {name: value for name, value in items.items() if name.partition("/")[0] not in (*SPLITS, "v_num")}
        return eta | {name: f"{value:.4f}" if name.startswith("privacy/") else value for name, value in kept.items()}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._pace.start(trainer)
        super().on_train_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._pace.end_epoch(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches = batch_idx + 1
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
    """Progress as log lines, within long epochs only."""

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._last_line = 0.0
        self._epoch_began = 0.0
        self._first_batch = 0
        self._pace = Pace()

    def disable(self) -> None:
        """Do nothing: Lightning calls this in every process but the first, where nothing is logged anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._pace.start(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._last_line = self._epoch_began = time.monotonic()
        self._first_batch = -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._first_batch < 0:
            self._first_batch = batch_idx  # not 0 if the run was resumed within the epoch
        now = time.monotonic()
        if now - self._last_line < self.seconds_between_lines:
            return
        self._last_line = now
        batches = trainer.num_training_batches  # Lightning's total_train_batches shrinks with max_epochs=-1
        per_batch = (now - self._epoch_began) / (batch_idx + 1 - self._first_batch)
        if per_batch * (batches - batch_idx - 1) < self.seconds_between_lines:
            return
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs is not None and trainer.max_epochs >= 0 else ""
        left = self._pace.seconds_left(trainer, batch_idx + 1)
        eta = f", ETA {format_duration(left)}" if left is not None else ""
        log.info("epoch %d%s: batch %d/%s%s", trainer.current_epoch + 1, epochs, batch_idx + 1, batches, eta)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._pace.end_epoch(trainer)
