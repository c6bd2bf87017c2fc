"""The study of a search: which trial is next, and what became of those before; in Optuna's storage.

Only the process that holds the lock of the folder touches it. A trial that is running when the study is opened belongs
to a process that is gone, and is run again with its values.
"""

import math
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from imago.errors import UserError
from imago.masking import masked, masked_override
from imago.run.folder import read_status
from imago.run.search_place import Outcome
from imago.search.identity import check_trials, difference, is_alive
from imago.search.pruners import make_pruner, stops_after_first
from imago.search.settings import SearchSettings
from imago.search.space import Choice, Interval, Space
from imago.search.storage import open_storage, quiet_optuna, remove_stale_lock, suggest
from imago.search.trials import folder_of

STARTS, SEEN, STOPS, ENDED, MESSAGE = "starts", "seen", "stops", "ended", "message"
FOLDER, EPOCHS, SECONDS = "folder", "epochs", "seconds"
"""Attributes of a trial."""
OWNER, GRID_ID = "owner", "grid_id"
MOST_STARTS = 5
"""Times that a trial is begun without a validation or an epoch since: one in which the process dies each time fails."""


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
        UserError: It cannot be opened, was made for another search, or is searched in another folder.
    """

    def __init__(self, folder: Path, settings: SearchSettings, space: Space) -> None:
        self.settings = settings
        self.space = space
        self.folder = folder
        remove_stale_lock(folder)
        with quiet_optuna() as optuna:
            self._optuna = optuna
            self._study = self._open(open_storage(optuna, settings.storage, folder))
            self._check_same()
            check_trials(folder, settings.study, len(self._trials()))
            self._take()
            self._study.sampler = self._make_sampler()
        self._live: dict[int, Any] = {}
        self._dead = [trial for trial in self._trials() if trial.state.name == "RUNNING"]

    def next_trial(self) -> TrialRecord | None:
        """Begin the next trial: one that was stopped, or else a new one; None if all are done or running."""
        with quiet_optuna():
            if self._dead:
                trial = self._again(self._dead.pop(0))
            elif len(self._trials()) >= self.settings.n_trials:
                return None
            else:
                trial = self._study.ask()
            for key, kind in self.space.params.items():  # a killed process may have drawn some of them
                suggest(trial, key, kind)
            attributes, seen = trial.user_attrs, self._progress(trial.number)
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
        """Note the value of a validation; returns whether the trial is to stop. The answer is kept: the trial may be
        killed before it acts on it. NaN, which 2.10 cannot store, stops no trial."""
        with quiet_optuna():
            trial = self._live[number]
            if trial.user_attrs.get(STOPS):
                return True
            if math.isnan(value):
                return False
            before = self._trials()[number].intermediate_values
            if step not in before:
                trial.report(value, step)
            elif step < max(before):  # of a trial that was resumed: this was answered already
                return False
            is_first = self.settings.pruner == "first_epoch"
            stops = step == 0 and self._stops_after_first(number, value) if is_first else bool(trial.should_prune())
            if stops:
                trial.set_user_attr(STOPS, True)
            return stops

    def end(self, number: int, outcome: Outcome) -> None:
        """Note how a trial ended."""
        with quiet_optuna() as optuna:
            trial, states = self._live.pop(number), optuna.trial.TrialState
            facts = {FOLDER: outcome.folder, EPOCHS: outcome.epochs, SECONDS: round(outcome.seconds, 3)}
            for key, value in {**facts, ENDED: outcome.state, MESSAGE: masked(outcome.message)[:500]}.items():
                trial.set_user_attr(key, value)
            with suppress(RuntimeError):  # the grid is through: Optuna's sampler asks an optimization to stop
                if outcome.state == "completed":
                    self._study.tell(trial, list(outcome.values))
                else:
                    self._study.tell(trial, state=states.PRUNED if outcome.state == "pruned" else states.FAIL)

    def begin_again(self, number: int) -> None:
        """Let `next_trial` begin a trial again whose process was stopped."""
        del self._live[number]
        self._dead.append(self._trials()[number])

    def close(self) -> None:
        """Note that no process searches any more."""
        self.note(OWNER, None)

    def stop(self) -> None:
        """Note that the trials that run were stopped, which is no sign that something is wrong with them."""
        with quiet_optuna():
            for trial in self._live.values():
                trial.set_user_attr(STARTS, 0)

    def records(self) -> list[TrialRecord]:
        """All trials, by their numbers."""
        return [_record(trial) for trial in self._trials()]

    def front(self) -> list[TrialRecord]:
        """Completed trials that no other one beats in all directions (the Pareto front)."""
        with quiet_optuna():
            return [_record(trial) for trial in self._study.best_trials]

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

    def _again(self, frozen: Any) -> Any:
        """A trial that was begun before, which keeps its place in a grid."""
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)  # Optuna has no public way
        if GRID_ID in frozen.system_attrs:
            trial.set_system_attr(GRID_ID, frozen.system_attrs[GRID_ID])
        return trial

    def _progress(self, number: int) -> int:
        """Validations and epochs of a trial so far: not all searches are told of the validations."""
        folder = folder_of(self.folder, number)
        epochs = int(read_status(folder / "status.json").get("epoch") or 0) if folder is not None else 0
        return len(self._trials()[number].intermediate_values) + epochs

    def _stops_after_first(self, number: int, value: float) -> bool:
        firsts = [t.intermediate_values[0] for t in self._trials() if t.number != number and 0 in t.intermediate_values]
        return stops_after_first(value, firsts, self.settings.sign)

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
        if not node.get("_partial_"):
            return made
        grid = _grid(self.space.params)
        points = math.prod(map(len, grid.values()))
        self.settings = replace(self.settings, n_trials=min(self.settings.n_trials, points))
        try:
            return made(grid)
        except (TypeError, ValueError) as error:  # Optuna sorts the values
            raise UserError(f"hydra/sweeper/sampler=grid takes values of one kind for each setting: {error}") from error

    def _check_same(self) -> None:
        """Raise UserError if the study was made for other settings or other values."""
        words = sorted(masked_override(word) for word in self.space.fixed)
        now = {"space": self.space.describe(), "objectives": list(self.settings.objectives)}
        now |= {"monitor": [self.settings.monitor], "overrides": words}
        before = self._study.user_attrs.get("search")
        if [direction.name.lower() for direction in self._study.directions] != list(self.settings.directions):
            raise UserError(self._other_search("its directions were others"))
        if before is None and not self._trials():
            self._study.set_user_attr("search", now)
        elif before is not None and before != now:
            raise UserError(self._other_search(difference(before, now)))

    def _take(self) -> None:
        """Note that this process searches.

        Raises:
            UserError: Another folder's search of this study is under way: each would take the other's trials for dead.
        """
        owner = self.noted(OWNER)
        if owner is not None and is_alive(owner, self.folder):
            raise UserError(
                f"The study {self.settings.study} is searched by process {owner['process']} on {owner['machine']} in "
                f"{owner['folder']}. Wait until it has ended, or type another hydra.sweeper.study_name=."
            )
        self.note(OWNER, {"process": os.getpid(), "machine": socket.gethostname(), "folder": str(self.folder)})

    def _other_search(self, how: str) -> str:
        return (
            f"The study {self.settings.study} was made for another search: {how}. Type another "
            "hydra.sweeper.study_name= or hydra.sweep.dir=, or the settings of that search."
        )


def best_of(records: Sequence[TrialRecord], sign: int) -> TrialRecord | None:
    """The record with the best first value; None without any. `sign` is 1 if greater values are better, else -1."""
    done = [record for record in records if record.values and math.isfinite(record.values[0])]
    return max(done, key=lambda record: (sign * record.values[0], -record.number), default=None)


def _record(trial: Any) -> TrialRecord:
    states = {"COMPLETE": "completed", "PRUNED": "pruned", "RUNNING": "running"}
    state = states.get(trial.state.name, str(trial.user_attrs.get(ENDED, "failed")))
    values = tuple(trial.values) if trial.state.name == "COMPLETE" else ()
    reported = {int(step): float(value) for step, value in trial.intermediate_values.items()}
    return TrialRecord(trial.number, state, dict(trial.params), values, reported, dict(trial.user_attrs))


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
