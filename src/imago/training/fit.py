"""Training: fit, load the best weights, score."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from imago.callbacks.average import weights_in
from imago.callbacks.best_checkpoint import RunCheckpoint
from imago.callbacks.epoch_log import EpochLog, best_of
from imago.callbacks.head_first import HeadFirst
from imago.callbacks.memory import memory_errors_explained
from imago.callbacks.preflight import Preflight
from imago.callbacks.pruning import Pruning
from imago.callbacks.resume_state import check_resumable
from imago.callbacks.time_budget import TimeBudget
from imago.checkpoint.fits import check_fits
from imago.checkpoint.read import read_checkpoint
from imago.config.durations import as_max_time
from imago.config.setting_source import is_users_own
from imago.data.module import ImageDataModule
from imago.data.relabel import changed_labels
from imago.definitions import TIME_BUDGET_USED, TIME_OVER
from imago.evaluation.collect import count_limit
from imago.evaluation.evaluate import Result, evaluate
from imago.lightning_internals import callbacks_of, log_every, option_of
from imago.model.module import DictModule
from imago.run.folder import RunFolder
from imago.terminal import counted

log = logging.getLogger(__name__)

POINTS_OF_A_CURVE = 500
TOLERANCE = 1e-3
"""Tolerance between the score of a checkpoint and the value that it was kept for: sums depend on their order."""


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
    """Train (resuming from `ckpt_path`, if given), then score the best weights on `splits`.

    Without `pictures`, reports show no images.
    """
    count_limit(trainer, "train", data.train_dataloader())  # checkpoints keep the number
    epochs_before = None
    if ckpt_path is not None:
        checkpoint = read_checkpoint(ckpt_path)
        model.strategy.load_state_dict(checkpoint["imago"]["strategy"])  # its refusal comes before all others
        check_fits(checkpoint, model, data, ckpt_path)
        check_resumable(trainer, model, data, checkpoint, ckpt_path)
        if what := changed_labels(data.sets, checkpoint["imago"]):
            data.say(what)
        data.leave_out_trained(checkpoint["imago"])
        epochs_before = checkpoint["epoch"] + 1
    count_limit(trainer, "val", data.val_dataloader())
    _warn_of_large_batch(data, run)
    _cap_logging_interval(trainer, len(data.train_dataloader()))
    with memory_errors_explained(trainer, model, data.batch_size):
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    if any(callback.is_pruned for callback in callbacks_of(trainer, Pruning)):
        return _pruned(data, model, trainer, run)
    _log_stop_reason(trainer, model, run, epochs_before)
    longer, trend = longer_training(trainer, monitor)
    epochs, checkpoint_file = callbacks_of(trainer, EpochLog)[0], _best_checkpoint(trainer, monitor)
    best = epochs.best
    only_tried = any(callback.only for callback in callbacks_of(trainer, Preflight))
    if not option_of(trainer, "fast_dev_run") and not only_tried:  # which keeps nothing, and logs no metric
        _warn_if_nothing_is_kept(best, checkpoint_file, monitor, is_scored=bool(splits))
    run.sections["Best"] = {monitor: best, "epoch": epochs.best_epoch, "checkpoint": checkpoint_file}
    if checkpoint_file is not None:
        run.sections["Best"]["weights"] = weights_in(read_checkpoint(checkpoint_file, mmap=True))
    result = evaluate(data, model, trainer, run, checkpoint_file, splits, pictures=pictures)
    result.best_value, result.was_trained, result.longer, result.trend = best, True, longer, trend
    own = _own_value(result, trainer, monitor) if result.checkpoint is not None else None
    if own is not None and best is not None and abs(own - best) > TOLERANCE * max(1.0, abs(best)):
        log.warning(
            "%s, which is scored, has %s %.4f, but the best in training was %.4f: it is not the best checkpoint",
            result.weights,
            monitor,
            own,
            best,
        )
    return result


def _pruned(data: ImageDataModule, model: DictModule, trainer: Trainer, run: RunFolder) -> Result:
    """Log that the search has ended the run; a trial that was pruned is not scored."""
    reason = f"pruned by the search after {counted(trainer.current_epoch, 'epoch')}"
    log.info("Training ended: %s", reason)
    run.sections.setdefault("Progress", {})["ended"] = reason
    run.update(reason=reason)
    result = evaluate(data, model, trainer, run, None, [])  # which ends the records of the loggers
    result.best_value, result.was_trained, result.is_pruned = callbacks_of(trainer, EpochLog)[0].best, True, True
    return result


def _warn_of_large_batch(data: ImageDataModule, run: RunFolder) -> None:
    """Warn of a batch size of one's own that is above the number of train images."""
    images = len(data.split("train"))
    if data.batch_size > images and is_users_own("data.batch_size", run.invocation):
        log.warning(
            "data.batch_size=%d is above the %d train images: an epoch is one step, on all of them. For more steps "
            "type a smaller one", data.batch_size, images
        )  # fmt: skip


def _cap_logging_interval(trainer: Trainer, batches: int) -> None:
    """Log short runs often enough for a curve: every batch, up to 500 points, whatever interval was set."""
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else math.ceil(batches * limit)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else 1
    steps = batches * epochs
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps * trainer.accumulate_grad_batches)
    cap = max(1, min(steps // POINTS_OF_A_CURVE, batches))
    asked: int = option_of(trainer, "log_every_n_steps")
    if asked > cap:
        interval = "every step" if cap == 1 else f"every {cap} steps"
        log.info("The run is short: train/loss_step is logged %s, not every %d", interval, asked)
        log_every(trainer, cap)


def _log_stop_reason(trainer: Trainer, model: DictModule, run: RunFolder, epochs_before: int | None) -> None:
    for stopping in trainer.early_stopping_callbacks:
        if isinstance(stopping, EarlyStopping) and stopping.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            reason = f"{stopping.monitor} did not improve for {counted(stopping.patience, 'epoch')}"
            if stopping.stopping_reason != EarlyStoppingReason.PATIENCE_EXHAUSTED:
                reason = stopping.stopping_reason_message or stopping.stopping_reason.name
            log.info("Early stopping after epoch %d: %s", stopping.stopped_epoch + 1, reason)
            run.sections.setdefault("Progress", {})["stopped early"] = reason
    if _spent_time(trainer) is not None:
        over = TIME_BUDGET_USED if callbacks_of(trainer, TimeBudget) else TIME_OVER
        reason = f"{over} after {counted(trainer.current_epoch, 'epoch')}"
        log.info("Training ended: %s", reason)
        run.sections.setdefault("Progress", {})["ended"] = reason
        run.update(reason=reason)
    if spent := model.strategy.stop_reason():
        log.info("Training ended after epoch %d: %s", trainer.current_epoch, spent)
        run.sections.setdefault("Progress", {})["ended"] = spent
        run.update(reason=spent)
        return
    if trainer.current_epoch == epochs_before and run.resume_from is not None:
        log.info("All epochs were trained already: only the scores are left")
    elif trainer.current_epoch == epochs_before:
        log.warning(
            "No epoch was trained: the checkpoint has %d already. Type a larger trainer.max_epochs=",
            trainer.current_epoch,
        )


def _spent_time(trainer: Trainer) -> float | None:
    """Seconds that a run was given and has used up; None without a limit, or with time left."""
    for budget in callbacks_of(trainer, TimeBudget):
        return budget.budget if budget.is_used(trainer) else None
    for timer in callbacks_of(trainer, Timer):
        left = timer.time_remaining()
        if left is not None and left <= 0:
            return left + timer.time_elapsed()
    return None


def longer_training(trainer: Trainer, monitor: str) -> tuple[str | None, str | None]:
    """Setting that trains twice as long, and what was still improving at the end; None if nothing was, or patience was
    over. A run whose time was over gets the setting in any case."""
    if spent := _spent_time(trainer):
        key = "budget" if callbacks_of(trainer, TimeBudget) else "trainer.max_time"
        return f"{key}={as_max_time(2 * spent)}", None
    epochs, limit = callbacks_of(trainer, EpochLog)[0], trainer.max_epochs or -1
    trend = describe_trend(epochs.history, {monitor: epochs.mode, "val/loss": "min"})
    has_no_gain = any(head.is_within_noise for head in callbacks_of(trainer, HeadFirst))
    if trend is None or has_no_gain or option_of(trainer, "fast_dev_run"):
        return None, None
    if 0 < trainer.max_steps <= trainer.global_step:
        longer = f"trainer.max_steps={2 * trainer.max_steps}"
    elif 0 < limit <= trainer.current_epoch:
        longer = f"trainer.max_epochs={2 * limit}"
    else:
        return None, None
    return longer, trend


def describe_trend(history: Sequence[Mapping[str, float]], modes: Mapping[str, str]) -> str | None:
    """Which metrics have their best value in the last tenth of the epochs, by their modes: `val/acc was still rising`.
    None if none has."""
    words = []
    for name, mode in modes.items():
        values = [row[name] for row in history if name in row]
        end = values[-max(1, len(values) // 10) :]
        if end and best_of(values, mode) in end and best_of(values, mode) not in values[: -len(end)]:
            words.append(f"{name} was still {'rising' if mode == 'max' else 'falling'}")
    return " and ".join(words) or None


def _best_checkpoint(trainer: Trainer, monitor: str) -> Path | None:
    """Path of best.ckpt of the run's own callback, or else the best of one that tracks `monitor`, or of any."""
    best = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
    best.sort(key=lambda callback: (not isinstance(callback, RunCheckpoint), callback.monitor != monitor))
    if not best:
        return None
    own = best[0].best_file if isinstance(best[0], RunCheckpoint) else None
    return own if own is not None and own.is_file() else Path(best[0].best_model_path)


def _own_value(result: Result, trainer: Trainer, monitor: str) -> float | None:
    """Value of `monitor` for the scored weights, if all of val was scored, or else from their checkpoint."""
    stage, _, name = monitor.partition("/")
    score = next((entry for entry in result.scores.values() if entry.split == "val"), None)
    limits = (trainer.limit_val_batches, trainer.limit_predict_batches, trainer.limit_test_batches)
    whole = all(isinstance(limit, float) and limit == 1.0 for limit in limits) and not option_of(
        trainer, "overfit_batches"
    )
    if stage == "val" and score is not None and whole and isinstance(score.metrics.get(name), float):
        return score.metrics[name]
    if result.checkpoint is None:
        return None
    progress = read_checkpoint(result.checkpoint, mmap=True)["imago"]["progress"]
    is_old = stage == "val" and progress["validated_epoch"] not in (progress["epoch"], progress["epoch"] - 1)
    logged = None if is_old else progress["logged"].get(monitor)
    return float(logged) if logged is not None else None


def _warn_if_nothing_is_kept(best: float | None, checkpoint: Path | None, monitor: str, is_scored: bool) -> None:
    """Warn, in one sentence, if the monitored metric is unknown, or if there is no best checkpoint to score."""
    facts = [f"{monitor} was never logged"] if best is None else []
    if checkpoint is None and is_scored:
        facts.append("no checkpoint was saved, and the final weights are scored")
    if facts:
        log.warning("%s. callbacks.metrics logs metrics, callbacks.model_checkpoint keeps the best", "; ".join(facts))
