"""Muon for the matrices of a network, and AdamW for all else, as one optimizer."""

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imago.errors import UserError

log = logging.getLogger(__name__)

MUON = "muon"


class Muon(Optimizer):
    """torch.optim.Muon for `matrices`, and torch.optim.AdamW for the other parameters
    ([Jordan et al. 2024](https://kellerjordan.github.io/posts/muon/)).

    Updates of matrices are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate
    and weight decay suit both. A convolution counts as a matrix with a row per output channel.

    Args:
        params: Parameters, or groups of them. Each group is divided in two.
        matrices: Those of the parameters that are matrices; a run passes the result of `matrices_of`.
        lr: Learning rate.
        weight_decay: Decoupled, as in AdamW.
        momentum: Momentum of the matrices.
        betas: Of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        matrices: Collection[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        unused = [torch.zeros(1, 1)]  # the optimizers below get their parameters in each step
        self._muon = torch.optim.Muon(
            unused, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(unused, lr=lr, weight_decay=weight_decay, betas=betas)
        groups = _divided(params, {id(matrix) for matrix in matrices}, self._muon.defaults)
        if not any(group[MUON] for group in groups):
            log.warning("Muon: nothing is trained but the head, vectors and tokens, so that all of it is AdamW")
        super().__init__(groups, self._adamw.defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_matrices()
        self._adamw.param_groups = [group for group in self.param_groups if not group[MUON]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _step_matrices(self) -> None:
        """Step Muon on views of the weights, their gradients and momenta."""
        groups: list[dict[str, Any]] = []
        for group in self.param_groups:
            if not group[MUON]:
                continue
            views = []
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                view = _rows(weight.detach(), weight).flatten(1)
                if view.data_ptr() != weight.data_ptr():
                    raise UserError(f"Muon needs weights that are dense in memory, got strides {weight.stride()}.")
                view.grad = _rows(weight.grad, weight).flatten(1)
                self._muon.state[view] = {"momentum_buffer": _rows(state["momentum_buffer"], weight).flatten(1)}
                views.append(view)
            groups.append({**group, "params": views})
        self._muon.param_groups = groups
        self._muon.step()
        self._muon.state.clear()


def _divided(params: Iterable[Any], matrices: set[int], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups of matrices, with the `settings` of Muon, and of other parameters."""
    entries = list(params)
    if not entries or not isinstance(entries[0], dict):
        entries = [{"params": entries}]
    groups: list[dict[str, Any]] = []
    for group in entries:
        kinds: tuple[list[Tensor], list[Tensor]] = ([], [])
        for parameter in group["params"]:
            kinds[id(parameter) in matrices].append(parameter)
        name = group.get("name")
        if kinds[True]:
            groups.append(
                {**settings, **group, "params": kinds[True], "name": f"{MUON}_{name}" if name else MUON, MUON: True}
            )
        if kinds[False]:
            groups.append({**group, "params": kinds[False], "name": name or "adamw", MUON: False})
    return groups


def _rows(tensor: Tensor, weight: Tensor) -> Tensor:
    """`tensor` with its dimensions in the order that `weight` has in memory, so that a row of its matrix is a view.
    Muon does not depend on the order of the columns."""
    is_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return tensor.permute(0, 2, 3, 1) if is_last else tensor


def matrices_of(net: nn.Module, head: Collection[str]) -> list[nn.Parameter]:
    """Weights of linear layers, attention, and convolutions without groups; not the head, whose rows are classes."""
    matrices = []
    for prefix, module in net.named_modules():
        is_dense = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
        own = ["weight"] if isinstance(module, nn.Linear) or is_dense else []
        own += ["in_proj_weight"] if isinstance(module, nn.MultiheadAttention) else []
        for name in own:
            parameter = getattr(module, name)
            if parameter is not None and (f"{prefix}.{name}" if prefix else name) not in head:
                matrices.append(parameter)
    return matrices
