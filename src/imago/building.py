"""From the composed config to the objects of a run."""

import inspect
import logging
import textwrap
from typing import Any

from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from imago import backbones
from imago.callbacks.run_record import RunRecord
from imago.config import typed_overrides
from imago.data.module import ImageFolderDataModule
from imago.module import DictModule
from imago.run_folder import RunFolder

log = logging.getLogger(__name__)
logging.getLogger("lightning").handlers.clear()  # it adds one of its own when it is imported; ours say it once

OWN_NETS = (backbones.torchvision_net, backbones.SimpleCNN, backbones.TinyNet, backbones.SimpleDenseNet)


def build(cfg: DictConfig, run: RunFolder) -> tuple[ImageFolderDataModule, DictModule, Trainer]:
    """Seeds, then makes data, model and trainer; the class names go from the data to the model."""
    check(cfg)
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
    own = {
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
    }
    missing = {option: value for option, value in own.items() if option not in cfg.trainer}
    return instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False, **missing, _convert_="all")


def built(nodes: DictConfig | None) -> list[Any]:
    """Objects of a config group; a null entry switches its object off."""
    return [entry for entry in instantiate(nodes or {}, _convert_="all").values() if entry is not None]


def check(cfg: DictConfig) -> None:
    """Refuses settings that contradict each other, before anything is made."""
    typed = {override.lstrip("+").partition("=")[0] for override in typed_overrides()}
    if "optimized_metric" in typed and cfg.monitor != cfg.optimized_metric:
        raise ValueError(
            f"monitor={cfg.monitor} and optimized_metric={cfg.optimized_metric}: these are one setting under two "
            "names; type monitor= alone."
        )
    if cfg.mode not in ("min", "max"):
        raise ValueError(f"mode={cfg.mode}: give min or max.")
    for split in cfg.report.splits:
        option = f"limit_{'test' if split == 'test' else 'predict'}_batches"
        if cfg.test and cfg.trainer[option] == 0:
            raise ValueError(f"trainer.{option}=0 leaves nothing of {split} to score: type test=false instead.")
    if not cfg.train and cfg.ckpt_path is None and cfg.test:
        log.warning("train=false without ckpt_path=: the untrained network is scored")


def drop_inherited(net: DictConfig, typed: list[str]) -> None:
    """Takes from `net` the options of our own networks that another `_target_` does not have.

    So `model.net._target_=my.module.MyNet` is enough. An option that was typed stays, and fails if it is unknown.
    """
    target = get_object(net._target_)
    taken = inspect.signature(target).parameters
    if target in OWN_NETS or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        inherited: set[str] = set()
    else:
        inherited = {name for own in OWN_NETS for name in inspect.signature(own).parameters} - set(taken)
    for option in sorted(inherited & set(map(str, net))):
        if not any(override.lstrip("+").startswith(f"model.net.{option}=") for override in typed):
            log.info("%s takes no %s: that option of the model group is dropped", net._target_, option)
            OmegaConf.set_struct(net, False)
            del net[option]
