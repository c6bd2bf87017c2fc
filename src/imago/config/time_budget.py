"""`budget=10m`: the time that a whole run may take, and the settings that give way to it."""

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from imago.config.durations import read_seconds
from imago.config.invocation import Invocation
from imago.config.private import is_private
from imago.config.schema import shipped
from imago.config.setting_source import is_typed, is_users_own
from imago.config.tree import nodes
from imago.terminal import say

LEAST_SECONDS = 20
"""Start-up and report alone take about half of it."""
EXAMPLES = "Type a time such as 90s, 10m, 1h30m or 01:30:00"


def budget_seconds(cfg: DictConfig) -> float | None:
    """The seconds that a training may take; None without a budget, or where nothing is trained."""
    return read_seconds(str(cfg.budget)) if cfg.get("budget") is not None and cfg.train else None


def with_budget(cfg: DictConfig, invocation: Invocation) -> DictConfig:
    """Replace the ends of a run that are not typed: the time decides on the number of epochs, and early stopping would
    end the schedule before its end."""
    if cfg.get("budget") is None or not cfg.train or not isinstance(cfg.trainer, DictConfig):
        return cfg
    dropped = []
    for key, end in (("max_epochs", -1), ("max_steps", -1)):
        if cfg.trainer.get(key) != end and not is_typed(f"trainer.{key}", invocation):
            dropped.append(f"trainer.{key}={cfg.trainer.get(key)}")
            cfg.trainer[key] = end
    stopping = (cfg.callbacks or {}).get("early_stopping")
    if stopping is not None and not is_users_own("callbacks.early_stopping", invocation):
        dropped.append("callbacks.early_stopping")
        cfg.callbacks.early_stopping = None
    if dropped:
        say(f"budget={cfg.budget} decides when the run ends, in place of {' and '.join(dropped)}")
    return cfg


def budget_problems(cfg: DictConfig) -> Iterator[str]:
    """Problems with `budget`, and with settings that contradict it."""
    budget = cfg.get("budget")
    if budget is None:
        return
    seconds = read_seconds(str(budget))
    if seconds is None:
        yield f"budget must be the time that the run may take, or null; got {budget}. {EXAMPLES}."
        return
    if seconds < LEAST_SECONDS:
        yield f"budget={budget}: a run takes about {LEAST_SECONDS} s with its start and its report. {EXAMPLES}."
    if not cfg.train:
        yield "budget= and train=false: nothing is trained. Remove one of them."
        return
    for key in ("max_epochs", "max_steps"):
        if cfg.trainer.get(key) not in (-1, None):
            yield f"budget= chooses the number of epochs. Remove trainer.{key}, or type budget=null."
    timers = [key for key, node in _callbacks(cfg) if str(node._target_).endswith(".Timer")]
    if cfg.trainer.get("max_time") is not None or timers:
        yield (
            "budget= and trainer.max_time (or a Timer): the first fits the schedule to the time, the second ends the "
            "run wherever it is. Remove one of them."
        )
    for key in ("min_epochs", "min_steps"):
        if cfg.trainer.get(key) is not None:
            yield f"budget= chooses the number of epochs. Type trainer.{key}=null."
    if cfg.model.get("probe") == "only":
        yield "budget= and model.probe=only (recipe=head): no epoch is trained. Remove budget=, or type recipe=none."
    if is_private(cfg):
        yield "budget= and strategy=dp: the noise is computed from the number of steps. Type trainer.max_epochs=."
    if cfg.get("replay") is not None:
        yield "budget= and replay=: the number of steps depends on the time, and would be another. Remove one of them."
    ema = (cfg.callbacks or {}).get("ema")
    if ema is not None and ema.get("start"):
        yield "budget= and callbacks.ema.start: the number of steps is not known before. Type callbacks.ema.start=0."
    yield from _schedule_problems(cfg)


def _schedule_problems(cfg: DictConfig) -> Iterator[str]:
    scheduler = cfg.model.get("scheduler")
    if scheduler is None:
        return
    arguments = shipped().get(str(scheduler.get("_target_")), {}).get("properties")
    is_fixed = arguments is not None and "total_steps" not in arguments
    if is_fixed or scheduler.get("total_steps") is not None or cfg.model.get("scheduler_interval") == "epoch":
        name = str(scheduler.get("_target_")).rpartition(".")[2]
        yield (
            f"budget= fits the schedule to the time, and {name} here has steps of its own. Type "
            "model/scheduler=cosine, one_cycle, or model.scheduler=null (with model.scheduler_interval=null)."
        )


def _callbacks(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    return nodes(OmegaConf.create({}) if cfg.callbacks is None else cfg.callbacks, "callbacks")
