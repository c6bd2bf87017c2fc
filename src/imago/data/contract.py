"""The contract of images, pixel transforms and data modules of one's own, with a message for each way to break it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from imago.data.decode import BadImageError
from imago.data.images import ImageSets
from imago.errors import UserError


def check_sets(sets: ImageSets) -> None:
    """Raise UserError if images of a kind that Imago does not ship have no valid paths, labels or pixels."""
    for split, images in sets.splits.items():
        if type(images).__module__.startswith("imago.") or not len(images):
            continue
        kind = f"{type(images).__name__} ({split})"
        if len(images.paths) != len(images.labels):
            raise UserError(f"{kind} has {len(images.paths)} paths and {len(images.labels)} labels.")
        classes = range(len(sets.class_names))
        if (strange := next((label for label in images.labels if label not in classes), None)) is not None:
            raise UserError(
                f"{kind} has the label {strange!r}. A label is the position of its class among the class names: 0 to "
                f"{len(classes) - 1}."
            )
        with suppress(BadImageError):  # data.on_bad_image decides
            check_pixels(f"{kind}: read", images.read(0), images.channels)


def check_pixels(maker: str, image: Any, channels: int) -> None:
    """Raise UserError unless an image is uint8 (channels, height, width)."""
    if not isinstance(image, Tensor):
        raise UserError(
            f"{maker} returns a {type(image).__name__}. It must be a uint8 tensor ({channels}, height, width)."
        )
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != channels:
        kind = str(image.dtype).removeprefix("torch.")
        raise UserError(
            f"{maker} returns {kind} {tuple(image.shape)}. It must be uint8 ({channels}, height, width), with values "
            "from 0 to 255."
        )


@contextmanager
def failed_step(key: str, stage: str, other: str) -> Iterator[None]:
    """Name the setting of a step of `stage` that fails in this block, and the `other` stage, where it may belong."""
    try:
        yield
    except Exception as error:
        notes = getattr(error, "__notes__", [])
        for number, note in enumerate(notes):
            if note.startswith("while running "):
                step = note.removeprefix("while running ").removeprefix(f"{stage}.")
                where = f"a step of {'batches' if other == 'batch' else 'single images'} goes below {key}.{other}"
                notes[number] = f"while running {key}.{stage}.{step}; {where}"
        raise


def check_module(data: Any) -> None:
    """Raise UserError unless the constructor of a data module has called that of ImageDataModule."""
    if not hasattr(data, "sets"):
        raise UserError(f"{type(data).__name__} does not call super().__init__(sets, **loading) in its __init__.")
