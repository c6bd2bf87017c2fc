"""How the network is optimised, beyond the optimizer: the points where a strategy may take over."""

from collections.abc import Callable, Mapping
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
    """`strategy=none`: touches nothing. Others override what they need; nothing else knows which one is active."""

    shows_train_images = True
    """Whether a checkpoint may tell which images it was trained on."""

    def train_batch_sampler(self, sampler: "Sampler[Any]") -> "Sampler[Any]":
        """The sampler of the train batches, given the usual one; yields lists of (epoch, index), `epoch` is set."""
        return sampler

    @staticmethod  # loader workers get it
    def draw_key(*parts: int | str) -> int:
        """The key of 64 bits that the augmentation of a train image draws from; `parts` say which one."""
        return derive_seed(*parts)

    def seed_draws(self, *parts: int | str) -> None:
        """Seeds all generators before a step, or a batch stage, of training; `parts` say which one."""
        seed_all(*parts)

    def batch_stage(self, batch: Batch, stage: Callable[[Batch], Batch]) -> Batch:
        """A train batch through the batch stage of the transforms."""
        return stage(batch)

    def on_train_epoch_start(self, model: Any) -> None:
        """A train epoch is about to begin."""

    def on_fit_start(
        self, trainer: "Trainer", model: Any, folder: Path, publish: Callable[[], None] = lambda: None
    ) -> None:
        """Training is about to begin, or to go on, in the run folder `folder`; `publish` writes what `report` says."""

    def forward(self, model: Any, batch: Batch) -> "tuple[Batch, Mapping[str, Tensor]]":
        """A train batch through the network: with its logits, and the losses by name, means over the batch."""
        batch = model(batch)
        return batch, model.criterions(batch)

    def backward(self, loss: "Tensor") -> None:
        """From the total of the losses to gradients."""
        loss.backward()

    def optimizer_step(self, optimizer: "Optimizer", closure: Callable[[], Any]) -> None:
        """One step; `closure` runs forward and backward."""
        optimizer.step(closure=closure)

    def microbatch_size(self, images: int) -> int:
        """How many of a batch go through the network at a time."""
        return images

    def epoch_metrics(self) -> dict[str, float]:
        """What is logged of each epoch besides losses and metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes `state_dict()` of the run that goes on.

        Raises:
            ValueError: It is that of another strategy.
        """
        if state:
            raise UserError(
                "The checkpoint was trained with another strategy, whose promises would not hold for what goes on from "
                "it. Type the same one (strategy=dp)."
            )

    def stop_reason(self) -> str | None:
        """Where the strategy has ended the training: the reason."""
        return None

    def report(self) -> dict[str, Any]:
        """Lines of the run's summary."""
        return {}

    def write_report(self, folder: Path, is_final: bool = False) -> None:
        """Writes files of its own into `folder`; `is_final` when training has ended."""
