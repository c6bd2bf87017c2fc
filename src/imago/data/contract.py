"""The contract of images, pixel transforms and data modules of one's own, with a message for each way to break it."""

import difflib
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from imago.data.crops import CropBox, CropPolicy, FittedBox
from imago.data.decode import BadImageError
from imago.definitions import SPLITS
from imago.distributed import all_gather_objects
from imago.errors import UserError, kind_of
from imago.terminal import shortened

AS_POSITION = {str: "class_names.index(label)", float: "int(label)", Tensor: "int(label)"}
"""Type of a label -> what makes it a position."""


def _own_images(sets: Any) -> Iterator[tuple[str, Any]]:
    """Words for a split, and its images, where they are of a kind that Imago does not ship. `sets` are ImageSets, whose
    module imports this one."""
    for split, images in sets.splits.items():
        if not type(images).__module__.startswith("imago.") and len(images):
            yield f"{type(images).__name__} ({split})", images


def check_names(sets: Any) -> None:
    """Raise UserError unless splits are those that Imago knows, and class names are different texts."""
    if unknown := [split for split in sets.splits if split not in SPLITS]:
        close = difflib.get_close_matches(str(unknown[0]), SPLITS, n=1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"Unknown split {unknown[0]!r} of {sets.root}.{meant} The splits are {', '.join(SPLITS)}.")
    names = list(sets.class_names)
    if (strange := next((name for name in names if not isinstance(name, str)), None)) is not None:
        raise UserError(f"The class name {strange!r} of {sets.root} is no text. Write [str(name) for name in names]")
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"The class name {twice!r} of {sets.root} stands in the list {names.count(twice)} times.")


def check_labels(sets: Any) -> None:
    """Raise UserError if images of a kind that Imago does not ship have no valid paths or labels."""
    for kind, images in _own_images(sets):
        if len(images.paths) != len(images.labels):
            raise UserError(f"{kind} has {len(images.paths)} paths and {len(images.labels)} labels.")
        classes = range(len(sets.class_names))
        valid = (isinstance(label, Integral) and label in classes for label in images.labels)
        if (
            strange := next((label for label, is_one in zip(images.labels, valid, strict=True) if not is_one), None)
        ) is None:
            continue
        counts_from_1 = isinstance(strange, Integral) and {*images.labels} == {*range(1, len(classes) + 1)}
        is_number = isinstance(strange, str) and strange.isdecimal() and strange not in sets.class_names
        how = "label - 1" if counts_from_1 else "int(label)" if is_number else AS_POSITION.get(type(strange))
        raise UserError(
            f"{kind} has the label {strange!r}. A label is the position of its class among the class names, a whole "
            f"number from 0 to {len(classes) - 1}.{f' Write {how}' if how is not None else ''}"
        )


def check_sets(sets: Any) -> None:
    """Raise UserError if images of a kind that Imago does not ship have no valid pixels."""
    for kind, images in _own_images(sets):
        with suppress(BadImageError):  # data.on_bad_image decides
            check_pixels(f"{kind}: read", images.read(0), images.channels)


def check_box(key: str, policy: CropPolicy) -> None:
    """Raise UserError unless a crop policy returns a CropBox."""
    while isinstance(policy, FittedBox):
        policy = policy.box
    if not isinstance(box := policy(64, 64), CropBox):
        raise UserError(
            f"{key} returns {kind_of(box)}. It must return imago.data.CropBox(top, left, height, width), in pixels."
        )


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


def check_same_images(counts: Mapping[str, Mapping[str, int]], root: str) -> None:
    """Raise UserError unless all processes of a run, which call this together, have as many images of each class, in
    each split: on several nodes, each may have a copy of its own."""
    own = {split: dict(classes) for split, classes in counts.items()}
    processes = all_gather_objects((socket.gethostname(), own))
    first = processes[0][1]
    for rank, (host, these) in enumerate(processes):
        if these != first:
            raise UserError(
                f"Process {rank} ({host}) has other images in {root} than process 0: {_differences(these, first)}. "
                "Each node must have all of them."
            )


def _differences(counts: Mapping[str, Mapping[str, int]], expected: Mapping[str, Mapping[str, int]]) -> str:
    """List the classes of each split of which the numbers of images differ."""
    differences = []
    for split in {**expected, **counts}:
        these, those = counts.get(split, {}), expected.get(split, {})
        for name in {**those, **these}:
            if (here := these.get(name, 0)) != (there := those.get(name, 0)):
                differences.append(f"{here} of {name} in {split}, not {there}")
    return shortened(differences)
