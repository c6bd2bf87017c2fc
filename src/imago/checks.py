"""What can be said of a config before anything heavy is imported or made."""

import logging
from typing import Any

from omegaconf import DictConfig

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
NO_DATA = """No data is chosen. Type one of
  python src/train.py data.data_dir=PATH       (PATH: class folders, or train/ val/ test/ of class folders)
  python src/train.py experiment=digits        (handwritten digits, embedded: nothing to download)"""


def check(cfg: DictConfig, typed: list[str]) -> None:
    """Raises ValueError for settings that are missing, out of range or at odds with each other.

    `typed` are the overrides of the command line.
    """
    if cfg.data.get("data_dir") is None and cfg.data.get("source") is None:
        raise ValueError(NO_DATA)
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: give 0 or more, below 2**32, or null.")
    _check_monitor(cfg, {override.lstrip("+").partition("=")[0] for override in typed})
    if cfg.test:
        for split in cfg.report.splits:
            _check_split(cfg, split)
    if not cfg.train and cfg.ckpt_path is None and cfg.test:
        log.warning("train=false without ckpt_path=: the untrained network is scored")


def _check_monitor(cfg: DictConfig, typed: set[str]) -> None:
    if "optimized_metric" in typed and cfg.monitor != cfg.optimized_metric:
        raise ValueError(
            f"monitor={cfg.monitor} and optimized_metric={cfg.optimized_metric}: these are one setting under two "
            "names; type monitor= alone."
        )
    if not cfg.monitor.startswith(("train/", "val/")):
        raise ValueError(f"monitor={cfg.monitor}: give the stage too, monitor=val/acc for example.")
    if cfg.mode not in ("min", "max"):
        raise ValueError(f"mode={cfg.mode}: give min or max.")


def _check_split(cfg: DictConfig, split: Any) -> None:
    if split not in SPLITS:
        raise ValueError(f"report.splits has {split}: give some of {', '.join(SPLITS)}.")
    option = f"limit_{'test' if split == 'test' else 'predict'}_batches"
    if cfg.trainer[option] == 0:
        raise ValueError(f"trainer.{option}=0 leaves nothing of {split} to score: type test=false instead.")
