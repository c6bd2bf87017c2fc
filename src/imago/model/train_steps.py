"""The steps of training: parts of a batch on several processes, batches that are left out, losses that are checked."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from imago.definitions import STEP_WEIGHT, Batch
from imago.distributed import mean_of_gradients, mean_of_processes
from imago.lightning_internals import batches_so_far, is_accumulating, option_of
from imago.model.epoch_losses import EpochLosses
from imago.model.losses import CriterionsComposition, FiniteLosses, bad_loss, with_losses

log = logging.getLogger(__name__)

ON_BAD_LOSS = ("error", "skip")


class TrainSteps(EpochLosses):
    """Module that trains on batches of which each process has a part.

    The loss of a part is its own mean. Only its gradients are weighted, so that their mean over the processes, which
    DDP takes, is that over the images of the whole batch.
    """

    criterions: CriterionsComposition
    on_bad_loss: str

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.skipped_batches = 0
        self._train_losses = FiniteLosses()
        self._weight = 1.0  # of this process's part of the present batch
        self._is_skipped = False  # the present batch

    def training_step(self, batch: Batch, batch_idx: int) -> Batch:
        self._weight = batch.get(STEP_WEIGHT, 1.0)
        batch, losses = self.strategy.forward(self, batch)
        if self._left_out(losses["total"].detach(), batch_idx):
            return {"loss": losses["total"].detach()}
        if self._weight:
            self.running_losses["train"].update(losses, len(batch["label"]))
            self._train_losses.note(losses["total"].detach(), self.current_epoch, batch_idx, self.global_step)
        logging_is_due = self._logging_is_due
        if logging_is_due or self.device.type == "cpu":  # elsewhere reading the loss would stall the device
            self.check_losses()
        if logging_is_due and self.loggers:
            loss = mean_of_processes(losses["total"].detach(), self._weight).item()
            for logger in self.loggers:
                logger.log_metrics({"train/loss_step": loss}, step=self.global_step)
        batch = with_losses(batch, losses)
        return {key: value if key == "loss" else _detached(value) for key, value in batch.items()}

    def check_losses(self) -> None:
        """Raise DivergenceError, with the step, if a loss since the last call was not finite."""
        self._train_losses.check()

    def backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        if not self._is_skipped:
            self.strategy.backward(loss if self._weight == 1 else loss * self._weight)
        elif self.trainer.world_size > 1 and not is_accumulating(self.trainer):
            mean_of_gradients(self.parameters())  # of the batches before it, which DDP takes in a backward pass only

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None  # always passed with automatic optimisation

        def closure() -> Any:
            loss = optimizer_closure()
            return None if self._is_skipped else loss  # with None, Lightning asks for no gradients

        self.strategy.optimizer_step(optimizer, closure)

    def _left_out(self, loss: Tensor, batch_idx: int) -> bool:
        """Whether the batch is skipped, in which all processes agree: its loss is not finite."""
        if self.on_bad_loss != "skip":
            return False
        loss = mean_of_processes(loss, self._weight)
        self._is_skipped = not torch.isfinite(loss)
        if self._is_skipped:
            self.skipped_batches += 1
            where = bad_loss(loss.item(), self.current_epoch, batch_idx, self.global_step)
            log.warning("%s: skipping the batch", where)
        return self._is_skipped

    @property
    def _logging_is_due(self) -> bool:
        every: int = option_of(self.trainer, "log_every_n_steps")
        return every > 0 and (batches_so_far(self.trainer) + 1) % every == 0


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
