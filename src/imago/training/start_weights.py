"""The weights that a training starts from: found, named, and required where layers are frozen."""

import copy
import logging
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from imago.checkpoint.read import find_checkpoint
from imago.config.recipe import HEAD, NONE, PRETRAINED
from imago.config.recipe import SCRATCH as FROM_SCRATCH
from imago.config.saved import save_config
from imago.config.setting_source import is_of_group
from imago.errors import UserError
from imago.evaluation.from_config import make
from imago.model.module import DictModule
from imago.model.origin import OWN, SCRATCH, name_of, weights_of
from imago.model.weight_files import WEIGHT_FILES
from imago.randomness import seeded_scope
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)


def find_initial_weights(cfg: DictConfig, run: RunFolder) -> None:
    """Replace `model.init_from` in the config by the file it stands for: `latest` may be another one tomorrow."""
    source = cfg.model.get("init_from")
    if source is None or Path(str(source)).suffix in WEIGHT_FILES:
        return
    cfg.model.init_from = str(find_checkpoint(str(source), Path(cfg.paths.log_dir), "model.init_from"))
    if run.rank == 0:
        log.info("model.init_from=%s: %s", source, cfg.model.init_from)
        run.write_when_accepted(partial(save_config, copy.deepcopy(cfg), run.path, run.invocation))


def start_weights(cfg: DictConfig, run: RunFolder, model: DictModule) -> str:
    """What the training starts from: `from scratch`, `pretrained (NAME)`, or the file. A resumed run started from what
    its card says."""
    if run.resume_from is not None:
        return str(run.former.get("card", {}).get("weights", run.resume_from))
    for source in (cfg.ckpt_path, cfg.model.get("init_from")):
        if source is not None:
            return f"from {source}"
    node = cfg.model.get("net") or {}
    arguments = {str(key): node[key] for key in node if not str(key).startswith("_")}
    return weights_of(model.net, str(node.get("_target_", "imago.")), arguments)


def check_start_weights(cfg: DictConfig, run: RunFolder, model: DictModule) -> None:
    """Check the weights that a training starts from, and log which of them `model.norm` has replaced.

    Raises:
        UserError: `model.freeze` would freeze random weights.
    """
    weights = start_weights(cfg, run, model)
    _check_frozen(cfg, run, model, weights)
    if run.resume_from is None and cfg.ckpt_path is None:
        _log_replaced_norms(model, weights, run)
        _warn_of_recipe(run, model, weights)


def _warn_of_recipe(run: RunFolder, model: DictModule, weights: str) -> None:
    """Warn of a recipe that is meant for other weights."""
    recipe, name = run.invocation.choices.get("recipe", NONE), name_of(model.net)
    if recipe in PRETRAINED and weights == SCRATCH:
        log.warning(
            "recipe=%s is for pretrained weights, and %s starts from scratch. Type recipe=scratch", recipe, name
        )
    elif recipe == FROM_SCRATCH and weights.startswith("pretrained"):
        log.warning(
            "recipe=scratch is for training from scratch, and %s is %s. Type model.net.weights=null to train it from "
            "scratch, or recipe=auto",
            name,
            weights,
        )


def _log_replaced_norms(model: DictModule, weights: str, run: RunFolder) -> None:
    """Log what `model.norm=group` has replaced: a warning where pretrained `weights` are lost."""
    if not model.replaced_norms:
        return
    is_pretrained = weights.startswith("pretrained")
    (log.warning if is_pretrained else log.info)(
        "model.norm=group: replaced %d BatchNorm layers by GroupNorm%s: %s",
        len(model.replaced_norms),
        ", without their pretrained weights and statistics" if is_pretrained else "",
        ", ".join(model.replaced_norms),
    )
    if is_pretrained:
        log.warning("To keep them, and train the head alone, type: %s model.freeze=backbone", run.invocation.command)


def _check_frozen(cfg: DictConfig, run: RunFolder, model: DictModule, weights: str) -> None:
    """Raise UserError if `model.freeze` or `model.freeze_batch_norm` would freeze random weights."""
    setting = "freeze" if cfg.model.get("freeze") is not None else "freeze_batch_norm"
    if not cfg.model.get(setting) or not (weights == SCRATCH or (weights.startswith(OWN) and _are_drawn(cfg, model))):
        return
    why = "the frozen layers would stay random"
    raise needs_pretrained(cfg, run, model, setting, why, f"leave model.{setting} out")


def needs_pretrained(
    cfg: DictConfig, run: RunFolder, model: DictModule, setting: str, why: str, instead: str
) -> UserError:
    """Error for a setting of `model`, or the recipe that has set it, which is of no use from scratch."""
    recipe = run.invocation.choices.get("recipe", NONE)
    asked = f"model.{setting}={str(cfg.model[setting]).lower()}"
    if recipe in (HEAD, *PRETRAINED) and is_of_group(f"model.{setting}", "recipe", run.invocation):
        asked, instead = f"recipe={recipe} ({asked})", f"recipe={FROM_SCRATCH}"
    return UserError(
        f"{asked} needs pretrained weights: {name_of(model.net)} starts from scratch, and {why}. Type "
        "model.init_from=RUN (a run, a checkpoint or a file of weights), model.net.weights=DEFAULT (or a file) for a "
        f"network of torchvision, or {instead}"
    )


def _are_drawn(cfg: DictConfig, model: DictModule) -> bool:
    """Whether a network of one's own, created once more, has other weights: then it loads none."""
    with seeded_scope("start weights"):
        again = dict(make(cfg.model.net)(num_classes=len(model.class_names)).named_parameters())
    weights = {name: weight for name, weight in model.net.named_parameters() if name not in model.head}
    drawn = sum(weight.numel() for name, weight in weights.items() if not torch.equal(weight.cpu(), again[name].cpu()))
    return drawn > sum(weight.numel() for weight in weights.values()) / 2
