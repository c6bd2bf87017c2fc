"""Randomness as a function of what it is for: no state to save, none to restore.

Every draw is keyed by plain numbers such as (seed, epoch, index), so it does not depend on how many workers
there are, on what was drawn before, or on where a run was resumed.
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
    """A 64-bit key of `parts`, mixed with SplitMix64 (Steele et al. 2014)."""
    state = 0
    for part in parts:
        state = _mix(state ^ ((zlib.crc32(part.encode()) if isinstance(part, str) else part) & _MASK))
    return state


def uniforms(index: Tensor, *parts: int | str) -> Tensor:
    """One float32 in [0, 1) for each entry of the int64 tensor `index`, on its device: keyed by (*parts, entry)."""
    mixed = _mix_tensor(index ^ _signed(derive_seed(*parts)))
    return _shift(mixed, 40).to(torch.float32) / 2**24


@contextmanager
def seeded_scope(*parts: int | str) -> Iterator[None]:
    """Inside, Python's, NumPy's and torch's CPU generators are seeded with the key of `parts`.

    Afterwards torch's is as it was; nobody may count on the state of the others.
    """
    with seeded(derive_seed(*parts)):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """`seeded_scope` for a key of 64 bits that is known already."""
    generator = torch.default_generator
    state = generator.get_state()  # 9 us; torch.random.fork_rng takes 750 us
    _seed_on_cpu(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_all(*parts: int | str) -> None:
    """Seeds Python's, NumPy's and torch's generators, those of GPUs too, with the key of `parts`."""
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
    """`_mix` on int64, whose products wrap as unsigned ones do."""
    state = state + _signed(_GOLDEN)
    state = (state ^ _shift(state, 30)) * _signed(_MIX_1)
    state = (state ^ _shift(state, 27)) * _signed(_MIX_2)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: int64's own one would copy the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
