"""Division of a folder's images into train, val and test, or into folds and test, as `ml-split` writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imago.data.allocation import Allocation, units_of
from imago.data.drawn_splits import draw_split, places_of
from imago.data.folder_images import FolderImages
from imago.data.grouping import groups_of_units
from imago.data.split_files import SplitRow
from imago.definitions import CALIBRATION, HELD_OUT
from imago.errors import UserError
from imago.terminal import shortened


@dataclass(frozen=True)
class SplitPlan:
    """Fractions of all images that become val, calibration and test; with `folds`, test is held out, and the rest is
    divided evenly."""

    val: float
    test: float
    seed: int
    folds: int | None = None
    calibration: float = 0.0

    @property
    def fractions(self) -> dict[str, float]:
        """Part -> fraction of all images, without empty parts. Folds are named by their numbers."""
        if self.folds is not None:
            fractions = {str(fold): (1 - self.test) / self.folds for fold in range(self.folds)} | {"test": self.test}
        else:
            rest = 1 - self.val - self.calibration - self.test
            fractions = {"train": rest, "val": self.val, CALIBRATION: self.calibration, "test": self.test}
        return {part: fraction for part, fraction in fractions.items() if fraction > 0}

    def title_of(self, part: str) -> str:
        """Name of a part where it is shown: `fold 0`."""
        return part if self.folds is None or part == "test" else f"fold {part}"

    def part_of(self, row: SplitRow) -> str:
        """Part to which a row belongs.

        Raises:
            ValueError: These settings have no such part: the row was edited.
        """
        part = row.split if self.folds is None or row.split == "test" else str(row.fold)
        if part not in self.fractions:
            where = f"split {row.split}" + (f", fold {'' if row.fold is None else row.fold}" if self.folds else "")
            raise UserError(
                f"The row of {row.path} has {where}; the settings of the file have {', '.join(self.fractions)}. "
                "Correct the row, or type another --output."
            )
        return part

    def parts(
        self,
        images: FolderImages,
        links: Sequence[Sequence[int]],
        before: Mapping[str, str],
        groups: Sequence[str] = (),
    ) -> tuple[list[str], list[int]]:
        """Draw the part of each image. Images that `links` connect stay together, those with a part `before` keep it.
        New images follow their group, even where a link leads into another part.

        Without either, val and test are those of `data.val_ratio` and `data.test_ratio`.

        Returns:
            The parts, and the positions of linked images that were in several parts before.
        """
        if self.folds is None and not links and not before and not self.calibration:
            drawn = draw(images, self.val, self.test, self.seed)
            part_of = {path: part for part, own in drawn.items() for path in own.paths}
            return [part_of[path] for path in images.paths], []
        allocation = Allocation(
            self.fractions,
            np.asarray(images.labels, dtype=np.int64),
            units_of(len(images), links),
            places_of(images.paths, self.seed),
        )
        known = [before.get(path) for path in images.paths]
        of_group = {group: part for group, part in zip(groups, known, strict=False) if part is not None}
        if groups:
            known = [part or of_group.get(group) for part, group in zip(known, groups, strict=True)]
        return allocation.of_all(known)

    def rows(
        self,
        images: FolderImages,
        class_names: Sequence[str],
        parts: Sequence[str],
        groups: Sequence[str] = (),
        alike: Sequence[Sequence[int]] = (),
    ) -> list[SplitRow]:
        """Return a row per image, in the order of the parts and of the images. Fold 0 is val for who asks for none.
        Images that `alike` connects, lists of positions, are a group in the file.

        Raises:
            ValueError: A part would be empty, or train would lack a class.
        """
        self._check(images.labels, class_names, parts)
        folds = [None if self.folds is None or part == "test" else int(part) for part in parts]
        splits = [
            part if fold is None else "val" if fold == 0 else "train" for part, fold in zip(parts, folds, strict=True)
        ]
        names = [class_names[label] for label in images.labels]
        if alike:
            groups = groups_of_units(images.paths, groups, units_of(len(images), alike).tolist())
        rows = list(map(SplitRow, splits, images.paths, names, folds, groups or [""] * len(splits)))
        order = {part: number for number, part in enumerate(self.fractions)}
        return sorted(rows, key=lambda row: order[self.part_of(row)])

    def _check(self, labels: Sequence[int], class_names: Sequence[str], parts: Sequence[str]) -> None:
        if empty := [self.title_of(part) for part in self.fractions if part not in {*parts}]:
            raise UserError(
                f"{shortened(empty)} would be empty: there are too few images, or too few groups. Type larger "
                "fractions, or fewer folds."
            )
        trained = {(part, label) for part, label in zip(parts, labels, strict=True) if part not in HELD_OUT}
        counts = np.bincount([label for _, label in trained], minlength=len(class_names)).tolist()
        least = 1 if self.folds is None else 2
        if lacking := [name for name, count in zip(class_names, counts, strict=True) if count < least]:
            where = "train" if self.folds is None else "two folds or more"
            raise UserError(
                f"{shortened(lacking)}: each class needs images in {where}. Give more images or groups, type a smaller "
                "--test, or leave the class out."
            )


def draw(images: FolderImages, val: float, test: float, seed: int) -> dict[str, FolderImages]:
    """Draw stratified splits, as `data.val_ratio` and `data.test_ratio` do; `val` and `test` are fractions of all
    images. A split without images is left out."""
    paths, labels = images.paths, images.labels
    in_test = draw_split(paths, labels, test, seed, from_end=True).indices if test else []
    in_val = draw_split(paths, labels, val, seed, taken=set(in_test)).indices if val else []
    chosen = {*in_test, *in_val}
    in_train = [index for index in range(len(images)) if index not in chosen]
    splits = {"train": in_train, "val": in_val, "test": in_test}
    return {name: images.select(indices) for name, indices in splits.items() if indices}
