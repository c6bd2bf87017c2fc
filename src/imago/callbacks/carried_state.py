"""The entry `imago` of every checkpoint: what it records about its run, and what is restored from it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer

from imago.callbacks.average import describe_weights
from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.resume_state import Progress, capture_state, finish_restore, restore_early_stop, restore_state
from imago.checkpoint.read import SCHEMA
from imago.data.module import ImageDataModule
from imago.lightning_internals import data_of
from imago.run.folder import RunFolder
from imago.run.provenance import git_state, versions


class CarriedState(Callback):
    """Write the entry `imago` to each checkpoint and restore a run from it; part of every training.

    `carried` holds plain types that describe the run. The folder of a resumed run is written to only after its
    checkpoint has been restored.
    """

    def __init__(self, run: RunFolder, epochs: EpochLog, carried: Mapping[str, Any]) -> None:
        self.run = run
        self.epochs = epochs
        self.carried = carried
        self._progress: Progress | None = None
        self._seen_before: torch.Tensor | None = None
        self._chosen_before: torch.Tensor | None = None
        self._set_aside_before: torch.Tensor | None = None
        self._is_resumed = False
        self._unrecorded = str(carried.get("unrecorded") or "")

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self._seen_before is None:
            self._seen_before = pl_module.seen_images
        restore_early_stop(trainer, self._progress)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self._progress is not None:
            finish_restore(trainer, pl_module, self._progress)
        self.run.accept()

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.run.accept()  # no epoch was left to train

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()  # a run resumed from here does not log earlier values again
        data = cast(ImageDataModule, data_of(trainer))
        checkpoint["imago"] = {
            "schema": SCHEMA,
            "class_names": list(pl_module.class_names),
            **self.carried,
            "weights": describe_weights(trainer),
            "history": [dict(row) for row in self.epochs.history],
            "monitor": self.epochs.monitor,
            "best_value": self.epochs.best,
            "timestamp": datetime.now().astimezone().isoformat(timespec="microseconds"),
            "versions": versions(),
            "git": dict(git_state()),
            "data": data.facts,
            "drawn_val": data.sets.drawn_val,
            "drawn_test": data.sets.drawn_test,
            "drawn_calibration": data.sets.drawn_calibration,
            **self._images(trainer, data, pl_module.strategy.shows_train_images),
            "progress": capture_state(trainer, pl_module),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.epochs.restore(checkpoint)
        self._progress = checkpoint["imago"]["progress"]
        self._seen_before = checkpoint["imago"].get("train_images")
        self._chosen_before, self._is_resumed = checkpoint["imago"].get("val_images"), True
        self._set_aside_before = checkpoint["imago"].get("calibration_images")
        self._unrecorded = str(checkpoint["imago"].get("unrecorded") or "")
        if restore_state(trainer, pl_module, checkpoint):
            self.epochs.best = None

    def _images(self, trainer: Trainer, data: ImageDataModule, are_shown: bool) -> dict[str, Any]:
        """Digests of all images that the weights have seen, of those of val, which chose them, and of those that were
        set aside, including the runs that this one was resumed from, and why some may be missing; no digests if the
        images are private, and in processes that write no checkpoint."""
        if not are_shown or not trainer.is_global_zero:
            return {"unrecorded": self._unrecorded}
        digests, unrecorded = data.train_digests, self._unrecorded
        if len(digests) < len(data.split("train")):
            unrecorded = unrecorded or "some of their train images have no digest"
        is_recorded = self._chosen_before is not None or not self._is_resumed  # by the checkpoint that is resumed
        return {
            "train_images": _joined(digests, self._seen_before),
            "val_images": _joined(data.val_digests, self._chosen_before) if is_recorded else None,
            "calibration_images": _joined(data.calibration_images, self._set_aside_before),
            "unrecorded": unrecorded,
        }


def _joined(digests: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    return digests if before is None else torch.unique(torch.cat([digests, before]), dim=0)
