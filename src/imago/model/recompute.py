"""Gradient checkpointing: blocks keep their inputs alone, and are computed again in the backward pass."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from imago.errors import UserError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LEAST_BLOCKS = 3
"""With fewer, a block has nearly all activations, so that computing it again needs them all at once."""


def checkpoint_gradients(net: nn.Module) -> list[str]:
    """Make the blocks of `net` recompute their activations in the backward pass. Returns their names.

    Gradients stay the same to the bit: dropout draws the same numbers again, and buffers, such as the statistics of
    BatchNorm, are changed by the first pass only.

    Raises:
        UserError: It has too few blocks.
    """
    blocks = dict(_blocks(net, ""))
    if len(blocks) < LEAST_BLOCKS:
        raise UserError(
            f"model.gradient_checkpointing=true: {type(net).__name__} has no stack of blocks that could be computed "
            "again one by one. Type model.gradient_checkpointing=false, and for less memory a smaller data.batch_size="
        )
    for block in blocks.values():
        # a partial, because a copy of the network then calls the copy of the block
        block.forward = partial(_recomputed, block)
    return list(blocks)


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that are no stacks of further blocks."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if _layers(child) < 2:  # to compute a single layer again saves nothing
            continue
        if _is_stack(child) or any(_is_stack(part, least=2) for part in child.children()):
            yield from _blocks(child, path)
        else:
            yield path, child


def _is_stack(module: nn.Module, least: int = 1) -> bool:
    """Whether a container has composite layers: those of one class must be `least`."""
    if not isinstance(module, CONTAINERS):
        return False
    kinds = [type(child) for child in module.children() if _is_composite(child, least)]
    return any(kinds.count(kind) >= least for kind in kinds)


def _layers(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


def _is_composite(module: nn.Module, matrices: int) -> bool:
    """Whether a module has parts, and at least this number of matrices in them."""
    has_parts = any(True for _ in module.children())
    return has_parts and len(list(itertools.islice((p for p in module.parameters() if p.ndim > 1), 2))) >= matrices


def _recomputed(block: nn.Module, *inputs: Any, **options: Any) -> Any:
    forward = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    inputs = tuple(list(entry) if isinstance(entry, list) else entry for entry in inputs)  # a DenseNet appends to it
    before = _versions(inputs)
    outputs = checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_passes, block), **options)
    if _versions(inputs) != before:
        raise UserError(
            f"model.gradient_checkpointing=true: {type(block).__name__} changes its input in place, so that it cannot "
            "be computed again. Make its first layer inplace=False, or type model.gradient_checkpointing=false"
        )
    return outputs


def _versions(inputs: Sequence[Any]) -> list[int]:
    """How often each tensor of the inputs was changed."""
    entries = [part for entry in inputs for part in (entry if isinstance(entry, list) else [entry])]
    return [input._version for input in entries if isinstance(input, torch.Tensor)]


def _passes(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the first pass and of the second."""
    return nullcontext(), _with_copied_buffers(block)


@contextmanager
def _with_copied_buffers(block: nn.Module) -> Iterator[None]:
    """The second pass changes copies of the buffers."""
    buffers = [(module, *named) for module in block.modules() for named in module.named_buffers(recurse=False)]
    try:
        for module, name, buffer in buffers:
            setattr(module, name, buffer.clone())
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
