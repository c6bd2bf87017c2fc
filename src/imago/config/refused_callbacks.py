"""Callbacks that cannot work, and settings of the checkpoint that would make it something else."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig

from imago.config.tree import nodes

BEST = "best.ckpt must be the checkpoint of the best epoch, because it is the one that is scored."
ADD = (
    "For more checkpoints add a callback: '+callbacks.more={_target_: lightning.pytorch.callbacks.ModelCheckpoint, "
    "dirpath: ${paths.output_dir}/more, KEY: VALUE}'; to resume within an epoch type "
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
SWA = "'callbacks=[default,swa]'"
CALLBACKS = {
    "StochasticWeightAveraging": f"its average would be neither saved nor scored. Type {SWA}, whose average is both.",
    "ModelPruning": "it changes the weights between validation and checkpoint, and no file keeps its masks. Prune the "
    "trained network instead.",
    "BatchSizeFinder": "the preflight checks whether a batch fits. Type data.batch_size=",
    "LearningRateFinder": "it needs an attribute that the module here lacks. Type model.optimizer.lr=, or a sweep: "
    "-m model.optimizer.lr=0.01,0.001",
    "SpikeDetection": "a run with it cannot be resumed (a bug in Lightning). model.on_bad_loss=skip leaves out batches "
    "whose loss is not finite.",
    "BackboneFinetuning": "it needs a network with the parts backbone and head. Type model.freeze=backbone, "
    "'callbacks=[default,unfreeze]', or write a subclass of BaseFinetuning (docs/extend/callback.md).",
    "OnExceptionCheckpoint": "callbacks.resume already writes on_exception.ckpt after an exception.",
    "AsyncCheckpointIO": "Imago uses a CheckpointIO of its own, which never leaves a partial file.",
}
"""Callbacks of Lightning that cannot work here -> reason, and what to type."""
BASES = {
    "BaseFinetuning": "it is a base class. Write a subclass (docs/extend/callback.md).",
    "Checkpoint": "it is a base class. Write a subclass (docs/extend/callback.md).",
    "ProgressBar": "it is a base class. callbacks.progress_bar is a subclass of it.",
}


def refused_callback(name: str, is_itself: bool = True) -> str | None:
    """Reason why a callback of Lightning, or a subclass of it, cannot be used; None if it can."""
    return CALLBACKS.get(name) or (BASES.get(name) if is_itself else None)


def lightning_name(target: str) -> str | None:
    """Class name of a target in Lightning's callbacks, by any import path: `EarlyStopping`; None for other targets."""
    is_theirs = re.match(r"(lightning\.pytorch|pytorch_lightning)\.callbacks\.", target)
    return target.rpartition(".")[2] if is_theirs else None


def callback_targets(cfg: DictConfig) -> list[str]:
    """The targets of all callbacks."""
    return [str(node._target_) for _, node in nodes(cfg.callbacks, "callbacks")]


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
