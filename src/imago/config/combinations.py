"""Settings that cannot work, alone or in combination: one table, checked before anything is made."""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from imago.config.invocation import Invocation
from imago.config.launcher import current_launch
from imago.config.refused_callbacks import callback_targets, lightning_name
from imago.config.setting_source import is_of_group, is_typed
from imago.config.strategies import FSDP
from imago.config.tree import nodes

NEED_A_LOGGER = ("LearningRateMonitor", "DeviceStatsMonitor")
AVERAGES = ("WeightAveraging", "imago.callbacks.EMA", "imago.callbacks.SWA")
NO_FSDP = "Or type trainer.strategy=ddp, in which each process has all weights."
NOT_OF_THE_TRAINER = {  # argument of Lightning's Trainer -> what to type instead
    "num_nodes": "trainer.num_nodes is the number of nodes on which a launcher starts the command. Remove it. For "
    "several nodes start the command with torchrun --nnodes= on each node (docs/devices.md).",
    "logger": "trainer.logger is not supported: loggers have a config group. Type logger=csv, or logger=[] for none.",
    "callbacks": "trainer.callbacks is not supported: callbacks have a config group. Type callbacks=none for none.",
    "plugins": "trainer.plugins is not supported: Imago writes checkpoints with a plugin of its own, and "
    "trainer.precision= chooses the others. Remove it.",
}
REFUSED: tuple[tuple[Callable[[DictConfig, Invocation], bool], str], ...] = (
    (
        lambda cfg, invocation: cfg.data.get("fold") is not None and is_typed("data.val_ratio", invocation),
        "data.fold and data.val_ratio contradict each other: the fold is val, and the other folds are train. Remove "
        "one of them.",
    ),
    (
        lambda cfg, _: cfg.data.get("fold") is not None and bool(cfg.data.get("calibration_ratio")),
        "data.fold and data.calibration_ratio contradict each other: each image of a fold is predicted, so that none "
        "is set aside. Remove one of them.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("num_nodes", 1) != 1 and current_launch() is None,
        NOT_OF_THE_TRAINER["num_nodes"],
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and any(target.endswith(AVERAGES) for target in callback_targets(cfg)),
        f"trainer.strategy=fsdp and callbacks that average weights: no process has all of them. {NO_FSDP}",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and cfg.model.get("probe") in (True, "only"),
        "trainer.strategy=fsdp and model.probe: no process has the whole head. Type model.probe=false (recipe=none in "
        f"place of recipe=head). {NO_FSDP}",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and cfg.model.get("forward_fn") is not None,
        f"trainer.strategy=fsdp divides the weights of model.net, and model.forward_fn may have its own. {NO_FSDP}",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and cfg.model.get("on_bad_loss") == "skip",
        "trainer.strategy=fsdp and model.on_bad_loss=skip: the gradients of a batch that is left out are not divided. "
        f"Type model.on_bad_loss=error. {NO_FSDP}",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and bool(cfg.model.get("compile")),
        f"trainer.strategy=fsdp and model.compile=true: not tested together. Type model.compile=false. {NO_FSDP}",
    ),
    (
        lambda cfg, _: is_fsdp(cfg) and cfg.trainer.get("precision") in ("16-mixed", "16", 16),
        "trainer.strategy=fsdp and trainer.precision=16-mixed: the loss scaling would be that of each process. Type "
        f"trainer.precision=bf16-mixed. {NO_FSDP}",
    ),
    (
        lambda cfg, _: "logger" in cfg.trainer,
        NOT_OF_THE_TRAINER["logger"],
    ),
    (
        lambda cfg, _: "callbacks" in cfg.trainer,
        NOT_OF_THE_TRAINER["callbacks"],
    ),
    (
        lambda cfg, invocation: (
            cfg.model.get("freeze") == "backbone" and is_of_group("model.layer_decay", "recipe", invocation)
        ),
        "model.freeze and the recipe contradict each other: recipes from small to large train all layers. Remove "
        "model.freeze, or type recipe=none, or recipe=head for an exact head on frozen layers.",
    ),
    (
        lambda cfg, made: not cfg.resume and made.choices.get("recipe") == "head" and cfg.model.get("probe") != "only",
        "recipe=head and model.probe: the recipe is model.probe=only. Remove one of them.",
    ),
    (
        lambda cfg, invocation: (
            cfg.model.get("freeze") == "backbone"
            and cfg.model.get("layer_decay") is not None
            and not is_of_group("model.layer_decay", "recipe", invocation)
        ),
        "model.layer_decay and model.freeze: only the head is trained, so there are no layers below it whose learning "
        "rate could decay. Type model.layer_decay=null, or model.freeze=null.",
    ),
    (
        lambda cfg, _: bool(cfg.model.get("freeze_batch_norm")) and cfg.model.get("norm") == "group",
        "model.freeze_batch_norm=true and model.norm=group: frozen layers are not replaced. Type one of "
        "model.freeze_batch_norm=false, model.norm=null.",
    ),
    (
        lambda cfg, _: bool(cfg.trainer.get("sync_batchnorm")) and freezes_norms(cfg),
        "trainer.sync_batchnorm=true, and BatchNorm is frozen (model.freeze_batch_norm or model.freeze): there are no "
        "statistics to synchronise. Remove trainer.sync_batchnorm.",
    ),
    (
        lambda cfg, invocation: (
            "hparams_search" in invocation.keys
            and invocation.sweep_dir is None
            and cfg.resume is None
            and cfg.replay is None
        ),
        "hparams_search= searches with many runs, and this would be one. Add -m for the search.",
    ),
    (
        lambda cfg, _: cfg.auto_resume and cfg.resume is not None,
        "resume= and auto_resume=true: type only one of them.",
    ),
    (
        lambda cfg, _: cfg.model.get("probe") in (True, "only") and cfg.model.get("forward_fn") is not None,
        "model.probe and model.forward_fn: a head is fitted first only where the network itself gives the logits. Type "
        "model.probe=false.",
    ),
    (
        lambda cfg, invocation: (
            not cfg.train and cfg.model.get("probe") in (True, "only") and is_typed("model.probe", invocation)
        ),
        "train=false and model.probe: nothing is fitted. Remove one of them.",
    ),
    (
        lambda cfg, _: (
            (cfg.resume is not None and not cfg.train)
            or ((cfg.resume is not None or cfg.auto_resume) and cfg.preflight == "only")
        ),
        "resume= and auto_resume=true continue training: remove train=false and preflight=only. To score a run type "
        "python src/eval.py ckpt_path=",
    ),
    (
        lambda cfg, invocation: cfg.auto_resume and not _has_fixed_folder(invocation),
        "auto_resume=true needs the same run folder each time: add hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER "
        "with -m).",
    ),
    (
        lambda cfg, _: cfg.data.get("decode") == "fast" and cfg.data.get("cache") in ("ram", "disk"),
        "data.decode=fast cannot be combined with this data.cache: cached images are decoded once, exactly. Type "
        "data.decode=exact, or data.cache=auto, which then caches only images without random crops.",
    ),
    (
        lambda cfg, _: cfg.matmul_precision not in ("highest", "high", "medium"),
        "matmul_precision must be highest, high or medium.",
    ),
    (
        lambda cfg, _: cfg.preflight not in (True, False, "only"),
        "preflight must be true, false or only.",
    ),
    (
        lambda cfg, _: cfg.preflight == "only" and not cfg.train,
        "preflight=only and train=false together leave nothing to do.",
    ),
    (
        lambda cfg, _: number_or_infinity(cfg.trainer.get("accumulate_grad_batches", 1)) < 1,
        "trainer.accumulate_grad_batches must be a whole number, 1 or more.",
    ),
    (
        lambda cfg, _: isinstance(cfg.trainer.get("val_check_interval"), str | DictConfig),
        "trainer.val_check_interval must be a fraction of an epoch, for example 0.5, or a number of batches. A time is "
        "not supported.",
    ),
    (
        lambda cfg, _: (
            cfg.trainer.get("val_check_interval") is not None
            and number_or_infinity(cfg.trainer.val_check_interval) <= 0
        ),
        "trainer.val_check_interval must be a fraction of an epoch above 0, or a number of batches.",
    ),
    (
        lambda cfg, _: number_or_infinity(cfg.trainer.get("check_val_every_n_epoch")) < 1,
        "trainer.check_val_every_n_epoch must be a whole number, 1 or more.",
    ),
    (
        lambda cfg, _: number_or_infinity(cfg.trainer.get("gradient_clip_val")) < 0,
        "trainer.gradient_clip_val must be a number above 0, or null.",
    ),
    (
        lambda cfg, _: (
            cfg.trainer.get("gradient_clip_algorithm") is not None and not cfg.trainer.get("gradient_clip_val")
        ),
        "trainer.gradient_clip_algorithm has no effect without a value: add trainer.gradient_clip_val=1.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("enable_checkpointing") is False and bool(cfg.callbacks),
        "trainer.enable_checkpointing=false is not supported: checkpoints are callbacks. "
        "Type '~callbacks.model_checkpoint' '~callbacks.resume', or callbacks=none.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("enable_progress_bar") is False and bool(cfg.callbacks),
        "trainer.enable_progress_bar=false is not supported: the bar is a callback. Type '~callbacks.progress_bar'.",
    ),
    (
        lambda cfg, _: bool(cfg.trainer.get("barebones")),
        "trainer.barebones=true turns off checkpoints, loggers and metrics, which every run needs. Remove it.",
    ),
    (
        lambda cfg, _: bool(cfg.trainer.get("plugins")),
        NOT_OF_THE_TRAINER["plugins"],
    ),
    (
        lambda cfg, _: (
            not cfg.logger and any(lightning_name(target) in NEED_A_LOGGER for target in callback_targets(cfg))
        ),
        f"{' and '.join(NEED_A_LOGGER)} need a logger: type logger=csv, or remove them.",
    ),
    (
        lambda cfg, _: cfg.data.get("sampler") in ("balanced", "sqrt") and _weighs_rare_classes(cfg),
        "data.sampler and class weights or counts that come from the data (auto, effective): both make up for rare "
        "classes, and together too much. Remove one of them.",
    ),
    (
        lambda cfg, _: cfg.data.get("sample_weights") is not None and cfg.data.get("sampler") != "weights",
        "data.sample_weights has no effect without data.sampler=weights. Add it, or remove data.sample_weights.",
    ),
    (
        lambda cfg, _: cfg.data.get("prefetch_factor") is not None and cfg.data.get("num_workers") == 0,
        "data.prefetch_factor needs workers, and data.num_workers is 0: add data.num_workers=2, or remove it.",
    ),
    (
        lambda cfg, invocation: cfg.resume is not None and is_typed("model.init_from", invocation),
        "resume= and model.init_from=: a resumed run already has weights. Remove model.init_from=.",
    ),
)
"""Tests of the config and its invocation, and the messages for those that are true."""


def number_or_infinity(value: Any) -> float:
    """Return `value` if it is a number, otherwise infinity."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.inf


def is_fsdp(cfg: DictConfig) -> bool:
    """Whether processes have parts of the weights."""
    return cfg.trainer.get("strategy") == FSDP


def freezes_norms(cfg: DictConfig) -> bool:
    """Whether the BatchNorms of the network are frozen, or those of all layers but the head."""
    return bool(cfg.model.get("freeze_batch_norm")) or cfg.model.get("freeze") == "backbone"


def _weighs_rare_classes(cfg: DictConfig) -> bool:
    """Whether the loss makes up for the class frequencies of the data."""
    by_counts = any(node.get("class_counts") == "auto" for _, node in nodes(cfg.model, "model"))
    return by_counts or cfg.model.get("class_weights") in ("auto", "effective")


def _has_fixed_folder(invocation: Invocation) -> bool:
    key = "hydra.sweep.dir=" if invocation.sweep_dir is not None else "hydra.run.dir="
    return any(word.startswith(key) for word in invocation.hydra_overrides)
