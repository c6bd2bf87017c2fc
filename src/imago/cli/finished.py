"""A run folder whose run is finished: what would extend it."""

import re
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from imago.config.durations import as_max_time, read_seconds, twice
from imago.definitions import BUDGET_SPENT, TIME_OVER
from imago.errors import UserError
from imago.run.folder import RunFolder
from imago.terminal import counted, say

RESULT_KEYS = ("data.", "model.", "seed ", "strategy.")
NEUTRAL_KEYS = ("data.num_workers", "data.cache", "data.data_dir")
EXTENDING_KEYS = (
    "trainer.max_",
    "budget",
    "callbacks.early_stopping",
    "strategy.target_epsilon",
    "model.probe only -> True",
)
"""Settings that give a finished run something to do."""
DURATION = re.compile(r"callbacks\.[^.]+\.duration ")
"""That of a Timer gives it something to do, too."""


@dataclass(frozen=True)
class FinishedRun:
    """A run folder whose run was finished before; `objective` is its best value."""

    run_dir: Path
    objective: float | None


def finished_run(run: RunFolder, cfg: DictConfig, changed: list[str]) -> FinishedRun | None:
    """Report a run that has nothing left to do; None for a run that has.

    Raises:
        UserError: Its settings differ from those that were typed.
    """
    is_finished = run.former.get("status") == "completed" and bool(run.former.get("epoch") or "head" in run.former)
    if not is_finished or any(change.startswith(EXTENDING_KEYS) or DURATION.match(change) for change in changed):
        return None
    if differing := [
        change for change in changed if change.startswith(RESULT_KEYS) and not change.startswith(NEUTRAL_KEYS)
    ]:
        raise UserError(
            f"{run.path} contains a finished run with other settings: {'; '.join(differing)}. "
            "Type another folder: hydra.run.dir=, or hydra.sweep.dir= with -m."
        )
    why, *words = _extension(run, cfg)
    epochs = counted(run.former.get("epoch", 0), "epoch")
    say(f"{run.path} contains a finished run ({epochs}): nothing to do. {why}")
    say(f"  {run.invocation.resume_command(run.path, *words)}")
    return FinishedRun(run.path, run.former.get("best_value"))


def _extension(run: RunFolder, cfg: DictConfig) -> tuple[str, ...]:
    """Reason for which a run ended, or can be extended, and the settings that extend it."""
    reason, epochs = str(run.former.get("reason")), cfg.trainer.get("max_epochs")
    if reason == BUDGET_SPENT:
        return "Its privacy budget is spent. To raise it, type", "strategy.target_epsilon="
    if reason.startswith(TIME_OVER) and cfg.trainer.get("max_time") is not None:
        return "Its time was over. For more time type", f"trainer.max_time={twice(cfg.trainer.max_time)}"
    if cfg.get("budget") is not None and (seconds := read_seconds(str(cfg.budget))) is not None:
        return "Its time was used. For more time type", f"budget={as_max_time(2 * seconds)}"
    after_head = () if run.former.get("epoch") else ("model.probe=true",)  # it was the head alone
    doubled = 2 * epochs if isinstance(epochs, int) and epochs > 0 else ""
    return "For more epochs type", *after_head, f"trainer.max_epochs={doubled}"
