"""Settings that cannot work, alone or in combination: one table, checked before anything is made."""

import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig

from imago.config.invocation import Invocation
from imago.config.setting_source import is_typed
from imago.config.tree import nodes

NEED_A_LOGGER = ("LearningRateMonitor", "DeviceStatsMonitor")
BEST = "best.ckpt is the checkpoint of the best epoch, which is scored."
ADD = (
    "For further files add a callback: '+callbacks.more={_target_: lightning.pytorch.callbacks.ModelCheckpoint, "
    "dirpath: ${paths.output_dir}/more, KEY: VALUE}'; for going on within an epoch type "
    "callbacks.resume.every_n_train_steps="
)
CHECKPOINT_KEYS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("every_n_train_steps", bool),
    ("train_time_interval", bool),
    ("every_n_epochs", lambda value: value not in (None, 1)),
    ("save_on_exception", bool),
    ("save_weights_only", bool),
    ("monitor", lambda value: value is None),
)
"""Arguments of `callbacks.model_checkpoint` -> test for values that would make best.ckpt something else."""
EMA = "'+callbacks.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.99}'"
CALLBACKS = {
    "StochasticWeightAveraging": f"its average would be neither saved nor scored. Type {EMA}, whose average is.",
    "ModelPruning": "it changes the weights between validation and checkpoint, and no file keeps its masks. Prune the "
    "trained network instead.",
    "BatchSizeFinder": "preflight says whether a batch fits. Type data.batch_size=",
    "LearningRateFinder": "it looks for an attribute that networks do not have. Type model.optimizer.lr=, or a sweep: "
    "-m model.optimizer.lr=0.01,0.001",
    "SpikeDetection": "a run with it cannot be resumed (a defect of Lightning's). model.on_bad_loss=skip leaves out "
    "batches whose loss is not finite.",
    "BackboneFinetuning": "it wants a network with the parts backbone and head. Type model.freeze=backbone, or write a "
    "BaseFinetuning of your own (docs/extend/callback.md).",
    "OnExceptionCheckpoint": "callbacks.resume keeps what an exception leaves in on_exception.ckpt already.",
    "AsyncCheckpointIO": "checkpoints are written whole by Imago's own.",
}
"""Callbacks of Lightning that cannot work here -> reason, and what to type."""
BASES = {
    "BaseFinetuning": "it is a class to inherit from (docs/extend/callback.md).",
    "Checkpoint": "it is a class to inherit from (docs/extend/callback.md).",
    "ProgressBar": "it is a class to inherit from. callbacks.progress_bar is one.",
}
REFUSED: tuple[tuple[Callable[[DictConfig, Invocation], bool], str], ...] = (
    (
        lambda cfg, _: cfg.trainer.get("num_nodes", 1) != 1,
        "trainer.num_nodes: a run uses the devices of one machine. Type trainer.devices= alone.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("strategy", "auto") not in ("auto", "ddp", "ddp_find_unused_parameters_true"),
        "trainer.strategy: give auto, ddp or ddp_find_unused_parameters_true.",
    ),
    (
        lambda cfg, _: "logger" in cfg.trainer,
        "trainer.logger: loggers are a group of their own. Type logger=csv, or logger=[] for none.",
    ),
    (
        lambda cfg, _: "callbacks" in cfg.trainer,
        "trainer.callbacks: callbacks are a group of their own. Type callbacks=none for none.",
    ),
    (
        lambda cfg, _: bool(os.environ.keys() & {"TORCHELASTIC_RUN_ID", "LOCAL_RANK"}),
        "This process was started as one of several (torchrun?). Start one: Imago starts the others itself, "
        "trainer=ddp trainer.devices=4 for example.",
    ),
    (
        lambda cfg, _: "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1",
        "Slurm starts this command several times: each would be a run of its own. Type #SBATCH --ntasks=1 (or srun "
        "--ntasks=1): Imago starts the other processes itself, trainer=ddp trainer.devices=4 for example.",
    ),
    (
        lambda cfg, _: cfg.model.get("on_bad_loss") == "skip" and cfg.trainer.get("strategy") != "auto",
        "model.on_bad_loss=skip works in one process: another one would wait for the gradients. "
        "Type model.on_bad_loss=error, or trainer.strategy=auto trainer.devices=1.",
    ),
    (
        lambda cfg, _: cfg.model.get("class_weights") == "auto" and _is_private(cfg),
        "strategy=dp and model.class_weights=auto: how often a class occurs would not be private. Type numbers that do "
        "not come from these data: 'model.class_weights={NAME: 5}'.",
    ),
    (
        lambda cfg, _: cfg.auto_resume and cfg.resume is not None,
        "resume= and auto_resume=true: resume= is enough.",
    ),
    (
        lambda cfg, _: cfg.resume is not None and (not cfg.train or cfg.preflight == "only"),
        "resume= trains on: leave train=false and preflight=only out. To score a run: python src/eval.py ckpt_path=",
    ),
    (
        lambda cfg, invocation: cfg.auto_resume and not _has_fixed_folder(invocation),
        "auto_resume=true goes on in the folder of the run, which has to be the same each time: "
        "type hydra.run.dir=FOLDER too (hydra.sweep.dir=FOLDER with -m).",
    ),
    (
        lambda cfg, _: cfg.data.get("decode") == "fast" and cfg.data.get("cache") in ("ram", "disk"),
        "data.decode=fast and data.cache=: a cache is decoded once, exactly. Type data.decode=exact, or "
        "data.cache=auto, which then keeps what is not cut at random.",
    ),
    (
        lambda cfg, _: cfg.matmul_precision not in ("highest", "high", "medium"),
        "matmul_precision: give highest, high or medium.",
    ),
    (
        lambda cfg, _: cfg.preflight not in (True, False, "only"),
        "preflight: give true, false or only.",
    ),
    (
        lambda cfg, _: cfg.preflight == "only" and not cfg.train,
        "preflight=only with train=false leaves nothing to do.",
    ),
    (
        lambda cfg, _: _number(cfg.trainer.get("accumulate_grad_batches", 1)) < 1,
        "trainer.accumulate_grad_batches: give a whole number, 1 or more.",
    ),
    (
        lambda cfg, _: isinstance(cfg.trainer.get("val_check_interval"), str | DictConfig),
        "trainer.val_check_interval: a time is not supported. Give a share of an epoch, 0.5 for example, or a number "
        "of batches.",
    ),
    (
        lambda cfg, _: (
            cfg.trainer.get("val_check_interval") is not None and _number(cfg.trainer.val_check_interval) <= 0
        ),
        "trainer.val_check_interval: give a share of an epoch above 0, or a number of batches.",
    ),
    (
        lambda cfg, _: _number(cfg.trainer.get("check_val_every_n_epoch")) < 1,
        "trainer.check_val_every_n_epoch: give a whole number, 1 or more.",
    ),
    (
        lambda cfg, _: _number(cfg.trainer.get("gradient_clip_val")) < 0,
        "trainer.gradient_clip_val: give a number above 0, or null.",
    ),
    (
        lambda cfg, _: (
            cfg.trainer.get("gradient_clip_algorithm") is not None and not cfg.trainer.get("gradient_clip_val")
        ),
        "trainer.gradient_clip_algorithm clips nothing without a value: type trainer.gradient_clip_val=1 too.",
    ),
    (
        lambda cfg, _: (cfg.trainer.get("min_epochs") or 0) > _limit(cfg.trainer.get("max_epochs")),
        "trainer.min_epochs is above trainer.max_epochs: the run would end before. Type a larger trainer.max_epochs=.",
    ),
    (
        lambda cfg, _: (cfg.trainer.get("min_steps") or 0) > _limit(cfg.trainer.get("max_steps")),
        "trainer.min_steps is above trainer.max_steps: the run would end before. Type a larger trainer.max_steps=.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("enable_checkpointing") is False and bool(cfg.callbacks),
        "trainer.enable_checkpointing=false: checkpoints are callbacks. Type '~callbacks.model_checkpoint' "
        "'~callbacks.resume', or callbacks=none.",
    ),
    (
        lambda cfg, _: cfg.trainer.get("enable_progress_bar") is False and bool(cfg.callbacks),
        "trainer.enable_progress_bar=false: the bar is a callback. Type '~callbacks.progress_bar'.",
    ),
    (
        lambda cfg, _: bool(cfg.trainer.get("barebones")),
        "trainer.barebones=true runs without checkpoints, loggers and metrics, of which a run is made. Leave it out.",
    ),
    (
        lambda cfg, _: bool(cfg.trainer.get("plugins")),
        "trainer.plugins: checkpoints are written whole by a plugin of Imago's own, and trainer.precision= chooses the "
        "other ones. Leave it out.",
    ),
    (
        lambda cfg, _: not cfg.logger and any(lightning_name(target) in NEED_A_LOGGER for target in _callbacks(cfg)),
        f"{' and '.join(NEED_A_LOGGER)} write to a logger: type logger=csv, or leave them out.",
    ),
    (
        lambda cfg, _: cfg.data.get("prefetch_factor") is not None and cfg.data.get("num_workers") == 0,
        "data.prefetch_factor is for workers, and data.num_workers=0: type data.num_workers=2 too, or leave it out.",
    ),
    (
        lambda cfg, invocation: cfg.resume is not None and is_typed("model.init_from", invocation),
        "resume= and model.init_from=: the run has weights of its own. Leave model.init_from= out.",
    ),
)
"""Test of the config and its invocation, and the message if it is true."""


def refused_callback(name: str, is_itself: bool = True) -> str | None:
    """Reason why a callback of Lightning, or a subclass of it, cannot be used; None if it can."""
    return CALLBACKS.get(name) or (BASES.get(name) if is_itself else None)


def lightning_name(target: str) -> str | None:
    """Class name of a target in Lightning's callbacks, by any import path: `EarlyStopping`; None for other targets."""
    is_theirs = re.match(r"(lightning\.pytorch|pytorch_lightning)\.callbacks\.", target)
    return target.rpartition(".")[2] if is_theirs else None


def checkpoint_problems(cfg: DictConfig) -> Iterator[str]:
    """Problems with `callbacks.model_checkpoint` that would make best.ckpt something else than the best."""
    node = (cfg.callbacks or {}).get("model_checkpoint")
    if node is None or node.get("_target_") != "imago.callbacks.RunCheckpoint":
        return
    for key, is_refused in CHECKPOINT_KEYS:
        if key in node and is_refused(node[key]):
            yield f"callbacks.model_checkpoint.{key}={node[key]}: {BEST} {ADD.replace('KEY', key)}"
    for key in ("monitor", "mode"):
        if node.get(key) is not None and node[key] != cfg[key]:
            yield f"callbacks.model_checkpoint.{key}={node[key]}, and {key}={cfg[key]}: {BEST} Type {key}= alone."


def _number(value: Any) -> float:
    """Return `value` if it is a number, otherwise infinity."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.inf


def _limit(value: Any) -> float:
    return value if isinstance(value, int) and value >= 0 else math.inf


def _callbacks(cfg: DictConfig) -> list[str]:
    return [str(node._target_) for _, node in nodes(cfg.callbacks, "callbacks")]


def _is_private(cfg: DictConfig) -> bool:
    return str((cfg.strategy or {}).get("_target_")).startswith("imago.dp.")


def _has_fixed_folder(invocation: Invocation) -> bool:
    key = "hydra.sweep.dir=" if invocation.sweep_dir is not None else "hydra.run.dir="
    return any(word.startswith(key) for word in invocation.hydra_overrides)
