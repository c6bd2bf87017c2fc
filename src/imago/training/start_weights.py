"""The weights that a training starts from: found, named, and required where layers are frozen."""

import copy
import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from imago.checkpoint.exported import is_export, metadata_of
from imago.checkpoint.read import find_checkpoint, read_checkpoint
from imago.config.recipe import PRETRAINED
from imago.config.saved import save_config
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.model.module import DictModule
from imago.model.origin import SCRATCH, name_of, weights_of
from imago.model.weight_files import WEIGHT_FILES
from imago.run.folder import RunFolder

log = logging.getLogger(__name__)

ADDS_UP = (
    "model.init_from=%s was trained with strategy=dp. If it saw images of this run, both epsilons add up for these: "
    "the epsilon of this run covers its own steps only"
)


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


def check_start_weights(cfg: DictConfig, run: RunFolder, model: DictModule, private: ImageDataModule | None) -> None:
    """Check the weights that a training starts from, and log which of them `model.norm` has replaced.

    `private` are the data of a training whose weights may tell nothing of them.

    Raises:
        UserError: `model.freeze` would freeze random weights, or the weights were trained on the private images.
    """
    weights = start_weights(cfg, run, model)
    _check_frozen(cfg, run, model, weights)
    if run.resume_from is not None or cfg.ckpt_path is not None:
        return
    _log_replaced_norms(model, weights)
    if private is not None and cfg.model.get("init_from") is not None:
        _check_private_start(str(cfg.model.init_from), model, private)


def _log_replaced_norms(model: DictModule, weights: str) -> None:
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


def _check_private_start(source: str, model: DictModule, data: ImageDataModule) -> None:
    """Refuse weights that were trained on the train images without privacy; warn of those trained with it."""
    if model.seen_images is not None:
        known, seen = data.train_digests.tolist(), set(model.seen_images.tolist())
        if shared := sum(digest in seen for digest in known):
            raise UserError(
                f"strategy=dp and model.init_from={source}: these weights were trained without privacy on {shared} of "
                f"the {len(data.split('train'))} train images, for which there would be no guarantee. Start from "
                "weights of other images, or leave these images out (data.exclude=FILE)."
            )
    elif is_export(source):
        texts = metadata_of(source)
        if "privacy" in texts:
            log.warning(ADDS_UP, source)
        elif "imago" in texts:
            log.warning(
                "model.init_from=%s was trained without privacy, and an export does not record its images. If it saw "
                "images of this run, nothing is guaranteed for these. model.init_from=RUN, its run, would be checked",
                source,
            )
    elif Path(source).suffix not in WEIGHT_FILES:
        entry = read_checkpoint(source, mmap=True)["imago"]
        if isinstance(entry["strategy"], dict) and entry["strategy"].get("history"):
            log.warning(ADDS_UP, source)


def _check_frozen(cfg: DictConfig, run: RunFolder, model: DictModule, weights: str) -> None:
    """Raise UserError if `model.freeze` or `model.freeze_batch_norm` would freeze random weights."""
    setting = "freeze" if cfg.model.get("freeze") is not None else "freeze_batch_norm"
    if not cfg.model.get(setting) or weights != SCRATCH:
        return
    recipe = run.invocation.choices.get("recipe", "none")
    instead = (
        f"type recipe=scratch instead of recipe={recipe}" if recipe in PRETRAINED else f"leave model.{setting} out"
    )
    raise UserError(
        f"model.{setting}={str(cfg.model[setting]).lower()} needs pretrained weights: {name_of(model.net)} starts from "
        "scratch, and the frozen layers would stay random. Type model.init_from=RUN (a run, a checkpoint or a file of "
        f"weights), model.net.weights=DEFAULT (or a file) for a network of torchvision, or {instead}"
    )
