"""The callback of `budget=`, and how much of it a run has used in the end."""

import logging

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from imago.callbacks.pace import format_duration
from imago.callbacks.time_budget import TimeBudget
from imago.config.time_budget import budget_seconds
from imago.lightning_internals import callbacks_of
from imago.model.module import DictModule
from imago.model.optimizers import SCHEDULE_STEPS
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)


def time_budget(cfg: DictConfig, run: RunFolder, model: DictModule) -> TimeBudget | None:
    """The callback that fits a training to `budget`, to which the schedule of `model` is made; None without one."""
    seconds = budget_seconds(cfg)
    if seconds is None:
        return None
    model.schedule_steps = SCHEDULE_STEPS
    return TimeBudget(seconds, run.began, list(cfg.report.splits) if cfg.test else [])


def log_used_time(trainer: Trainer, run: RunFolder) -> None:
    """Log what a run with a budget has taken, from its start to its report."""
    for budget in callbacks_of(trainer, TimeBudget):
        used = f"{format_duration(budget.spent)} of {format_duration(budget.budget)}"
        run.update(budget={"seconds": budget.budget, "used": round(budget.spent, 1)})
        log.info("budget: the run has taken %s", used)
