"""From the composed config to the objects of a run."""

import inspect
import logging
import textwrap
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from imago import backbones
from imago.callbacks.run_record import RunRecord
from imago.checkpoints import WholeFileCheckpointIO
from imago.config import typed_overrides
from imago.data.module import ImageFolderDataModule
from imago.module import DictModule
from imago.run_folder import RunFolder

log = logging.getLogger(__name__)
logging.getLogger("lightning").handlers.clear()  # it adds one of its own when it is imported; ours say it once

OWN_NETS = (backbones.torchvision_net, backbones.SimpleCNN, backbones.TinyNet, backbones.SimpleDenseNet)


def build(cfg: DictConfig, run: RunFolder) -> tuple[ImageFolderDataModule, DictModule, Trainer]:
    """Seeds, then makes data, model and trainer; the class names go from the data to the model."""
    seed_everything(cfg.seed, verbose=False)
    data: ImageFolderDataModule = instantiate(cfg.data, _convert_="all")
    drop_inherited(cfg.model.net, typed_overrides())
    model: DictModule = instantiate(cfg.model, class_names=data.class_names, _convert_="all")
    strategy = instantiate(cfg.strategy)
    data.strategy = model.strategy = strategy
    trainer = build_trainer(cfg, run)
    for logger in trainer.loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    names = textwrap.shorten(", ".join(data.class_names), 200, placeholder=" …")
    run.sections["Data"] = {"folder": data.tree.root, "classes": f"{len(data.class_names)}: {names}", **data.sizes}
    run.sections["Data"] |= {f"note {number}": note for number, note in enumerate(data.notes, 1)}
    return data, model, trainer


def build_trainer(cfg: DictConfig, run: RunFolder) -> Trainer:
    """The Trainer with its callbacks and loggers; Lightning adds none of its own."""
    callbacks: list[Callback] = [*built(cfg.callbacks), RunRecord(run, cfg.monitor)]
    loggers: list[Logger] = built(cfg.logger)
    own: dict[str, Any] = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "plugins": [WholeFileCheckpointIO()],
    }
    if cfg.trainer.accelerator in ("gpu", "cuda") and not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    ):
        raise ValueError(f"trainer.accelerator={cfg.trainer.accelerator}: there is no GPU here. Type trainer=default.")
    missing = {option: value for option, value in own.items() if option not in cfg.trainer}
    return instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False, **missing, _convert_="all")


def built(nodes: DictConfig | None) -> list[Any]:
    """Objects of a config group; a null entry switches its object off."""
    return [entry for entry in instantiate(nodes or {}, _convert_="all").values() if entry is not None]


def drop_inherited(net: DictConfig, typed: list[str]) -> None:
    """Takes from `net` the options of our own networks that another `_target_` does not have.

    So `model.net._target_=my.module.MyNet` is enough. An option that was typed stays, and fails if it is unknown.
    """
    target = get_object(net._target_)
    taken = inspect.signature(target).parameters
    if target in OWN_NETS or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    inherited = {name for own in OWN_NETS for name in inspect.signature(own).parameters} - set(taken)
    for option in sorted(inherited & set(map(str, net))):
        if not any(override.lstrip("+").startswith(f"model.net.{option}=") for override in typed):
            log.info("%s takes no %s: that option of the model group is dropped", net._target_, option)
            OmegaConf.set_struct(net, False)
            del net[option]
