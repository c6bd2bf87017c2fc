"""The study of a search: which trial is next, and what became of those before; in Optuna's storage.

Only the process that holds the lock of the folder touches it. A trial that is running when the study is opened belongs
to a process that is gone, and is run again with its values.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from imago.errors import UserError
from imago.run.trial import Outcome
from imago.search.pruners import make_pruner, stops_after_first
from imago.search.settings import SearchSettings
from imago.search.space import Choice, Interval, Space
from imago.search.storage import open_storage, quiet_optuna, remove_stale_lock, suggest

STARTS, SEEN, ENDED, MESSAGE, FOLDER, EPOCHS, SECONDS = (
    "starts",
    "seen",
    "ended",
    "message",
    "folder",
    "epochs",
    "seconds",
)
MOST_STARTS = 5
"""Times that a trial is begun without a validation since: one in which the process dies each time fails."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the study has it.

    Args:
        number: Its number, from 0.
        state: `completed`, `pruned`, `failed`, `nan` or `running`.
        params: Setting -> value.
        values: Values of the objectives, of a completed trial.
        reported: Number of the validation -> value.
        attributes: What else is known: `folder`, `epochs`, `seconds`, `message`.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    values: tuple[float, ...] = ()
    reported: Mapping[int, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> float | None:
        """The last value that it reported."""
        return self.reported[max(self.reported)] if self.reported else None


class SearchStudy:
    """A study in the folder of its search.

    Args:
        folder: Where the file of the study is.
        settings: Settings of the search.
        space: What the trials vary, and share.

    Raises:
        UserError: It cannot be opened, or was made for another search.
    """

    def __init__(self, folder: Path, settings: SearchSettings, space: Space) -> None:
        self.settings = settings
        self.space = space
        remove_stale_lock(folder)
        with quiet_optuna() as optuna:
            self._optuna = optuna
            self._study = self._open(open_storage(optuna, settings.storage, folder))
            self._check_same()
            self._study.sampler = self._make_sampler()
        self._live: dict[int, Any] = {}
        self._dead = [trial for trial in self._trials() if trial.state.name == "RUNNING"]

    def next_trial(self) -> TrialRecord | None:
        """Begin the next trial: one that was stopped, or else a new one; None if all are done or running."""
        with quiet_optuna() as optuna:
            if self._dead:
                frozen = self._dead.pop(0)
                trial = optuna.trial.Trial(self._study, frozen._trial_id)  # no public way to go on with a trial
            elif len(self._trials()) >= self.settings.n_trials:
                return None
            else:
                trial = self._study.ask()
            for key, kind in self.space.params.items():  # a killed process may have drawn some of them
                suggest(trial, key, kind)
            attributes, seen = trial.user_attrs, len(self._trials()[trial.number].intermediate_values)
            starts = 1 + (int(attributes.get(STARTS, 0)) if seen == attributes.get(SEEN, 0) else 0)
            trial.set_user_attr(STARTS, starts)
            trial.set_user_attr(SEEN, seen)
            self._live[trial.number] = trial
            if starts > MOST_STARTS:
                message = f"its process died in each of {MOST_STARTS} starts"
                self.end(trial.number, Outcome("failed", message=message))
                return self.next_trial()
            return TrialRecord(trial.number, "running", dict(trial.params))

    def report(self, number: int, step: int, value: float) -> bool:
        """Note the value of a validation; returns whether the trial is to stop."""
        with quiet_optuna():
            trial = self._live[number]
            before = self._trials()[number].intermediate_values
            if step not in before:
                trial.report(value, step)
            elif step < max(before):  # of a trial that was resumed: this was answered already
                return False
            if self.settings.pruner == "first_epoch":
                return step == 0 and self._stops_after_first(number, value)
            return bool(trial.should_prune())

    def end(self, number: int, outcome: Outcome) -> None:
        """Note how a trial ended."""
        with quiet_optuna() as optuna:
            trial, states = self._live.pop(number), optuna.trial.TrialState
            known = {FOLDER: outcome.folder, EPOCHS: outcome.epochs, SECONDS: round(outcome.seconds, 3)}
            for key, value in {**known, ENDED: outcome.state, MESSAGE: outcome.message[:500]}.items():
                trial.set_user_attr(key, value)
            with suppress(RuntimeError):  # the grid is through: Optuna's sampler asks an optimization to stop
                if outcome.state == "completed":
                    self._study.tell(trial, list(outcome.values))
                else:
                    self._study.tell(trial, state=states.PRUNED if outcome.state == "pruned" else states.FAIL)

    def stop(self) -> None:
        """Note that the trials that run were stopped, which is no sign that something is wrong with them."""
        with quiet_optuna():
            for trial in self._live.values():
                trial.set_user_attr(STARTS, 0)

    def records(self) -> list[TrialRecord]:
        """All trials, by their numbers."""
        return [_record(trial) for trial in self._trials()]

    def best(self) -> TrialRecord | None:
        """The best completed trial of one direction; None without any."""
        done = [record for record in self.records() if record.state == "completed"]
        return best_of(done, self.is_greater_better) if len(self.settings.directions) == 1 else None

    def front(self) -> list[TrialRecord]:
        """Completed trials that no other one beats in all directions (the Pareto front)."""
        with quiet_optuna():
            return [_record(trial) for trial in self._study.best_trials]

    @property
    def is_greater_better(self) -> bool:
        """Whether the first objective is maximized."""
        return self.settings.directions[0] == "maximize"

    def note(self, key: str, value: Any) -> None:
        """Keep a fact of the whole study."""
        with quiet_optuna():
            self._study.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """A fact that was noted; None without it."""
        with quiet_optuna():
            return self._study.user_attrs.get(key)

    def _trials(self) -> Sequence[Any]:
        return self._study.get_trials(deepcopy=False)

    def _stops_after_first(self, number: int, value: float) -> bool:
        firsts = [t.intermediate_values[0] for t in self._trials() if t.number != number and 0 in t.intermediate_values]
        return stops_after_first(value, firsts, self.is_greater_better)

    def _open(self, storage: Any) -> Any:
        """The study in a storage, which is made if it is not there."""
        settings = self.settings
        try:
            return self._optuna.create_study(
                storage=storage,
                study_name=settings.study,
                directions=list(settings.directions),
                pruner=make_pruner(self._optuna, settings.pruner, max(0, settings.max_epochs)),
                load_if_exists=True,
            )
        except ValueError as error:  # 2.10 does not overwrite directions, and 5 leaves them as they were
            raise UserError(self._other_search("its directions were others")) from error

    def _make_sampler(self) -> Any:
        """Optuna's sampler with the seed of its config and the number of trials so far: from the seed alone, it would
        draw its first points again in each process that continues the study."""
        node = dict(self.settings.sampler)
        if not node:
            return self._optuna.samplers.TPESampler()
        if node.get("seed") is not None:
            node["seed"] = (int(node["seed"]) + len(self._trials())) % 2**32
        made = instantiate(node)
        return made(_grid(self.space.params)) if node.get("_partial_") else made

    def _check_same(self) -> None:
        """Raise UserError if the study was made for other settings or other values."""
        now = {"space": self.space.describe(), "objectives": list(self.settings.objectives)}
        before = self._study.user_attrs.get("search")
        if [direction.name.lower() for direction in self._study.directions] != list(self.settings.directions):
            raise UserError(self._other_search("its directions were others"))
        if before is None and not self._trials():
            self._study.set_user_attr("search", now)
        elif before is not None and before != now:
            raise UserError(self._other_search(_difference(before, now)))

    def _other_search(self, how: str) -> str:
        return (
            f"The study {self.settings.study} was made for another search: {how}. Type another "
            "hydra.sweeper.study_name= or hydra.sweep.dir=, or the settings of that search."
        )


def best_of(records: Sequence[TrialRecord], is_greater_better: bool) -> TrialRecord | None:
    """The record with the best first value; None without any."""
    known = [record for record in records if record.values and math.isfinite(record.values[0])]
    sign = 1 if is_greater_better else -1
    return max(known, key=lambda record: (sign * record.values[0], -record.number), default=None)


def _record(trial: Any) -> TrialRecord:
    states = {"COMPLETE": "completed", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "running"}
    state = states.get(trial.state.name, str(trial.user_attrs.get(ENDED, "failed")))
    values = tuple(trial.values) if trial.state.name == "COMPLETE" else ()
    reported = {int(step): float(value) for step, value in trial.intermediate_values.items()}
    return TrialRecord(trial.number, state, dict(trial.params), values, reported, dict(trial.user_attrs))


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first part in which two searches differ."""
    for part in ("space", "objectives"):
        one, other = before.get(part), now[part]
        if isinstance(one, dict) and one != other:
            key = next(key for key in {**one, **other} if one.get(key) != other.get(key))
            return f"it had {key}={one.get(key, 'no values')}, now {key}={other.get(key, 'no values')}"
        if one is not None and one != other:
            return f"its {part} were {', '.join(one)}"
    return "its settings were others"


def _grid(params: Mapping[str, Choice | Interval]) -> dict[str, list[Any]]:
    """Setting -> all of its values, for a grid.

    Raises:
        UserError: A setting has infinitely many.
    """
    grid: dict[str, list[Any]] = {}
    for key, kind in params.items():
        if isinstance(kind, Choice):
            grid[key] = list(kind.texts)
        elif kind.step is not None or kind.is_integer:
            step = kind.step or 1
            grid[key] = [kind.low + index * step for index in range(round((kind.high - kind.low) / step) + 1)]
        else:
            raise UserError(f"hydra/sweeper/sampler=grid takes choices and ranges, and {key}={kind} is neither.")
    return grid
