"""Images that a checkpoint names and that are not on this machine, for commands that can do without."""

from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from imago.config.checks import lacks_data
from imago.config.invocation import Invocation

KEYS = ("data_dir", "split_file", "exclude", "relabel", "shards")
"""Settings of the `data` group that name files and folders."""


def forget_missing_data(cfg: DictConfig, invocation: Invocation) -> None:
    """Remove the paths of a checkpoint's images from `cfg.data` if one of them does not exist here. Those that were
    typed stay, and are refused."""
    if any(key == "data" or key.removeprefix("data.") in KEYS for key in invocation.keys):
        return
    paths = {key: cfg.data[key] for key in KEYS if key in cfg.data and not OmegaConf.is_missing(cfg.data, key)}
    local = [str(path) for path in paths.values() if path is not None and "://" not in str(path)]
    if all(Path(path).expanduser().exists() for path in local):
        return
    for key in paths:
        cfg.data[key] = MISSING if key == "shards" else None


def lacks_images(data: DictConfig) -> bool:
    """Whether a `data` node names no images."""
    return lacks_data(data) or OmegaConf.is_missing(data, "shards")
