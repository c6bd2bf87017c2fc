"""Gradual unfreezing: the head first, then stage by stage from the top."""

import logging
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim import Optimizer

from imago.callbacks.head_first import HeadFirst
from imago.errors import UserError
from imago.lightning_internals import callbacks_of
from imago.model.stages import Stage, stages_of

log = logging.getLogger(__name__)


class GradualUnfreezing(Callback):
    """Train the head in the first epochs, and from then on one more stage of the network, from the top down
    ([Howard and Ruder 2018](https://arxiv.org/abs/1801.06146)).

    Where the head was fitted first (model.probe), the first epochs train the top stage too. Frozen stages keep the
    statistics of BatchNorm. What is trained depends on the epoch alone, so that a run is resumed to the same bits. All
    parameters are in the optimizer from the start, and it leaves out those without gradients.

    Args:
        epochs_per_stage: Epochs from stage to stage.
    """

    def __init__(self, epochs_per_stage: int = 1) -> None:
        if epochs_per_stage < 1:
            raise UserError(f"callbacks.unfreeze.epochs_per_stage must be 1 or more, got {epochs_per_stage}.")
        self.epochs_per_stage = epochs_per_stage
        self._stages: list[Stage] = []
        self._trainable: dict[str, nn.Parameter] = {}
        self._always_frozen: list[nn.Module] = []
        self._without_gradient: list[nn.Parameter] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        head = pl_module.head_tensors()
        self._trainable = {name: p for name, p in pl_module.net.named_parameters() if p.requires_grad}
        self._always_frozen = list(pl_module.frozen)
        stages = stages_of(pl_module.net, head) if head else []
        self._stages = [stage for stage in stages if any(name in self._trainable for name in stage.names)]
        if not self._stages:
            why = "all but the head is frozen" if stages else f"{type(pl_module.net).__name__} has no head"
            raise UserError(f"callbacks.unfreeze: {why}, so that there is nothing to unfreeze. Remove it.")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._freeze(trainer, pl_module)  # a run that is resumed within an epoch has no start of it
        if trainer.max_epochs is not None and trainer.max_epochs >= 0 and not trainer.max_steps > 0:
            self._warn_of_last(trainer, trainer.max_epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._freeze(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        for parameter in self._without_gradient:
            parameter.grad = None

    def _trained_stages(self, trainer: Trainer, epoch: int) -> int:
        came_first = any(first.facts for first in callbacks_of(trainer, HeadFirst))
        return min(epoch // self.epochs_per_stage + came_first, len(self._stages))

    def _freeze(self, trainer: Trainer, model: Any) -> None:
        """Freeze the stages that the present epoch does not train; all of their modules are put into evaluation."""
        trained = self._trained_stages(trainer, trainer.current_epoch)
        frozen = self._stages[: len(self._stages) - trained]
        names = {name for stage in frozen for name in stage.names}
        held = [p for name, p in self._trainable.items() if name in names]
        if trainer.world_size > 1:  # DDP waits for gradients of all parameters that had them when it was made
            self._without_gradient = held
        else:
            for name, parameter in self._trainable.items():
                parameter.requires_grad = name not in names
        model.frozen = self._always_frozen + [m for stage in frozen for m in _layers(stage, names)]
        model.train()
        lowest = self._stages[len(self._stages) - trained].label if trained else "the head"
        if not trainer.is_global_zero:
            return
        what = "all layers" if not frozen else f"{lowest} and above" if trained else lowest
        log.info("Epoch %d trains %s", trainer.current_epoch + 1, what)

    def _warn_of_last(self, trainer: Trainer, epochs: int) -> None:
        missing = len(self._stages) - self._trained_stages(trainer, max(0, epochs - 1))
        if epochs and missing:
            log.warning(
                "callbacks.unfreeze: %d of %d stages are never trained. Type trainer.max_epochs=%d for all",
                missing,
                len(self._stages),
                epochs + missing * self.epochs_per_stage,
            )


def _layers(stage: Stage, names: set[str]) -> list[nn.Module]:
    """Layers of a frozen stage that have tensors, none of which is trained."""
    return [
        module
        for prefix, part in stage.modules.items()
        for path, module in part.named_modules(prefix=prefix)
        if all(f"{path}.{name}" in names for name, _ in module.named_parameters(recurse=False))
    ]
