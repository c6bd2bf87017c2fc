"""Facts about data and weights that decide on `recipe=auto`."""

from omegaconf import DictConfig

from imago.config.recipe import TrainFacts
from imago.data.crops import pair
from imago.data.images import class_counts
from imago.evaluation.from_config import image_size_of, make
from imago.model.origin import SCRATCH, weights_of
from imago.randomness import seeded_scope
from imago.training.build_data import make_data


def train_facts(cfg: DictConfig) -> TrainFacts:
    """Read the data of a config, and make its network: only then is it known whether `auto` finds weights."""
    data = make_data(cfg.data)
    counts = class_counts(data.split("train"), data.class_names)
    return TrainFacts(
        images=sum(counts.values()),
        rarest=min(counts.values()),
        is_pretrained=cfg.model.get("init_from") is not None or _is_pretrained(cfg.model.get("net"), len(counts)),
        side=min(pair(image_size_of(cfg.data))),
    )


def _is_pretrained(node: DictConfig | None, num_classes: int) -> bool:
    if node is None:
        return False
    with seeded_scope("recipe"):
        net = make(node)(num_classes=num_classes)
    arguments = {str(key): node[key] for key in node if not str(key).startswith("_")}
    return weights_of(net, str(node._target_), arguments) != SCRATCH
