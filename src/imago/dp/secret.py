"""Which images a batch has, and the noise: drawn from the entropy of the operating system, never from the seed.

Whoever could draw them again could take the noise off: they are secret, and a run cannot be repeated to the bit.
"""

import math
import os
import secrets
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from imago.data.loading import Position

MOST_AT_ONCE = 2**20


def entropy(bits: int) -> int:
    """From the operating system."""
    return secrets.randbits(bits)


class SecretDraws:
    """Draws of choices and of Gaussian noise.

    Args:
        secure: Each number comes from the system's cryptographic generator, and noise is a sum of four Gaussians in 64
            bits, so that the gaps between floating-point numbers do not tell what it was added to (Holohan and Braghin
            2021). Otherwise it comes from Philox with secret keys, one for choices and one for noise: of 128 bits on
            the CPU (torch's own generator takes 32 there, few enough to try them all), of 63 on a GPU.
    """

    def __init__(self, secure: bool = False) -> None:
        self.secure = secure
        self._choices = np.random.Generator(np.random.Philox(key=entropy(128)))
        self._noise = np.random.Generator(np.random.Philox(key=entropy(128)))
        self._on_devices: dict[torch.device, torch.Generator] = {}

    def chosen(self, count: int, rate: float) -> list[int]:
        """Each of 0 … count - 1 with the probability `rate`, independently."""
        uniform = _uniform(count) if self.secure else self._choices.random(count)
        return np.flatnonzero(uniform < rate).tolist()

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Noise of the shape and device of `like`, and in memory as `like` is, which fused optimizers need; of its type
        too, unless `secure`: then of 64 bits."""
        if std == 0:
            return torch.zeros_like(like)
        if self.secure:
            parts = sum(_gaussian(like.numel()) for _ in range(4)) / 2 * std
            return torch.empty_like(like, dtype=torch.float64).copy_(torch.from_numpy(parts).view(like.shape))
        if like.device.type != "cpu":
            return torch.empty_like(like).normal_(std=std, generator=self._on(like.device))
        drawn = self._noise.standard_normal(like.shape, dtype=np.float64 if like.dtype == torch.float64 else np.float32)
        return torch.empty_like(like).copy_(torch.from_numpy(np.asarray(drawn))).mul_(std)

    def _on(self, device: torch.device) -> torch.Generator:
        if device not in self._on_devices:
            self._on_devices[device] = torch.Generator(device).manual_seed(entropy(63))
        return self._on_devices[device]


class PoissonBatchSampler(Sampler[list[Position]]):
    """Batches as (epoch, index) to which each image belongs with the probability `rate`, independently: their sizes
    vary, and some may be empty. An epoch has as many as there would be of `batch_size` images."""

    def __init__(self, size: int, batch_size: int, draws: SecretDraws) -> None:
        self.size = size
        self.batch_size = min(batch_size, size)
        self.rate = self.batch_size / size
        self.draws = draws
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[Position]]:
        for _ in range(len(self)):
            yield [(self.epoch, index) for index in self.draws.chosen(self.size, self.rate)]


def _uniform(count: int) -> np.ndarray:
    """float64 (count,), above 0 and below 1."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (words + 0.5) * 2.0**-53


def _gaussian(count: int) -> np.ndarray:
    """float64 (count,), by the transform of Box and Muller (1958)."""
    found = np.empty(count + count % 2)
    for first in range(0, len(found), MOST_AT_ONCE):
        part = found[first : first + MOST_AT_ONCE]
        half = len(part) // 2
        radius, angle = np.sqrt(-2 * np.log(_uniform(half))), 2 * np.pi * _uniform(half)
        part[:half], part[half:] = radius * np.cos(angle), radius * np.sin(angle)
    return found[:count]
