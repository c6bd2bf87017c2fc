"""`data.batch_size=auto`: what it cannot be combined with."""

from collections.abc import Iterator

from omegaconf import DictConfig

from imago.config.private import is_private
from imago.config.trainer import is_one_device


def batch_size_problems(cfg: DictConfig) -> Iterator[str]:
    """Settings with which a training cannot find its batch size."""
    if cfg.data.get("batch_size") != "auto":
        return
    number = "Type a number, for example data.batch_size=32."
    if not cfg.train:
        yield f"data.batch_size=auto and train=false: it is found by a training. {number}"
    if not is_one_device(cfg):
        yield f"data.batch_size=auto and several devices, which may have different memory. {number}"
    if is_private(cfg):
        yield f"data.batch_size=auto and strategy=dp, whose noise depends on the batch size. {number}"
    if cfg.model.get("compile"):
        yield f"data.batch_size=auto and model.compile=true: each size that is tried would be compiled. {number}"
