"""Settings of losses, optimizers and layers that cannot work together: a part of the table in combinations.py."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.combinations import AVERAGES, NO_FSDP, is_fsdp
from imago.config.invocation import Invocation
from imago.config.refused_callbacks import callback_targets

UNFREEZING = "imago.callbacks.GradualUnfreezing"
REFUSED_MODELS: tuple[tuple[Callable[[DictConfig, Invocation], bool], str], ...] = (
    (
        lambda cfg, _: is_fsdp(cfg) and _target(cfg.model.get("optimizer")) == "imago.model.Muon",
        "trainer.strategy=fsdp and model/optimizer=muon: an update needs the whole matrix, and no process has it. Type "
        f"model/optimizer=adamw. {NO_FSDP}",
    ),
    (
        lambda cfg, _: any(
            OmegaConf.is_dict(loss) and "_target_" not in loss
            for loss in (OmegaConf.select(cfg, "model.criterions.criterions") or {}).values()
        ),
        "A loss of model.criterions.criterions has settings and no _target_. recipe=large and recipe=scratch set the "
        "label smoothing of the cross-entropy, which model/criterions= replaces: type "
        "'~model.criterions.criterions.ce', or recipe=none.",
    ),
    (
        lambda cfg, _: bool(cfg.model.get("gradient_checkpointing")) and bool(cfg.model.get("compile")),
        "model.gradient_checkpointing=true and model.compile=true: the compiler cannot keep the second pass from "
        "changing the statistics of BatchNorm. Remove one of them.",
    ),
    (
        lambda cfg, _: bool(cfg.model.get("gradient_checkpointing")) and is_fsdp(cfg),
        "model.gradient_checkpointing=true and trainer.strategy=fsdp: not tested together. Type "
        f"model.gradient_checkpointing=false. {NO_FSDP}",
    ),
    (
        lambda cfg, _: sum(target.endswith(AVERAGES) for target in callback_targets(cfg)) > 1,
        "Two callbacks average weights, and a checkpoint has one average. Remove callbacks.ema or callbacks.swa.",
    ),
    (
        lambda cfg, _: cfg.model.get("freeze") == "backbone" and UNFREEZING in callback_targets(cfg),
        "model.freeze=backbone and callbacks.unfreeze contradict each other: the callback trains the head first, and "
        "then the other layers. Remove one of them.",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and UNFREEZING in callback_targets(cfg),
        f"trainer.strategy=fsdp and callbacks.unfreeze: not tested together. {NO_FSDP}",
    ),
)
"""Tests of the config and its invocation, and the messages for those that are true."""


def _target(node: Any) -> str:
    return str((node or {}).get("_target_"))
