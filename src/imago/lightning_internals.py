"""Every reach into what Lightning does not promise to keep: one function each, with its reason.

All were read in Lightning 2.6.6. tests/test_architecture.py holds each to what it is needed for, and fails with a
sentence when Lightning changes. The attributes that Lightning sets on a Trainer outside of its constructor, which no
type checker sees, are here too.
"""

import logging
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, WeightAveraging
from torch.optim.swa_utils import AveragedModel

Kind = TypeVar("Kind")


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The callbacks of a Trainer that are of a kind; `Callback` gives all."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def add_callback(trainer: Trainer, callback: Callback) -> None:
    """Adds a callback to a Trainer that was made already."""
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]


def average_of(callback: WeightAveraging) -> AveragedModel | None:
    """The averaged model; None before `setup`, and outside of a training."""
    return callback._average_model


def option_of(trainer: Trainer, name: str) -> Any:
    """An option that the Trainer was made with: `fast_dev_run`, `overfit_batches`, `log_every_n_steps`, `profiler`."""
    return getattr(trainer, name)


def log_every(trainer: Trainer, steps: int) -> None:
    """Changes how often the loss of a step is logged, after the Trainer was made."""
    trainer.log_every_n_steps = steps  # type: ignore[attr-defined]


def data_of(trainer: Trainer) -> Any:
    """The data module that is trained on."""
    return trainer.datamodule  # type: ignore[attr-defined]


def leave_signals_alone(trainer: Trainer) -> None:
    """Keeps Lightning from handling SIGTERM: its handler talks to the other processes of the run in the middle of
    whatever they are exchanging. callbacks/last_checkpoint.py answers signals between two steps."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def drop_own_log_handlers() -> None:
    """Takes away the handlers that Lightning adds to its loggers when it is imported; ours say each line once."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the gradients of the batch that ends wait for those of further ones; gradients are in no checkpoint."""
    return trainer.fit_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the train batch that ends is the epoch's last: a checkpoint written here would skip the epoch's end."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validation_is_due(trainer: Trainer) -> bool:
    """Whether validation follows the train batch that ends: a checkpoint written here would leave it out."""
    fetcher = trainer.fit_loop._data_fetcher
    return trainer.training and fetcher is not None and bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))


def position(trainer: Trainer) -> tuple[int, int]:
    """The epoch, and the number in it of the train batch that comes next: the loader begins there."""
    loop: Any = trainer.fit_loop
    return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready


def is_within_epoch(trainer: Trainer) -> bool:
    """Whether a train epoch has begun and not ended."""
    progress: Any = trainer.fit_loop.epoch_progress
    return progress.current.processed < progress.current.ready


def batches_so_far(trainer: Trainer) -> int:
    """Train batches before the present one, of all epochs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def forget_restart(trainer: Trainer) -> None:
    """With `max_steps`, a loop that thinks that it restarts counts one more logged step."""
    trainer.fit_loop.epoch_loop._restarting = False


def train_no_epoch(trainer: Trainer) -> None:
    """Ends the training before its first epoch."""
    trainer.fit_loop.max_epochs = 0


def set_max_epochs(trainer: Trainer, epochs: int) -> None:
    """Changes the last epoch of a training that has begun."""
    trainer.fit_loop.max_epochs = epochs


def validate_now(trainer: Trainer) -> None:
    """Validates in `on_train_start`, as the loop does after an epoch; Lightning has a public way only before or after
    `fit`, where the optimizer, the loggers' step and the checkpoint callbacks are not those of the training."""
    connector = trainer._logger_connector
    trainer.validating, first = True, connector._first_loop_iter
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training, connector._first_loop_iter = True, first


def restart_averages(trainer: Trainer, module: LightningModule) -> None:
    """Makes averages of weights, which begin as a copy from before `on_train_start`, begin at the present weights."""
    for callback in callbacks_of(trainer, WeightAveraging):
        if callback._average_model is not None:
            callback._average_model.module.load_state_dict(module.state_dict())


def rewind_to_epoch_start(fit_loop: dict[str, Any], validating: bool) -> None:
    """Makes the counters of an epoch's end, in a checkpoint's `loops["fit_loop"]`, those of the next one's start.

    With `max_steps` Lightning would repeat the end, and after an early end it would continue the old epoch. A
    validation that was under way (`validating`) is repeated as a whole.
    """
    epochs, batches = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    if validating:
        progress = fit_loop["epoch_loop.val_loop.batch_progress"]
        progress["current"] = dict.fromkeys(progress["current"], 0)
        progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # Lightning's sign for that
        progress["is_last_batch"] = False
        for counters in (batches["total"], batches["current"]):
            counters["completed"] = counters["processed"]  # not yet, where a callback saved at the end of the batch
    if epochs["current"]["processed"] != epochs["current"]["ready"]:
        return
    for counters in epochs.values():
        counters["completed"] = counters["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False


class LightModule(LightningModule):
    """A LightningModule on which Lightning notes the name of each hook, 40 times per step, in 0.1 us instead of 1."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


class EpochBar(RichProgressBar):
    """Rich's bar whose epochs count from 1; Lightning's count from 0, and have no public name to change."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs is not None and epochs >= 0 else "")
        return f"{text:{len(self.validation_description)}}"  # a bar of validation below it starts in the same column
