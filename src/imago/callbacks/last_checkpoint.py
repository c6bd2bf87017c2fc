"""`last.ckpt`: where a run goes on after whatever has ended it."""

import logging
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from imago.checkpoint.read import LAST, PREVIOUS
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.definitions import STOPPING, TERMINATED
from imago.errors import UserError
from imago.lightning_internals import is_accumulating, is_last_batch, option_of, validation_is_due

log = logging.getLogger(__name__)

ON_EXCEPTION = "on_exception.ckpt"
ON_FULL_DISK = ("stop", "continue")


class ResumeCheckpoint(Checkpoint):
    """Keeps the last state of the run in `last.ckpt`, and saves it before a signal (Ctrl-C too) ends the run.

    It is written at each epoch's end, and after optimizer steps within an epoch, but not where validation is due:
    Lightning would leave that validation out when the run goes on. What an exception leaves is kept apart, in
    `on_exception.ckpt`.

    Args:
        dirpath: The folder of the checkpoints.
        every_n_minutes: At the first optimizer step after so many minutes; None leaves it to the others.
        every_n_train_steps: After so many optimizer steps.
        on_full_disk: What happens when a checkpoint cannot be written: `stop`, or `continue` with the one before.
    """

    def __init__(
        self,
        dirpath: str,
        every_n_minutes: float | None = 10.0,
        every_n_train_steps: int | None = None,
        on_full_disk: str = "stop",
    ) -> None:
        for option, given in (("every_n_minutes", every_n_minutes), ("every_n_train_steps", every_n_train_steps)):
            if given is not None and given <= 0:
                raise UserError(f"callbacks.resume.{option}={given}: give more than 0, or null.")
        if on_full_disk not in ON_FULL_DISK:
            raise UserError(f"callbacks.resume.on_full_disk={on_full_disk}: give {' or '.join(ON_FULL_DISK)}.")
        self.dirpath = Path(dirpath)
        self.every_n_minutes = every_n_minutes
        self.every_n_train_steps = every_n_train_steps
        self.on_full_disk = on_full_disk
        self._asked: int | None = None
        self._saved_at = 0.0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if isinstance(trainer.strategy.checkpoint_io, WholeFileCheckpointIO):
            trainer.strategy.checkpoint_io.on_full_disk = self.on_full_disk

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._saved_at = time.monotonic()
        if trainer.is_global_zero and threading.current_thread() is threading.main_thread():
            heard = [each for each in (signal.SIGINT, *STOPPING) if signal.getsignal(each) != signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._ask) for number in heard}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_accumulating(trainer):  # gradients are not kept
            return
        asked, due = self._agreed(trainer)
        if not asked and not due:
            return
        if is_last_batch(trainer) or validation_is_due(trainer):
            return  # after the validation, or at the end of the epoch
        self._save(trainer, pl_module)
        if asked:
            self._leave(trainer, asked)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any, **__: Any) -> None:
        """A validation may take long: it is repeated when the run goes on. One in the middle of an accumulation is
        waited for, because gradients are not kept."""
        if self._asked and trainer.world_size == 1 and not is_accumulating(trainer):
            self._save(trainer, pl_module)
            self._leave(trainer, self._asked)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        asked, _ = self._agreed(trainer)
        self._save(trainer, pl_module)
        if asked:
            self._leave(trainer, asked)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._restore_handlers()
        if trainer.is_global_zero:
            (self.dirpath / PREVIOUS).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._restore_handlers()
        # with several processes the others may be gone, and saving would wait for them
        if isinstance(exception, Exception) and trainer.world_size == 1 and trainer.global_step and trainer.training:
            with suppress(Exception):  # the exception is what has to be told
                trainer.save_checkpoint(self.dirpath / ON_EXCEPTION)

    def _save(self, trainer: Trainer, pl_module: Any) -> None:
        if option_of(trainer, "fast_dev_run"):
            return
        pl_module.check_losses()  # on a GPU they are not looked at after each step
        trainer.save_checkpoint(self.dirpath / LAST, storage_options={"keep": PREVIOUS})
        self._saved_at = time.monotonic()

    def _agreed(self, trainer: Trainer) -> tuple[int, bool]:
        """The signal that was received (0: none), and whether it is time to save: what rank 0 says."""
        minutes, steps = self.every_n_minutes, self.every_n_train_steps
        due = steps is not None and trainer.global_step % steps == 0
        due |= minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        told = [self._asked or 0, int(due)]
        if trainer.world_size > 1:
            tensor = torch.tensor(told, device=trainer.strategy.root_device)
            torch.distributed.broadcast(tensor, src=0)
            told = tensor.tolist()
        return told[0], bool(told[1])

    def _ask(self, number: int, *_: Any) -> None:
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._asked is None:
            what = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            log.info("%s: stopping after this step%s", signal.Signals(number).name, what)
        self._asked = number

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _leave(self, trainer: Trainer, number: int) -> None:
        if number == signal.SIGINT and trainer.is_global_zero:
            raise KeyboardInterrupt
        raise SystemExit(TERMINATED)
