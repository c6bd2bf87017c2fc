"""The course of a run, over plain objects: fit, take the best weights, score, report."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import WandbLogger

from imago.calibration import Calibration
from imago.callbacks.checkpoint import RunCheckpoint
from imago.callbacks.run_record import RunRecord
from imago.checkpoints import Checkpoint, check_fits, load_weights, read_checkpoint
from imago.data.module import ImageDataModule
from imago.module import DictModule
from imago.reports import note_data, show_hyperparameters, write_reports
from imago.run_folder import RunFolder
from imago.scoring import Score, at_least_one_batch, score

log = logging.getLogger(__name__)

POINTS_OF_A_CURVE = 500
TOLERANCE = 1e-3
"""By which the score of a checkpoint may differ from the value that it was kept for: sums depend on their order."""


@dataclass
class Result:
    """What came out: the scores by split, the checkpoint they belong to, and the best value of the monitored metric."""

    scores: dict[str, Score] = field(default_factory=dict)
    checkpoint: Path | None = None
    best_value: float | None = None

    @property
    def weights(self) -> str:
        """Which weights were scored, in words."""
        return self.checkpoint.name if self.checkpoint is not None else "the weights as they are"


def train(
    data: ImageDataModule,
    model: DictModule,
    trainer: Trainer,
    run: RunFolder,
    monitor: str,
    splits: list[str],
    ckpt_path: str | None = None,
    pictures: bool = True,
) -> Result:
    """Trains (going on from `ckpt_path`, if given), then scores the best weights on `splits`.

    Without `pictures`, reports show no images.
    """
    epochs_before = None
    if ckpt_path is not None:
        checkpoint = read_checkpoint(ckpt_path)
        check_fits(checkpoint, model, data, ckpt_path)
        data.leave_out_trained(checkpoint["imago"])
        epochs_before = checkpoint["epoch"] + 1
    data.same_order = trainer.overfit_batches > 0  # type: ignore[attr-defined]
    at_least_one_batch(trainer, "train", data.train_dataloader())
    at_least_one_batch(trainer, "val", data.val_dataloader())
    _cap_logging_interval(trainer, len(data.train_dataloader()))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    _say_why_it_ended(trainer, model, run, epochs_before)
    best = _best_value(trainer, monitor)
    run.sections["Best"] = {monitor: best, "checkpoint": _best_checkpoint(trainer, monitor)}
    result = evaluate(data, model, trainer, run, _best_checkpoint(trainer, monitor), splits, pictures=pictures)
    result.best_value = best
    own = _own_value(result, trainer, monitor) if result.checkpoint is not None else None
    if own is not None and best is not None and abs(own - best) > TOLERANCE * max(1.0, abs(best)):
        log.warning(
            "%s, which is scored, has %s %.4f; the best in training was %.4f: it is not the best checkpoint",
            result.weights,
            monitor,
            own,
            best,
        )
    return result


def evaluate(
    data: ImageDataModule,
    model: DictModule,
    trainer: Trainer,
    run: RunFolder,
    ckpt_path: str | Path | None,
    splits: list[str],
    calibrate: Callable[[Score, Checkpoint], Calibration] | None = None,
    pictures: bool = True,
) -> Result:
    """Scores the weights of a checkpoint, or those that the model has, on `splits`.

    `calibrate` is given the score of val, and the checkpoint, before. Without `pictures`, reports show no images.
    """
    result = Result(checkpoint=Path(ckpt_path) if ckpt_path is not None else None)
    calibration = None
    if ckpt_path is not None:
        checkpoint = load_weights(model, data, ckpt_path)
        if checkpoint["imago"]["data"]["fingerprint"] != data.facts["fingerprint"]:
            log.info("These data are not those that the checkpoint was trained with, or have changed since")
        if calibrate is not None and "val" not in data.sets.splits:
            raise ValueError(
                f"calibrate=true fits on a val split, and {data.sets.root} has none: name the folder val/."
            )
        if calibrate is not None:
            calibration = calibrate(score(trainer, model, data, "val"), checkpoint)
    elif splits:
        log.warning("There is no checkpoint: the weights are scored as they are")
    step = trainer.global_step
    for split in splits:
        log.info("Scoring %s: %d images", split, len(data.split(split)))
        result.scores[split] = score(trainer, model, data, split)
        result.scores[split].calibration = calibration
        if trainer.is_global_zero:
            images, weights = data.split(split), result.weights
            loggers = trainer.loggers
            write_reports(result.scores[split], images, run.path, loggers, step, weights, pictures, run.plot_format)
    show_hyperparameters(trainer.loggers, {name: each.metrics for name, each in result.scores.items()})
    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # else the next job of a sweep would go on in this one's record
    if data.damaged and trainer.is_global_zero:
        note_data(run, data)
    run.sections["Results"] = {
        f"{name} {metric}": value for name, each in result.scores.items() for metric, value in _shown(each).items()
    }
    return result


def _shown(each: Score) -> dict[str, Any]:
    metrics = each.metrics
    scored = {"scored on": each.split} if each.split != each.asked else {}
    return scored | {key: metrics[key] for key in ("acc", "f1", "loss", "baseline_acc", "n")}


def _cap_logging_interval(trainer: Trainer, batches: int) -> None:
    """So that a short run has a curve too: each batch, up to 500 points, whatever interval was asked for."""
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * limit)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 1
    steps = batches * epochs
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps * trainer.accumulate_grad_batches)
    cap = max(1, min(steps // POINTS_OF_A_CURVE, batches))
    asked: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if asked > cap:
        log.info("The run is short: train/loss_step is logged every %d steps, not every %d", cap, asked)
        trainer.log_every_n_steps = cap  # type: ignore[attr-defined]


def _say_why_it_ended(trainer: Trainer, model: DictModule, run: RunFolder, epochs_before: int | None) -> None:
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping) and stopping.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            reason = f"{stopping.monitor} did not improve for {stopping.patience} epochs"
            if stopping.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
                reason = stopping.stopping_reason_message or stopping.stopping_reason.name
            log.info("Early stopping after epoch %d: %s", stopping.stopped_epoch + 1, reason)
            run.sections.setdefault("Progress", {})["stopped early"] = reason
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    if any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers):
        reason = f"the time is over (trainer.max_time), after {trainer.current_epoch} epochs"
        log.info("Training ended: %s", reason)
        run.sections.setdefault("Progress", {})["ended"] = reason
        run.update(reason=reason)
    if spent := model.strategy.why_it_ended():
        log.info("Training ended after epoch %d: %s", trainer.current_epoch, spent)
        run.sections.setdefault("Progress", {})["ended"] = spent
        run.update(reason=spent)
        return
    if trainer.current_epoch == epochs_before and run.goes_on_from is not None:
        log.info("All epochs had been trained when the run ended: what is left is to score it")
    elif trainer.current_epoch == epochs_before:
        log.warning(
            "No epoch was trained: the checkpoint has %d already. Type a larger trainer.max_epochs=",
            trainer.current_epoch,
        )


def _best_checkpoint(trainer: Trainer, monitor: str) -> Path | None:
    """best.ckpt of the run's own callback, or else the best of one that watches `monitor`, or of any."""
    best = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
    best.sort(key=lambda callback: (not isinstance(callback, RunCheckpoint), callback.monitor != monitor))
    if not best:
        return None
    own = best[0].best_file if isinstance(best[0], RunCheckpoint) else None
    return own if own is not None and own.is_file() else Path(best[0].best_model_path)


def _own_value(result: Result, trainer: Trainer, monitor: str) -> float | None:
    """What the weights that were scored have of `monitor`, where all of val was scored, or by their checkpoint."""
    stage, _, name = monitor.partition("/")
    score = next((each for each in result.scores.values() if each.split == "val"), None)
    limits = (trainer.limit_val_batches, trainer.limit_predict_batches, trainer.limit_test_batches)
    whole = all(isinstance(limit, float) and limit == 1.0 for limit in limits) and not trainer.overfit_batches  # type: ignore[attr-defined]
    if stage == "val" and score is not None and whole and isinstance(score.metrics.get(name), float):
        return score.metrics[name]
    if result.checkpoint is None:
        return None
    progress = read_checkpoint(result.checkpoint, mmap=True)["imago"]["progress"]
    is_old = stage == "val" and progress["validated_epoch"] not in (progress["epoch"], progress["epoch"] - 1)
    logged = None if is_old else progress["logged"].get(monitor)
    return float(logged) if logged is not None else None


def _best_value(trainer: Trainer, monitor: str) -> float | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    best = next(callback.best for callback in callbacks if isinstance(callback, RunRecord))
    if best is None:
        log.warning("monitor=%s was never logged", monitor)
    return best
