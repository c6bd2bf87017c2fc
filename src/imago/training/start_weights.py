"""The weights that a training starts from: found, named, and required where layers are frozen."""

import copy
import logging
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from imago.checkpoint.read import find_checkpoint
from imago.config.saved import save_config
from imago.errors import UserError
from imago.model.module import DictModule
from imago.model.origin import SCRATCH, name_of, weights_of
from imago.model.torchvision import WEIGHT_FILES
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


def check_frozen(cfg: DictConfig, model: DictModule, weights: str) -> None:
    """Raise UserError if `model.freeze` would freeze random weights."""
    if cfg.model.get("freeze") is None or weights != SCRATCH:
        return
    raise UserError(
        f"model.freeze={cfg.model.freeze} needs pretrained weights: {name_of(model.net)} starts from scratch, and the "
        "frozen layers would stay random. Type model.init_from=RUN (a run, a checkpoint or a file of weights), "
        "model.net.weights=DEFAULT (or a file) for a network of torchvision, or leave model.freeze out"
    )
