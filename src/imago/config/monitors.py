"""Checks of the metrics that a run waits for: the best checkpoint, early stopping, the plateau schedule."""

import difflib
import re
from collections.abc import Iterator

from omegaconf import DictConfig

from imago.config.hints import monitor_hint
from imago.config.invocation import Invocation
from imago.config.node_checks import added_option
from imago.config.setting_source import in_file, is_users_own
from imago.definitions import best_mode

OWN = ("imago.", "lightning.")
VIEWS = ("launch", "samples", "predictions", "curves", "report", "labels", "explain")  # of ml-visualise
STAGES = ("train/", "val/")
HIGH = re.compile(
    r"torchmetrics\.classification\.\w*"
    r"(Accuracy|AUROC|AveragePrecision|CohenKappa|F1Score|FBetaScore|JaccardIndex|MatthewsCorrCoef|Precision|Recall|"
    r"Specificity)$"
)
"""Metrics that are better the higher they are."""


def monitor_problems(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with the names of `monitor` and its mode, which every command takes."""
    if "optimized_metric" in invocation.keys and cfg.monitor != cfg.optimized_metric:
        yield (
            f"monitor={cfg.monitor} and optimized_metric={cfg.optimized_metric} are two names of one setting. "
            "Type monitor= alone."
        )
    if not cfg.monitor.startswith(STAGES):
        word = _word(invocation)
        yield f"{word} must name the stage too, for example {word}=val/acc; got {cfg.monitor}."
    if cfg.mode not in ("min", "max", *VIEWS):
        yield f"mode must be min or max, got {cfg.mode}."


def unlogged_monitors(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Problems with callbacks that wait for a metric that nothing logs. One's own may log what they like."""
    callbacks, owner = _callbacks(cfg)
    targets = [str(node.get("_target_")) for node in callbacks.values()]
    is_complete = all(name.startswith(OWN) for name in targets)
    if owner is not None:
        yield from _unknown_metrics(cfg, owner, callbacks, is_complete, invocation)
    elif is_complete and cfg.model.get("_target_") == "imago.model.DictModule":
        yield from _without_metrics(callbacks, invocation)


def _without_metrics(callbacks: dict[str, DictConfig], invocation: Invocation) -> Iterator[str]:
    for name, node in callbacks.items():
        monitor = str(node.get("monitor"))
        if re.match(r"(train|val)/(?!loss(/|$))", monitor):
            instead = added_option("callbacks", "metrics", invocation)
            yield f"callbacks.{name} waits for {monitor}, which callbacks.metrics computes. {instead}"


def _unknown_metrics(
    cfg: DictConfig, owner: DictConfig, callbacks: dict[str, DictConfig], is_complete: bool, invocation: Invocation
) -> Iterator[str]:
    """Problems with the tracked metric, and with callbacks if none of one's own logs metrics (`is_complete`)."""
    losses, metrics = _loss_names(cfg), _metric_names(owner)
    if losses is None:
        return
    known = [*(name for name, is_single in metrics.items() if is_single), *losses]
    tracked = str(owner.get("tracked_metric_name") or "loss")
    waiting = {f"callbacks.{name}.monitor": str(node.get("monitor")) for name, node in callbacks.items()}
    waiting = {key: value for key, value in waiting.items() if is_complete and value != cfg.monitor}
    if cfg.monitor.startswith(STAGES) and tracked == cfg.monitor.partition("/")[2]:
        waiting = {_word(invocation): cfg.monitor} | waiting
    for key, monitor in waiting.items():
        stage, _, name = monitor.partition("/")
        if f"{stage}/" not in STAGES or name in known:
            continue
        if (of := name.removesuffix("_best")) != name and of in known:
            yield (
                f"{key}={monitor}{in_file(key, invocation)} is the best {stage}/{of} so far, which never gets worse. "
                f"Type {key}={stage}/{of}: its best value counts already."
            )
            continue
        why = "has a value for each class" if name in metrics else "is not logged"
        usual = monitor_hint(f"val_{of}").words[0].partition("/")[2]  # accuracy -> acc
        close = difflib.get_close_matches(usual, known, n=1)
        meant = f"Did you mean {key}={stage}/{close[0]}? " if close else ""
        yield (
            f"{key}={monitor}{in_file(key, invocation)}: {name} {why}. {meant}Type {key}={stage}/NAME, where NAME is "
            f"one of {', '.join(known)}."
        )


def mode_warnings(cfg: DictConfig, invocation: Invocation) -> Iterator[str]:
    """Warnings for a mode against which a metric improves: `min` for an accuracy, or `max` for a loss."""
    callbacks, owner = _callbacks(cfg)
    nodes = {f"callbacks.{name}": node for name, node in callbacks.items()}
    metrics = {name: str(part.get("_target_")) for name, part in _metric_parts(owner or DictConfig({})).items()}
    watched = [("monitor", cfg.monitor, "mode", cfg.mode)]
    watched += [(f"{key}.monitor", node.get("monitor"), f"{key}.mode", node.get("mode")) for key, node in nodes.items()]
    scheduler = cfg.model.get("scheduler")
    if isinstance(scheduler, DictConfig):
        watched.append(("model.monitor", cfg.model.get("monitor"), "model.scheduler.mode", scheduler.get("mode")))
    for key, monitor, mode_key, mode in watched:
        name = str(monitor).partition("/")[2]
        is_known = re.match(r"loss(/|$)", name) is not None or HIGH.match(metrics.get(name, "")) is not None
        is_of_root = mode_key != "mode" and (monitor, mode) == (cfg.monitor, cfg.mode)  # said there
        if not is_known or mode not in ("min", "max") or mode == best_mode(name) or is_of_root:
            continue
        instead = "val/loss" if mode == "min" else "val/acc"
        yield (
            f"{mode_key}={mode}{in_file(mode_key, invocation)}, but {monitor} is better the "
            f"{'higher' if mode == 'min' else 'lower'} it is. Leave {mode_key} out, or type {key}={instead}."
        )


def _callbacks(cfg: DictConfig) -> tuple[dict[str, DictConfig], DictConfig | None]:
    """Nodes of the callbacks by name, and the one that computes the metrics."""
    nodes = {str(name): node for name, node in (cfg.callbacks or {}).items() if isinstance(node, DictConfig)}
    owners = (node for node in nodes.values() if node.get("_target_") == "imago.callbacks.MetricsCallback")
    return nodes, next(owners, None)


def _loss_names(cfg: DictConfig) -> list[str] | None:
    """Names under which the losses are logged; None where a class of one's own has them."""
    node = cfg.model.get("criterions")
    is_ours = cfg.model.get("_target_") == "imago.model.DictModule" and isinstance(node, DictConfig)
    if not is_ours or node.get("_target_") != "imago.model.CriterionsComposition":
        return None
    return ["loss", *(f"loss/{name}" for name, loss in node.criterions.items() if loss is not None)]


def _metric_parts(owner: DictConfig) -> dict[str, DictConfig]:
    """Nodes of the metrics, by name."""
    node = owner.get("metrics")
    metrics = node.get("metrics") if isinstance(node, DictConfig) else None
    parts = metrics.items() if isinstance(metrics, DictConfig) else ()
    return {str(name): part for name, part in parts if isinstance(part, DictConfig)}


def _metric_names(owner: DictConfig) -> dict[str, bool]:
    """Name of each metric, and whether it has a single value."""
    return {n: part.get("average", "macro") not in (None, "none") for n, part in _metric_parts(owner).items()}


def _word(invocation: Invocation) -> str:
    """The name by which the user set `monitor`."""
    is_theirs = is_users_own("optimized_metric", invocation) and not is_users_own("monitor", invocation)
    return "optimized_metric" if is_theirs else "monitor"
