"""Trial whether the transforms of train images keep them apart, and draw from secretly seeded generators."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from imago.data.dataset import ImageDataset
from imago.data.module import ImageDataModule
from imago.dp.constant_draws import ConstantDraws
from imago.dp.keeping import GENERATOR, copied, leaves
from imago.dp.trial import ABSOLUTE, MANY, OWN_GENERATOR, PLACES, RELATIVE, SEEDS, SIZES
from imago.errors import UserError
from imago.randomness import seeded_scope

REPEATS = 30
"""Number of times that the transform of an image is repeated with the same draws."""


def try_transforms(data: ImageDataModule, device: torch.device, at_once: int | None) -> None:
    """Try the transform stages of the train images: the result for an image must depend on it and its draws alone.

    `at_once` is the number of images that the batch stage gets at a time.

    Raises:
        ValueError: A result depends on other images, or on a generator of the transform's own.
    """
    transform, images = data.train_transform, data.sets.splits["train"]
    stages = {"box": transform.box, **{f"pixels {n}": step for n, step in enumerate(transform.pixels.values())}}
    stages |= {f"batch {name}": step for name, step in transform.batch.steps.items()}
    for name, stage in stages.items():
        if GENERATOR in leaves(copied(stage)):
            raise UserError(OWN_GENERATOR.format(what=f"data.train_transform ({name})"))
    dataset = ImageDataset(images, transform, data.image_size, data.seed)
    numbers = list(islice((index for index in range(len(images)) if images.fault(index) is None), 3))
    seen: dict[tuple[int, int], Tensor] = {}
    for turn in range(2):
        for draw in range(REPEATS):
            index = numbers[draw % len(numbers)]
            picture = dataset.augmented(index, draw + 1).clone()
            if turn and not torch.equal(picture, seen[index, draw]):
                raise UserError(
                    "strategy=dp: data.train_transform gives different results for the same image and the same random "
                    "state: its box or pixels stage draws from a generator of its own, or stores images. Use the "
                    "global generators of Python, NumPy or torch"
                )
            seen[index, draw] = picture
    for watched in range(len(data.class_names) if len(data.class_names) < 4 else 3):
        _try_batch_stage(data, picture.shape, device, at_once, watched)


def _try_batch_stage(
    data: ImageDataModule, shape: torch.Size, device: torch.device, at_once: int | None, watched: int
) -> None:
    """Compare what the stage makes of the image with the label `watched`, beside others and at several places."""
    with seeded_scope("trial of the batch stage"):
        pixels = torch.randint(256, (40, *shape), dtype=torch.uint8)
    keys = torch.arange(40) * 7 + 11

    def staged(places: Sequence[int], seed: int | None = None) -> dict[str, Tensor]:
        chosen, count = list(places), len(places)
        labels = (torch.tensor(chosen) + watched) % len(data.class_names)
        batch: dict[str, Any] = {"image": pixels[chosen], "label": labels, "index": keys[chosen]}
        batch = {key: value.to(device) for key, value in batch.items()} | {"epoch": 0}
        with (
            seeded_scope("trial of the batch stage", seed or 0),
            nullcontext() if seed is not None else ConstantDraws(),
        ):
            done = batch | data.train_transform.batch(batch)
        rows = {key: value for key, value in done.items() if isinstance(value, Tensor)}
        at = chosen.index(0)
        return {key: (value[at] if value.shape[:1] == (count,) else value).float() for key, value in rows.items()}

    most = at_once or 40
    pairs = [(staged(places), staged((0,))) for places in PLACES if len(places) <= most]
    for size in (size for size in (*SIZES, MANY) if size <= most):
        neighbours = [[0, *(1 + (place * step + 3) % 39 for place in range(size - 1))] for step in (1, 2)]
        pairs += [(staged(neighbours[0], seed), staged(neighbours[1], seed)) for seed in range(SEEDS)]
    for result, reference in pairs:
        if any(not torch.allclose(result[key], reference[key], rtol=RELATIVE, atol=ABSOLUTE) for key in result):
            raise UserError(
                "strategy=dp: in data.train_transform.batch, the result for an image depends on the rest of its batch. "
                "Remove steps that mix images or draw by their position. `index`, a secret number here, may seed the "
                "draws of a step"
            )
