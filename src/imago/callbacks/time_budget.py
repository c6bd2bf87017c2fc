"""`budget=10m`: the number of steps, and with it the schedule, that fit into the time of a run."""

import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer

from imago.callbacks.pace import LEAST_BATCHES, format_duration
from imago.data.module import ImageDataModule
from imago.distributed import decided_by_first
from imago.lightning_internals import data_of, is_accumulating, option_of, set_max_epochs
from imago.model.optimizers import SCHEDULE_STEPS
from imago.terminal import counted

log = logging.getLogger(__name__)

FIRST_EPOCHS = 10
"""Epochs that the schedule expects until the first steps have been measured."""
FIRST_PART = 0.05
"""Most of the schedule that these steps may use."""
LATE, EARLY, REST = 0.02, 0.05, 0.1
"""Parts of the budget by which a run may be late or early, and part of the time that is left that is added to either,
before the number of steps is changed."""
EVAL_COST = 0.5
"""Time to score an image, as a part of that to train on it, until a validation was measured."""
LEAST_REPORT, REPORT_COST = 5.0, 1.5
"""Seconds for the report, the card and the plots: at least so many, and this part of the time until the first step."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run: from `step` on, where `done` (0 to 1) of the schedule has been used, the rest takes until `total`
    optimizer steps."""

    step: int
    done: float
    total: int

    def progress(self, step: int) -> float:
        """Part of the schedule, 0 to 1, that has been used after `step` optimizer steps."""
        if step >= self.total:
            return 1.0
        return self.done + (1 - self.done) * (step - self.step) / (self.total - self.step)


@dataclass(frozen=True)
class Costs:
    """Seconds of an optimizer step, and of all that an epoch needs besides: its validation and its checkpoints."""

    step: float
    epoch: float


def steps_within(seconds: float, costs: Costs, steps_per_epoch: int, position: int) -> int:
    """Optimizer steps that fit into `seconds`, from step `position` of an epoch on; the last epoch may be a part of
    one, and is validated, too."""
    to_end = steps_per_epoch - position
    rest = seconds - to_end * costs.step - costs.epoch
    if rest < 0:
        return max(0, math.floor((seconds - costs.epoch) / costs.step))
    whole = steps_per_epoch * costs.step + costs.epoch
    epochs = math.floor(rest / whole)
    return to_end + epochs * steps_per_epoch + max(0, math.floor((rest - epochs * whole - costs.epoch) / costs.step))


def seconds_of(steps: int, costs: Costs, steps_per_epoch: int, position: int) -> float:
    """Seconds of `steps` optimizer steps from step `position` of an epoch on, with the ends of their epochs."""
    return steps * costs.step + math.ceil((position + steps) / steps_per_epoch) * costs.epoch


class TimeBudget(Callback):
    """Fit the number of steps, and the schedule, into `budget` seconds from the start of the command to its report.

    The first steps are measured; then the schedule is stretched or compressed to what fits, and again if the run would
    be late or early by more than a little. Checkpoints have the plan: a resumed run continues it, and neither the time
    that it was interrupted for nor its second start counts.

    Args:
        budget: Seconds of the run.
        began: Value of `time.monotonic()` when the run began.
        splits: The splits that are scored in the end.
    """

    def __init__(self, budget: float, began: float, splits: list[str]) -> None:
        self.budget = budget
        self.splits = splits
        self.plan: Plan | None = None
        self._began = began
        self._before = 0.0  # seconds until the checkpoint from which the run was resumed
        self._start = 0.0  # seconds until the first step
        self._mark: tuple[float, int] | None = None  # time and batch from which steps are measured
        self._epoch_mark: float | None = None
        self._costs: dict[str, float] = {}  # seconds of a batch, of the end of an epoch, and to score an image
        self._validation_began = 0.0
        self._has_changed_budget = False

    @property
    def spent(self) -> float:
        """Seconds of the run until now."""
        return self._before + time.monotonic() - self._began

    def is_used(self, trainer: Trainer) -> bool:
        """Whether the run has ended with the last step of its plan."""
        return self.plan is not None and trainer.global_step >= self.plan.total

    def state_dict(self) -> dict[str, Any]:
        plan = asdict(self.plan) if self.plan is not None else None
        return {
            "budget": self.budget,
            "spent": self.spent,
            "start": self._start,
            "plan": plan,
            "costs": dict(self._costs),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        plan = state_dict["plan"]
        self.plan = Plan(**plan) if plan is not None else None
        self._before, self._start, self._costs = state_dict["spent"], state_dict["start"], dict(state_dict["costs"])
        self._has_changed_budget = state_dict["budget"] != self.budget

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is None:
            self._start = self.spent
            return
        self._began = time.monotonic()
        if self.plan is not None and not self._has_changed_budget:
            set_max_epochs(trainer, self._epochs(trainer))
            trainer.should_stop |= self.is_used(trainer)  # it was ended while it was scored

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if option_of(trainer, "fast_dev_run"):
            return
        is_first = self._measure(trainer, batch_idx)
        if is_accumulating(trainer):
            return
        step = trainer.global_step
        if is_first or step % self._interval(trainer) == 0:
            self._revise(trainer, step, batch_idx)
        self._set_rates(trainer, step)
        if self.plan is not None and step >= self.plan.total:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        images = sum(trainer.num_val_batches) * _data(trainer).batch_size
        if images and not trainer.sanity_checking:
            seconds = time.monotonic() - self._validation_began
            self._costs["image"] = seconds / min(images, len(_data(trainer).split("val")))
        self._mark = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._mark = None

    def _measure(self, trainer: Trainer, batch_idx: int) -> bool:
        """Measure the batches since the first of the epoch, or since a validation within it. Returns whether this is
        the first batch of an epoch after another one."""
        now = time.monotonic()
        is_next_epoch = batch_idx == 0 and self._epoch_mark is not None
        if is_next_epoch and "batch" in self._costs:
            whole = now - (self._epoch_mark or now)
            self._costs["epoch"] = max(0.0, whole - trainer.num_training_batches * self._costs["batch"])
        if batch_idx == 0:
            self._epoch_mark = now
        if self._mark is None:
            self._mark = now, batch_idx
        began, first = self._mark
        if batch_idx - first >= min(LEAST_BATCHES, trainer.num_training_batches - 1):
            self._costs["batch"] = (now - began) / max(1, batch_idx - first)
        return is_next_epoch

    def _interval(self, trainer: Trainer) -> int:
        """Steps from one look at the clock to the next, equal in all processes."""
        return min(LEAST_BATCHES if self.plan is None else 50, max(1, _steps_per_epoch(trainer) // 20))

    def _revise(self, trainer: Trainer, step: int, batch_idx: int) -> None:
        """Make a plan, or change it, if the clock says so; the first process decides for all."""
        if "batch" not in self._costs and trainer.world_size == 1:
            return
        own = [self._wanted(trainer, step, batch_idx)]
        total = decided_by_first(own, trainer.world_size, trainer.strategy.root_device)[0]
        if total < 0 or (self.plan is not None and total == self.plan.total):
            return
        before, done = self.plan, min(self._progress(trainer, step), 1.0)
        if self._has_changed_budget:
            done = step / max(1, total)  # as if it had been so from the start
        self.plan, self._has_changed_budget = Plan(step, done, max(total, step)), False
        set_max_epochs(trainer, self._epochs(trainer))
        if trainer.is_global_zero:
            self._log_plan(trainer, before)

    def _wanted(self, trainer: Trainer, step: int, batch_idx: int) -> int:
        """Optimizer steps of the whole run that fit; -1 where the present plan is kept."""
        if "batch" not in self._costs:
            return -1
        costs, per_epoch = self._present_costs(trainer), _steps_per_epoch(trainer)
        position = math.ceil((batch_idx + 1) / trainer.accumulate_grad_batches)
        left = self.budget - self.spent - self._reserve(trainer)
        if self.plan is not None and not self._has_changed_budget:
            late = seconds_of(self.plan.total - step, costs, per_epoch, position) - left
            rest = REST * max(0.0, left)
            if -EARLY * self.budget - rest <= late <= LATE * self.budget + rest:
                return -1
        return step + steps_within(left, costs, per_epoch, position)

    def _present_costs(self, trainer: Trainer) -> Costs:
        data = _data(trainer)
        images = len(data.split("val")) if trainer.enable_validation else 0
        epoch = self._costs.get("epoch", images * self._image_cost(data))
        return Costs(self._costs["batch"] * trainer.accumulate_grad_batches, epoch)

    def _image_cost(self, data: ImageDataModule) -> float:
        return self._costs.get("image", EVAL_COST * self._costs["batch"] / data.batch_size)

    def _reserve(self, trainer: Trainer) -> float:
        """Seconds that scoring and the report will take. Both are slower on a slow machine, as its start was."""
        data = _data(trainer)
        images = sum(len(data.split(split)) for split in {data.scored_split(split) for split in self.splits})
        return images * self._image_cost(data) + max(LEAST_REPORT, REPORT_COST * self._start)

    def _progress(self, trainer: Trainer, step: int) -> float:
        if self.plan is not None:
            return self.plan.progress(step)
        return min(FIRST_PART, step / (FIRST_EPOCHS * _steps_per_epoch(trainer)))

    def _set_rates(self, trainer: Trainer, step: int) -> None:
        """Set the learning rates of the next step. The schedule has a fixed number of steps, of which one of the run
        may be many; Lightning has stepped it by one."""
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            scheduler.last_epoch = round(self._progress(trainer, step) * (SCHEDULE_STEPS - 1)) - 1
            scheduler.step()

    def _epochs(self, trainer: Trainer) -> int:
        assert self.plan is not None
        return max(1, math.ceil(self.plan.total / _steps_per_epoch(trainer)))

    def _log_plan(self, trainer: Trainer, before: Plan | None) -> None:
        assert self.plan is not None
        epochs = self.plan.total / _steps_per_epoch(trainer)
        what = f"{counted(self.plan.total, 'step')} ({epochs:.1f} epochs)"
        why = "" if before is None else f", not {before.total}: the pace has changed"
        log.info(
            "budget: %s are trained in %s%s. %s are kept for scores and report",
            what,
            format_duration(self.budget),
            why,
            format_duration(self._reserve(trainer)),
        )
        if epochs < 1:
            log.warning("The budget ends before the first epoch: type a longer one, or fewer report.splits=")


def _data(trainer: Trainer) -> ImageDataModule:
    data: ImageDataModule = data_of(trainer)
    return data


def _steps_per_epoch(trainer: Trainer) -> int:
    return max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
