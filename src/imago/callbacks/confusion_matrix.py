"""The confusion matrix of the val split during training."""

from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from imago.errors import UserError
from imago.model.metrics import ClassCounts
from imago.report.plots import confusion_matrix_figure
from imago.report.tensorboard import show_in_tensorboard


class ConfusionMatrixCallback(Callback):
    """Show the confusion matrix of the val split in TensorBoard.

    Args:
        every_n_epochs: Number of epochs between two figures; one takes a quarter of a second.
    """

    def __init__(self, every_n_epochs: int = 5) -> None:
        if every_n_epochs < 1:
            raise UserError(f"callbacks.confusion_matrix.every_n_epochs must be 1 or more, got {every_n_epochs}.")
        self.every_n_epochs = every_n_epochs
        self._counts = ClassCounts(0)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._counts = ClassCounts(len(pl_module.class_names), matrix=True)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._counts.update(outputs["label"], outputs["prediction"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or not due:
            return
        matrix = self._counts.matrix.to(trainer.strategy.root_device)  # also in a process without a batch
        total = trainer.strategy.reduce(matrix, reduce_op="sum")
        if not boards or not trainer.is_global_zero:
            return
        classes = len(pl_module.class_names)
        counts = cast(Tensor, total).view(classes, classes).cpu().numpy()
        figure = confusion_matrix_figure(counts, pl_module.class_names, f"val, epoch {trainer.current_epoch + 1}")
        step = max(0, trainer.global_step - 1)  # the step of the epoch's metrics
        show_in_tensorboard(boards, "confusion_matrix_val_while_training", figure, step)
