"""Training without dropout, so that a network can memorise its batches."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


class NoDropout(Callback):
    """Switch dropout and stochastic depth off, so that the loss on a few batches can reach 0."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, _DropoutNd | StochasticDepth):
                module.p = 0.0
