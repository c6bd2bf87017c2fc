"""The search itself: one trial after the other, or several at the same time, until all are done."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.cli.search_folder import DONE, FAILED, SEARCHING, hydra_words, note_search, search_words
from imago.cli.sweep import note_begun
from imago.config.invocation import for_hydra, override_key
from imago.config.saved import yaml_of
from imago.errors import DiskError, UserError, message_of
from imago.files import write_text
from imago.masking import learn_secrets, masked_override
from imago.resources import usable_cores
from imago.run.search_place import Outcome
from imago.search.board import Board, count_states, describe_progress, format_params, show_front
from imago.search.identity import locked
from imago.search.receipt import Receipt, to_finish, with_finished
from imago.search.results import FILE as RESULTS
from imago.search.results import write_experiment, write_results
from imago.search.settings import check_gpus, gpus_of, search_settings, visible_gpus
from imago.search.space import read_space
from imago.search.study import SearchStudy, TrialRecord, best_of
from imago.search.trials import DISK, TrialOrder, run_trial
from imago.search.workers import STOPPED, Workers, ended_by_one_signal
from imago.terminal import counted, say, shortened, typed_program

FEWEST_TO_JUDGE = 3
"""Finished trials from which on `max_failure_rate` counts."""


def search(config: DictConfig, typed: Sequence[str]) -> float | None:
    """Search for settings, as Hydra's `config` of a sweep says and `typed` overrides add; a search that was stopped
    continues.

    Returns:
        The best value; None for several objectives.

    Raises:
        UserError: The settings cannot work, the folder is in use, or too many trials have failed.
        DiskError: The disk is full, or fails. The search can continue.
        KeyboardInterrupt, SystemExit: The search was stopped.
    """
    settings = search_settings(config)
    space = read_space(settings.params, typed)
    folder = Path(config.hydra.sweep.dir).absolute()
    learn_secrets(OmegaConf.to_container(config, resolve=False))
    with locked(folder):
        study = SearchStudy(folder, settings, space)
        note_begun(folder)
        words = search_words(config)
        write_text(folder / "multirun.yaml", yaml_of(config))
        if settings.storage is not None:
            note_search(folder, words, SEARCHING)
        run = _Search(folder, study, _shared_words(hydra_words(config)))
        run.announce()
        try:
            with run.workers, ended_by_one_signal() if run.is_apart else nullcontext():
                run.run_all()
                best = run.finish()
        except (KeyboardInterrupt, SystemExit, DiskError):
            with suppress(DiskError):
                study.stop()
                _say_how_to_continue(study, folder)
            raise
        except UserError:
            note_search(folder, words, FAILED)
            raise
        finally:
            with suppress(Exception):  # of a storage that fails, which is said already
                study.close()
        note_search(folder, words, DONE)
        return best


def _shared_words(words: Sequence[str]) -> list[str]:
    """Overrides of Hydra's own keys that the run of a trial takes, too."""
    places = ("hydra.mode", "hydra.sweep.", "hydra.run.", "hydra.job.num")
    return [word for word in words if not override_key(word).startswith(places)]


class _Search:
    """A search that runs: it gives out trials and notes how they end."""

    def __init__(self, folder: Path, study: SearchStudy, shared: Sequence[str]) -> None:
        self.folder = folder
        self.settings = settings = study.settings
        self.space = space = study.space
        self.study = study
        self.shared = shared
        self.program = typed_program(settings.command)
        self.is_apart = settings.isolation != "none"
        self.gpus = visible_gpus() if self.is_apart else []
        self.workers = Workers(reuses=settings.isolation == "auto" and not self.gpus)
        self.slots: dict[int, int] = {}
        check_gpus(settings, len(self.gpus))
        keys, jobs = list(space.params), settings.n_jobs
        self.board = Board(settings.objectives, settings.sign, keys, settings.n_trials, jobs)

    def announce(self) -> None:
        """Say what is searched, and what was done before."""
        records = self.study.records()
        say(f"Search: {self.folder}")
        if records:
            say(f"It continues: {describe_progress(records, self.settings.n_trials)}.")

    def run_all(self) -> None:
        """Run all trials that are left."""
        with self.board:
            if self.is_apart:
                self._run_apart()
            else:
                while (record := self.study.next_trial()) is not None:
                    self._redraw()
                    outcome = run_trial(self.order(record), self._reporter(record.number))
                    self._note(record.number, outcome)

    def _run_apart(self) -> None:
        workers = self.workers
        try:
            while True:
                while len(workers) < self.settings.n_jobs and (record := self.study.next_trial()) is not None:
                    self.slots[record.number] = next(
                        slot for slot in range(self.settings.n_jobs) if slot not in self.slots.values()
                    )
                    workers.start(self.order(record))
                    self.board.show(self.study.records())
                if not len(workers):
                    return
                number, outcome = workers.next_end(self.study.report, self._redraw)
                del self.slots[number]
                if outcome.state == STOPPED:
                    self.study.begin_again(number)
                else:
                    self._note(number, outcome)
        except (KeyboardInterrupt, SystemExit):
            self.study.stop()  # before a scheduler ends this process, too
            workers.stop()
            raise

    def _redraw(self) -> None:
        if self.board.is_live:
            self.board.show(self.study.records())

    def _reporter(self, number: int) -> Any:
        def report(step: int, value: float) -> bool:
            stops = self.study.report(number, step, value)
            self._redraw()
            return stops

        return report

    def order(self, record: TrialRecord, prunes: bool = True) -> TrialOrder:
        """The order of a trial."""
        settings, jobs = self.settings, self.settings.n_jobs
        return TrialOrder(
            number=record.number,
            command=settings.command,
            words=(*self.shared, *self.space.words(record.params)),
            sweep_dir=str(self.folder),
            typed=self.space.fixed,
            trials=max(settings.n_trials, record.number + 1),
            program=self.program,
            monitor=settings.monitor,
            objectives=settings.objectives,
            prunes=prunes and settings.prunes,
            threads=max(1, usable_cores(most=1000) // jobs) if jobs > 1 else None,
            here=str(Path.cwd()),
            gpus=gpus_of(self.slots.get(record.number, 0), settings.devices, self.gpus) if jobs > 1 else None,
        )

    def _note(self, number: int, outcome: Outcome) -> None:
        _check_disk(number, outcome)
        self.study.end(number, outcome)
        records = self.study.records()
        self.board.note_end(records, number, outcome.seconds)
        done = [record for record in records if record.state != "running"]
        failed = [record for record in done if record.state == "failed"]
        limit = self.settings.max_failure_rate
        if len(done) >= FEWEST_TO_JUDGE and len(failed) > limit * len(done):
            self._write(records, {})
            raise UserError(
                f"{len(failed)} of {counted(len(done), 'trial')} have failed, and hydra.sweeper.max_failure_rate="
                f"{limit:g}: the search ends. The last: {_error_of(failed[-1])}"
            )

    def finish(self) -> float | None:
        """Finish the best pruned trials, and write and say what came out.

        Raises:
            UserError: No trial has completed.
        """
        records = self.study.records()
        say(f"Trials: {count_states(records)}")
        if not any(record.state == "completed" for record in records):
            failed = [record for record in records if record.state in ("failed", "nan")]
            self._write(records, {})
            raise UserError(f"No trial has completed. The last: {_error_of(failed[-1] if failed else records[-1])}")
        receipt = self._receipt(records)
        facts = {"finished": receipt.finished, "regret": receipt.regret} if receipt.finished else {}
        front = self._write(records, facts)
        self._draw(with_finished(records, receipt.finished))
        if len(self.settings.objectives) > 1:
            show_front(front, self.settings, self.board.names)
            say(f"Settings of each trial: {self.folder / RESULTS} (an experiment is written for one objective alone)")
            return None
        self._say_best(front[0])
        return front[0].values[0]

    def _write(self, records: Sequence[TrialRecord], facts: Mapping[str, Any]) -> list[TrialRecord]:
        """Write the results so far; returns the best trials."""
        best = best_of(with_finished(records, facts.get("finished", {})), self.settings.sign)
        front = self.study.front() if len(self.settings.objectives) > 1 else [best] if best is not None else []
        write_results(self.folder, self.settings, records, front, facts)
        return front

    def _draw(self, records: Sequence[TrialRecord]) -> None:
        """Write the pictures; what goes wrong there costs no result."""
        from imago.search.pictures import write_pictures

        try:
            say(f"Pictures: {write_pictures(self.folder, self.settings, self.space, records)}")
        except Exception as error:
            say(f"The pictures of the search could not be drawn: {message_of(error)}")

    def _say_best(self, best: TrialRecord) -> None:
        say(f"Best {self.settings.objectives[0]}: {best.values[0]:.4f}, trial {best.number + 1}: "
            f"{format_params(best.params, self.board.names)}")  # fmt: skip
        written = write_experiment(self.folder, self.settings.study, self.order(best).words, self.program, best)
        if written is None:
            say("It is not written as an experiment: a word that was typed holds a secret, or removes a setting.")
        else:
            say(f"Its settings: {written[0]}\n  {written[1]}")

    def _receipt(self, records: Sequence[TrialRecord]) -> Receipt:
        """Finish the best pruned trials, unless an earlier start has; say what pruning cost."""
        completed = tuple(record.values[0] for record in records if record.state == "completed")
        finished = {int(number): float(value) for number, value in (self.study.noted("finished") or {}).items()}
        chosen = to_finish(records, self.settings.receipt, self.settings.sign)
        pruned = [record for record in chosen if record.number not in finished]
        if pruned:
            say(f"Pruned trials that are finished, to see what pruning cost: {shortened(r.number + 1 for r in pruned)}")
        for record in pruned:
            outcome = self._finish_trial(record)
            if outcome.state == "completed":
                finished[record.number] = outcome.values[0]
                self.study.note("finished", {str(number): value for number, value in finished.items()})
        receipt = Receipt(finished, completed, self.settings.sign)
        if finished:
            say(receipt.describe(sum(record.state == "pruned" for record in records)))
        return receipt

    def _finish_trial(self, record: TrialRecord) -> Outcome:
        """Resume a pruned trial to its end."""
        order = self.order(record, prunes=False)
        if self.is_apart:
            self.workers.start(order)
            outcome = self.workers.next_end(lambda number, step, value: False, lambda: None)[1]
        else:
            outcome = run_trial(order, lambda step, value: False)
        _check_disk(record.number, outcome)
        return outcome


def _check_disk(number: int, outcome: Outcome) -> None:
    """Raise DiskError if the disk has ended a trial: it would end all others, too."""
    if outcome.state == DISK:
        raise DiskError(f"Trial {number + 1}: {outcome.message}")


def _error_of(record: TrialRecord) -> str:
    nan = "the monitored metric was never a number"
    return str(record.attributes.get("message") or (nan if record.state == "nan" else record.state))


def _say_how_to_continue(study: SearchStudy, folder: Path) -> None:
    """Say what continues the search: what was typed, in its folder."""
    done = describe_progress(study.records(), study.settings.n_trials)
    if study.settings.storage is None:
        say(f"The search was stopped: {done}. Its study was in memory alone: it cannot be continued.")
        return
    words = [masked_override(word) for word in sys.argv[1:] if override_key(word) != "hydra.sweep.dir"]
    line = shlex.join([*words, f"hydra.sweep.dir={for_hydra(str(folder))}"])
    say(f"The search was stopped: {done}. It continues with the same command, or with")
    say(f"  {typed_program(study.settings.command)} {line}")
