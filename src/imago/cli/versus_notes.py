"""Sentences below the tables of a comparison: runs left out, what is not known, and how far the answer reaches."""

from contextlib import suppress
from itertools import combinations
from pathlib import Path

from imago.cli.contestants import Contestant, describe_key, has_folds, listed
from imago.cli.run_table import Group, describe_drawn
from imago.cli.versus import Versus
from imago.comparison.sentences import describe_undecided
from imago.config.setting_source import shown_path
from imago.run.answers import fingerprint_doubt
from imago.run.overview import Overview
from imago.terminal import shortened

MOST_OF_A_LINE = 65536


def notes_of(versus: Versus) -> list[str]:
    """Sentences about the runs, the images, and how far the answer reaches; those without an occasion are left out."""
    notes = [_unfinished(versus), _unmatched(versus), _alike(versus), _undecided(versus), _unreadable(versus)]
    notes += [_same_runs(a, b) for a, b in combinations(versus.sides, 2)]
    return [note for note in [*notes, _fingerprints(versus), _seen(versus), _groups(versus), _reach(versus)] if note]


def _unfinished(versus: Versus) -> str:
    counts = [
        f"{side.unfinished} of {side.unfinished + len(side.runs)} {'of' if place else 'runs of'} {side.name}"
        for place, side in enumerate(side for side in versus.sides if side.unfinished)
    ]
    verb = "is" if sum(side.unfinished for side in versus.sides) == 1 else "are"
    return f"{listed(counts)} {verb} not completed, and {verb} left out" if counts else ""


def _same_runs(a: Contestant, b: Contestant) -> str:
    """Sentence about the runs that two trainings have in common, and that are compared with themselves."""
    both = sorted({run.folder.resolve() for run in a.runs} & {run.folder.resolve() for run in b.runs})
    names = shortened([shown_path(folder) for folder in both])
    return f"{a.name} and {b.name} are the same {'run' if len(both) == 1 else 'runs'}: {names}" if both else ""


def _unmatched(versus: Versus) -> str:
    shared = {key for key, _ in versus.shared}
    if len(versus.shared) == 1:
        return ""
    keys = dict.fromkeys(key for side in versus.sides for key in side.keys if key not in shared)
    names = listed([side.name for side in versus.sides])
    left_out = shortened([describe_key(key) for key in keys], 8)
    return f"Left out, because not all of {names} have them: {left_out}" if keys else ""


def _alike(versus: Versus) -> str:
    if len(versus.matched) == len(versus.shared):
        return ""
    return (
        f"All {len(versus.shared)} runs of each training gave the same answers, as if the seeds changed nothing: "
        "this is one run of each"
    )


def _undecided(versus: Versus) -> str:
    return describe_undecided(list(versus.results.values())) if len(versus.results) > 1 else ""


def _unreadable(versus: Versus) -> str:
    counts = []
    for place, side in enumerate(versus.sides):
        answers = [versus.answers(runs[place]) for _, runs in versus.matched]
        if number := sum(one.unreadable for one in answers):
            counts.append(f"{side.name} could not read {number} of {sum(map(len, answers))} images")
    return f"{listed(counts)}: they count as wrong" if counts else ""


def _fingerprints(versus: Versus) -> str:
    doubts: dict[str, None] = {}
    for _, (first, *others) in versus.matched:
        for run in others:
            classes = (first.data.get("class_names"), run.data.get("class_names"))
            doubts[fingerprint_doubt(versus.answers(first), versus.answers(run), classes)] = None
    said = [doubt for doubt in doubts if doubt]
    if not said:
        return ""
    return f"Fingerprints could not be compared, because {listed(said)}: the images are the same by path and label"


def _seen(versus: Versus) -> str:
    """Sentence about images that the runs knew before they were scored."""
    if versus.scored == "train":
        return "The networks were trained on these images: their accuracies say nothing of other images"
    monitors = sorted({run.monitor for _, runs in versus.matched for run in runs if run.monitor.startswith("val/")})
    if versus.scored != "val" or not monitors:
        return ""
    return (
        f"val has chosen the epoch of each run (monitor {', '.join(monitors)}): accuracies on it are too good, the "
        "more epochs the more"
    )


def _groups(versus: Versus) -> str:
    files = dict.fromkeys(_split_file(run) for _, runs in versus.matched for run in runs)
    if not any(file is not None and _has_groups(file) for file in files):
        return ""
    return (
        "The split file has groups (such as patients), and the tests take each image as one of its own: where those of "
        "a group are alike, they claim too much"
    )


def _split_file(run: Overview) -> Path | None:
    name = run.setting("data.split_file")
    return Path(name).expanduser() if isinstance(name, str) else None


def _has_groups(file: Path) -> bool:
    with suppress(OSError, ValueError, RuntimeError):
        if file.is_file():  # a stranger may name any file: no more than the names of its columns is read
            with file.open(encoding="utf-8-sig", errors="replace") as lines:
                first = lines.readline(MOST_OF_A_LINE)
                heads = lines.readline(MOST_OF_A_LINE) if first.startswith("#") else first
            return "group" in [name.strip() for name in heads.split(",")]
    return False


def _reach(versus: Versus) -> str:
    """How far the answer reaches."""
    if len(versus.shared) == 1:
        return f"This is about these {len(versus.sides)} networks: another seed of the same trainings may say otherwise"
    if versus.overlap and not has_folds(versus.sides):
        return describe_drawn([Group(side.runs) for side in versus.sides])
    return ""
