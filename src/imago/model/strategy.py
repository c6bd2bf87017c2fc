"""Strategies of optimisation beyond the optimizer, and the points where they may take over."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.definitions import Batch
from imago.errors import UserError
from imago.randomness import derive_seed, seed_all

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.utils.data import Sampler


class Strategy:
    """`strategy=none`: plain training. Subclasses override what they need; nothing else knows which one is active."""

    shows_train_images = True
    """Whether files may record the train images: digests in checkpoints, pixels where `data.cache=auto` chooses."""

    assumed: Sequence[str] = ()
    """Assumptions about the weights that training starts from, for its report."""

    uncovered: Sequence[str] = ()
    """Statements of what the strategy's guarantee does not cover in this training, for its report."""

    warnings: Sequence[str] = ()
    """Warnings of the run so far, for its report."""

    def check_images(self, images: int, batch_size: int) -> None:
        """Raise UserError if training on batches of this size, from this number of train images, cannot be."""

    def train_batch_sampler(self, sampler: "Sampler[Any]") -> "Sampler[Any]":
        """Sampler of the train batches, given the default one. It yields lists of (epoch, index); `epoch` is set."""
        return sampler

    @staticmethod  # sent to loader workers
    def draw_key(*parts: int | str) -> int:
        """64-bit key from which the augmentation of a train image is drawn; `parts` identify the image."""
        return derive_seed(*parts)

    def seed_draws(self, *parts: int | str) -> None:
        """Seed all generators before a step, or a batch stage, of training; `parts` identify it."""
        seed_all(*parts)

    def batch_stage(self, batch: Batch, stage: Callable[[Batch], Batch]) -> Batch:
        """Apply the batch stage of the transforms to a train batch, "image" (n, channels, height, width)."""
        return stage(batch)

    def on_train_epoch_start(self, model: Any) -> None:
        """Called before each train epoch."""

    def on_fit_start(
        self, trainer: "Trainer", model: Any, folder: Path, publish: Callable[[], None] = lambda: None
    ) -> None:
        """Called before training starts, or is resumed, in the run folder `folder`; `publish` writes the `report`."""

    def forward(self, model: Any, batch: Batch) -> "tuple[Batch, Mapping[str, Tensor]]":
        """Run a train batch through the network. Returns it with "logits", (n, classes), and the losses by name,
        scalars that are means over the batch."""
        batch = model(batch)
        return batch, model.criterions(batch)

    def backward(self, loss: "Tensor") -> None:
        """Compute gradients from the total loss, a scalar."""
        loss.backward()

    def optimizer_step(self, optimizer: "Optimizer", closure: Callable[[], Any]) -> None:
        """Make one step; `closure` runs forward and backward."""
        optimizer.step(closure=closure)

    def microbatch_size(self, images: int) -> int:
        """Number of the `images` of a batch that go through the network at a time."""
        return images

    def epoch_metrics(self) -> dict[str, float]:
        """Values to log per epoch besides losses and metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State to keep in a checkpoint: plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()` of the run that is resumed.

        Raises:
            ValueError: It comes from another strategy.
        """
        if state:
            raise UserError(
                "The checkpoint was trained with another strategy, whose guarantees would not hold after training "
                "without it. Type the same one (strategy=dp)."
            )

    def stop_reason(self) -> str | None:
        """Reason for which the strategy has ended the training, if it has."""
        return None

    def report(self) -> dict[str, Any]:
        """Lines of the run's summary."""
        return {}

    def write_report(self, folder: Path, is_final: bool = False) -> None:
        """Write the strategy's own files into `folder`; `is_final` when training has ended."""
