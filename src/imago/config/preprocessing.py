"""The preprocessing of the images, which belongs to the weights of the network."""

from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.config.auto_model import AUTO
from imago.config.targets import Preprocessing, preprocessing_of, timm_names
from imago.config.tree import nodes
from imago.definitions import INTERPOLATIONS

NORMALIZE, CENTER_BOX = "imago.data.Normalize", "imago.data.CenterBox"
TIMM = "imago.model.timm_net"


def choose_preprocessing(cfg: DictConfig) -> DictConfig:
    """Replace `auto` in the normalisation, the crop and the interpolation of `cfg.data` by what the weights of the
    network were trained with: evaluation then needs no network to know it. Returns `cfg`."""
    if not isinstance(cfg.get("data"), DictConfig):  # the check of the settings says what a group is
        return cfg
    with suppress(OmegaConfBaseException):  # interpolations that lead nowhere are reported later
        keys = {NORMALIZE: ("mean", "std"), CENTER_BOX: ("share",)}
        automatic = [
            (node, key)
            for _, node in nodes(cfg.data, "data")
            for key in keys.get(node.get("_target_"), ())
            if node.get(key) == AUTO
        ]
        automatic += [(cfg.data, "interpolation")] if cfg.data.get("interpolation") == AUTO else []
        if not automatic:
            return cfg
        chosen = _of_network(cfg)
        values = {
            **{key: list(getattr(chosen, key)) for key in ("mean", "std")},
            "share": f"${{share_of_fit:${{data.fit}},{chosen.share}}}",
            "interpolation": chosen.interpolation,
        }
        for node, key in automatic:
            node[key] = values[key]
    return cfg


def _of_network(cfg: DictConfig) -> Preprocessing:
    target, name = (
        str(OmegaConf.select(cfg, f"model.net.{key}", throw_on_missing=False)) for key in ("_target_", "name")
    )
    if target != TIMM or name.partition(".")[0] not in timm_names():
        return preprocessing_of(target)
    import timm  # only timm knows the preprocessing of each of its weights

    weights: Any = timm.get_pretrained_cfg(name) or timm.get_pretrained_cfg(name.partition(".")[0])
    interpolation = weights.interpolation if weights.interpolation in INTERPOLATIONS else INTERPOLATIONS[0]
    return Preprocessing(tuple(weights.mean), tuple(weights.std), weights.crop_pct, interpolation)
