"""FSDP: weights, gradients and the optimizer's state are divided among the processes."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from imago.errors import UserError

log = logging.getLogger(__name__)

PARTS, SMALLEST = 8, 100_000
"""Least number of parts that a large network is divided into, and fewest weights of a part."""


class FSDPStrategy(DDPStrategy):
    """DDP whose processes keep a part of each weight, by torch's `fully_shard`.

    Lightning's own strategies of this kind write folders, or files that are read in another way, and wait for processes
    that validate on fewer batches. Here a checkpoint holds whole tensors, like that of any run, and weights are whole
    during validation. After the training the module has its network back, with whole weights.
    """

    _whole: nn.Module | None = None

    def configure_ddp(self) -> None:
        """Divide the network's weights; called in place of the wrapping in DDP, before there is an optimizer."""
        module: Any = self.lightning_module
        own = [name for name, _ in module.named_parameters() if not name.startswith("net.")]
        if own:
            raise UserError(f"trainer.strategy=fsdp cannot divide {', '.join(own)}. Type trainer.strategy=ddp")
        log.info("trainer.strategy=fsdp adds gradients in another order than ddp: weights are equal up to rounding")
        self._whole = copy.deepcopy(module.net).cpu()
        for weight in module.net.parameters():
            weight.data = weight.data.contiguous()  # what channels-last is not
            torch.distributed.broadcast(weight.data, src=0)
        for unit in units(module.net):
            fully_shard(unit)
        fully_shard(module.net)
        type(module.net).__name__ = type(self._whole).__name__  # it is a class of its own, which the run would name

    def on_validation_start(self) -> None:
        """Gather the weights: processes validate on different numbers of batches, and none would wait for another."""
        for module in self._sharded():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def on_validation_end(self) -> None:
        for module in self._sharded():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: _whole(value) for name, value in super().lightning_module_state_dict().items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        own = module.state_dict()
        state = {name: _divided(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = super().optimizer_state(optimizer)
        by_weight = {
            number: {name: _whole(value) for name, value in values.items()} for number, values in state["state"].items()
        }
        return state | {"state": by_weight}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            by_weight = {
                number: {
                    name: _divided(value, weights[number]) if value.shape == weights[number].shape else value
                    for name, value in values.items()
                }
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": by_weight})

    def teardown(self) -> None:
        module: Any = self.lightning_module
        if self._whole is not None and not module.trainer.interrupted:
            self._whole.load_state_dict({name: _whole(value) for name, value in module.net.state_dict().items()})
            module.net, self._whole = self._whole.to(self.root_device), None
        super().teardown()

    def _sharded(self) -> list[FSDPModule]:
        module: Any = self.lightning_module
        return [part for part in module.net.modules() if isinstance(part, FSDPModule)]


def units(net: nn.Module) -> list[nn.Module]:
    """Parts of a network whose weights are gathered together: none has more than a `PARTS`th of all, where its layers
    are that small, so that little more than that is whole at a time."""
    most = _size(net) / PARTS

    def within(module: nn.Module) -> list[nn.Module]:
        is_leaf = isinstance(module, nn.MultiheadAttention) or not any(True for _ in module.children())
        if module is not net and (_size(module) <= most or is_leaf):  # attention reads the weights of its own layers
            return [module] if _size(module) >= SMALLEST else []
        return [unit for child in module.children() for unit in within(child)]

    return within(net)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _divided(value: Any, like: Any) -> Any:
    return distribute_tensor(value, like.device_mesh, like.placements) if isinstance(like, DTensor) else value
