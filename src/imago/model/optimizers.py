"""Optimizers, learning-rate schedules, and changes to their settings when a run is resumed."""

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from imago.errors import UserError, kind_of
from imago.lightning_internals import callbacks_of
from imago.model.parameter_groups import ParameterGroups

RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # learning rates of an optimizer's groups, which schedulers change
COUNTERS = ("last_epoch", "_step_count", "_last_lr", "best", "num_bad_epochs", "cooldown_counter", "last_lr")
OF_THE_STATE = ("fused", "foreach", "capturable")  # how a step is computed belongs to the optimizer's state
SCHEDULE_STEPS = 100_000
"""Steps of a schedule that is fitted to a time: each step of the run is a part of it."""
PLAIN = dict | list | tuple | bool | int | float | str | None


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup: float = 0.05, floor: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine to `floor`; stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peaks.
        total_steps: Optimizer steps of the whole run.
        warmup: Fraction of them spent on the warm-up.
        floor: Fraction of the peak that remains at the end.
    """
    rising = max(1, round(warmup * total_steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, total_steps - rising))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def make_optimizer(
    make: Callable[..., Optimizer] | None,
    parameters: list[Any],
    device: torch.device,
    trainer: Trainer,
    groups: ParameterGroups | None = None,
) -> Optimizer:
    """Create the optimizer of `parameters`, fused if it can be and no other implementation was chosen.

    `parameters` is a plain list, or comes from `groups.divide`.

    Raises:
        UserError: There is none, or it refuses its settings.
    """
    if make is None:
        raise UserError("model.optimizer=null: without an optimizer, the network can be scored but not trained.")
    try:
        optimizer = make(parameters, **_fused(make, parameters, device, trainer))
    except (TypeError, ValueError) as error:
        settings = {key: value for key, value in getattr(make, "keywords", {}).items() if key != "matrices"}
        where = f" with {' and '.join(groups.settings)}" if groups is not None and groups.settings else ""
        raise UserError(f"model.optimizer does not accept {settings}{where}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optimizer: its _target_ returns {kind_of(optimizer)}. It must return an optimizer.")
    if groups is not None:
        groups.apply(optimizer)
    return optimizer


def _fused(make: Callable[..., Optimizer], parameters: Any, device: torch.device, trainer: Trainer) -> dict[str, bool]:
    """Option `fused`, unless Lightning clips scaled gradients: a fused step unscales them only after the clipping."""
    first = next(iter(parameters), None)
    weight = first["params"][0] if isinstance(first, dict) else first
    kinds = FUSED_IF_DIVIDED if hasattr(weight, "full_tensor") else FUSED  # a DTensor: trainer.strategy=fsdp
    has_it = getattr(make, "func", make) in kinds and device.type in ("cpu", "cuda")
    typed = {"fused", "foreach", "capturable", "differentiable"} & getattr(make, "keywords", {}).keys()
    clips_scaled = trainer.gradient_clip_val is not None and trainer.precision == "16-mixed"
    return {"fused": True} if has_it and not typed and not clips_scaled else {}


def make_scheduler(
    make: Callable[..., Any],
    optimizer: Optimizer,
    interval: str,
    trainer: Trainer,
    monitor: str,
    schedule_steps: int | None = None,
) -> dict[str, Any]:
    """Create Lightning's configuration of the learning-rate scheduler, which gets the steps of the whole run, or
    `schedule_steps`, where these are not known yet.

    Raises:
        UserError: The run has no end, or more steps than the schedule, or the schedule sets one rate for all groups.
    """
    epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    planned = planned_steps(trainer) if interval == "step" else float(epochs or 0)
    if schedule_steps is not None:
        if not takes_total_steps(make) or interval != "step":
            raise UserError(
                "budget= fits the schedule to the time, and that of model.scheduler has steps of its own. Type "
                "model/scheduler=cosine, or model.scheduler=null."
            )
        planned = float(schedule_steps)
    before = [group["lr"] for group in optimizer.param_groups]
    if takes_total_steps(make):
        if math.isinf(planned):
            raise UserError(
                "model.scheduler needs the number of steps, but this run has no end. Type trainer.max_epochs=, or "
                "model.scheduler=null."
            )
        scheduler = make(optimizer, total_steps=int(planned))
    else:
        scheduler = make(optimizer)
    if not (hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")):
        raise UserError(f"model.scheduler: its _target_ returns {kind_of(scheduler)}. It must return a scheduler.")
    after = [group["lr"] for group in optimizer.param_groups]
    if any(not math.isclose(a * before[0], after[0] * b, rel_tol=1e-6) for a, b in zip(after, before, strict=True)):
        raise UserError(
            f"model.scheduler: {type(scheduler).__name__} sets one learning rate for all parameters, so model.head_lr "
            "and model.layer_decay would have no effect. Type model/scheduler=cosine, step or plateau."
        )
    if (steps := getattr(scheduler, "total_steps", None)) is not None and steps < planned:
        raise UserError(
            f"model.scheduler has {steps} steps, but it will be stepped {planned:g} times. Remove total_steps (or "
            "epochs and steps_per_epoch) to set it automatically."
        )
    config: dict[str, Any] = {"scheduler": scheduler, "interval": interval}
    if isinstance(scheduler, ReduceLROnPlateau):
        if interval == "step":
            raise UserError("model.scheduler_interval=step: ReduceLROnPlateau needs a validation result. Type epoch.")
        # on_train_epoch_end steps it: Lightning would only do so when the epoch's checkpoint is written
        config |= {"monitor": monitor, "frequency": sys.maxsize}
    return config


def counts_steps(scheduler: Callable[..., Any]) -> bool:
    """Whether a schedule is meant to be stepped after each optimizer step."""
    return bool({"total_steps", "step_size_up"} & inspect.signature(scheduler).parameters.keys())


def planned_steps(trainer: Trainer) -> float:
    """Optimizer steps of the whole run, also if GradientAccumulationScheduler changes the batches per step."""
    steps = trainer.estimated_stepping_batches
    changing = accumulation_schedule(trainer)
    if changing is None or math.isinf(steps):
        return steps
    batches = int(trainer.num_training_batches)
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else 0
    planned = sum(math.ceil(batches / changing.get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
    return min(planned, trainer.max_steps) if epochs and trainer.max_steps >= 0 else planned or trainer.max_steps


def accumulation_schedule(trainer: Trainer) -> GradientAccumulationScheduler | None:
    """The callback that changes `accumulate_grad_batches` from epoch to epoch, if any."""
    return next(iter(callbacks_of(trainer, GradientAccumulationScheduler)), None)


def optimizer_settings(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Settings of a new optimizer and its scheduler: plain types only."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return _plain({"groups": groups, "scheduler": scheduler.state_dict() if scheduler is not None else {}})


def apply_new_settings(optimizer: Any, scheduler: Any, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Apply settings that were changed since a checkpoint was written: restoring it has brought back the old ones.

    `then` and `now` come from `optimizer_settings`. Learning rates keep the fraction that the schedule has left. A
    schedule that is a function of the step has its rate at this step at once: the restored one is of a shorter run.
    """
    if then and then != now:
        _apply_changes(optimizer, scheduler, then, now)
    if isinstance(scheduler, LambdaLR | OneCycleLR):
        with warnings.catch_warnings(action="ignore"):  # torch expects the question within a step alone
            _set_rates(optimizer, scheduler.get_lr())


def _apply_changes(optimizer: Any, scheduler: Any, then: dict[str, Any], now: dict[str, Any]) -> None:
    for group, before, after in zip(optimizer.param_groups, then["groups"], now["groups"], strict=False):
        for key in after.keys() & before.keys() - set(OF_THE_STATE):
            # a new scheduler sets `lr` to its first value, and keeps the setting as `initial_lr`
            base = "initial_lr" if key == "lr" and "initial_lr" in before.keys() & after.keys() else key
            if after[base] != before[base]:
                group[key] = group[key] * after[base] / before[base] if key in RATES and before[base] else after[key]
    if scheduler is None or then["scheduler"] == now["scheduler"]:
        return
    scheduler.load_state_dict(_replaced(scheduler.state_dict(), then["scheduler"], now["scheduler"]))
    if hasattr(scheduler, "_get_closed_form_lr"):  # otherwise it continues where the old schedule was
        _set_rates(optimizer, scheduler._get_closed_form_lr())


def _set_rates(optimizer: Any, rates: Sequence[Any]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _replaced(state: Any, then: Any, now: Any) -> Any:
    """`state` with the settings in which `now` differs from `then`; counters are those of the state."""
    if isinstance(state, dict) and isinstance(then, dict) and isinstance(now, dict):
        common = then.keys() & now.keys() - set(COUNTERS)
        return {key: _replaced(value, then[key], now[key]) if key in common else value for key, value in state.items()}
    if isinstance(state, list) and all(isinstance(entry, dict) for entry in state):
        return [_replaced(*entries) for entries in zip(state, then, now, strict=False)]
    return state if then == now else now


def _plain(value: Any) -> Any:
    """`value` without entries that a checkpoint cannot hold, such as functions."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if isinstance(entry, PLAIN)}
    return [_plain(entry) for entry in value if isinstance(entry, PLAIN)] if isinstance(value, list | tuple) else value


FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
FUSED_IF_DIVIDED = (torch.optim.Adam, torch.optim.AdamW)  # in torch 2.15, SGD has none for tensors on several processes


def takes_matrices(optimizer: Callable[..., Any] | None) -> bool:
    """Whether an optimizer treats matrices in another way, and has to be told which parameters these are."""
    return optimizer is not None and "matrices" in inspect.signature(optimizer).parameters


def takes_total_steps(scheduler: Callable[..., Any]) -> bool:
    """Whether a schedule takes the steps of the whole run, and they were not set."""
    typed = getattr(scheduler, "keywords", {})
    return "total_steps" in inspect.signature(scheduler).parameters and not {"total_steps", "epochs"} & typed.keys()
