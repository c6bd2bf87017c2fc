"""Random numbers as a function of their purpose, without a state to save or restore.

Every draw is keyed by plain numbers such as (seed, epoch, index), so it does not depend on the number of workers, on
earlier draws, or on where a run was resumed.
"""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def derive_seed(*parts: int | str) -> int:
    """Derive a 64-bit seed from `parts`, mixed with SplitMix64 (Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = _mix(state ^ ((zlib.crc32(part.encode()) if isinstance(part, str) else part) & _MASK))
    return state


def uniforms(index: Tensor, *parts: int | str) -> Tensor:
    """Draw float32 values in [0, 1) of the shape and device of the int64 tensor `index`: keyed by (*parts, entry)."""
    mixed = _mix_tensor(index ^ _signed(derive_seed(*parts)))
    return _shift(mixed, 40).to(torch.float32) / 2**24


@contextmanager
def seeded_scope(*parts: int | str) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators from `parts` inside the block.

    Afterwards, torch's generator is restored; the state of the others is undefined.
    """
    with seeded(derive_seed(*parts)):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """`seeded_scope` for a given 64-bit seed."""
    generator = torch.default_generator
    state = generator.get_state()  # 9 us; torch.random.fork_rng takes 750 us
    _seed_on_cpu(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_all(*parts: int | str) -> None:
    """Seed Python's, NumPy's and torch's generators, including those of GPUs, from `parts`."""
    seed = derive_seed(*parts)
    _seed_on_cpu(seed)  # 15 us; torch.manual_seed alone takes 200
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _seed_on_cpu(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def _mix(state: int) -> int:
    state = (state + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * _MIX_1) & _MASK
    state = ((state ^ (state >> 27)) * _MIX_2) & _MASK
    return state ^ (state >> 31)


def _mix_tensor(state: Tensor) -> Tensor:
    """`_mix` of an int64 tensor, whose products wrap like unsigned ones."""
    state = state + _signed(_GOLDEN)
    state = (state ^ _shift(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift(state, 27)) * _signed(_MIX_2)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift; that of int64 would copy the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
