"""Training time: waiting for images, computing and the rest."""

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Callback, Trainer

from imago.callbacks.profiler import PartsProfiler, format_profile
from imago.data.module import ImageDataModule
from imago.lightning_internals import data_of, option_of
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

LONG_WAIT, LEAST_WAIT = 0.25, 2.0
"""Fraction and seconds of an epoch spent waiting for images, above which a warning is logged."""


class Timing(Callback):
    """Divide the training time into waiting for images, computing and the rest; part of every training.

    Warns, and says what to type, if the loader keeps the network waiting.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.clock = Clock()
        self.before = self.clock.restore(run.former.get("timing", {})) if run.resume_from is not None else 0.0
        """Seconds of training before the run was resumed."""
        self._has_advised = False
        self._first_epoch = 0  # of this process

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.start()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._first_epoch = trainer.current_epoch
        if trainer.ckpt_path is not None:
            self.clock.wait()  # no epoch starts in the middle of one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.wait()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.compute()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.wait(images=len(batch["label"]))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.other()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.wait()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.other()
        self._warn_if_loader_bound(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        profiler = option_of(trainer, "profiler")
        if isinstance(profiler, PartsProfiler) and trainer.is_global_zero:
            profile = format_profile(profiler.spent, self.clock.images)
            self.run.sections["Profile"] = profile
            self.run.update(profile=profile)
            lines = (f"  {part:<34}{fraction}" for part, fraction in profile.items())
            log.info("Where the time went:\n%s", "\n".join(lines))

    def _warn_if_loader_bound(self, trainer: Trainer) -> None:
        """Warn once, about an epoch that filled no cache."""
        spent = self.clock.of_epoch()
        busy = spent["data"] + spent["compute"]
        settled = trainer.current_epoch > self._first_epoch or trainer.max_epochs == 1
        if self._has_advised or not settled or spent["data"] < max(LONG_WAIT * busy, LEAST_WAIT):
            return
        self._has_advised = True
        data = cast(ImageDataModule, data_of(trainer))
        log.warning(
            "%.0f%% of epoch %d (%.1f s) was spent waiting for images. %s",
            100 * spent["data"] / busy,
            trainer.current_epoch + 1,
            spent["data"],
            data.loading_advice(),
        )


class Clock:
    """Clock of the training time: waiting for data, computing, and the rest.

    On a GPU, the computation of a step may be waited for in the next step.
    """

    def __init__(self) -> None:
        self.spent = {"data": 0.0, "compute": 0.0, "other": 0.0}
        self.images = 0
        self._kind = "other"
        self._since = 0.0
        self._before_epoch = dict(self.spent)

    def restore(self, seconds: Mapping[str, float]) -> float:
        """Continue from what `seconds()` returned in an earlier process; returns the sum of its seconds."""
        self.spent = {kind: float(seconds.get(kind) or 0.0) for kind in self.spent}
        busy = self.spent["data"] + self.spent["compute"]
        self.images = round(busy * float(seconds.get("images_per_second") or 0.0))
        self._before_epoch = dict(self.spent)
        return sum(self.spent.values())

    def start(self) -> None:
        self._since = time.perf_counter()

    def wait(self, images: int = 0) -> None:
        self.images += images
        self._turn("data")

    def compute(self) -> None:
        self._turn("compute")

    def other(self) -> None:
        self._turn("other")

    def seconds(self) -> dict[str, float]:
        """Seconds by kind, and `images_per_second`: train images of this process per second of training."""
        self._turn(self._kind)
        busy = self.spent["data"] + self.spent["compute"]
        rates = {"images_per_second": round(self.images / busy, 1)} if self.images and busy else {}
        return {kind: round(seconds, 3) for kind, seconds in self.spent.items()} | rates

    def of_epoch(self) -> dict[str, float]:
        """Seconds by kind since the last call."""
        self._turn(self._kind)
        before, self._before_epoch = self._before_epoch, dict(self.spent)
        return {kind: seconds - before[kind] for kind, seconds in self.spent.items()}

    def _turn(self, kind: str) -> None:
        now = time.perf_counter()
        self.spent[self._kind] += now - self._since if self._since else 0.0
        self._kind, self._since = kind, now
