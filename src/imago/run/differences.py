"""Settings in which runs differ."""

import json
from collections.abc import Iterable, Sequence

from imago.config.invocation import override_key
from imago.run.overview import Overview

TARGET = "._target_"
SIMPLE = (str, int, float, bool, type(None))


def differing_settings(runs: Sequence[Overview]) -> list[str]:
    """Settings and groups whose values differ between the runs, those that were typed first.

    An `experiment=` changes many at once. So where typed ones differ, those that nobody typed are named only if they
    differ between runs with the same options: a file of settings was edited, or replaced by one of the same name.
    """
    known = [run for run in runs if run.settings]
    typed = dict.fromkeys(override_key(word) for run in known for word in run.overrides)
    every = dict.fromkeys(key for run in known for key in run.settings)
    differing = _differing(known, typed)
    if not differing:
        return _differing(known, every)
    by_options: dict[str, list[Overview]] = {}
    for run in known:
        by_options.setdefault(json.dumps(run.choices, sort_keys=True, default=str), []).append(run)
    below_typed = tuple(f"{key}." for key in typed)
    others = [key for key in every if key not in typed and not key.startswith(below_typed)]
    edited = dict.fromkeys(key for group in by_options.values() for key in _differing(group, others))
    return [*differing, *edited]


def _differing(runs: Sequence[Overview], keys: Iterable[str]) -> list[str]:
    def kinds(*keys: str) -> int:
        return len({json.dumps([run.setting(key) for key in keys], default=str) for run in runs})

    def differs(key: str) -> bool:
        values = [run.setting(key) for run in runs]
        if all(isinstance(value, SIMPLE) for value in values):
            return len({(type(value), value) for value in values}) > 1  # ten times as fast
        return kinds(key) > 1

    differing = [key for key in keys if differs(key)]
    makers = {key.removesuffix(TARGET): key for key in differing if key.endswith(TARGET)}
    said = [
        group
        for group in differing
        if (maker := makers.get(group.replace("/", "."))) is not None and kinds(maker) == kinds(maker, group)
    ]
    return [key for key in differing if key not in said]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last parts, as few as tell it from the others: `model.optimizer.lr` -> `lr`.

    A `_target_` has the name of what it makes: `model.optimizer._target_` -> `optimizer`.
    """
    names: dict[str, str] = {}
    dotted = {key: key.removesuffix(TARGET).replace("/", ".") for key in keys}
    for key in keys:
        parts = dotted[key].split(".")
        for count in range(1, len(parts) + 1):
            names[key] = ".".join(parts[-count:])
            if not any(f".{dotted[other]}".endswith(f".{names[key]}") for other in keys if other != key):
                break
    return names


def kinds_of_images(runs: Sequence[Overview], metric: str) -> int:
    """Number of different sets of images that a metric of `runs` is of; where all are folds, the most of any fold."""
    of_fold: dict[str | None, set[str]] = {}
    for run in runs:
        if (images := run.scored_images(metric)) is not None:
            fold = run.setting("data.fold")
            of_fold.setdefault(None if fold is None else str(fold), set()).add(images)
    if None in of_fold:
        return len(set().union(*of_fold.values()))
    return max(map(len, of_fold.values()), default=0)
