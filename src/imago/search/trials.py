"""One trial of a search: a run of the command, through its Python interface, that reports its validations."""

import io
import math
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from imago.config.invocation import for_hydra
from imago.definitions import PRUNED
from imago.errors import DiskError, DivergenceError, UserError, cause_of, message_of
from imago.files import DISK_ERRORS
from imago.run.folder import read_status
from imago.run.search_place import Outcome, Report, Trial
from imago.search.settings import MEASURED

DISK = "disk"
"""State of a trial that the disk has ended."""
MOST_OUTPUT = 2000
"""Characters of the output of a trial that died, in its message."""


@dataclass(frozen=True)
class TrialOrder:
    """Order for a trial, in plain types, for another process, too.

    Args:
        number: Its number, from 0.
        command: Name of the command.
        words: Overrides of its run.
        sweep_dir: Folder of the search.
        typed: Overrides that all trials share.
        trials: Number of trials.
        program: The command as it was typed.
        monitor: The metric that is reported.
        objectives: What its values are.
        prunes: Whether it may be pruned.
        threads: CPU threads; None for all.
        gpus: The GPUs that it sees; None for all.
        here: The current folder, where own code and relative paths are looked for.
    """

    number: int
    command: str
    words: tuple[str, ...]
    sweep_dir: str
    typed: tuple[str, ...]
    trials: int
    program: str
    monitor: str
    objectives: tuple[str, ...]
    prunes: bool
    threads: int | None = None
    gpus: str | None = None
    here: str = "."

    @property
    def all_words(self) -> list[str]:
        """The overrides, with its place in the folder of the search."""
        folder = folder_of(Path(self.sweep_dir), self.number)  # with more trials, its name would get more digits
        run = for_hydra(str(folder)) if folder is not None else "${hydra.sweep.dir}/${hydra.sweep.subdir}"
        place = (f"hydra.sweep.dir={for_hydra(self.sweep_dir)}", f"hydra.job.num={self.number}")
        return [*self.words, *place, f"hydra.run.dir={run}"]


def run_trial(order: TrialOrder, report: Report) -> Outcome:
    """Run a trial in this process, and say how it ended. Its output is left out: the log of the run has it.

    Raises:
        KeyboardInterrupt, SystemExit: It was stopped, and can be resumed.
    """
    main = import_module(f"imago.{order.command}").main
    trial = Trial(order.sweep_dir, order.number, report, order.prunes, order.typed, order.trials)
    began, nowhere = time.monotonic(), io.StringIO()
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            result, folder = main.call(*order.all_words, trial=trial, program=order.program)
    except Exception as error:
        return _failed(order, error, time.monotonic() - began)
    return _ended(order, result, folder, time.monotonic() - began)


def _failed(order: TrialOrder, error: Exception, seconds: float) -> Outcome:
    cause = cause_of(error.__cause__ or error)
    is_disk = isinstance(cause, DiskError) or (isinstance(cause, OSError) and cause.errno in DISK_ERRORS)
    state = DISK if is_disk else "nan" if isinstance(cause, DivergenceError) else "failed"
    message = str(error) if isinstance(error, UserError) else message_of(cause)
    folder = folder_of(Path(order.sweep_dir), order.number)
    epochs = int(read_status(folder / "status.json").get("epoch", 0)) if folder is not None else 0
    return Outcome(state, (), folder.name if folder is not None else "", epochs, seconds, message)


def _ended(order: TrialOrder, result: Any, folder: Path, seconds: float) -> Outcome:
    """Outcome of a trial whose run has ended without an error."""
    status = read_status(folder / "status.json")
    epochs = int(status.get("epoch", 0))
    if status.get("status") == PRUNED:
        return Outcome("pruned", (), folder.name, epochs, seconds)
    best = getattr(result, "objective", None)
    known = measured(folder, status, order.monitor, best)
    if missing := [name for name in order.objectives if name not in known and name != order.monitor]:
        message = f"Nothing logs {', '.join(missing)}. Type objectives of {', '.join(sorted({*known, *MEASURED}))}."
        return Outcome("failed", (), folder.name, epochs, seconds, message)
    values = tuple(float(known.get(name, math.nan)) for name in order.objectives)
    state = "completed" if all(map(math.isfinite, values)) else "nan"
    return Outcome(state, values if state == "completed" else (), folder.name, epochs, seconds)


def measured(folder: Path, status: Mapping[str, Any], monitor: str, best: float | None) -> dict[str, float]:
    """Metrics of the best epoch of a run, and its size and duration."""
    from imago.report.content import history

    rows = [row for row in history(folder) if isinstance(row.get(monitor), int | float)]
    at_best = next((row for row in rows if row[monitor] == best), rows[-1] if rows else {})
    known = {name: float(value) for name, value in at_best.items() if "/" in name and isinstance(value, int | float)}
    if best is not None:
        known[monitor] = best
    parameters = status.get("card", {}).get("parameters")
    seconds = [value for kind, value in status.get("timing", {}).items() if kind != "images_per_second" and value]
    known |= {"parameters": float(parameters)} if parameters is not None else {}
    return known | ({"seconds": float(sum(seconds))} if seconds else {})


def folder_of(sweep_dir: Path, number: int) -> Path | None:
    """Run folder of a trial; None if it has none."""
    folders = (path for path in sorted(sweep_dir.glob(f"*{number}_*")) if path.is_dir())
    return next((path for path in folders if path.name.partition("_")[0].lstrip("0") == str(number).lstrip("0")), None)
