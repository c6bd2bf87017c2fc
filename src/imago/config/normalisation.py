"""The normalisation of the images, which belongs to the weights of the network."""

from contextlib import suppress

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.config.auto_model import AUTO
from imago.config.targets import normalisation_of
from imago.config.tree import nodes

NORMALIZE = "imago.data.Normalize"


def choose_normalisation(cfg: DictConfig) -> DictConfig:
    """Replace `auto` in the normalisation of `cfg.data` by the numbers of the network, which evaluation then needs no
    network for. Returns `cfg`."""
    if not isinstance(cfg.get("data"), DictConfig):  # the check of the settings says what a group is
        return cfg
    normalisation = normalisation_of(str(OmegaConf.select(cfg, "model.net._target_", throw_on_missing=False)))
    with suppress(OmegaConfBaseException):  # interpolations that lead nowhere are reported later
        for _, node in nodes(cfg.data, "data"):
            for key in ("mean", "std") if node._target_ == NORMALIZE else ():
                if node.get(key) == AUTO:
                    node[key] = list(getattr(normalisation, key))
    return cfg
