"""Whether a training fits the head first, and why not."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from imago.callbacks.epoch_log import EpochLog
from imago.callbacks.head_first import HeadFirst, HeadPlan
from imago.checkpoint.read import read_checkpoint
from imago.config.combinations import is_fsdp
from imago.config.invocation import override_key, override_value
from imago.config.setting_source import is_typed
from imago.config.tree import nodes
from imago.data.cache import GIGABYTE
from imago.data.features import FeatureCache
from imago.errors import UserError
from imago.evaluation.from_config import looks, make
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.model.origin import SCRATCH, name_of
from imago.model.surgery import head_layer, head_names, without_weights
from imago.randomness import seeded_scope
from imago.run.folder import RunFolder
from imago.training.start_weights import needs_pretrained

log = logging.getLogger(__name__)

OF_EPOCHS = (
    *("trainer.max_epochs", "trainer.max_steps", "trainer.min_", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip", "trainer.val_check_interval", "trainer.check_val_every_n_epoch"),
    *("model.optimizer", "model.scheduler", "model.head_lr", "model.layer_decay", "model.decay_norms_and_biases"),
    *("model.freeze", "model.on_bad_loss", "callbacks.early_stopping", "callbacks.ema"),
    *("data.train_transform", "data.augment", "data.sampler", "data.sample_weights"),
)
"""Beginnings of the settings that have no effect on the head alone."""
LIBRARIES = ("imago.", "torch.", "torchvision.", "timm.")
"""Code that does not change between two runs, so that features of one can be used in the other."""


def head_first(cfg: DictConfig, run: RunFolder, model: DictModule, weights: str, epochs: EpochLog) -> HeadFirst | None:
    """The callback that fits the head first, or None. `weights` says what the training starts from.

    Raises:
        UserError: `model.probe` asks for it, and it cannot be done.
    """
    asked = model.probe
    if cfg.preflight == "only":
        return None
    if asked == "only" and not run.rank:
        _warn_of_epochs(run)
    if run.resume_from is not None or cfg.ckpt_path is not None:
        checkpoint = str(run.resume_from or cfg.ckpt_path)
        _check_resumed(cfg, run, checkpoint)
        return HeadFirst(run, epochs, None, only=asked == "only")
    if asked is False or (asked == "auto" and not weights.startswith("pretrained")):
        return None
    if weights == SCRATCH:
        useless = "a head on random features is of no use"
        raise needs_pretrained(cfg, run, model, "probe", useless, "model.probe=false")
    head = _head_of(cfg, model)
    if cfg.trainer.get("fast_dev_run"):
        log.info("No head first: trainer.fast_dev_run trains on one batch")
        return None
    if (why := _why_not(cfg, model, head)) is not None:
        if asked != "auto":
            raise UserError(f"model.probe={_word(asked)}: {why}. Type model.probe=false")
        if not run.rank:
            log.info("No head first (model.probe=auto): %s", why)
        return None
    return HeadFirst(run, epochs, HeadPlan(head, _cache(cfg), asked != "auto"), only=asked == "only")


def _warn_of_epochs(run: RunFolder) -> None:
    """Warn of typed settings of epochs, which a head alone has none of."""
    words = {override_key(word).replace("/", "."): word for word in run.invocation.overrides}
    unused = [w for key, w in words.items() if key.startswith(OF_EPOCHS) and override_value(w) != "null"]
    if unused:
        have = "has" if len(unused) == 1 else "have"
        why = "model.probe=only trains no epochs: %s %s no effect. For epochs start a new run with recipe=small"
        log.warning(why, " and ".join(unused), have)


def _check_resumed(cfg: DictConfig, run: RunFolder, checkpoint: str) -> None:
    """Raise UserError if the head is asked for where the run that is resumed has begun without it."""
    if not is_typed("model.probe", run.invocation) or cfg.model.probe not in (True, "only"):
        return
    callbacks = read_checkpoint(checkpoint, mmap=True).get("callbacks", {})
    if HeadFirst.__qualname__ not in callbacks:
        raise UserError(
            f"model.probe={_word(cfg.model.probe)}: {checkpoint} was trained without a head first, and the head cannot "
            "come first any more. Remove it, or start a new run with model.init_from="
        )


def _why_not(cfg: DictConfig, model: DictModule, head: Collection[str]) -> str | None:
    """Why the head of a run cannot come first; None if it can. The check of single images is that of the features."""
    class_weights = model.criterions.class_weights
    tests = (
        (str(cfg.strategy.get("_target_")).startswith("imago.dp."), "strategy=dp would have to add noise to it"),
        (is_fsdp(cfg), "trainer.strategy=fsdp divides its weights among the processes"),
        (model.forward_fn is not None, "model.forward_fn replaces the head"),
        (bool(cfg.trainer.get("overfit_batches")), "trainer.overfit_batches trains on a few batches"),
        (bool(model.replaced_norms), "model.norm=group has replaced pretrained layers"),
        (not _is_cross_entropy(model.criterions), "it minimises the cross-entropy, and model.criterions does not"),
        (class_weights is not None and bool((class_weights <= 0).any()), "model.class_weights has a 0"),
        (len(model.class_names) < 2, "there is one class"),
        (head_layer(model.net, head) is None, f"the head of {name_of(model.net)} is not one Linear layer"),
    )
    return next((why for is_so, why in tests if is_so), None)


def _head_of(cfg: DictConfig, model: DictModule) -> set[str]:
    """Names of the tensors of the head; empty without `model.net`."""
    if cfg.model.get("net") is None:
        return set()
    with seeded_scope("head"):  # making a network draws random numbers
        return head_names(without_weights(make(cfg.model.net)), len(model.class_names))


def _is_cross_entropy(criterions: CriterionsComposition) -> bool:
    """Whether the loss is the cross-entropy of the logits; label smoothing is left to fine-tuning."""
    loss, is_alone = next(iter(criterions.criterions.values())), len(criterions.criterions) == 1
    return is_alone and type(loss) is nn.CrossEntropyLoss and loss.weight is None and not criterions.mapping


def _cache(cfg: DictConfig) -> FeatureCache | None:
    """Place of the features, unless own code decides what they are, or `data.cache` keeps nothing on the disk."""
    data = cfg.data
    targets = [
        str(node._target_) for part in (data, cfg.model.get("net")) if part is not None for _, node in nodes(part)
    ]
    if data.get("cache") not in ("auto", "disk") or any(not target.startswith(LIBRARIES) for target in targets):
        return None
    seen: dict[str, Any] = {**looks(data), "decode": data.get("decode"), "channels": data.get("channels")}
    seen["net"] = OmegaConf.to_container(cfg.model.net, resolve=True)  # arguments that are in none of its tensors
    budget = round(data.cache_gb * GIGABYTE) if data.get("cache_gb") is not None else None
    return FeatureCache(Path(data.cache_dir), json.dumps(seen, sort_keys=True, default=str), budget)


def _word(asked: Any) -> str:
    return str(asked).lower()
