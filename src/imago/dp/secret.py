"""Random draws of private training: from the entropy of the operating system, never from the seed, and kept in no file.

Whoever could repeat the draws of batches and noise could remove the noise. Augmentation and dropout are secret for
another reason: as functions of the seed and of an image's place, one additional image would change the draws of all
images after it, and with them their gradients, by far more than the clipping norm that the accountant assumes. Drawn
anew for each image, they are equally likely with and without the additional image.
"""

import math
import os
import random
import secrets
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from imago.definitions import SampleKey

MOST_AT_ONCE = 2**20
WORDS = 624
"""Words of 32 bits in the state of the Mersenne Twister, which Python, NumPy and torch (on a CPU) use."""
TORCH_STATE_BYTES, TORCH_WORDS_FROM = 5056, 24
"""Bytes in the state of torch's CPU generator, and the offset of its words (of 8 bytes)."""


def entropy(bits: int) -> int:
    """Draw a number of `bits` random bits from the operating system."""
    return secrets.randbits(bits)


def secret_key(*parts: int | str) -> int:
    """Draw a new 64-bit key for the random numbers of a train image; `parts` are ignored."""
    del parts
    return entropy(64)


def seed_from_entropy() -> None:
    """Seed the generators of Python, NumPy and torch with entropy: on the CPU their whole states, on a GPU 63 bits.

    `manual_seed` would use 32 bits on the CPU, few enough to try them all.
    """
    words = np.frombuffer(os.urandom(4 * WORDS), dtype=np.uint32)
    np.random.seed(words)
    random.seed(words.tobytes())
    generator = torch.default_generator.manual_seed(entropy(63))
    state = generator.get_state()
    assert len(state) == TORCH_STATE_BYTES, "torch keeps the state of its CPU generator in another way"
    words = np.frombuffer(os.urandom(4 * WORDS), dtype=np.uint32).astype(np.uint64)
    state[TORCH_WORDS_FROM : TORCH_WORDS_FROM + 8 * WORDS] = torch.from_numpy(words.view(np.uint8))
    generator.set_state(state)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(entropy(63))
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(entropy(63))


class SecretDraws:
    """Secret random draws: choices and Gaussian noise.

    Args:
        secure: Draw every number from the system's cryptographic generator, and noise as a sum of four Gaussians in 64
            bits, so that the gaps between floating-point numbers do not tell what it was added to (Holohan and Braghin
            2021). Otherwise draw from Philox with secret keys, one for choices and one for noise: of 128 bits on the
            CPU (torch's own generator takes 32 there, few enough to try them all), of 63 on a GPU.
    """

    def __init__(self, secure: bool = False) -> None:
        self.secure = secure
        self._choices = np.random.Generator(np.random.Philox(key=entropy(128)))
        self._noise = np.random.Generator(np.random.Philox(key=entropy(128)))
        self._on_devices: dict[torch.device, torch.Generator] = {}

    def chosen(self, count: int, rate: float) -> list[int]:
        """Choose each of 0 … count - 1 independently with probability `rate`."""
        uniform = _uniform(count) if self.secure else self._choices.random(count)
        return np.flatnonzero(uniform < rate).tolist()

    def numbers(self, count: int, device: torch.device | str) -> Tensor:
        """Draw int64 (count,) of 63 bits, by which a batch stage may draw for each image."""
        drawn = np.frombuffer(os.urandom(8 * count), dtype=np.int64) & np.int64(2**63 - 1)
        return torch.from_numpy(drawn).to(device)

    def normal(self, like: Tensor, std: float) -> Tensor:
        """Draw Gaussian noise with the shape, device and memory format of `like`, as fused optimizers need it; in its
        dtype, or float64 if `secure`."""
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


class PoissonBatchSampler(Sampler[list[SampleKey]]):
    """Batches as (epoch, index) that contain each image independently with probability `rate`: their sizes vary, and
    some may be empty. An epoch has as many batches as with a fixed `batch_size`."""

    def __init__(self, size: int, batch_size: int, draws: SecretDraws) -> None:
        self.size = size
        self.batch_size = batch_size
        self.rate = batch_size / size
        self.draws = draws
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for _ in range(len(self)):
            yield [(self.epoch, index) for index in self.draws.chosen(self.size, self.rate)]


def _uniform(count: int) -> np.ndarray:
    """Draw uniform float64 (count,), above 0 and below 1."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (words + 0.5) * 2.0**-53


def _gaussian(count: int) -> np.ndarray:
    """Draw standard Gaussian float64 (count,), by the transform of Box and Muller (1958)."""
    values = np.empty(count + count % 2)
    for first in range(0, len(values), MOST_AT_ONCE):
        part = values[first : first + MOST_AT_ONCE]
        half = len(part) // 2
        radius, angle = np.sqrt(-2 * np.log(_uniform(half))), 2 * np.pi * _uniform(half)
        part[:half], part[half:] = radius * np.cos(angle), radius * np.sin(angle)
    return values[:count]
