"""The trainings that `ml-compare A B` sets against each other: runs, or several runs by seed or fold."""

import glob
import string
from collections.abc import Iterable, Sequence
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
        runs: Its run, or its completed runs by seed or fold.
        unfinished: Number of runs that were typed, too, and are not completed.
    """

    name: str
    what: str
    runs: Sequence[Overview]
    unfinished: int = 0

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
    typed = [(word, *_runs(word, log_dir)) for word in words]
    if len(typed) > 2 and all(len(runs) == 1 for _, runs, _ in typed):
        runs = [run for _, (run,), _ in typed]
        groups = grouped(runs, _differing(runs))
        if 1 < len(groups) < len(runs):
            named = [(shown_path(group.runs[0].folder), group.runs) for group in groups]
            typed = [
                (f"{name} and {len(runs) - 1} more" if len(runs) > 1 else name, list(runs), 0) for name, runs in named
            ]
    for word, runs, _ in typed:
        _check_alike(word, runs)
    return [Contestant(letter, *side) for letter, side in zip(_letters(len(typed)), typed, strict=True)]


def _letters(count: int) -> list[str]:
    """A, B, … and, for more than 26, AA, AB, …"""
    letters = string.ascii_uppercase
    return (
        list(letters[:count]) if count <= len(letters) else ["".join(two) for two in product(letters, repeat=2)][:count]
    )


def _runs(word: str, log_dir: Path) -> tuple[list[Overview], int]:
    """The run, or the completed runs, that a word names (a run folder, its checkpoint, a folder of runs, or a pattern),
    and the number of others of their kind that are not completed."""
    if word == LATEST:
        return [Overview.read(find_run(LATEST, log_dir))], 0
    path = Path(word).expanduser().absolute()
    places = (
        [path] if path.exists() or not glob.has_magic(word) else [Path(match) for match in sorted(glob.glob(str(path)))]
    )
    runs = [run for place in places for run in _runs_at(place)]
    if not runs:
        meant = did_you_mean(word, LATEST) if not path.exists() else ""
        raise UserError(f"{word} is no run folder, and no folder or pattern of any. Type ml-compare A B.{meant}")
    chosen = _completed(word, runs) if len(runs) > 1 else runs
    return chosen, sum(run.task == chosen[0].task and run not in chosen for run in runs)


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


def matched_runs(sides: Sequence[Contestant]) -> list[tuple[Key, list[Overview]]]:
    """Each seed and fold that all sides have, with the run of each side.

    Raises:
        UserError: They share fewer than two.
    """
    keys = [side.keys for side in sides]
    shared = [key for key in keys[0] if all(key in others for others in keys[1:])]
    if len(shared) < 2:
        has = [f"{side.name} has {shortened([describe_key(key) for key in side.keys], 8)}" for side in sides]
        raise UserError(
            f"Runs are paired by seed and fold, and {listed([side.name for side in sides])} share "
            f"{counted(len(shared), 'pair')}. {', '.join(has[:-1])}, and {has[-1]}. Train all with the same ones: "
            "ml-train -m … seed=1,2,3,4,5,6"
        )
    return [(key, [runs[key] for runs in keys]) for key in shared]


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: `A, B and C`."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def describe_keys(keys: Sequence[Key]) -> str:
    """Name the runs of a training: `6 seeds`, `5 folds`, or `6 runs (2 seeds, 3 folds)`."""
    numbers = [
        counted(number, noun)
        for noun, values in zip(REPEATED.values(), zip(*keys, strict=True), strict=True)
        if (number := len({*values})) > 1
    ]
    return numbers[0] if len(numbers) == 1 else f"{counted(len(keys), 'run')} ({', '.join(numbers)})"


def by_seed(matched: Sequence[tuple[Key, list[Overview]]]) -> Iterable[Sequence[tuple[Key, list[Overview]]]]:
    """The folds of each seed, where there are two or more."""
    place = list(REPEATED).index("data.fold")
    groups: dict[Key, list[tuple[Key, list[Overview]]]] = {}
    for key, runs in matched:
        groups.setdefault((*key[:place], *key[place + 1 :]), []).append((key, runs))
    return [group for group in groups.values() if len(group) > 1]


def has_folds(sides: Sequence[Contestant]) -> bool:
    """Whether the runs of some training have several folds."""
    place = list(REPEATED).index("data.fold")
    return any(len({key_of(run)[place] for run in side.runs}) > 1 for side in sides)


def overlap_of(run: Overview, split: str) -> float:
    """Number of images of a split over that of the images that are trained on: 1 / (k - 1) for val of k folds.

    Raises:
        UserError: The run does not know them.
    """
    of_score = {name: sum(counts.values()) for name, counts in run.data.get("counts", {}).items()}
    images = run.status.get("card", {}).get("images", {}) or of_score
    if not images.get("train") or not images.get(split):
        raise UserError(
            f"{run.folder} does not say how many images it was trained on, which the test of runs with images of their "
            "own needs."
        )
    return images[split] / images["train"]
