"""Batches that go through the network in parts."""

from typing import Any

import torch
from torch import Tensor

from imago.definitions import Batch


def mean_of_finite(losses: Tensor) -> Tensor:
    """Mean of the finite ones of `losses` (n,), a scalar tensor; 0 if there are none."""
    finite = torch.isfinite(losses)
    return torch.where(finite, losses, 0.0).sum() / finite.sum().clamp_min(1)


def slice_batch(batch: Batch, count: int, first: int, size: int) -> Batch:
    """Return `size` images from `first` on out of a batch of `count`."""
    if first == 0 and size >= count:
        return batch
    return {key: value[first : first + size] if _is_per_image(value, count) else value for key, value in batch.items()}


def join_batches(parts: list[Batch]) -> Batch:
    """Join batches to one: per-image values are concatenated, all else is taken from the first."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part["label"]) for part in parts]
    joined: Batch = {}
    for key, value in parts[0].items():
        values = [part[key] for part in parts]
        if isinstance(value, Tensor) and all(_is_per_image(v, n) for v, n in zip(values, sizes, strict=True)):
            joined[key] = torch.cat(values)
        elif isinstance(value, list):
            joined[key] = [entry for part in values for entry in part]
        else:
            joined[key] = value
    return joined


def _is_per_image(value: Any, count: int) -> bool:
    return (isinstance(value, Tensor) and value.ndim > 0 and len(value) == count) or (
        isinstance(value, list) and len(value) == count
    )


def detach_batch(batch: Batch) -> Batch:
    """Detach the tensors of a batch from the graph."""
    return {key: value.detach() if isinstance(value, Tensor) else value for key, value in batch.items()}
