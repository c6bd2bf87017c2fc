"""What a checkpoint keeps so that its run goes on at the exact batch, and what has to be the same when it does.

Random numbers need no state (randomness.py), and the loader finds its place in Lightning's counters (data/loading.py).
What is left are the sums of the epoch under way and the last logged values.
"""

import logging
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from imago.callbacks.metrics import MetricsCallback
from imago.data.module import ImageDataModule
from imago.metrics import load_state, of_all_processes, state_of
from imago.module import DictModule

log = logging.getLogger(__name__)

Progress = dict[str, Any]


def progress_of(trainer: Trainer, model: DictModule) -> Progress:
    """Where the run stands; called by all processes together.

    `batch` is the number of train batches that are done in the epoch under way, 0 at an epoch's end; `sums` has what
    each process has summed up in it.
    """
    loop: Any = trainer.fit_loop
    under_way = loop.epoch_progress.current.processed < loop.epoch_progress.current.ready
    return {
        "epoch": loop.epoch_progress.current.processed,
        "batch": loop.epoch_loop.batch_progress.current.ready if under_way else 0,
        "validating": bool(trainer.validating),
        "logged": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
        "validated_epoch": model.validated_epoch,
        "skipped_batches": model.skipped_batches,
        "settings": _settings(trainer),
        "sums": of_all_processes(_sums(trainer, model)) if under_way else [],
    }


def take_up(trainer: Trainer, model: DictModule, checkpoint: dict[str, Any]) -> None:
    """Restores what `progress_of` kept, and corrects Lightning's counters in `checkpoint` before they are loaded.

    Raises:
        ValueError: The checkpoint is from the middle of an epoch that would go on differently.
    """
    progress: Progress = checkpoint["imago"]["progress"]
    _check_settings(progress, trainer)
    _correct(checkpoint["loops"]["fit_loop"], progress["validating"])
    _keep_typed_patience(trainer, checkpoint)
    model.validated_epoch = progress["validated_epoch"]
    model.skipped_batches = progress["skipped_batches"]
    if progress["batch"]:
        sums = progress["sums"][trainer.global_rank]
        load_state(model.running_losses("train"), sums["losses"])
        for callback, states in zip(_metrics_callbacks(trainer), sums["metrics"], strict=False):
            callback.load_epoch(states)


def restore_logged(trainer: Trainer, progress: Progress) -> None:
    """What callbacks may still want to see of an earlier validation; Lightning forgets it before training starts."""
    trainer.callback_metrics.update(
        {name: value.to(trainer.strategy.root_device) for name, value in progress["logged"].items()}
    )


def stop_if_it_had_stopped(trainer: Trainer) -> None:
    """Lightning restores that early stopping has fired, and trains on."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch and callback.wait_count >= callback.patience:
            trainer.should_stop = True


def _settings(trainer: Trainer) -> dict[str, Any]:
    """What the batches of an epoch depend on, by the names that one types."""
    data = cast(ImageDataModule, trainer.datamodule)  # type: ignore[attr-defined]
    return {
        "data.batch_size": data.batch_size,
        "seed": data.seed,
        "trainer.devices": trainer.world_size,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        "trainer.limit_train_batches": trainer.limit_train_batches,
        "the data (fingerprint)": data.facts["fingerprint"],
    }


def _check_settings(progress: Progress, trainer: Trainer) -> None:
    before, now = progress["settings"], _settings(trainer)
    changed = [f"{name}: {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value]
    if not changed:
        return
    if progress["batch"]:
        raise ValueError(
            f"The checkpoint is from the middle of epoch {progress['epoch']} (batch {progress['batch']}), which cannot "
            f"go on with other batches. Changed since then: {'; '.join(changed)}. Go on with the same settings; they "
            "can be changed at the end of an epoch: checkpoints/best.ckpt is from one (ckpt_path=)."
        )
    log.warning("The epochs to come see other batches than those before. Changed since then: %s", "; ".join(changed))


def _correct(fit_loop: dict[str, Any], validating: bool) -> None:
    """Makes the state of an epoch's end that of the next one's start: with `max_steps` Lightning would repeat the end,
    and after an early end it would go on with the old epoch. A validation that was under way begins anew."""
    if validating:
        progress = fit_loop["epoch_loop.val_loop.batch_progress"]
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # Lightning's sign for that
        progress["is_last_batch"] = False
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    if epochs["current"]["processed"] != epochs["current"]["ready"]:
        return
    for counters in epochs.values():
        counters["completed"] = counters["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False


def _keep_typed_patience(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Lightning would take the patience of the checkpoint, whatever was typed."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping) and callback.state_key in checkpoint["callbacks"]:
            checkpoint["callbacks"][callback.state_key]["patience"] = callback.patience


def _sums(trainer: Trainer, model: DictModule) -> dict[str, Any]:
    losses = state_of(model.running_losses("train"))
    return {"losses": losses, "metrics": [callback.epoch_state() for callback in _metrics_callbacks(trainer)]}


def _metrics_callbacks(trainer: Trainer) -> list[MetricsCallback]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it elsewhere
    return [callback for callback in callbacks if isinstance(callback, MetricsCallback)]
