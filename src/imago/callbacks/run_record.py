"""Keeps the run folder and every checkpoint informed of how the run goes."""

import json
import logging
import math
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer

from imago.checkpoints import SCHEMA
from imago.data.module import ImageDataModule
from imago.loggers import tolerated
from imago.module import DictModule
from imago.plots import curves_figure, save
from imago.profiling import PartsProfiler, in_words
from imago.provenance import git_state, versions
from imago.resuming import Progress, go_on, progress_of, stop_if_it_had_stopped, take_up
from imago.run_folder import RunFolder
from imago.run_report import refresh_report
from imago.writing import strict, write_text

log = logging.getLogger(__name__)


LONG_WAIT, LEAST_WAIT = 0.25, 2.0
"""Share of an epoch, and seconds of it, spent waiting for images, from which on it is worth a warning."""


class RunRecord(Callback):
    """Writes `status.json`, `summary.txt`, `metrics.jsonl`, `report.html` and `plots/curves.png`; part of every run.

    `history` has a row per epoch with all logged metrics and "epoch"; it is in every checkpoint, and so is `carried`:
    plain types that say what ran.
    """

    def __init__(self, run: RunFolder, monitor: str, mode: str, carried: Mapping[str, Any]) -> None:
        self.run = run
        self.monitor = monitor
        self.mode = mode
        self.carried = carried
        self.clock = _Clock()
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        """The best value of `monitor` so far, of validations within epochs too."""
        self._progress: Progress | None = None
        self._seen_before: torch.Tensor | None = None
        self._has_advised = False
        self._first_epoch = 0  # of this process

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.start()
        if self._seen_before is None:
            self._seen_before = pl_module.seen_images
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self.run.sections["Parameters"] = {
            "total": f"{sum(p.numel() for p in pl_module.parameters()):,}",
            "trained": f"{trained:,}",
        }
        self.run.sections["Device"] = {"device": _device(trainer), "precision": trainer.precision}
        pl_module.strategy.begin(trainer, pl_module, self.run.path, lambda: self._publish_strategy(trainer))
        self._write(trainer)
        stop_if_it_had_stopped(trainer, self._progress)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._first_epoch = trainer.current_epoch
        if self._progress is not None:
            go_on(trainer, pl_module, self._progress)
            self.clock.wait()  # in the middle of an epoch, none starts

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.wait()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.compute()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.wait(images=len(batch["label"]))
        self.run.status["step"] = trainer.global_step  # the next heartbeat tells it

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.other()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.wait()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and self.monitor.startswith("val/") and not trainer.sanity_checking:
            self.best = best_of([self.best, float(value)], self.mode)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.clock.other()
        self._say_if_loading_is_slow(trainer)
        self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **pl_module.epoch_metrics()})
        self.best = best_of([self.best, self.history[-1].get(self.monitor)], self.mode)
        self._log_epoch(trainer)
        self._write(trainer)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(self.history[-1].items()) if _is_shown(name))
        log.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, shown)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and pl_module.strategy.report():
            pl_module.strategy.write_report(self.run.path / "reports", is_final=True)
            refresh_report(self.run.path)
        if isinstance(profiler := trainer.profiler, PartsProfiler) and trainer.is_global_zero:  # type: ignore[attr-defined]
            self.run.sections["Profile"] = in_words(profiler.spent, self.clock.images)
            self.run.update(profile=self.run.sections["Profile"])
            lines = (f"  {part:<34}{share}" for part, share in self.run.sections["Profile"].items())
            log.info("Where the time went:\n%s", "\n".join(lines))
        if self.history and trainer.is_global_zero:
            with tolerated("plots/curves"):
                save(curves_figure(self.history), self.run.path / "plots" / "curves", self.run.plot_format)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._write(trainer)

    def _publish_strategy(self, trainer: Trainer) -> None:
        """Writes the strategy's section of the summary and the report, between two epochs' ends."""
        self.run.sections["Strategy"] = cast(DictModule, trainer.lightning_module).strategy.report()
        with tolerated("The record in the run folder"):
            self.run.update()
            refresh_report(self.run.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()  # a run that goes on from here does not log again what came before
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        checkpoint["imago"] = {
            "schema": SCHEMA,
            "class_names": list(pl_module.class_names),
            **self.carried,
            "history": [dict(row) for row in self.history],
            "monitor": self.monitor,
            "best_value": self.best,
            "timestamp": datetime.now().astimezone().isoformat(timespec="microseconds"),
            "versions": versions(),
            "git": dict(git_state()),
            "data": data.facts,
            "drawn_val": data.sets.drawn_val,
            **({"train_images": self._trained_on(data)} if pl_module.strategy.shows_train_images else {}),
            "strategy": pl_module.strategy.state_dict(),
            "progress": progress_of(trainer, pl_module),
        }

    def _trained_on(self, data: ImageDataModule) -> torch.Tensor:
        """Digests of all images that the weights have seen, in runs that this one goes on from, too."""
        if self._seen_before is None:
            return data.train_digests
        return torch.unique(torch.cat([data.train_digests, self._seen_before]))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.history = [dict(row) for row in checkpoint["imago"]["history"]]
        self._progress = checkpoint["imago"]["progress"]
        self._seen_before = checkpoint["imago"].get("train_images")
        earlier = checkpoint["imago"].get("best_value") if checkpoint["imago"].get("monitor") == self.monitor else None
        self.best = best_of([earlier, *(row.get(self.monitor) for row in self.history)], self.mode)
        pl_module.strategy.load_state_dict(checkpoint["imago"]["strategy"])
        if take_up(trainer, pl_module, checkpoint):
            self.best = None

    def _log_epoch(self, trainer: Trainer) -> None:
        """Now, as Lightning would only do it when the epoch's checkpoint is written: a kill between would lose it."""
        known = ("val/", "step")  # Lightning has logged the first when validation ended
        row = {name: value for name, value in self.history[-1].items() if not name.startswith(known)}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=max(0, trainer.global_step - 1))

    def _say_if_loading_is_slow(self, trainer: Trainer) -> None:
        """Once, of an epoch that filled no cache."""
        spent = self.clock.of_epoch()
        busy = spent["data"] + spent["compute"]
        settled = trainer.current_epoch > self._first_epoch or trainer.max_epochs == 1
        if self._has_advised or not settled or spent["data"] < max(LONG_WAIT * busy, LEAST_WAIT):
            return
        self._has_advised = True
        data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
        log.warning(
            "%.0f %% of epoch %d (%.1f s) was spent waiting for images. %s",
            100 * spent["data"] / busy,
            trainer.current_epoch + 1,
            spent["data"],
            data.how_to_load_faster(),
        )

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        with tolerated("The record in the run folder"):
            self._write_record(trainer)

    def _write_record(self, trainer: Trainer) -> None:
        lines = "".join(json.dumps(strict(row)) + "\n" for row in self.history)
        write_text(self.run.path / "metrics.jsonl", lines)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else "no limit"
        self.run.sections["Progress"] = {"epochs": f"{len(self.history)} of {epochs}", "steps": trainer.global_step}
        if skipped := trainer.lightning_module.skipped_batches:
            self.run.sections["Progress"]["batches skipped (loss not finite)"] = skipped
        if self.history:
            self.run.sections["Last epoch"] = {k: v for k, v in self.history[-1].items() if k.count("/") == 1}
        strategy = cast(DictModule, trainer.lightning_module).strategy
        if strategy.report():
            strategy.write_report(self.run.path / "reports")
            self.run.sections["Strategy"] = strategy.report()  # as it was written
        self.run.update(epoch=len(self.history), step=trainer.global_step, timing=self.clock.seconds())
        refresh_report(self.run.path)


class _Clock:
    """Where the time of training goes: waiting for data, computing, and the rest.

    On a GPU the computing of a step may be waited for in the next one.
    """

    def __init__(self) -> None:
        self.spent = {"data": 0.0, "compute": 0.0, "other": 0.0}
        self.images = 0
        self._kind = "other"
        self._since = 0.0
        self._before_epoch = dict(self.spent)

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
        """By kind, and `images_per_second` of the train images in this process while training."""
        self._turn(self._kind)
        busy = self.spent["data"] + self.spent["compute"]
        rates = {"images_per_second": round(self.images / busy, 1)} if self.images and busy else {}
        return {kind: round(seconds, 3) for kind, seconds in self.spent.items()} | rates

    def of_epoch(self) -> dict[str, float]:
        """What was spent since this was called last."""
        self._turn(self._kind)
        before, self._before_epoch = self._before_epoch, dict(self.spent)
        return {kind: seconds - before[kind] for kind, seconds in self.spent.items()}

    def _turn(self, kind: str) -> None:
        now = time.perf_counter()
        self.spent[self._kind] += now - self._since if self._since else 0.0
        self._kind, self._since = kind, now


def best_of(values: Sequence[float | None], mode: str) -> float | None:
    """The best finite one; `mode` is max or min."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if mode == "max" else min(finite)


def _is_shown(name: str) -> bool:
    return name in ("train/loss", "train/acc", "val/loss", "val/acc") or name.endswith("_best")


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
