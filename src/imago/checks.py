"""What can be said of a config before anything heavy is imported or made."""

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config import Root
from imago.network_names import check_name
from imago.origins import origin_of
from imago.schema import drop_inherited, nodes, problems, shipped

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
EXTRAS = {  # start of a target -> package and our extra
    "datasets.": ("datasets", "hf"),
    "imago.data.hugging_face.": ("datasets", "hf"),
    "lightning.pytorch.loggers.WandbLogger": ("wandb", "wandb"),
    "lightning.pytorch.loggers.MLFlowLogger": ("mlflow", "mlflow"),
}
NO_DATA = """No data is chosen. Type one of
  python src/train.py data.data_dir=PATH       (PATH: class folders, or train/ val/ test/ of class folders)
  python src/train.py experiment=digits        (handwritten digits, embedded: nothing to download)"""


NO_DATASET = """No data set is chosen. Type one of
  data.dataset.path=NAME                                             (on the hub)
  data.dataset.path=imagefolder data.dataset.data_dir=FOLDER         (a folder)
  data.dataset.path=parquet data.dataset.data_files=FILE             (a file)"""
REFUSED: tuple[tuple[Callable[[DictConfig], bool], str], ...] = (
    (
        lambda cfg: cfg.trainer.get("num_nodes", 1) != 1,
        "trainer.num_nodes: a run uses the devices of one machine. Type trainer.devices= alone.",
    ),
    (
        lambda cfg: cfg.trainer.get("strategy", "auto") not in ("auto", "ddp", "ddp_find_unused_parameters_true"),
        "trainer.strategy: give auto, ddp or ddp_find_unused_parameters_true.",
    ),
    (
        lambda cfg: "logger" in cfg.trainer,
        "trainer.logger: loggers are a group of their own. Type logger=csv, or logger=[] for none.",
    ),
    (
        lambda cfg: "callbacks" in cfg.trainer,
        "trainer.callbacks: callbacks are a group of their own. Type callbacks=none for none.",
    ),
    (
        lambda cfg: bool(os.environ.keys() & {"TORCHELASTIC_RUN_ID", "LOCAL_RANK"}),
        "This process was started as one of several (torchrun?). Start one: Imago starts the others itself, "
        "trainer=ddp trainer.devices=4 for example.",
    ),
)
"""What cannot work, or not together: a test on the config, and what to say."""


def check_scoring(cfg: DictConfig, typed: list[str]) -> None:
    """The same for commands that need a checkpoint and something to score."""
    if cfg.ckpt_path is None:
        raise ValueError("ckpt_path is missing: type ckpt_path=RUN/checkpoints/best.ckpt")
    if OmegaConf.is_list(cfg.report.splits) and not cfg.report.splits:
        raise ValueError("report.splits=[]: give at least one of train, val, test")
    check(cfg, typed)


def check_visualise(cfg: DictConfig, typed: list[str]) -> None:
    """The same for looking at images, or at runs, which need no data."""
    if cfg.what not in ("tensorboard", "augmentations"):
        raise ValueError(f"what={cfg.what}: give tensorboard or augmentations.")
    for option, given, least in (("port", cfg.port, 0), ("samples", cfg.samples, 1)):
        if given < least:
            raise ValueError(f"{option}={given}: give {least} or more.")
    if cfg.what == "augmentations":
        check(cfg, typed)


def check(cfg: DictConfig, typed: list[str]) -> None:
    """Raises ValueError for settings that are missing, out of range or at odds with each other.

    `typed` are the overrides of the command line.
    """
    _check_root(cfg)
    if "data_dir" in cfg.data and not any(cfg.data.get(key) for key in ("data_dir", "split_file", "source")):
        raise ValueError(NO_DATA)
    if "dataset" in cfg.data and OmegaConf.is_missing(cfg.data.dataset, "path"):
        raise ValueError(NO_DATASET)
    _check_arguments(cfg, typed)
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed={cfg.seed}: give 0 or more, below 2**32, or null.")
    for is_given, refusal in REFUSED:
        if is_given(cfg):
            raise ValueError(refusal)
    _check_monitor(cfg, {override.lstrip("+").partition("=")[0] for override in typed})
    if not OmegaConf.is_list(cfg.report.splits):
        raise ValueError(f"report.splits={cfg.report.splits}: give a list, 'report.splits=[test]' for example.")
    if cfg.test:
        for split in cfg.report.splits:
            _check_split(cfg, split)
    if not cfg.train and cfg.ckpt_path is None and cfg.test:
        log.warning("train=false without ckpt_path=: the untrained network is scored")


def _check_root(cfg: DictConfig) -> None:
    """What `+KEY=` and `~KEY` do to the root passes Hydra."""
    known = [each.name for each in fields(OmegaConf.get_type(cfg) or Root)]
    for key in map(str, cfg):
        if key not in known:
            raise ValueError(
                f"{key} is no setting; at the root there are {', '.join(known)}. "
                f"A variable of your own goes below params: +params.{key}"
            )
    for key in ("data", "model", "trainer", "strategy"):
        if cfg.get(key) is None:
            raise ValueError(f"{key} is missing: leave ~{key} out, or choose an option, {key}=…")


def _check_arguments(cfg: DictConfig, typed: list[str]) -> None:
    """Keys and types of all nodes whose targets we know."""
    drop_inherited(cfg, typed, shipped())
    for problem in problems(cfg, shipped()):
        origin = origin_of(problem.key)
        raise ValueError(f"{problem.key}{problem.what}{f' ({origin})' if origin not in ('', 'typed') else ''}")
    _check_extras(cfg)
    if cfg.model.get("net") is not None and cfg.model.net.get("_target_") == "imago.backbones.torchvision_net":
        check_name(cfg.model.net.name)


def _check_extras(cfg: DictConfig) -> None:
    for key, node in nodes(cfg):
        for prefix, (package, extra) in EXTRAS.items():
            if node._target_.startswith(prefix) and importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"{key} needs the package {package}, which is not installed: pip install 'imago[{extra}]'"
                )


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
    if cfg.trainer.get(option) == 0:
        raise ValueError(f"trainer.{option}=0 leaves nothing of {split} to score: type test=false instead.")
