"""The trainings that `ml-compare A B` sets against each other: runs, or several runs by seed or fold."""

import glob
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from imago.cli.run_table import REPEATED, grouped
from imago.config.setting_source import shown_path
from imago.errors import UserError
from imago.files import did_you_mean
from imago.run.differences import differing_settings
from imago.run.find import LATEST, find_run
from imago.run.overview import Overview, find_runs
from imago.terminal import counted, shortened

OF_SCORES = ("ckpt_path", "trainer.default_root_dir")
"""Settings that every folder of ml-eval has of its own, whatever was trained."""
Key = tuple[str, ...]
"""Seed and fold of a run, as texts."""


@dataclass(frozen=True)
class Contestant:
    """A training.

    Args:
        name: Its letter.
        what: What was typed for it, or its first run and the number of others.
        runs: Its run, or its runs by seed or fold.
    """

    name: str
    what: str
    runs: Sequence[Overview]

    @property
    def keys(self) -> dict[Key, Overview]:
        """Seed and fold -> run.

        Raises:
            UserError: Two runs have the same.
        """
        keys: dict[Key, Overview] = {}
        for run in self.runs:
            if (before := keys.setdefault(key_of(run), run)) is not run:
                raise UserError(
                    f"{self.name} has two runs with {describe_key(key_of(run))}: {before.folder} and {run.folder}. "
                    "Type the runs of one."
                )
        return keys


def key_of(run: Overview) -> Key:
    """Seed and fold of a run; empty for what it does not have."""
    return tuple("" if (value := run.setting(key)) is None else str(value) for key in REPEATED)


def describe_key(key: Key) -> str:
    """Name a pair of runs: `seed 1`, or `seed 1, fold 2`."""
    named = zip(REPEATED.values(), key, strict=True)
    return ", ".join(f"{noun} {value}" for noun, value in named if value) or "no seed"


def contestants(words: Sequence[str], log_dir: Path) -> list[Contestant]:
    """Find the trainings of two or more words. Where more than two runs are typed, those that differ in their seed or
    fold alone are one training.

    Raises:
        UserError: A word names no run, or runs that differ in other settings, too.
    """
    typed = [(word, _runs(word, log_dir)) for word in words]
    if len(typed) > 2 and all(len(runs) == 1 for _, runs in typed):
        runs = [run for _, (run,) in typed]
        groups = grouped(runs, _differing(runs))
        if 1 < len(groups) < len(runs):
            named = [(shown_path(group.runs[0].folder), group.runs) for group in groups]
            typed = [
                (f"{name} and {len(runs) - 1} more" if len(runs) > 1 else name, list(runs)) for name, runs in named
            ]
    for word, runs in typed:
        _check_alike(word, runs)
    return [Contestant(letter, word, runs) for letter, (word, runs) in zip(_letters(len(typed)), typed, strict=True)]


def _letters(count: int) -> list[str]:
    """A, B, … and, for more than 26, AA, AB, …"""
    letters = string.ascii_uppercase
    return (
        list(letters[:count]) if count <= len(letters) else ["".join(two) for two in product(letters, repeat=2)][:count]
    )


def _runs(word: str, log_dir: Path) -> list[Overview]:
    """The run, or the completed runs, that a word names: a run folder, its checkpoint, a folder of runs, or a
    pattern."""
    if word == LATEST:
        return [Overview.read(find_run(LATEST, log_dir))]
    path = Path(word).expanduser().absolute()
    places = (
        [path] if path.exists() or not glob.has_magic(word) else [Path(match) for match in sorted(glob.glob(str(path)))]
    )
    runs = [run for place in places for run in _runs_at(place)]
    if len(runs) > 1:
        runs = _completed(word, runs)
    if not runs:
        meant = did_you_mean(word, LATEST) if not path.exists() else ""
        raise UserError(f"{word} is no run folder, and no folder or pattern of any. Type ml-compare A B.{meant}")
    return runs


def _completed(word: str, runs: Sequence[Overview]) -> list[Overview]:
    """Completed trainings; where there are none, completed scores of ml-eval."""
    completed = [run for run in runs if run.state == "completed"]
    for task in ("train", "eval"):
        if chosen := [run for run in completed if run.task == task]:
            return chosen
    raise UserError(f"{word} has {counted(len(runs), 'run')}, and none is a training or a score that is completed.")


def _runs_at(path: Path) -> list[Overview]:
    if path.suffix == ".ckpt" and path.is_file():
        folder = path.parent.parent
        if path.name != "best.ckpt":
            raise UserError(
                f"{path}: the predictions of a run are those of its best.ckpt. Score this one, and compare the folder "
                f"of the score: ml-eval ckpt_path={path}"
            )
        if not (folder / "status.json").is_file():
            raise UserError(f"{path} is in no run folder (RUN/checkpoints/best.ckpt). Type the folder of a run.")
        return [Overview.read(folder)]
    if (path / "status.json").is_file():
        return [Overview.read(path)]
    return find_runs(path)


def _differing(runs: Sequence[Overview]) -> list[str]:
    own = OF_SCORES if all(run.task == "eval" for run in runs) else ()
    return [key for key in differing_settings(runs) if key not in own]


def _check_alike(word: str, runs: Sequence[Overview]) -> None:
    """Raise UserError if runs of one training differ in more than their seed and fold."""
    others = [key for key in _differing(runs) if key not in REPEATED]
    if others:
        raise UserError(
            f"{word} has {counted(len(runs), 'run')} that differ in {shortened(others)}, too. A training is one "
            "run, or runs that differ in seed or data.fold alone. Type a pattern for each, in quotes: "
            "ml-compare 'FOLDER/*lr_0.1*' 'FOLDER/*lr_0.2*'"
        )


def paired_runs(a: Contestant, b: Contestant) -> tuple[list[tuple[str, Overview, Overview]], str]:
    """The runs of A and B with equal seed and fold, with what they have in common, and a sentence about the others.

    Raises:
        UserError: Fewer than two have.
    """
    first, second = a.keys, b.keys
    shared = [key for key in first if key in second]
    if len(shared) < 2:
        listed = {side.name: shortened([describe_key(key) for key in side.keys], 8) for side in (a, b)}
        raise UserError(
            f"Runs are paired by seed and fold, and {a.name} and {b.name} have {counted(len(shared), 'pair')}. "
            f"{a.name} has {listed[a.name]}, and {b.name} has {listed[b.name]}. Train both with the same "
            "ones: ml-train -m … seed=1,2,3,4,5,6"
        )
    left_out = [describe_key(key) for key in {**first, **second} if key not in shared]
    note = f"Left out, because only one of {a.name} and {b.name} has them: {shortened(left_out, 8)}" if left_out else ""
    return [(describe_key(key), first[key], second[key]) for key in shared], note


def has_folds(sides: Sequence[Contestant]) -> bool:
    """Whether the runs of some training have several folds."""
    place = list(REPEATED).index("data.fold")
    return any(len({key_of(run)[place] for run in side.runs}) > 1 for side in sides)


def overlap_of(run: Overview) -> float:
    """Number of images of a fold over that of the images that are trained on: 1 / (k - 1) for k folds.

    Raises:
        UserError: The run does not know them.
    """
    of_score = {split: sum(counts.values()) for split, counts in run.data.get("counts", {}).items()}
    images = run.status.get("card", {}).get("images", {}) or of_score
    if not images.get("train") or not images.get("val"):
        raise UserError(f"{run.folder} does not say how many images it was trained on, which the test of folds needs.")
    return images["val"] / images["train"]
