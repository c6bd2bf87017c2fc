"""The normalisation of the images, which belongs to the weights of the network."""

from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.config.auto_model import AUTO
from imago.config.targets import IMAGENET, Normalisation, normalisation_of, timm_names
from imago.config.tree import nodes

NORMALIZE = "imago.data.Normalize"
TIMM = "imago.model.timm_net"


def choose_normalisation(cfg: DictConfig) -> DictConfig:
    """Replace `auto` in the normalisation of `cfg.data` by the numbers of the network, which evaluation then needs no
    network for. Returns `cfg`."""
    if not isinstance(cfg.get("data"), DictConfig):  # the check of the settings says what a group is
        return cfg
    with suppress(OmegaConfBaseException):  # interpolations that lead nowhere are reported later
        automatic = [
            (node, key)
            for _, node in nodes(cfg.data, "data")
            for key in ("mean", "std")
            if node._target_ == NORMALIZE and node.get(key) == AUTO
        ]
        normalisation = _of_network(cfg) if automatic else IMAGENET
        for node, key in automatic:
            node[key] = list(getattr(normalisation, key))
    return cfg


def _of_network(cfg: DictConfig) -> Normalisation:
    target, name = (
        str(OmegaConf.select(cfg, f"model.net.{key}", throw_on_missing=False)) for key in ("_target_", "name")
    )
    if target != TIMM or name.partition(".")[0] not in timm_names():
        return normalisation_of(target)
    import timm  # only timm knows the normalisation of each of its weights

    weights: Any = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(name.partition(".")[0])
    return Normalisation(tuple(weights.mean), tuple(weights.std))
