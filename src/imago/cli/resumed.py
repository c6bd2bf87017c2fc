"""A run that is resumed: its settings, and the checkpoint from which it goes on."""

import copy
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from imago.config.invocation import Invocation
from imago.config.saved import drawn_seed, found_batch_size, settings_changed
from imago.run.folder import RunFolder


def resume_settings(run: RunFolder, cfg: DictConfig, check: Callable[[DictConfig, Invocation], None]) -> list[str]:
    """The settings that have changed since a run that is resumed began. The seed and
    the batch size that it has found are taken over."""
    if not run.former:
        return []
    if cfg.seed is None:
        cfg.seed = drawn_seed(run.path)
    if cfg.data.get("batch_size") == "auto":
        cfg.data.batch_size = found_batch_size(run.path)
    return settings_changed(cfg, run.path) and settings_changed(_settled(cfg, run.invocation, check), run.path)


def _settled(cfg: DictConfig, invocation: Invocation, check: Callable[[DictConfig, Invocation], None]) -> DictConfig:
    """A copy of `cfg` as `config.yaml` has it: without the settings that a new target does not take."""
    settled = copy.deepcopy(cfg)
    logging.disable()  # the run says it again
    try:
        with suppress(Exception):
            check(settled, invocation)
    finally:
        logging.disable(logging.NOTSET)
    return settled


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The last checkpoint of a run folder that can be read; None without any: the run begins anew."""
    if not any(folder.glob("checkpoints/*.ckpt")):
        return None
    from imago.checkpoint.read import last_readable

    return last_readable(folder / "checkpoints")
