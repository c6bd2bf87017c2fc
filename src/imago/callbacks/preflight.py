"""Preflight: try in seconds, before the first epoch, what could fail later, and report it in one message."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor

from imago.callbacks.head_first import HeadFirst
from imago.callbacks.memory import memory_advice, memory_errors_explained
from imago.callbacks.metrics import MetricsCallback
from imago.checkpoint.read import read_checkpoint
from imago.data.module import ImageDataModule
from imago.errors import DiskError, OutOfMemoryError, UserError, message_of
from imago.lightning_internals import callbacks_of, data_of, option_of, train_no_epoch
from imago.model.contract import check_loss
from imago.model.module import DictModule
from imago.model.optimizers import planned_steps
from imago.model.trial import check_logits_of, forward, losses_of
from imago.randomness import seeded_scope
from imago.resources import free_memory

log = logging.getLogger(__name__)

MOST_IMAGES = 8  # per trial batch; the memory is extrapolated
FILES = 4  # best, last, previous, and the one being written
OWN = ("imago.", "lightning.")
FILE = ".preflight.tmp"


class Preflight(Callback):
    """Try a train batch, a val batch, a checkpoint, disk and memory before training; change nothing.

    Args:
        folder: Folder of the checkpoints.
        only: Whether to stop after the checks.
        read_back: Function that raises UserError if commands that take a checkpoint could not read the file.
        predictions_bytes: Function (number of images, class names) -> size of the predictions in bytes.
    """

    def __init__(
        self,
        folder: Path,
        only: bool = False,
        read_back: Callable[[Path], None] = lambda file: None,
        predictions_bytes: Callable[[int, Sequence[str]], int] = lambda images, class_names: 0,
    ) -> None:
        self.folder = folder
        self.only = only
        self.read_back = read_back
        self.predictions_bytes = predictions_bytes
        self._logits: Tensor | None = None
        self._saved_bytes = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Raise one UserError with all problems."""
        if trainer.ckpt_path is None and not option_of(trainer, "fast_dev_run"):
            self._look(trainer, pl_module)
        if self.only:
            train_no_epoch(trainer)

    def _look(self, trainer: Trainer, model: DictModule) -> None:
        began = time.monotonic()
        checks: tuple[Callable[[Trainer, DictModule], None], ...] = (
            _check_monitors,
            _check_schedules,
            self._try_train_batch,
            self._try_val_batch,
            self._try_checkpoint,
            self._check_memory,
        )
        problems: list[str] = []
        batch_size = _data(trainer).batch_size
        tried = _trial_images(trainer, model) * trainer.world_size
        with seeded_scope("preflight"):
            for check in checks:
                try:
                    with memory_errors_explained(trainer, model, batch_size, tried):
                        check(trainer, model)
                except Exception as error:
                    log.debug("Preflight", exc_info=True)
                    message = message_of(error)
                    if not any(message in problem for problem in problems):
                        problems.append(message)
        if problems:
            first = f"{len(problems)} problems were found before the first epoch:\n" if len(problems) > 1 else ""
            raise UserError(first + "\n".join(problems))
        log.info("Preflight passed (%.1f s)", time.monotonic() - began)

    def _try_train_batch(self, trainer: Trainer, model: DictModule) -> None:
        batch = self._batch(trainer, model, "train")
        if batch["label"].ndim != 1 or batch["label"].is_floating_point():
            raise UserError(
                "data.train_transform.batch makes soft labels, as MixUp and CutMix of torchvision do, which metrics "
                "cannot count. Type imago.data.MixUp or imago.data.CutMix for _target_, without num_classes"
            )
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        sizes: dict[int, int] = {}

        def saved(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        try:
            with trainer.precision_plugin.train_step_context():
                with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
                    batch = forward(model, batch)
                    check_logits_of(model, batch["logits"])
                    loss = losses_of(model, batch)["total"]
                check_loss(loss)
                loss.backward()
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])
        own = sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())
        self._saved_bytes = max(0, sum(sizes.values()) - own) / len(batch["label"])

    def _try_val_batch(self, trainer: Trainer, model: DictModule) -> None:
        batch = self._evaluated_batch(trainer, model)
        self._logits = batch["logits"]
        for owner in callbacks_of(trainer, MetricsCallback):
            owner.try_batch(batch)

    def _try_checkpoint(self, trainer: Trainer, model: DictModule) -> None:
        """Save, read and load a checkpoint: the logits must stay the same."""
        file = self.folder / FILE
        try:
            trainer.save_checkpoint(file, weights_only=False)
            if not file.is_file():
                raise DiskError(f"{file} could not be written.")
            weights = read_checkpoint(file)["state_dict"]
            self.read_back(file)
            size = file.stat().st_size
            trainer.strategy.barrier()  # until all processes have read it
        finally:
            if trainer.is_global_zero:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # remove the folder if it is empty
                    self.folder.rmdir()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()  # so that only saved values are restored
        trainer.strategy.load_model_state_dict({"state_dict": weights})
        if self._logits is not None and not torch.allclose(
            self._evaluated(trainer, model), self._logits, rtol=1e-3, atol=1e-4, equal_nan=True
        ):
            raise UserError(
                "A network that was saved and loaded gives other logits: either it is not deterministic in evaluation, "
                "or it keeps what it needs outside of its parameters and buffers (register_buffer)."
            )
        self._check_disk(trainer, model, size)

    def _check_disk(self, trainer: Trainer, model: DictModule, size: int) -> None:
        """Raise DiskError if the files of the run, of which an untrained checkpoint has `size` bytes, do not fit."""
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        data, run = _data(trainer), self.folder.parent
        files, features = FILES, 0
        for first in callbacks_of(trainer, HeadFirst):
            kept, features = first.disk_needed(model, data.sizes["train"], run)
            files += kept
        needed = files * (size + 2 * trained)  # AdamW keeps two values per weight
        rows = self.predictions_bytes(sum(data.sizes.values()), data.class_names)
        parts = {"checkpoints": needed, "predictions": rows, "features for the head": features}
        shown = ", ".join(f"{name} about {_shown(part)}" for name, part in parts.items() if part)
        free = shutil.disk_usage(run).free
        log.debug("Disk: %s; %s are free", shown, _shown(free))
        if sum(parts.values()) > free:
            raise DiskError(
                f"The disk of {run} is too small: {shown}, and {_shown(free)} are free. Remove something, or type "
                "another paths.log_dir="
            )

    def _check_memory(self, trainer: Trainer, model: DictModule) -> None:
        data = _data(trainer)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        images = model.strategy.microbatch_size(-(-data.batch_size // trainer.world_size))
        needed, free = int(self._saved_bytes * images + 3 * weights), _free_memory(model.device)
        if free is not None and needed > free:
            fitting = images
            while fitting > 1 and self._saved_bytes * fitting + 3 * weights > free:
                fitting //= 2
            raise OutOfMemoryError(
                f"A step on {images} images needs about {_shown(needed)} of memory, {_shown(free)} are free. "
                + memory_advice(trainer, model, data.batch_size, fitting * trainer.world_size)
            )
        if free is not None:
            log.debug("A step needs about %s of memory; %s are free", _shown(needed), _shown(free))

    def _evaluated(self, trainer: Trainer, model: DictModule) -> Tensor:
        logits: Tensor = self._evaluated_batch(trainer, model)["logits"]
        return logits

    def _evaluated_batch(self, trainer: Trainer, model: DictModule) -> dict[str, Any]:
        batch = self._batch(trainer, model, "val")
        model.eval()
        try:
            with torch.no_grad(), trainer.precision_plugin.val_step_context():
                batch = forward(model, batch)
                losses_of(model, batch)
        finally:
            model.train()
        return batch

    def _batch(self, trainer: Trainer, model: DictModule, split: str) -> dict[str, Any]:
        data = _data(trainer)
        return data.some_images(split, _trial_images(trainer, model), model.device)


def _check_monitors(trainer: Trainer, model: DictModule) -> None:
    """Raise UserError if a callback monitors a metric that is not logged."""
    callbacks, owners = callbacks_of(trainer, Callback), callbacks_of(trainer, MetricsCallback)
    for owner in owners:
        owner.check_tracked(model)
    if any(not type(callback).__module__.startswith(OWN) for callback in callbacks):
        return  # they may log metrics of their own
    names = {name for owner in owners for name in owner.names()} | set(model.loss_names)
    known = sorted(f"{stage}/{name}" for stage in ("train", "val") for name in names)
    waiting: list[Any] = [*callbacks_of(trainer, EarlyStopping), *callbacks_of(trainer, ModelCheckpoint)]
    for callback in waiting:
        monitor = callback.monitor
        if monitor is not None and monitor not in known and monitor.startswith(("train/", "val/")):
            what = f"{type(callback).__name__} waits for {monitor}, which is not logged"
            raise UserError(f"{what}. There are {', '.join(known)}.")


def _check_schedules(trainer: Trainer, _: DictModule) -> None:
    """Raise UserError for callbacks or limits that would do nothing, or fail, with the planned number of steps."""
    planned, callbacks = planned_steps(trainer), callbacks_of(trainer, Callback)
    per_step = any(config.interval == "step" for config in trainer.lr_scheduler_configs)
    for callback in callbacks:
        if isinstance(callback, BaseFinetuning) and per_step:
            raise UserError(
                f"{type(callback).__name__} adds parameters to the optimizer, which a schedule per step cannot take. "
                "Type model.scheduler=null, or model/scheduler=step, or plateau"
            )
        start = getattr(callback, "update_starting_at_step", None) if isinstance(callback, WeightAveraging) else None
        if start:
            raise UserError(
                f"{type(callback).__name__}.update_starting_at_step={start}: until then its average is the untrained "
                "network, which would be validated and saved. Type 'callbacks=[default,ema]' "
                f"callbacks.ema.start={start / planned:.2g}"
            )
    if (least := trainer.fit_loop.epoch_loop.min_steps or 0) > planned:
        raise UserError(f"trainer.min_steps={least}, and there are {planned:g}: type a larger trainer.max_epochs=")
    least, steps = trainer.min_epochs or 0, trainer.max_steps
    if 0 <= steps < least * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches):
        raise UserError(
            f"trainer.min_epochs={least} needs more steps than trainer.max_steps={steps}: type more of these"
        )
    batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
    if accumulated > batches:
        log.warning(
            "trainer.accumulate_grad_batches=%d, but an epoch has %g batches: each ends with a step on these",
            accumulated,
            batches,
        )


def _trial_images(trainer: Trainer, model: DictModule) -> int:
    """Number of images of a trial batch: that of a process if the network is compiled, which would compile twice."""
    compiled = any(module._compiled_call_impl is not None for module in model.net.modules())
    per_process = -(-_data(trainer).batch_size // trainer.world_size)
    return per_process if compiled else min(per_process, MOST_IMAGES)


def _data(trainer: Trainer) -> ImageDataModule:
    return cast(ImageDataModule, data_of(trainer))


def _free_memory(device: torch.device) -> int | None:
    """Free memory of `device` in bytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" and hasattr(os, "sysconf") else None


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
