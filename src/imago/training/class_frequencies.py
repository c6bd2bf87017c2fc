"""Settings that follow from the class frequencies of train: `class_weights=auto`, `class_counts=auto`."""

import logging
import re
from collections.abc import Mapping

from omegaconf import DictConfig

from imago.config.tree import nodes
from imago.data.images import class_counts
from imago.data.module import ImageDataModule
from imago.model.class_losses import AUTO_COUNTS
from imago.terminal import shortened

log = logging.getLogger(__name__)

BETA = 0.999
"""Beta of the effective number of images, `(1 - beta^n) / (1 - beta)`: of more than 1 / (1 - beta) images, hardly one
is new (Cui et al. 2019, arXiv 1901.05555)."""


def choose_by_frequency(cfg: DictConfig, data: ImageDataModule) -> None:
    """Replace `model.class_weights=auto` and `effective`, and `class_counts: auto` of a loss, by numbers: checkpoints
    have these."""
    rule = cfg.model.get("class_weights")
    waiting = [node for _, node in nodes(cfg.model, "model") if node.get("class_counts") == AUTO_COUNTS]
    if rule not in ("auto", "effective") and not waiting:
        return
    counts = class_counts(data.sets.splits["train"], data.class_names)
    for node in waiting:
        node.class_counts = list(counts.values())
        log.info("class_counts=auto: %s", shortened((f"{name} {count}" for name, count in counts.items()), 20))
    if rule in ("auto", "effective"):
        weights = frequency_weights(counts, rule)
        log.info("model.class_weights=%s: %s", rule, shortened((f"{n} {w:g}" for n, w in weights.items()), 20))
        plain = all(re.fullmatch(r"[\w .-]+", name) and not name.startswith("_") for name in weights)
        cfg.model.class_weights = weights if plain else list(weights.values())


def frequency_weights(counts: Mapping[str, int], rule: str) -> dict[str, float]:
    """Weight of each class, with a mean of 1 over the train images: by the inverse of its number of images (`auto`), or
    of their effective number (`effective`), which is more even."""
    images = sum(counts.values())
    if rule == "auto":
        return {name: round(images / (len(counts) * count), 6) for name, count in counts.items()}
    inverse = {name: (1 - BETA) / (1 - BETA**count) for name, count in counts.items()}
    mean = sum(inverse[name] * count for name, count in counts.items()) / images
    return {name: round(weight / mean, 6) for name, weight in inverse.items()}
