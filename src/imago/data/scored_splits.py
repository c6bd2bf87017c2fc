"""The splits of a data module: which one is scored, facts about them, and images that a network has seen."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imago.data.images import Images, ImageSets, class_counts, train_counts
from imago.data.transfer import CopyingDataModule
from imago.data.tree import divide_skipped
from imago.definitions import CALIBRATION, HELD_OUT, SPLITS
from imago.errors import UserError
from imago.terminal import CONTROL, by_split, counted, shortened

log = logging.getLogger(__name__)


class ScoredSplits(CopyingDataModule):
    """Base class of data modules: image sets, and the splits that are scored.

    Args:
        sets: The splits.
    """

    def __init__(self, sets: ImageSets) -> None:
        super().__init__()
        if odd := next((name for name in sets.class_names if CONTROL.search(name) or not name.strip()), None):
            raise UserError(
                f"The class name {odd!r} ({sets.root}) has control characters, which could affect a terminal. Rename "
                "it."
            )
        self.sets = sets
        self._emptied: dict[str, str] = {}  # split -> why it has no images
        self._trained_counts: list[int] = []
        self.skipped: list[str] = []
        self.trained_paths: list[str] = []
        """Images that were left out because the checkpoint was trained on them."""
        self.damaged: dict[str, str] = {}
        """Decoded JPEGs that are damaged inside: path -> what is wrong."""

    @property
    def class_names(self) -> list[str]:
        """Class names of the train split; a label is an index of this list."""
        return self.sets.class_names

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of images."""
        return {name: len(split) for name, split in self.sets.splits.items()}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Facts about the data for checkpoints and reports, in plain types."""
        counts = {name: class_counts(images, self.class_names) for name, images in self.sets.splits.items()}
        facts = {"root": str(self.sets.root), "fingerprint": self.sets.fingerprint(), "counts": counts}
        facts |= {"as_read": self.sets.as_read} if self.sets.as_read else {}
        return facts | ({"relabel": self.sets.relabelled} if self.sets.relabelled is not None else {})

    @property
    def notes(self) -> list[str]:
        """Facts about the data."""
        left_out = self.sets.changed.get("data.exclude", {})
        return [
            *self.sets.notes,
            *_files("skipped {}: not an image, or hidden", divide_skipped(self.sets.ignored)[1]),
            *_files(f"excluded {{}} (data.exclude): {by_split(left_out)}", self.sets.excluded),
            *_files(
                "{} damaged inside, with wrong pixels from some point on (ml-doctor names them)", list(self.damaged)
            ),
        ]

    @property
    def warnings(self) -> list[str]:
        """Facts that may make results worse than they look, or wrong."""
        warnings = [*self.sets.warnings, *self._changed_scores()]
        if "val" in self.sets.splits and not {"test"} & {*self.sets.splits, *self._emptied}:
            warnings.append(f"no test split in {self.sets.root}: the val split is scored as test")
        for split in self.sets.splits if "train" in self.sets.splits else ():
            counts = class_counts(self.sets.splits[split], self.class_names)
            if absent := [name for name, count in counts.items() if not count]:
                what = f"{split} lacks {len(absent)} of the {len(counts)} classes"
                warnings.append(f"{what}: {self._with_counts(absent)}")
        photos, _ = divide_skipped(self.sets.ignored)
        warnings += _files("skipped {} in a format that is not read (convert to JPEG or PNG)", photos)
        return [*warnings, *_files("skipped {}: unreadable", self.skipped)]

    def _changed_scores(self) -> list[str]:
        """Warning of images of val and test that were left out or relabelled."""
        changed = [
            f"{option} {what} {counted(count, 'image')} of {split}"
            for option, what in (("data.exclude", "leaves out"), ("data.relabel", "changes the labels of"))
            for split, count in self.sets.changed.get(option, {}).items()
            if split != "train"
        ]
        why = "if they were chosen by what a network got wrong, scores look too good. Compare these only with scores on"
        return [f"{' and '.join(changed)}: {why} the same images and labels"] if changed else []

    def _with_counts(self, names: Sequence[str]) -> str:
        """List classes with their number of train images."""
        counts = class_counts(self.sets.splits["train"], self.class_names)
        return shortened(f"{name} ({counts[name]} in train)" for name in names)

    @property
    def majority(self) -> list[int]:
        """Label of the most frequent class of train; several if they are equally frequent."""
        if "train" not in self.sets.splits:
            return most_frequent(self._trained_counts)
        return most_frequent(list(class_counts(self.sets.splits["train"], self.class_names).values()))

    def scored_split(self, split: str) -> str:
        """Return the split that is scored as `split`: val if there is no test split.

        Raises:
            ValueError: There is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"Unknown split {split!r}. The splits are {', '.join(SPLITS)}.")
        if split in self._emptied:
            raise UserError(self._emptied[split])
        scored = "val" if split == "test" and "test" not in self.sets.splits else split
        if scored not in self.sets.splits:
            if scored == "val":
                how = (
                    "A data module draws one from train with sets.draw_splits(val_ratio, seed): docs/extend/dataset.md"
                )
                raise UserError(f"{self.sets.root} has no val split. {how}")
            there = ", ".join(self.sets.splits)
            raise UserError(f"{self.sets.root} has no {split} split. Type split= with one of {there}.")
        return scored

    def leave_out_trained(self, trained: Mapping[str, Any], splits: Collection[str] = HELD_OUT) -> None:
        """Leave out of `splits` the images that a checkpoint was trained on, by content, unless these data are those of
        its run; `trained` is its entry `imago`."""
        self._trained_counts = train_counts(trained, self.class_names)
        same, known = trained["data"]["fingerprint"] == self.facts["fingerprint"], trained.get("train_images")
        if known is None or not len(known):
            if not same:
                log.warning("These data are not those of the checkpoint, which does not record its train images")
            return
        if same and "train" in self.sets.splits and np.isin(self.train_digests.numpy(), known.numpy()).all():
            return  # shared images were reported in training
        for split, count, paths in self._seen_before(known, splits):
            what = f"{len(paths)} of the {count} images of {split} are images that the checkpoint was trained on"
            is_new_draw = self.sets.drawn_test is not None and trained.get("drawn_test") is None
            if is_new_draw and split == "test" and 2 * len(paths) > count:
                raise UserError(f"{what}: it was trained without data.test_ratio. Type data.test_ratio=null")
            if len(paths) == count:
                del self.sets.splits[split]
                self._emptied[split] = f"{what}. Nothing is left to score."
            else:
                self.sets.leave_out(split, set(paths))
            self.trained_paths += paths
            self.say(f"{what}, and are excluded: {shortened(sorted(paths))}")
        if not self.sets.splits:
            raise UserError("\n".join(self._emptied.values()))
        self.__dict__.pop("facts", None)

    @cached_property
    def train_digests(self) -> Tensor:
        """Sorted digests of the train images, int64 (n,), by which `leave_out_trained` recognises them."""
        digests, is_known = self.sets.splits["train"].digests()
        return torch.from_numpy(np.sort(digests[is_known]))

    @cached_property
    def val_digests(self) -> Tensor:
        """Sorted digests of the val images, int64 (n,), by which `evaluation.promise` recognises those that chose a
        checkpoint."""
        digests, is_known = self.sets.splits["val"].digests()
        return torch.from_numpy(np.sort(digests[is_known]))

    @cached_property
    def calibration_images(self) -> Tensor:
        """Digest and label of each image of the calibration split, int64 (n, 2), by which
        `evaluation.calibration_images` recognises that one is gone."""
        images = self.sets.splits.get(CALIBRATION)
        if images is None:
            return torch.empty(0, 2, dtype=torch.int64)
        digests, is_known = images.digests()
        rows = np.stack([digests, np.asarray(images.labels, np.int64)], axis=1)[is_known]
        return torch.from_numpy(np.unique(rows, axis=0))

    def log_shared_images(self) -> None:
        """Warn of images of val, calibration and test whose content is also in train: scores on them are too good."""
        for split, count, paths in self._seen_before(self.train_digests):
            what = f"{len(paths)} of the {count} images of {split} are also in train"
            self.say(f"{what}, which makes its scores too good: {shortened(paths)}")

    def _seen_before(self, known: Tensor, splits: Collection[str] = HELD_OUT) -> Iterator[tuple[str, int, list[str]]]:
        """Yield split, size and paths of images whose digests are `known`, for those of `splits` that there are."""
        for split in HELD_OUT:
            if split not in splits or (images := self.sets.splits.get(split)) is None:
                continue
            digests, has_digest = images.digests()
            seen = np.flatnonzero(np.isin(digests, known.numpy()) & has_digest)
            paths = [images.paths[index] for index in seen.tolist()]
            if paths:
                yield split, len(images), paths

    def say(self, warning: str) -> None:
        """Add a warning, and log it."""
        self.sets.warnings.append(warning)
        log.warning("%s", warning)

    def split(self, name: str) -> Images:
        """Return the images of the split that is scored as `name`."""
        return self.sets.splits[self.scored_split(name)]

    def log_sets(self) -> None:
        """Log the sizes of the splits, and the notes and warnings on them."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        log.info("Data: %s: %d classes; %s images", self.sets.root, len(self.class_names), sizes)
        for split, images in self.sets.splits.items():
            log.debug("Class counts of %s: %s", split, class_counts(images, self.class_names))
        for note in self.notes:
            log.info("%s", note)
        for warning in self.warnings:
            log.warning("%s", warning)


def _files(what: str, paths: Sequence[str]) -> list[str]:
    """Sentence about files, if there are any."""
    files = counted(len(paths), "file")
    return [f"{what.format(files)}: {shortened(paths)}"] if paths else []


def most_frequent(counts: Sequence[int]) -> list[int]:
    """Return the labels of the largest classes."""
    return [label for label, count in enumerate(counts) if count == max(counts)]
