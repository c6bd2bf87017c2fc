"""Folds for cross-validation: one is the val split, the others are train, and test is held out."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imago.data.calibration_split import draw_calibration
from imago.data.drawn_splits import places_of
from imago.data.images import Images, ImageSets
from imago.errors import UserError
from imago.terminal import shortened

BY_FOLDS, BY_FILE = "folds", "file"
"""How the val split came to be, as checkpoints record it: a fold that was drawn, or one that a split file has."""
HIGHEST = 2.0  # above all places


def divide(
    sets: ImageSets,
    val_ratio: float,
    seed: int,
    test_ratio: float | None = None,
    recorded: Mapping[str, Any] | None = None,
    fold: int | None = None,
    folds: int | None = None,
    calibration_ratio: float = 0.0,
) -> None:
    """Draw the splits that `sets` lacks. With a `fold`, that fold becomes val and the others train: one that the split
    file has, or else one of the `folds` that are drawn from train and val together, by seed and path. A
    `calibration_ratio` above 0 then moves a fraction of val to the calibration split.

    `recorded` is the entry `imago` of a checkpoint: equal draws are repeated, so that images added later move none.

    Raises:
        ValueError: The settings contradict each other or the data, or a class has too few images.
    """
    recorded = recorded or {}
    if fold is None:
        if folds is not None:
            raise UserError(
                f"data.folds={folds} without data.fold: type the fold that is val, data.fold=0 to {folds - 1}. ml-cv "
                f"folds={folds} trains a run for each."
            )
        if sets.folds and "val" not in sets.splits:
            raise UserError(
                f"The split file of {sets.root} has folds and no val split: type data.fold=0 to "
                f"{number_of_folds(sets) - 1}, or ml-cv, which trains a run for each."
            )
        if test_ratio:
            _check_groups(sets, f"data.test_ratio={test_ratio}", f"--test {test_ratio}")
        if "val" not in sets.splits:
            _check_groups(sets, f"data.val_ratio={val_ratio}", f"--val {val_ratio}")
        if calibration_ratio:
            _check_groups(sets, f"data.calibration_ratio={calibration_ratio}", "--calibration 0.1")
        sets.draw_splits(val_ratio, seed, test_ratio, recorded)
        draw_calibration(sets, calibration_ratio, seed, recorded.get("drawn_calibration"))
        return
    if calibration_ratio:
        raise UserError(
            f"data.fold={fold} and data.calibration_ratio={calibration_ratio}: val is a fold, of which every image is "
            "predicted. Remove one of them."
        )
    if sets.folds:
        _take_fold(sets, fold, folds, test_ratio)
        return
    if folds is None:
        raise UserError(f"data.fold={fold} of how many? Add data.folds=5, or data.split_file= with a column fold.")
    if fold >= folds:
        raise UserError(f"data.fold={fold}: folds count from 0, so that the last of data.folds={folds} is {folds - 1}.")
    _check_groups(sets, f"data.folds={folds}", f"--folds {folds}{f' --test {test_ratio}' if test_ratio else ''}")
    pool_train_and_val(sets)
    if test_ratio:
        sets.draw_test(test_ratio, seed, recorded.get("drawn_test"))
    sets.drawn_val = _draw_fold(sets, fold, folds, seed, recorded.get("drawn_val"))
    _list_test_last(sets)


def _check_groups(sets: ImageSets, setting: str, option: str) -> None:
    """Raise UserError if a draw by image would put images of one group in several splits."""
    if sets.groups:
        raise UserError(
            f"{setting} draws single images, and would divide the groups of the split file of {sets.root} (its column "
            f"group). Write the splits to a file: ml-split PHOTOS {option} --group-regex REGEX --output FILE"
        )


def number_of_folds(sets: ImageSets) -> int:
    """Number of folds of a split file."""
    return 1 + max(sets.folds.values())


def labels_digest(sets: ImageSets) -> str:
    """Compute a hash of the paths and labels of train and val, which is that of all folds of the same data."""
    parts = [sets.splits[split] for split in ("train", "val") if split in sets.splits]
    rows = sorted(
        f"{path}\0{sets.class_names[label]}"
        for part in parts
        for path, label in zip(part.paths, part.labels, strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def pool_train_and_val(sets: ImageSets) -> None:
    """Add the val split, if there is one, to train: folds divide both."""
    val = sets.splits.pop("val", None)
    if val is None:
        return
    train = sets.splits["train"]
    sets.notes.append(f"folds divide the {len(train)} images of train and the {len(val)} of val together")
    sets.splits["train"] = train.joined(val)


def _take_fold(sets: ImageSets, fold: int, folds: int | None, test_ratio: float | None) -> None:
    """Make a fold of the split file val."""
    there = number_of_folds(sets)
    if folds not in (None, there):
        raise UserError(f"data.folds={folds}: the split file of {sets.root} has {there}. Remove data.folds=.")
    if fold >= there:
        raise UserError(f"data.fold={fold}: the split file of {sets.root} has the folds 0 to {there - 1}.")
    if test_ratio:
        raise UserError(
            f"data.test_ratio={test_ratio} and a split file with folds: images of one group could be in train and test."
            f" Write the test split to the file: ml-split PHOTOS --folds {there} --test {test_ratio} --output FILE"
        )
    pool_train_and_val(sets)
    train = sets.splits["train"]
    own = np.array([sets.folds[path] for path in train.paths])
    labels = np.asarray(train.labels)
    _check_spread(sets, {label: len(set(own[labels == label].tolist())) for label in set(labels.tolist())})
    sets.drawn_val = {"fold": fold, "by": BY_FILE}
    sets.notes.append(f"val is fold {fold} of the {there} of the split file")
    _hold_out(sets, own == fold)
    _list_test_last(sets)


def _draw_fold(sets: ImageSets, fold: int, folds: int, seed: int, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Move a drawn fold from train to val. Returns the record of the draw."""
    train = sets.splits["train"]
    if folds > len(train):
        raise UserError(f"data.folds={folds}: {len(train)} images cannot be divided into so many. Type fewer.")
    labels, places = np.asarray(train.labels), places_of(train.paths, seed)
    record = {"fold": fold, "folds": folds, "seed": seed, "by": BY_FOLDS}
    is_repeated = recorded is not None and all(recorded.get(key) == value for key, value in record.items())
    lows, highs = (
        ({name: float(value) for name, value in recorded.get(side, {}).items()} for side in ("lows", "highs"))
        if is_repeated and recorded is not None
        else _interval(places, labels, fold, folds, sets.class_names)
    )
    low, high = (np.array([side.get(name, -1.0) for name in sets.class_names]) for side in (lows, highs))
    is_val = (places > low[labels]) & (places <= high[labels])
    _check_spread(sets, {label: min(count, folds) for label, count in Counter(labels.tolist()).items()})
    how = "as the checkpoint records" if is_repeated else "stratified"
    sets.notes.append(
        f"{is_val.sum()} of {len(train)} images were drawn as val, fold {fold} of {folds} ({how}, by seed {seed} and "
        "path)"
    )
    _hold_out(sets, is_val)
    return record | {"lows": lows, "highs": highs}


def _interval(
    places: NDArray[np.float64], labels: NDArray[Any], fold: int, folds: int, class_names: list[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Class name -> the place above which a fold begins, and that with which it ends. Each class, in the order of its
    places, is divided evenly; the folds that get one image more take turns, so that all are of nearly one size."""
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    turn = 0
    for label, name in enumerate(class_names):
        ordered = np.sort(places[labels == label])
        sizes = np.full(folds, len(ordered) // folds)
        rest = len(ordered) % folds
        sizes[(turn + np.arange(rest)) % folds] += 1
        turn += rest
        first, end = sizes[:fold].sum(), sizes[: fold + 1].sum()
        lows[name] = float(ordered[first - 1]) if first else -1.0
        highs[name] = HIGHEST if fold == folds - 1 else float(ordered[end - 1]) if end else -1.0
    return lows, highs


def _check_spread(sets: ImageSets, spread: Mapping[int, int]) -> None:
    """Raise UserError if all images of a class are in one fold: where that is val, none is left to train on. `spread`
    maps labels to their numbers of folds."""
    if alone := [sets.class_names[label] for label, count in spread.items() if count < 2]:
        raise UserError(
            f"Each class needs images in two folds or more, and {shortened(alone)} has them in one. Give more images, "
            "or leave the class out."
        )


def _hold_out(sets: ImageSets, is_val: NDArray[np.bool_]) -> None:
    train = sets.splits["train"]
    sets.splits["train"] = train.select(np.flatnonzero(~is_val).tolist())
    sets.splits["val"] = train.select(np.flatnonzero(is_val).tolist())


def _list_test_last(sets: ImageSets) -> None:
    test: Images | None = sets.splits.pop("test", None)
    if test is not None:
        sets.splits["test"] = test
