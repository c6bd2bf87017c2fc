"""Trainings against each other: reads their answers, tests each two, and puts the results into words."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from imago.cli.contestants import Contestant, has_folds, overlap_of, paired_runs
from imago.comparison.paired import LEVEL, RESAMPLES, Counts
from imago.comparison.results import PairResult, RepeatedResult, compare_pair, compare_repeated
from imago.comparison.sentences import describe, describe_several, describe_undecided, p_text
from imago.comparison.several import holm
from imago.errors import UserError
from imago.files import strict
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
    notes: list[str] = field(default_factory=list)
    _answers: dict[Any, Answers] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The split that is compared."""
        return self.split or ("val" if has_folds(self.sides) else "test")

    @property
    def is_repeated(self) -> bool:
        """Whether some training has several runs."""
        return any(len(side.runs) > 1 for side in self.sides)

    @cached_property
    def results(self) -> dict[tuple[int, int], Result]:
        """Result of each two trainings, by their places; the earlier one is A.

        Raises:
            UserError: They were scored on different images, or with different labels.
        """
        results = {
            (i, j): self._compared(self.sides[i], self.sides[j]) for i, j in combinations(range(len(self.sides)), 2)
        }
        if len(results) > 1 and (note := describe_undecided(list(results.values()))):
            self.notes.append(note)
        return results

    @cached_property
    def adjusted(self) -> dict[tuple[int, int], float]:
        """P-values after Holm's correction."""
        return dict(zip(self.results, holm([result.p for result in self.results.values()]), strict=True))

    @cached_property
    def accuracies(self) -> list[float]:
        """Accuracy of each training; the mean over its runs, of two trainings over the paired ones."""
        if len(self.sides) == 2 and self.is_repeated:
            (result,) = self.results.values()
            assert isinstance(result, RepeatedResult)
            return [statistics.fmean(result.a), statistics.fmean(result.b)]
        return [sum(self._accuracy(run) for run in side.runs) / len(side.runs) for side in self.sides]

    def sentence(self) -> str:
        """Sentence about all trainings, with which every output begins."""
        names = [side.name for side in self.sides]
        if len(self.sides) > 2:
            return describe_several(names, self.accuracies, self.adjusted)
        (result,) = self.results.values()
        return describe(result, *names)

    def answers(self, run: Overview) -> Answers:
        """Answers of a run on the split."""
        if run.folder not in self._answers:
            self._answers[run.folder] = read_answers(run, self.asked)
        return self._answers[run.folder]

    def flips(self, right: Contestant, wrong: Contestant) -> list[dict[str, Any]]:
        """Images that one run has right and the other one wrong, the surest wrong answers first."""
        good, bad = self.answers(right.runs[0]), self.answers(wrong.runs[0])
        entries = []
        for path, label, answer in zip(good.paths, good.labels, good.predictions, strict=True):
            at = bad.index[path]
            if answer == label != bad.predictions[at]:
                wrong_answer = bad.predictions[at] or "unreadable"
                entries.append(
                    {"path": path, "label": label, "wrong": wrong_answer, "probability": bad.probabilities[at]}
                )
        return sorted(entries, key=lambda entry: -entry["probability"])

    def to_plain(self) -> dict[str, Any]:
        """Everything in plain types, for JSON."""
        content: dict[str, Any] = {"sentence": self.sentence(), "split": self.asked}
        content["trainings"] = [
            {
                "name": side.name,
                "what": side.what,
                "folders": [str(run.folder) for run in side.runs],
                "accuracy": accuracy,
            }
            for side, accuracy in zip(self.sides, self.accuracies, strict=True)
        ]
        content["comparisons"] = [
            {"a": self.sides[i].name, "b": self.sides[j].name, "holm_p": self.adjusted[i, j], **result.to_plain()}
            for (i, j), result in self.results.items()
        ]
        if self.has_flips:
            a, b = self.sides
            content["flips"] = {f"only_{a.name}": self.flips(a, b), f"only_{b.name}": self.flips(b, a)}
        return strict(content | {"notes": self.notes})

    @property
    def flip_counts(self) -> tuple[int, int]:
        """Numbers of images that only A, and that only B, has right."""
        (result,) = self.results.values()
        return (result.counts.only_a, result.counts.only_b) if isinstance(result, PairResult) else (0, 0)

    @property
    def has_flips(self) -> bool:
        """Whether there are lists of the images on which two runs differ."""
        return len(self.sides) == 2 and not self.is_repeated

    def _accuracy(self, run: Overview) -> float:
        answers = self.answers(run)
        return answers.right / len(answers)

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

    def _compared(self, a: Contestant, b: Contestant) -> Result:
        if not self.is_repeated:
            return compare_pair(self._counts(a.runs[0], b.runs[0]), self.margin, self.seed)
        pairs, note = paired_runs(a, b)
        if note:
            self.notes.append(note)
        counts = [self._counts(first, second) for _, first, second in pairs]
        overlap = max(overlap_of(first) for _, first, _ in pairs) if has_folds((a, b)) else 0.0
        names, n = [name for name, _, _ in pairs], [count.n for count in counts]
        a_rates = [count.right_a / images for count, images in zip(counts, n, strict=True)]
        b_rates = [count.right_b / images for count, images in zip(counts, n, strict=True)]
        return compare_repeated(names, a_rates, b_rates, overlap, self.margin, 1 / min(n))


def check_options(split: str | None, margin: float | None) -> None:
    """Raise UserError for a split or a margin that cannot be."""
    if margin is not None and not 0 < margin < 1:
        raise UserError(f"--margin must be a fraction above 0 and below 1, got {margin:g}. For example: --margin 0.02")
    if split is not None and split not in ("train", "val", "test"):
        raise UserError(f"--split must be train, val or test, got {split}.")


def table_of_tests(versus: Versus) -> dict[str, Any]:
    """The tests of two trainings, each with its result: `title`, `heads`, `numbers` and `rows`."""
    (result,) = versus.results.values()
    a, b = versus.sides
    rows = (
        _pair_rows(result, a.name, b.name, versus.seed)
        if isinstance(result, PairResult)
        else _repeated_rows(result, b.name)
    )
    return {"title": "Tests", "heads": ["test", "result"], "numbers": [False, False], "rows": rows}


def _pair_rows(result: PairResult, a: str, b: str, seed: int) -> list[list[str]]:
    counts = result.counts
    rows = [
        [
            "images",
            f"both right {counts.both}, only {a} {counts.only_a}, only {b} {counts.only_b}, neither {counts.neither}",
        ],
        ["exact McNemar", p_text(result.p)],
        [f"95% interval of {b} - {a}", _interval(result.low, result.high, counts.n)],
    ]
    if result.bootstrap is not None:
        name = f"paired bootstrap ({RESAMPLES:,} resamples, seed {seed})"
        rows.append([name, _interval(*result.bootstrap, counts.n)])
    return [*rows, *_equivalence_rows(result)]


def _repeated_rows(result: RepeatedResult, b: str) -> list[list[str]]:
    wins, low, high = result.wins
    if result.overlap:
        tests = [["corrected resampled t", p_text(result.p)]]
    else:
        least = f", the least possible is {result.least_p:.2g}" if result.least_p > LEVEL else ""
        tests = [["exact sign-flip permutation", f"{p_text(result.p)}{least}"]]
    interval = "95% interval (t)" if result.is_normal else "95% interval (sign-flip)"
    return [
        ["mean difference", f"{100 * result.mean:+.2f}%"],
        *tests,
        [interval, f"{100 * result.low:+.2f}% to {100 * result.high:+.2f}%"],
        [f"probability that {b} wins a pair", f"{wins:.2f} (95%: {low:.2f} to {high:.2f})"],
        *_equivalence_rows(result),
    ]


def _equivalence_rows(result: Result) -> list[list[str]]:
    if result.margin is None or result.equivalence is None:
        return []
    return [[f"equivalence within {100 * result.margin:g}% (TOST)", p_text(result.equivalence)]]


def _interval(low: float, high: float, n: int) -> str:
    return f"{100 * low:+.2f}% to {100 * high:+.2f}% ({n * low:+.1f} to {n * high:+.1f} images)"


def table_of_pairs(versus: Versus) -> dict[str, Any]:
    """Each two of several trainings, by their p after Holm's correction."""
    rows = []
    for (i, j), result in sorted(versus.results.items(), key=lambda entry: versus.adjusted[entry[0]]):
        mean = result.counts.gain / result.counts.n if isinstance(result, PairResult) else result.mean
        interval = f"{100 * result.low:+.2f}% to {100 * result.high:+.2f}%"
        names = f"{versus.sides[j].name} - {versus.sides[i].name}"
        numbers = [f"{100 * mean:+.2f}%", interval, f"{result.p:.2g}", f"{versus.adjusted[i, j]:.2g}"]
        said = "differ" if versus.adjusted[i, j] <= LEVEL else "cannot be told apart"
        equivalent = [] if result.equivalence is None else [f"{result.equivalence:.2g}"]
        rows.append([names, *numbers, said, *equivalent])
    heads = ["pair", "difference", "95% (of this pair)", "p", "p (Holm)", "", "p of equivalence (TOST, of this pair)"]
    heads = heads if versus.margin is not None else heads[:-1]
    aligned = [False, True, True, True, True, False, True][: len(heads)]
    return {"title": "Each two", "heads": heads, "numbers": aligned, "rows": rows}


def table_of_runs(versus: Versus) -> dict[str, Any] | None:
    """Accuracy in each pair of runs; None for single runs."""
    if not versus.is_repeated or len(versus.sides) != 2:
        return None
    (result,) = versus.results.values()
    assert isinstance(result, RepeatedResult)
    rows = [
        [name, f"{a:.4f}", f"{b:.4f}", f"{100 * (b - a):+.2f}%"]
        for name, a, b in zip(result.pairs, result.a, result.b, strict=True)
    ]
    heads = ["pair", *(side.name for side in versus.sides), "difference"]
    return {"title": "Runs", "heads": heads, "numbers": [False, True, True, True], "rows": rows}


def tables(versus: Versus) -> list[dict[str, Any]]:
    """All tables, in their order."""
    if len(versus.sides) > 2:
        return [table_of_pairs(versus)]
    runs = table_of_runs(versus)
    return [table_of_tests(versus), *([runs] if runs is not None else [])]


def sides_of(versus: Versus) -> list[dict[str, str]]:
    """Name, run and accuracy of each training."""
    return [
        {"name": side.name, "what": side.what, "accuracy": f"{accuracy:.4f}{_of(versus, side)}"}
        for side, accuracy in zip(versus.sides, versus.accuracies, strict=True)
    ]


def _of(versus: Versus, side: Contestant) -> str:
    if len(side.runs) > 1:
        pairs = [len(result.pairs) for result in versus.results.values() if isinstance(result, RepeatedResult)]
        return f" (mean of {pairs[0] if len(pairs) == 1 else len(side.runs)} runs)"
    answers = versus.answers(side.runs[0])
    return f" ({answers.right} of {len(answers)})"
