"""`last.ckpt`: the checkpoint from which a run is resumed, whatever ended it."""

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from imago.checkpoint.read import LAST, PREVIOUS
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.definitions import STOPPING, TERMINATED
from imago.distributed import decided_by_first
from imago.errors import UserError
from imago.lightning_internals import callbacks_of, is_accumulating, is_last_batch, option_of, validation_is_due

log = logging.getLogger(__name__)

ON_EXCEPTION = "on_exception.ckpt"
ON_FULL_DISK = ("stop", "continue")
SECONDS_OF_ONE_CTRL_C = 1


class ResumeCheckpoint(Checkpoint):
    """Save the last state of the run to `last.ckpt`, also when a signal (including Ctrl-C) ends the run.

    It is saved at the end of each epoch, and after optimizer steps within an epoch, but not if validation is due:
    Lightning would skip that validation when the run is resumed. The state after an exception is saved separately, to
    `on_exception.ckpt`.

    Args:
        dirpath: Folder of the checkpoints.
        every_n_minutes: Save at the first optimizer step after this many minutes; None switches this off.
        every_n_train_steps: Save every this many optimizer steps; None switches this off.
        on_full_disk: What to do if a checkpoint cannot be written: `stop`, or `continue` with the previous one.
    """

    def __init__(
        self,
        dirpath: str,
        every_n_minutes: float | None = 10.0,
        every_n_train_steps: int | None = None,
        on_full_disk: str = "stop",
    ) -> None:
        for option, value in (("every_n_minutes", every_n_minutes), ("every_n_train_steps", every_n_train_steps)):
            if value is not None and value <= 0:
                raise UserError(f"callbacks.resume.{option} must be above 0 or null, got {value}.")
        if on_full_disk not in ON_FULL_DISK:
            raise UserError(f"callbacks.resume.on_full_disk must be {' or '.join(ON_FULL_DISK)}, got {on_full_disk}.")
        self.dirpath = Path(dirpath)
        self.every_n_minutes = every_n_minutes
        self.every_n_train_steps = every_n_train_steps
        self.on_full_disk = on_full_disk
        self._asked: int | None = None
        self._asked_at = 0.0
        self._saved_at = 0.0
        self._first_step: int | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if isinstance(trainer.strategy.checkpoint_io, WholeFileCheckpointIO):
            trainer.strategy.checkpoint_io.on_full_disk = self.on_full_disk

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._saved_at = time.monotonic()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and threading.current_thread() is threading.main_thread():
            signals = [number for number in (signal.SIGINT, *STOPPING) if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._ask) for number in signals}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_accumulating(trainer):  # checkpoints hold no gradients
            return
        asked, due = self._agreed(trainer)
        if not asked and not due:
            return
        if is_last_batch(trainer) or validation_is_due(trainer):
            return  # saved after the validation, or at the end of the epoch
        self.save(trainer, pl_module)
        if asked:
            self._leave(trainer, asked)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        """Stop within a validation, which may take long; it is repeated when the run is resumed. A validation
        in the middle of a gradient accumulation is finished first: checkpoints hold no gradients. So is one of averaged
        weights, which have changed places with the current ones."""
        averages = bool(callbacks_of(trainer, WeightAveraging))
        if self._asked and trainer.world_size == 1 and not is_accumulating(trainer) and not averages:
            self.save(trainer, pl_module)
            self._leave(trainer, self._asked)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        asked, _ = self._agreed(trainer)
        self.save(trainer, pl_module)
        if asked:
            self._leave(trainer, asked)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._restore_handlers()
        if trainer.is_global_zero:
            (self.dirpath / PREVIOUS).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore_handlers()
        has_trained = trainer.training and self._first_step is not None and trainer.global_step > self._first_step
        # of several processes some may be gone, and saving would wait for them
        if isinstance(exception, Exception) and trainer.world_size == 1 and has_trained:
            with suppress(Exception):  # report the original exception
                trainer.save_checkpoint(self.dirpath / ON_EXCEPTION, weights_only=False)

    def save(self, trainer: Trainer, pl_module: Any) -> None:
        """Save `last.ckpt`; all processes call this together."""
        if option_of(trainer, "fast_dev_run"):
            return
        pl_module.check_losses()  # on a GPU they are not checked after each step
        trainer.save_checkpoint(self.dirpath / LAST, weights_only=False, storage_options={"keep": PREVIOUS})
        self._saved_at = time.monotonic()

    def _agreed(self, trainer: Trainer) -> tuple[int, bool]:
        """The received signal (0: none) and whether a save is due, as decided by rank 0."""
        minutes, steps = self.every_n_minutes, self.every_n_train_steps
        due = steps is not None and trainer.global_step % steps == 0
        due |= minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        own = [self._asked or 0, int(due)]
        asked, is_due = decided_by_first(own, trainer.world_size, trainer.strategy.root_device)
        return asked, bool(is_due)

    def _ask(self, number: int, *_: Any) -> None:
        # torchrun passes on the Ctrl-C that the terminal has sent to all
        is_repeated = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._asked_at + SECONDS_OF_ONE_CTRL_C
        if self._asked is not None and number == signal.SIGINT and not is_repeated:
            raise KeyboardInterrupt
        if self._asked is None:
            self._asked_at = time.monotonic()
            hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            log.info("%s: stopping after this step%s", signal.Signals(number).name, hint)
        self._asked = number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not set in Python
        self._handlers = {}

    def _leave(self, trainer: Trainer, number: int) -> None:
        if number == signal.SIGINT and trainer.is_global_zero:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)
