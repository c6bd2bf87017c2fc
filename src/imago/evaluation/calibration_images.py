"""The images of the calibration split that count: unseen ones, and each independent of the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imago.data.drawn_splits import places_of
from imago.data.module import ImageDataModule
from imago.definitions import CALIBRATION
from imago.errors import UserError
from imago.run.overview import find_runs, seconds_since
from imago.terminal import counted, shortened

HOW = "Train with data.calibration_ratio=0.5"
CHOSEN = (
    "nothing can be promised of images that may have been chosen by what the network says of them. Undo it, or "
    "calibrate on new images."
)


def independent_images(data: ImageDataModule, entry: Mapping[str, Any]) -> tuple[NDArray[np.bool_], list[str]]:
    """Mask (n,) of the images of the calibration split that count for a checkpoint with the entry `imago`, and notes on
    the others: those that trained or chose it, and copies. Of each group of a split file one image counts.

    Raises:
        ValueError: It cannot be told which images trained or chose the checkpoint, or labels were changed since.
    """
    _check_source(data, entry)
    images, size = data.split(CALIBRATION), len(data.split(CALIBRATION))
    digests, is_known = images.digests()
    seen = [known.numpy() for name in ("train_images", "val_images") if (known := entry.get(name)) is not None]
    seen += [getattr(data, f"{split}_digests").numpy() for split in ("train", "val") if split in data.sets.splits]
    is_seen = np.isin(digests, np.concatenate(seen)) & is_known
    contents = [digest if is_known[index] else images.paths[index] for index, digest in enumerate(digests.tolist())]
    is_copy = _repeats(contents, images.paths, is_seen)
    left_out = is_seen | is_copy
    notes = _described(int(is_seen.sum()), size, "are also in train or val, or trained or chose the checkpoint")
    notes += _described(int(is_copy.sum()), size, "have the content of another one")
    if groups := data.sets.groups:
        of_others = [
            path for split in ("train", "val") if split in data.sets.splits for path in data.split(split).paths
        ]
        own = [groups[path] or path for path in images.paths]
        others = {groups[path] for path in [*of_others, *data.trained_paths]}
        others |= {group for group, known in zip(own, is_seen.tolist(), strict=True) if known}
        is_shared = np.array([group in others for group in own]) & ~left_out
        is_further = _repeats(own, images.paths, left_out | is_shared)
        notes += _described(int(is_shared.sum()), size, "are of a group that trained or chose the checkpoint")
        notes += _described(int(is_further.sum()), size, "are of the group of another one")
        left_out |= is_shared | is_further
    return ~left_out, notes


def note_on_earlier_runs(data: ImageDataModule, entry: Mapping[str, Any], log_dir: Path) -> list[str]:
    """Note on the runs below `log_dir` that began before the checkpoint was written, and whose val scores are partly
    those of its calibration images: settings that were chosen by them make a promise too good."""
    if data.sets.drawn_calibration is None:
        return []
    folder, images = str(Path(data.sets.root).resolve()), len(data.split("val")) + len(data.split(CALIBRATION))
    runs = [
        run.folder.name
        for run in find_runs(log_dir)
        if run.task == "train"
        and run.data.get("folder") == folder
        and seconds_since(run.status.get("started")) > seconds_since(entry["timestamp"])
        and CALIBRATION not in (counts := run.data.get("counts", {}))
        and sum(counts.get("val", {}).values()) == images
    ]
    if not runs:
        return []
    return [
        f"{counted(len(runs), 'earlier run')} had no calibration split, and scored these {images} images as val "
        f"({shortened(runs)}): if these scores chose settings of this run, they have seen the images of {CALIBRATION}, "
        "and the promise is too good. Set data.calibration_ratio from the first run on"
    ]


def _repeats(keys: list[Any], paths: Any, left_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the images, among those that are not `left_out`, with the key of another one. Which one counts depends on
    the path alone, not on its label or its prediction."""
    first: dict[Any, int] = {}
    for index in np.argsort(places_of(paths, seed=0), kind="stable").tolist():
        if not left_out[index]:
            first.setdefault(keys[index], index)
    kept = {*first.values()}
    return np.array([index not in kept for index in range(len(keys))]) & ~left_out


def _described(count: int, size: int, what: str) -> list[str]:
    return [f"{count} of the {counted(size, 'image')} of {CALIBRATION} {what}, and do not count"] if count else []


def _check_source(data: ImageDataModule, entry: Mapping[str, Any]) -> None:
    """Raise UserError if images of the calibration split may have trained or chosen the checkpoint, or may have been
    left out, or given another label, for what it says of them."""
    if reason := entry.get("unrecorded"):
        raise UserError(
            f"The first weights of the checkpoint may have seen images of {CALIBRATION}, and it does not record theirs "
            f"({reason}): nothing can be promised. Train from model.init_from=RUN, whose images are compared, or "
            "without it."
        )
    if entry["data"]["fingerprint"] == data.facts["fingerprint"]:
        return
    if changes := [option for option, counts in data.sets.changed.items() if CALIBRATION in counts]:
        raise UserError(f"{' and '.join(changes)} changes images of {CALIBRATION} after the training: {CHOSEN}")
    if any(entry.get(name) is None for name in ("train_images", "val_images")):
        raise UserError(
            "The checkpoint does not record all images that it was trained on and chosen by (strategy=dp, or an "
            f"earlier Imago), so it may have seen those of {CALIBRATION} in {data.sets.root}, which are not the data "
            f"of its run: nothing can be promised. {HOW}."
        )
    if gone := _gone(data, entry):
        raise UserError(
            f"{counted(gone, 'image')} of {CALIBRATION} that the run set aside {'is' if gone == 1 else 'are'} gone, or "
            f"{'has' if gone == 1 else 'have'} another label: {CHOSEN}"
        )


def _gone(data: ImageDataModule, entry: Mapping[str, Any]) -> int:
    """Number of images that the run of the checkpoint set aside, and that calibration lacks now, or has with another
    label; 0 if none of these images is there, so that it is another set."""
    recorded = entry.get("calibration_images")
    if recorded is None:
        return 0
    known = {tuple(row) for row in recorded.tolist()}
    there = {tuple(row) for row in data.calibration_images.tolist()}
    if known.isdisjoint(there):
        return 0
    trained = {*entry["train_images"].tolist()}  # left out of calibration before
    return sum(digest not in trained for digest, _ in known - there)
