"""Status of a training: `status.json`, `summary.txt` and the report, rewritten every epoch."""

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.pace import format_duration
from imago.callbacks.run_card import gpu_memory, run_card, watch_gpu_memory
from imago.callbacks.timing import Timing
from imago.files import log_write_errors
from imago.lightning_internals import position
from imago.model.module import DictModule
from imago.model.optimizers import planned_steps
from imago.model.origin import name_of
from imago.report.content import card_rows
from imago.report.page import refresh_report
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

CARD_LINE = {
    "parameters": "{} parameters",
    "learning rate": "lr {}",
    "head learning rate": "lr of the head {}",
    "batch size": "batch size {}",
    "images": "images: {}",
    "classes": "{} classes",
}
"""Key of `card_rows` -> its part of the first line of a run."""


class RunStatus(Callback):
    """Write the status of the training to the run folder; part of every training.

    Args:
        run: The run folder.
        epochs: Its history.
        timing: Its times.
        weights: What training starts from, for the card of the run.
    """

    def __init__(self, run: RunFolder, epochs: EpochLog, timing: Timing, weights: str) -> None:
        self.run = run
        self.epochs = epochs
        self.timing = timing
        self.weights = weights
        self._has_written = False

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        watch_gpu_memory(trainer)
        pl_module.strategy.warnings = self.run.warnings
        card = run_card(trainer, pl_module, name_of(pl_module.net), self.weights)
        rows = card_rows(card)
        self.run.status["card"] = card
        self.run.sections["Training"] = rows
        if trainer.is_global_zero:
            log.info("%s", ", ".join(CARD_LINE.get(key, "{}").format(value) for key, value in rows.items()))

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is not None and trainer.is_global_zero:
            is_alone = pl_module.probe == "only"
            log.info("%s", f"Resumed the head alone, from {trainer.ckpt_path}" if is_alone else self._resumed(trainer))
        self.write(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.run.status["step"] = trainer.global_step  # the next heartbeat writes it

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not self._has_written:  # no epoch was left to train
            self.write(trainer)
        if trainer.is_global_zero and (memory := gpu_memory(trainer)) is not None:
            log.info("GPU memory: at most %s were reserved", memory)
        if trainer.is_global_zero and pl_module.strategy.report():
            pl_module.strategy.write_report(self.run.path / "reports", is_final=True)
            refresh_report(self.run.path)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.write(trainer)

    def _resumed(self, trainer: Trainer) -> str:
        """Line about the checkpoint of a resumed run: where training continues, and how long it has taken so far."""
        epoch, batch = position(trainer)
        epochs, steps = trainer.max_epochs, planned_steps(trainer)
        where = f"epoch {epoch + 1}" + (f" of {epochs}" if epochs is not None and epochs >= 0 else "")
        if batch:
            where += f", batch {batch + 1} of {trainer.num_training_batches:g}"
        done = f"{trainer.global_step}" + ("" if math.isinf(steps) else f" of {steps:g}")
        spent = f", in {format_duration(self.timing.before)}" if self.timing.before else ""
        return f"Resumed at {where}, from {trainer.ckpt_path}: {done} steps were done{spent}"

    def write(self, trainer: Trainer) -> None:
        """Rewrite `status.json`, `summary.txt`, the strategy's report and `report.html`."""
        if trainer.is_global_zero:
            with log_write_errors("The record in the run folder"):
                self._write(trainer)

    def publish_strategy(self, report: dict[str, Any]) -> None:
        """Rewrite the strategy's section of the summary and the report, between the ends of two epochs."""
        self.run.sections["Strategy"] = report
        with log_write_errors("The record in the run folder"):
            self.run.update(**_spent(report))
            refresh_report(self.run.path)

    def _write(self, trainer: Trainer) -> None:
        self._has_written = True
        history = self.epochs.history
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else "no limit"
        model = cast(DictModule, trainer.lightning_module)
        done = "none: the head alone" if model.probe == "only" else f"{self.epochs.trained} of {epochs}"
        self.run.sections["Progress"] = {"epochs": done, "steps": trainer.global_step}
        if (memory := gpu_memory(trainer)) is not None:
            self.run.sections["Progress"]["GPU memory, at most"] = memory
        if model.skipped_batches:
            self.run.sections["Progress"]["batches skipped (loss not finite)"] = model.skipped_batches
        if self.epochs.trained:
            last = {k: v for k, v in history[-1].items() if k.count("/") == 1 and not k.endswith("_best")}
            self.run.sections["Last epoch"] = last
        if model.strategy.report():
            model.strategy.write_report(self.run.path / "reports")
            self.run.sections["Strategy"] = model.strategy.report()  # as it was written
        spent = _spent(self.run.sections.get("Strategy", {}))
        best = {"best_epoch": self.epochs.best_epoch}
        seconds = self.timing.clock.seconds()
        self.run.update(epoch=self.epochs.trained, step=trainer.global_step, timing=seconds, **best, **spent)
        refresh_report(self.run.path)


def _spent(report: Mapping[str, Any]) -> dict[str, Any]:
    """The entries `epsilon` (a number where it has a bound) and `delta` of `status.json`: what private training has
    spent."""
    spent = {key: report[key] for key in ("epsilon", "delta") if key in report}
    with suppress(KeyError, ValueError):  # infinite, unknown
        spent["epsilon"] = float(spent["epsilon"])
    return spent
