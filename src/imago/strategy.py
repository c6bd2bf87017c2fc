"""How the network is optimised, beyond the optimizer: the points where a strategy may take over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.data import Sampler


class Strategy:
    """`strategy=none`: touches nothing. Others override what they need; nothing else knows which one is active."""

    def train_batch_sampler(self, sampler: "Sampler[Any]") -> "Sampler[Any]":
        """The sampler of the train batches, given the usual one; yields lists of (epoch, index), `epoch` is set."""
        return sampler

    def optimizer_step(self, optimizer: "Optimizer", closure: Callable[[], Any]) -> None:
        """One step; `closure` runs forward and backward."""
        optimizer.step(closure=closure)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes `state_dict()` of the run that goes on."""

    def report(self) -> dict[str, Any]:
        """Lines of the run's summary."""
        return {}
