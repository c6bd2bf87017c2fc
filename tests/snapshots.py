"""Callbacks for tests of resuming."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from imago.definitions import STEP_WEIGHT


class Snapshots(Callback):
    """Copies the run folder whenever a checkpoint has changed: what `kill -9` at that moment leaves."""

    def __init__(self, to: str, file: str = "last.ckpt") -> None:
        self.to = Path(to)
        self.file = file
        self.seen = 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        folder = Path(trainer.default_root_dir)
        last = folder / "checkpoints" / self.file
        if trainer.is_global_zero and last.exists() and last.stat().st_mtime_ns != self.seen:
            self.seen = last.stat().st_mtime_ns
            shutil.copytree(folder, self.to / f"{trainer.global_step:03d}", ignore=shutil.ignore_patterns(".lock"))

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        self.on_train_batch_start(trainer)


class Signal(Callback):
    """Sends this process, or its `group`, a signal, `times` times, when train batch `batch` (over all epochs) ends."""

    def __init__(
        self, number: int, batch: int, times: int = 1, in_validation: bool = False, group: bool = False
    ) -> None:
        self.number = number
        self.batch = batch
        self.times = times
        self.in_validation = in_validation
        self.kill = os.killpg if group else os.kill

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.in_validation and trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.send()

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.in_validation and trainer.fit_loop.epoch_loop.total_batch_idx >= self.batch:
            self.send()

    def send(self) -> None:
        for _ in range(self.times):
            self.kill(os.getpid(), signal.Signals(self.number))


class Unwell(Callback):
    """In the process `rank`, when train batch `batch` (over all epochs) begins: a warning, then an error or a signal;
    not again after torchrun has restarted the processes."""

    def __init__(self, rank: int, batch: int, number: int = 0) -> None:
        self.rank = rank
        self.batch = batch
        self.number = number

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if trainer.global_rank != self.rank or trainer.global_step != self.batch or not is_first:
            return
        logging.getLogger(__name__).warning("the disk of rank %d is slow", self.rank)
        if not self.number:
            raise ValueError(f"rank {self.rank} is unwell")
        os.kill(os.getpid(), self.number)


class Indices(Callback):
    """Notes the images of each train batch of this process in a file of its own: epoch, batch, images."""

    def __init__(self, to: str) -> None:
        self.to = Path(to)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.to.mkdir(parents=True, exist_ok=True)
        images = batch["index"].tolist() if batch.get(STEP_WEIGHT) != 0 else []
        with (self.to / f"{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.current_epoch, batch_idx, images]) + "\n")


class FailsIn(Callback):
    """Fails at the start of the training in a run folder of this name, as long as a file `marker` exists."""

    def __init__(self, folder: str, marker: str) -> None:
        self.folder = folder
        self.marker = Path(marker)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if Path(trainer.default_root_dir).name == self.folder and self.marker.exists():
            raise RuntimeError("no power")
