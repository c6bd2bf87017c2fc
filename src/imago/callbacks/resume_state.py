"""State of a checkpoint from which a run is resumed at the exact batch, and the settings that must be unchanged.

Random numbers need no state (randomness.py), and the loader finds its position from Lightning's counters
(data/module.py). What remains are the sums of the current epoch and the last logged values.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from imago.callbacks.label_margins import LabelMargins
from imago.callbacks.metrics import MetricsCallback
from imago.config.invocation import typed_path
from imago.data.module import ImageDataModule
from imago.data.sampling import WEIGHTS
from imago.data.shard_images import DIVISION
from imago.distributed import all_gather_objects
from imago.errors import UserError
from imago.lightning_internals import (
    callbacks_of,
    data_of,
    forget_restart,
    is_within_epoch,
    position,
    rewind_to_epoch_start,
    validation_is_due,
)
from imago.model.module import DictModule
from imago.model.optimizers import accumulation_schedule, apply_new_settings
from imago.terminal import counted

log = logging.getLogger(__name__)

Progress = dict[str, Any]
DATA = "the data (fingerprint)"
STOPPING = ("monitor", "mode", "patience", "min_delta", "stopping_threshold", "divergence_threshold", "check_finite")


def capture_state(trainer: Trainer, model: DictModule) -> Progress:
    """Capture the progress of the run; all processes must call this together.

    `batch` is the number of train batches done in the current epoch, 0 at its end; `sums` holds what each process has
    accumulated in it.
    """
    under_way, (epoch, batch) = is_within_epoch(trainer), position(trainer)
    return {
        "epoch": epoch,
        "batch": batch if under_way else 0,
        "validating": bool(trainer.validating) or (under_way and validation_is_due(trainer)),
        "logged": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        "validated_epoch": model.validated_epoch,
        "skipped_batches": model.skipped_batches,
        "settings": _settings(trainer, data_of(trainer)),
        "stopping": _stopping(trainer),
        "optimizer_settings": model.optimizer_settings,
        "made_by": made_by(model),
        "sums": all_gather_objects(_sums(trainer, model)) if under_way else [],
    }


def check_resumable(
    trainer: Trainer, model: DictModule, data: ImageDataModule, checkpoint: dict[str, Any], path: str
) -> None:
    """Check the settings, for the checkpoint at `path`, before anything is written: a run that is refused keeps its
    folder as it was.

    Raises:
        UserError: The optimizer or the schedule is another one, weights are no longer averaged, the checkpoint is from
            the middle of an epoch that would continue differently or has more epochs than are asked for, the
            tracked metric is not logged, or a metric cannot continue on another number of processes.
    """
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"ckpt_path={path} has weights only, as the average of ml-export format=soup. To start a new run from "
            "them, type model.init_from= instead of ckpt_path="
        )
    progress: Progress = checkpoint["imago"]["progress"]
    _check_parts(progress, model)
    if "current_model_state" in checkpoint and not callbacks_of(trainer, WeightAveraging):
        raise UserError(
            "The checkpoint has averaged weights, and this run does not average: it would be trained from the average. "
            "Resume with the same callback (callbacks=[default,ema]), or start a new run with model.init_from="
        )
    _check_settings(progress, _settings(trainer, data), str(Path(path).with_name("best.ckpt")))
    check_epochs(trainer.max_epochs, checkpoint)
    for metrics in callbacks_of(trainer, MetricsCallback):
        metrics.check_tracked(model)
    for callback, states in _metric_states(trainer, _inherited_sums(trainer, progress)):
        callback.check_epoch(*states)


def check_epochs(max_epochs: int | None, checkpoint: dict[str, Any]) -> None:
    """Raise UserError if a checkpoint has more epochs than are asked for."""
    epochs = checkpoint["imago"]["progress"]["epoch"]
    if max_epochs is not None and 0 <= max_epochs < epochs:
        had = counted(epochs, "epoch")
        raise UserError(f"trainer.max_epochs={max_epochs}: the checkpoint has {had} already. Type a larger one")


def restore_state(trainer: Trainer, model: DictModule, checkpoint: dict[str, Any]) -> bool:
    """Restore what `capture_state` captured, and correct Lightning's counters in `checkpoint` before they are loaded.

    Returns whether the data have changed, so that the best value is reset too.
    """
    progress: Progress = checkpoint["imago"]["progress"]
    rewind_to_epoch_start(checkpoint["loops"]["fit_loop"], progress["validating"])
    _keep_typed_patience(trainer, checkpoint)
    model.validated_epoch = progress["validated_epoch"]
    model.skipped_batches = progress["skipped_batches"]
    if sums := _inherited_sums(trainer, progress):
        model.running_losses["train"].load_state_dict(*[process["losses"] for process in sums])
        for callback, states in _metric_states(trainer, sums):
            callback.load_epoch(*states)
    data_changed = progress["settings"].get(DATA) != data_of(trainer).facts["fingerprint"]
    if data_changed:
        for kind in (ModelCheckpoint, EarlyStopping, MetricsCallback, LabelMargins):
            for tracking in callbacks_of(trainer, kind):
                checkpoint["callbacks"].pop(tracking.state_key, None)
        log.warning("The data have changed: the best value, early stopping and label margins start again")
    return data_changed


def finish_restore(trainer: Trainer, model: DictModule, progress: Progress) -> None:
    """Restore the rest once Lightning has restored its own state, before the first batch."""
    # values of an earlier validation, which callbacks may read and Lightning forgets
    trainer.callback_metrics.update(
        {name: value.to(trainer.strategy.root_device) for name, value in progress["logged"].items()}
    )
    accumulation = accumulation_schedule(trainer)
    if accumulation is not None and progress["batch"]:  # Lightning skips the hook at the start of the epoch
        trainer.accumulate_grad_batches = accumulation.get_accumulate_grad_batches(trainer.current_epoch)
    if not progress["batch"]:
        forget_restart(trainer)
    scheduler = next((config.scheduler for config in trainer.lr_scheduler_configs), None)
    apply_new_settings(trainer.optimizers[0], scheduler, progress["optimizer_settings"], model.optimizer_settings)
    _lay_out(trainer.optimizers[0])


def _lay_out(optimizer: Any) -> None:
    """Give the optimizer's state the memory layout of the weights, which may have changed since
    (model.channels_last): fused kernels assume that they agree."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def restore_early_stop(trainer: Trainer, progress: Progress | None) -> None:
    """Stop a run that early stopping had ended, unless its settings have changed: Lightning would train on."""
    if progress is None:
        return
    same = progress.get("stopping") == _stopping(trainer)
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            trainer.should_stop |= same
            if not same:
                callback.stopping_reason, callback.stopped_epoch = EarlyStoppingReason.NOT_STOPPED, 0


def _stopping(trainer: Trainer) -> list[dict[str, Any]]:
    callbacks = [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]
    return [{name: getattr(callback, name) for name in STOPPING} for callback in callbacks]


def _settings(trainer: Trainer, data: ImageDataModule) -> dict[str, Any]:
    """Settings that determine the batches of an epoch, by the names that users type."""
    return {
        "data.batch_size": data.batch_size,
        "seed": data.seed,
        "trainer.accumulate_grad_batches": _accumulation(trainer),
        "trainer.limit_train_batches": trainer.limit_train_batches,
        DATA: data.facts["fingerprint"],
        **data.sampler_settings(),
        **data.split("train").order_settings(),
    }


def _accumulation(trainer: Trainer) -> Any:
    schedule = accumulation_schedule(trainer)
    return trainer.accumulate_grad_batches if schedule is None else dict(schedule.scheduling)


def _check_parts(progress: Progress, model: DictModule) -> None:
    """Raise UserError if the checkpoint was trained with another optimizer or schedule."""
    for part, now in made_by(model).items():
        before = progress.get("made_by", {}).get(part, now)
        if before != now:
            raise UserError(
                f"model.{part}: the checkpoint was trained with {before}, and {now} cannot continue from its state. "
                "To start a new run from the weights alone, type model.init_from= instead of ckpt_path="
            )


def made_by(model: DictModule) -> dict[str, str | None]:
    """Names of the classes or functions that make the optimizer and its schedule, and what decides on its groups."""
    makers = {"optimizer": model.optimizer, "scheduler": model.scheduler}
    functions: dict[str, Any] = {part: getattr(maker, "func", maker) for part, maker in makers.items()}
    names: dict[str, str | None] = {
        part: f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else None
        for part, function in functions.items()
    }
    if model.scheduler is not None:
        fitted = " and fitted to a time (budget=)" if model.schedule_steps is not None else ""
        names["scheduler"] = f"{names['scheduler']}, stepped per {model.interval}{fitted}"
    if model.groups.settings:
        names["optimizer"] = f"{names['optimizer']}, divided by {' and '.join(model.groups.settings)}"
    return names | {part: str(value).lower() for part, value in model.frozen_parts.items()}


def _check_settings(progress: Progress, now: dict[str, Any], best: str) -> None:
    before = progress["settings"]
    changed = [f"{name}: {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value]
    if not changed:
        return
    if progress["batch"]:
        had = [
            f"{name}={before[name]}"
            for name, value in now.items()
            if name not in (DATA, DIVISION, WEIGHTS)
            and before.get(name) != value
            and isinstance(before.get(name), int | float | str)
        ]
        same = f"type {' '.join(had)}" if had else "restore the data"
        raise UserError(
            f"The checkpoint is from the middle of epoch {progress['epoch'] + 1} (batch {progress['batch']}), and the "
            f"batches that follow would differ. Changed settings: {'; '.join(changed)}. To resume, {same}. To train "
            f"with the new settings, start from the end of an epoch: type "
            f"{typed_path('ckpt_path', best)} in place of resume="
        )
    log.warning("The batches of the next epochs differ from those before. Changed settings: %s", "; ".join(changed))


def _keep_typed_patience(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep the patience of the settings, which Lightning would replace by the checkpoint's."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
            checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def _inherited_sums(trainer: Trainer, progress: Progress) -> list[dict[str, Any]]:
    """Sums of the epoch that this process continues: its own, or, if the number of processes has changed, those of all
    in the first one."""
    sums: list[dict[str, Any]] = progress["sums"] if progress["batch"] else []
    if len(sums) == trainer.world_size:
        return [sums[trainer.global_rank]]
    return sums if trainer.is_global_zero else []


def _metric_states(
    trainer: Trainer, sums: list[dict[str, Any]]
) -> Iterator[tuple[MetricsCallback, tuple[dict[str, Any], ...]]]:
    """Pairs of a callback of metrics and its states in the `sums` of processes."""
    yield from zip(
        callbacks_of(trainer, MetricsCallback),
        zip(*[process["metrics"] for process in sums], strict=True),
        strict=False,
    )


def _sums(trainer: Trainer, model: DictModule) -> dict[str, Any]:
    losses = model.running_losses["train"].state_dict()
    return {
        "losses": losses,
        "metrics": [callback.epoch_state() for callback in callbacks_of(trainer, MetricsCallback)],
    }
