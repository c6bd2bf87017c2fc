"""Keeps the run folder and every checkpoint informed of how the run goes."""

import json
import logging
import platform
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import torch
import torchvision
from lightning.pytorch import Callback, Trainer

from imago import __version__
from imago.data.module import ImageDataModule
from imago.plots import curves_figure, drawn, save
from imago.run_folder import RunFolder
from imago.writing import strict, write_text

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20


class RunRecord(Callback):
    """Writes `status.json`, `summary.txt`, `metrics.jsonl` and `plots/curves.png`; part of every run.

    `history` has a row per epoch with all logged metrics and "epoch"; it is in every checkpoint.
    """

    def __init__(self, run: RunFolder, monitor: str) -> None:
        self.run = run
        self.monitor = monitor
        self.history: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self.run.sections["Parameters"] = {
            "total": f"{sum(p.numel() for p in pl_module.parameters()):,}",
            "trained": f"{trained:,}",
        }
        self.run.sections["Device"] = {"device": _device(trainer), "precision": trainer.precision}
        self._write(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._beat(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._beat(trainer)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **pl_module.epoch_metrics()})
        self._write(trainer)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(self.history[-1].items()) if _is_shown(name))
        log.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, shown)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.history and trainer.is_global_zero:
            save(drawn(curves_figure(self.history)), self.run.path / "plots" / "curves.png")

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        with suppress(OSError):  # on a full disk, the exception is what has to be told
            self._write(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["imago"] = {
            "class_names": list(pl_module.class_names),
            "history": [dict(row) for row in self.history],
            "monitor": self.monitor,
            "timestamp": datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": {
                "imago": __version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
                "python": platform.python_version(),
            },
            "drawn_val": cast(ImageDataModule, trainer.datamodule).sets.drawn_val,  # type: ignore[attr-defined]
            "strategy": pl_module.strategy.state_dict(),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.history = [dict(row) for row in checkpoint["imago"]["history"]]
        pl_module.strategy.load_state_dict(checkpoint["imago"]["strategy"])

    def _beat(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.run.beat(HEARTBEAT_SECONDS)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        lines = "".join(json.dumps(strict(row)) + "\n" for row in self.history)
        write_text(self.run.path / "metrics.jsonl", lines)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else "no limit"
        self.run.sections["Progress"] = {"epochs": f"{len(self.history)} of {epochs}", "steps": trainer.global_step}
        if self.history:
            self.run.sections["Last epoch"] = {k: v for k, v in self.history[-1].items() if k.count("/") == 1}
        self.run.update(epoch=len(self.history), step=trainer.global_step)


def _is_shown(name: str) -> bool:
    return name in ("train/loss", "train/acc", "val/loss", "val/acc") or name.endswith("_best")


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
