"""Averages of the weights that are validated, saved and scored: what EMA and SWA share."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging

from imago.errors import UserError
from imago.lightning_internals import average_of, callbacks_of
from imago.model.optimizers import planned_steps

CURRENT = "those after the last step"


class Average(WeightAveraging):
    """Average the weights; the average is validated, saved as the network's, and scored.

    The statistics of BatchNorm are averaged too. Until the average starts, it equals the current weights: Lightning's
    EMAWeightAveraging would validate and save the untrained network. Checkpoints also hold the current weights, from
    which training is resumed.

    Args:
        name: That of its settings, `ema` in `callbacks.ema`.
        start: Fraction of the run's steps after which the average starts.
        multi_avg_fn: Updates lists of averages, given those of current values and the number of updates before.

    Raises:
        UserError: A value is out of range, or `start` is above 0 in a run without an end.
    """

    def __init__(self, name: str, start: float, multi_avg_fn: Any) -> None:
        if not 0 <= start < 1:
            raise UserError(
                f"callbacks.{name}.start must be a fraction of the run, 0 or more and below 1, got {start}."
            )
        super().__init__(use_buffers=True, multi_avg_fn=multi_avg_fn)
        self.name = name
        self.start = start
        self._first_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.start > 0:
            steps = planned_steps(trainer)
            if math.isinf(steps):
                raise UserError(
                    f"callbacks.{self.name}.start needs a run that ends. Type trainer.max_epochs=, or start=0."
                )
            self._first_step = int(self.start * steps)

    def has_begun(self, step_idx: int | None) -> bool:
        """Whether weights after this step belong to the average."""
        return step_idx is not None and (self.updates > 0 or step_idx >= self._first_step)

    @property
    def updates(self) -> int:
        """Number of updates so far: an average that has started goes on if a resumed run has more steps."""
        average = average_of(self)
        return 0 if average is None else int(average.n_averaged)

    @property
    def averaged(self) -> str:
        """Words for the average, once there is one."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, pl_module: Any) -> None:
        """Copy the current weights to an average that has not started."""
        average = average_of(self)
        if average is not None and average.n_averaged == 0:
            average.module.load_state_dict(pl_module.state_dict())


def describe_weights(trainer: Trainer) -> str:
    """Which weights a checkpoint that is written now holds as those of the network."""
    for callback in callbacks_of(trainer, WeightAveraging):
        if isinstance(callback, Average):
            return callback.averaged if callback.updates else f"{CURRENT} ({callback.name} has not started)"
        return f"an average by {type(callback).__name__}"
    return CURRENT


def weights_in(checkpoint: Mapping[str, Any]) -> str:
    """Which weights a checkpoint holds, in one line; it may come from a stranger."""
    return " ".join(str(checkpoint["imago"].get("weights", CURRENT)).split())[:200]
