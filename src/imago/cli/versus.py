"""Trainings against each other: reads their answers, tests each two, and puts the results into words."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from imago.cli.contestants import (
    Contestant,
    Key,
    by_seed,
    describe_key,
    describe_keys,
    has_folds,
    listed,
    matched_runs,
    overlap_of,
)
from imago.comparison.paired import Counts
from imago.comparison.results import PairResult, RepeatedResult, compare_pair, compare_repeated
from imago.comparison.sentences import describe, describe_several
from imago.comparison.several import holm
from imago.errors import UserError
from imago.run.answers import Answers, check_same_images, read_answers
from imago.run.overview import Overview

Result = PairResult | RepeatedResult


@dataclass
class Versus:
    """Two or more trainings, compared on one split.

    Args:
        sides: The trainings.
        split: The split, or None for test, or for val where their folds differ.
        margin: Difference below which two count as equivalent.
        seed: Seed of the bootstrap.
    """

    sides: Sequence[Contestant]
    split: str | None = None
    margin: float | None = None
    seed: int = 0
    _answers: dict[Any, Answers] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The split that is compared."""
        return self.split or ("val" if has_folds(self.sides) else "test")

    @cached_property
    def scored(self) -> str:
        """The split whose images were scored: val, where there is no test split."""
        return " and ".join(sorted({run.scored_split(self.asked) for side in self.sides for run in side.runs}))

    @cached_property
    def shared(self) -> list[tuple[Key, list[Overview]]]:
        """Each seed and fold that all trainings have, with the run of each; of single runs, these.

        Raises:
            UserError: They share fewer than two, or their folds are none.
        """
        if all(len(side.runs) == 1 for side in self.sides):
            return [((), [side.runs[0] for side in self.sides])]
        shared = matched_runs(self.sides)
        if has_folds(self.sides):
            self._check_folds(shared)
        return shared

    @cached_property
    def matched(self) -> list[tuple[Key, list[Overview]]]:
        """The `shared` runs, but the first ones alone where no seed changes an answer: they are one run.

        Raises:
            UserError: That is so of some trainings, and not of all.
        """
        alike = [side.name for place, side in enumerate(self.sides) if self._are_alike(place)]
        if len(self.shared) == 1 or not alike:
            return self.shared
        if len(alike) < len(self.sides):
            raise UserError(
                f"All {len(self.shared)} runs of {listed(alike)} gave the same answers, as if the seeds changed "
                "nothing: this is one run, which cannot be compared with several. Compare one of each: "
                "ml-compare RUN_A RUN_B"
            )
        return self.shared[:1]

    @property
    def first_runs(self) -> list[Overview]:
        """The first of the runs of each training that are compared."""
        return self.matched[0][1]

    @property
    def is_repeated(self) -> bool:
        """Whether several runs of each training are compared."""
        return len(self.matched) > 1

    @cached_property
    def results(self) -> dict[tuple[int, int], Result]:
        """Result of each two trainings, by their places; the earlier one is A.

        Raises:
            UserError: They were scored on different images, or with different labels.
        """
        return {(i, j): self._compared(i, j) for i, j in combinations(range(len(self.sides)), 2)}

    @cached_property
    def adjusted(self) -> dict[tuple[int, int], float]:
        """P-values after Holm's correction."""
        return dict(zip(self.results, holm([result.p for result in self.results.values()]), strict=True))

    @cached_property
    def accuracies(self) -> list[float]:
        """Accuracy of each training: the mean over its runs that are compared."""
        answers = [[self.answers(run) for run in runs] for _, runs in self.matched]
        return [statistics.fmean(one.right / len(one) for one in column) for column in zip(*answers, strict=True)]

    @cached_property
    def overlap(self) -> float:
        """Scored images over train images where the runs have images of their own: folds, or splits that each seed
        draws; 0 where all have the same ones."""
        paths = [self.answers(runs[0]).index.keys() for _, runs in self.matched]
        if all(own == paths[0] for own in paths):
            return 0.0
        return max(overlap_of(runs[0], self.scored) for _, runs in self.matched)

    def sentence(self) -> str:
        """Sentence about all trainings, with which every output begins."""
        names, results = [side.name for side in self.sides], list(self.results.values())
        if len(self.sides) > 2:
            return describe_several(names, self.accuracies, self.adjusted)
        return describe(results[0], *names)

    def answers(self, run: Overview) -> Answers:
        """Answers of a run on the split."""
        if run.folder not in self._answers:
            self._answers[run.folder] = read_answers(run, self.asked)
        return self._answers[run.folder]

    def flips(self, right: Contestant, wrong: Contestant) -> list[dict[str, Any]]:
        """Images that one run has right and the other one wrong, the surest wrong answers first."""
        good, bad = (self.answers(self.first_runs[self.sides.index(side)]) for side in (right, wrong))
        entries = []
        for path, label, answer in zip(good.paths, good.labels, good.predictions, strict=True):
            at = bad.index[path]
            if answer == label != bad.predictions[at]:
                wrong_answer = bad.predictions[at] or "unreadable"
                entries.append(
                    {"path": path, "label": label, "wrong": wrong_answer, "probability": bad.probabilities[at]}
                )
        return sorted(entries, key=lambda entry: -entry["probability"])

    @property
    def flip_counts(self) -> tuple[int, int]:
        """Numbers of images that only A, and that only B, has right."""
        (result,) = self.results.values()
        return (result.counts.only_a, result.counts.only_b) if isinstance(result, PairResult) else (0, 0)

    @property
    def has_flips(self) -> bool:
        """Whether there are lists of the images on which two runs differ."""
        return len(self.sides) == 2 and not self.is_repeated

    def _are_alike(self, place: int) -> bool:
        """Whether all runs of a training gave the same answers."""
        answers = [self.answers(runs[place]) for _, runs in self.shared]
        return all((own.paths, own.predictions) == (answers[0].paths, answers[0].predictions) for own in answers)

    def _check_folds(self, shared: Sequence[tuple[Key, list[Overview]]]) -> None:
        """Raise UserError for folds that are not compared on images of their own."""
        if self.asked != "val":
            raise UserError(
                f"--split {self.asked}: the folds of a training share images of {self.asked}, and there is no test "
                "for that. Leave --split out, to compare them on val, or compare two single runs: "
                f"ml-compare RUN_A RUN_B --split {self.asked}"
            )
        for folds in by_seed(shared):
            seen: dict[str, Key] = {}
            for key, runs in folds:
                paths = self.answers(runs[0]).paths
                if path := next((path for path in paths if path in seen), None):
                    raise UserError(
                        f"{describe_key(seen[path])} and {describe_key(key)} of {self.sides[0].name} have the same "
                        f"images in val, such as {path}: they are no folds of one division. Score each on its own "
                        "fold, or compare two single runs: ml-compare RUN_A RUN_B"
                    )
                seen.update(dict.fromkeys(paths, key))

    def _counts(self, a: Overview, b: Overview) -> Counts:
        first, second = self.answers(a), self.answers(b)
        classes = (a.data.get("class_names"), b.data.get("class_names"))
        places = check_same_images(first, second, (str(a.folder), str(b.folder)), classes)
        rights = [
            (label == answer, label == second.predictions[at], answer == second.predictions[at])
            for label, answer, at in zip(first.labels, first.predictions, places, strict=True)
        ]
        both, only_a, only_b, neither = (
            sum((is_a, is_b) == kind for is_a, is_b, _ in rights)
            for kind in ((True, True), (True, False), (False, True), (False, False))
        )
        return Counts(both, only_a, only_b, neither, same=sum(same for _, _, same in rights))

    def _compared(self, i: int, j: int) -> Result:
        counts = [self._counts(runs[i], runs[j]) for _, runs in self.matched]
        if not self.is_repeated:
            return compare_pair(counts[0], self.margin, self.seed)
        keys, n = [key for key, _ in self.matched], [count.n for count in counts]
        a_rates = [count.right_a / images for count, images in zip(counts, n, strict=True)]
        b_rates = [count.right_b / images for count, images in zip(counts, n, strict=True)]
        over = describe_keys(keys)
        if self.overlap and not has_folds(self.sides):
            over = f"{over}, each with images of its own"
        names = [describe_key(key) for key in keys]
        return compare_repeated(names, a_rates, b_rates, self.overlap, self.margin, 1 / min(n), over)


def check_options(split: str | None, margin: float | None, seed: int | None) -> None:
    """Raise UserError for a split, a margin or a seed that cannot be."""
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"--margin must be a fraction above 0 and below 1, got {margin:g}. For example: --margin 0.02")
    if split is not None and split not in ("train", "val", "test"):
        raise UserError(f"--split must be train, val or test, got {split}.")
    if seed is not None and seed < 0:
        raise UserError(f"--seed must be 0 or more, got {seed}.")
