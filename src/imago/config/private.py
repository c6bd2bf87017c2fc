"""Settings that strategy=dp cannot be combined with, and settings that write private images.

The table of `imago.dp` tests the objects of a run: it sees what no config tells, such as a class of one's own.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.combinations import freezes_norms
from imago.config.model_combinations import UNFREEZING
from imago.config.refused_callbacks import lightning_name
from imago.config.tree import nodes

REASONS = {
    "devices": "trainer.devices: noise and batches cannot be divided among several processes. Type trainer.devices=1, "
    "without torchrun or srun",
    "gradient_clip_val": "trainer.gradient_clip_val: the gradient of each image is clipped already. "
    "Type strategy.max_grad_norm= instead, and trainer.gradient_clip_val=null",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches: noise is added in every step. Type a larger "
    "data.batch_size=, with strategy.physical_batch_size= for the number that fits into memory, and "
    "trainer.accumulate_grad_batches=1",
    "precision": "trainer.precision: with loss scaling (16-mixed) the scaled gradients would be clipped, and sums of "
    "noise need more than 16 bits. Type trainer.precision=bf16-mixed, or 32-true",
    "matmul_precision": "matmul_precision: clipping norms need full 32-bit precision. Type matmul_precision=highest",
    "compile": "model.compile: a compiled network hides its layers. Type model.compile=false",
    "gradient_checkpointing": "model.gradient_checkpointing: the gradients of single images are taken from the first "
    "pass. Type strategy.physical_batch_size= for less memory, and model.gradient_checkpointing=false",
    "norm": "model.norm other than group: BatchNorm normalises an image by the others of its batch, so that no "
    "gradient belongs to one image. Type model.norm=group, which replaces the BatchNorm of any network and changes "
    "nothing else",
    "class_weights": "model.class_weights=auto: the class frequencies would not be private, nor would those of "
    "effective. Type numbers that do not come from these data: 'model.class_weights={NAME: 5}'",
    "class_counts": "a loss with class_counts=auto (model/criterions=logit_adjusted): the class frequencies would not "
    "be private. Type numbers that do not come from these data: "
    "'model.criterions.criterions.adjusted.class_counts=[100,20]'",
    "probe": "model.probe: the head would see private images without noise. Type model.probe=false",
    "on_bad_loss": "model.on_bad_loss=skip: which batches are skipped depends on private images. "
    "Type model.on_bad_loss=error",
    "mixing": "data.train_transform.batch has steps that may mix images (MixUp, CutMix): then a gradient does not "
    "belong to one image. Remove them; Imago's own RandomHorizontalFlip and Normalize can stay",
    "overfit_batches": "trainer.overfit_batches: repeating the same batches is not Poisson sampling. "
    "Type trainer.overfit_batches=0, or strategy=none",
    "batches": "train batches that it does not draw (a weighted sampler, or a train_dataloader of your own): the "
    "reported privacy would be wrong. Use the batches of Imago's data modules, or strategy=none",
    "sampler": "data.sampler: with images that are drawn more often, the reported privacy would be wrong. Type "
    "data.sampler=null. Class weights that do not come from these data can stay: 'model.class_weights={NAME: 5}'",
    "averages": "callbacks that average weights (SWA, EMA): other weights than those that were accounted for would be "
    "saved and scored. Remove them",
    "unfreezing": "callbacks that unfreeze layers later: their gradients would not be clipped. Remove them; "
    "model.freeze=backbone trains the head",
    "monitor": "a monitor of train/: training metrics have no noise, and would choose the weights, the learning rate "
    "or the end. Type monitor=val/loss, or another metric of val/",
    "frozen": "a network without trained parameters: all are frozen. Type model.freeze=backbone, or null",
    "lbfgs": "model.optimizer: LBFGS evaluates a batch several times per step. Type model/optimizer=adamw, or sgd",
    "least": "trainer.min_epochs or trainer.min_steps: the privacy budget may end training earlier. "
    "Type trainer.min_epochs=null trainer.min_steps=null",
    "replay": "replay: batches and noise are secret and drawn anew, so that no run repeats another, and a second run "
    "spends an epsilon of its own. Remove replay=",
    "no_noise": "strategy.noise_multiplier=0: it exceeds any strategy.target_epsilon= at once. Type more noise",
    "no_end": "strategy.target_epsilon: the noise that keeps a run within it follows from the number of steps, and "
    "this one has no end. Add trainer.max_epochs=, or strategy.noise_multiplier=",
}
"""Name -> what cannot be combined with strategy=dp, why, and what to type."""
AVERAGES = (
    "StochasticWeightAveraging",
    "WeightAveraging",
    "EMAWeightAveraging",
    "imago.callbacks.EMA",
    "imago.callbacks.SWA",
)
HALF = re.compile(r"16($|-)|bf16-true|transformer-engine")
MIXING = re.compile(r"\.(MixUp|CutMix)$")
REFUSED: tuple[tuple[str, Callable[[DictConfig], bool]], ...] = (
    ("devices", lambda cfg: _several(cfg.trainer.get("devices")) or cfg.trainer.get("num_nodes", 1) != 1),
    ("gradient_clip_val", lambda cfg: cfg.trainer.get("gradient_clip_val") is not None),
    (
        "accumulate_grad_batches",
        lambda cfg: cfg.trainer.get("accumulate_grad_batches", 1) != 1 or _has(cfg, ("GradientAccumulationScheduler",)),
    ),
    ("precision", lambda cfg: HALF.match(str(cfg.trainer.get("precision"))) is not None),
    ("matmul_precision", lambda cfg: cfg.matmul_precision in ("high", "medium")),
    ("compile", lambda cfg: cfg.model.get("compile") is True),
    ("gradient_checkpointing", lambda cfg: cfg.model.get("gradient_checkpointing") is True),
    ("norm", lambda cfg: cfg.model.get("norm") != "group" and not freezes_norms(cfg)),
    ("class_weights", lambda cfg: cfg.model.get("class_weights") in ("auto", "effective")),
    ("class_counts", lambda cfg: any(node.get("class_counts") == "auto" for _, node in nodes(cfg.model, "model"))),
    ("probe", lambda cfg: cfg.model.get("probe") in (True, "only")),
    ("on_bad_loss", lambda cfg: cfg.model.get("on_bad_loss") == "skip"),
    ("mixing", lambda cfg: any(MIXING.search(target) for target in _targets(cfg, "data"))),
    ("overfit_batches", lambda cfg: bool(cfg.trainer.get("overfit_batches"))),
    ("sampler", lambda cfg: cfg.data.get("sampler") is not None),
    ("averages", lambda cfg: _has(cfg, AVERAGES)),
    ("unfreezing", lambda cfg: _has(cfg, (UNFREEZING,))),
    ("monitor", lambda cfg: any(str(name).startswith("train/") for name in _monitors(cfg))),
    ("lbfgs", lambda cfg: "torch.optim.LBFGS" in _targets(cfg, "model")),
    ("least", lambda cfg: bool(cfg.trainer.get("min_epochs") or cfg.trainer.get("min_steps"))),
    ("replay", lambda cfg: cfg.replay is not None),
    (
        "no_noise",
        lambda cfg: cfg.strategy.get("noise_multiplier") == 0 and cfg.strategy.get("target_epsilon") is not None,
    ),
    ("no_end", lambda cfg: _needs_an_end(cfg) and cfg.trainer.get("max_epochs") == -1 and not _max_steps(cfg)),
)
"""Tests of the config, as far as it tells."""
LEAST, MOST = 1e-3, 100
"""Clipping norms beyond which a run warns."""
PRIVATE_FOLDER = "Keep them as private as the images. The output of ml-export has none of this"


def is_private(cfg: DictConfig) -> bool:
    """Whether the config trains with strategy=dp."""
    return str((cfg.strategy or {}).get("_target_")).startswith("imago.dp.")


def private_problems(cfg: DictConfig) -> Iterator[str]:
    """What strategy=dp cannot be combined with, as far as the config of a training tells."""
    if is_private(cfg):
        yield from (f"strategy=dp and {REASONS[name]}." for name, is_given in REFUSED if is_given(cfg))


def private_warnings(cfg: DictConfig) -> Iterator[str]:
    """Settings by which a training with strategy=dp writes its train images, or what it knows of each of them."""
    if not is_private(cfg):
        return
    norm = cfg.strategy.get("max_grad_norm")
    if isinstance(norm, int | float) and cfg.strategy.get("clipping") != "adaptive" and not LEAST <= norm <= MOST:
        what = (
            "the noise grows with it and drowns the gradients" if norm > MOST else "gradients are cut to nearly nothing"
        )
        yield f"strategy.max_grad_norm={norm:g}: {what}. Usual values are 0.1 to 10"
    if cfg.report.get("pictures"):
        yield (
            "report.pictures=true with strategy=dp: report.html and reports/ show private images, train images among "
            f"them. {PRIVATE_FOLDER}"
        )
    if cfg.test and (listed := " and ".join(split for split in ("train", "val") if split in cfg.report.splits)):
        yield (
            f"report.splits has {listed}, with strategy=dp: reports/ list path, label and loss of each {listed} image. "
            f"{PRIVATE_FOLDER}"
        )
    if cfg.data.get("cache") == "disk":
        yield (
            f"data.cache=disk with strategy=dp: the decoded images are written to {cfg.paths.cache_dir}/pixels and "
            "stay there after the run. ml-doctor clean removes them. Type data.cache=ram to write none"
        )


def _several(devices: Any) -> bool:
    if isinstance(devices, str):
        return (devices.isdigit() and int(devices) > 1) or "," in devices.strip(",")
    return OmegaConf.is_list(devices) and len(devices) > 1 if not isinstance(devices, int) else devices > 1


def _has(cfg: DictConfig, names: tuple[str, ...]) -> bool:
    return any((lightning_name(target) or target) in names for target in _targets(cfg, "callbacks"))


def _targets(cfg: DictConfig, group: str) -> list[str]:
    return [str(node._target_) for _, node in nodes(cfg[group], group)]


def _monitors(cfg: DictConfig) -> list[Any]:
    """Metrics that callbacks, and a learning rate that follows one, monitor."""
    is_plateau = any(target.endswith(".ReduceLROnPlateau") for target in _targets(cfg, "model"))
    of_callbacks = [node.get("monitor") for _, node in nodes(cfg.callbacks, "callbacks")]
    return [cfg.monitor, *of_callbacks, *([cfg.model.get("monitor")] if is_plateau else [])]


def _needs_an_end(cfg: DictConfig) -> bool:
    return cfg.strategy.get("target_epsilon") is not None and cfg.strategy.get("noise_multiplier") is None


def _max_steps(cfg: DictConfig) -> int:
    return max(0, cfg.trainer.get("max_steps") or 0)
