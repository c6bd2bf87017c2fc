"""Networks and transforms of a config, as far as looking at images needs them."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.data.colour import PLAIN, Decoding
from imago.data.crops import FILL, Size, pair
from imago.data.transforms import ImageTransform
from imago.model.module import DictModule

SEEN_KEYS = ("image_size", "fit", "fill", "range", "icc", "eval_transform", "transform")


def make(node: DictConfig, **options: Any) -> Any:
    """The object of a node, with plain arguments. Hydra is imported here, so that the rest of the room does without."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all", **options)


def make_model(node: DictConfig, class_names: Sequence[str]) -> DictModule:
    """Makes a `model` node. The names are given afterwards: as arguments of `make` they would be part of the
    config, and a folder named `${…}` would be resolved."""
    return make(node, _partial_=True)(class_names=list(class_names))


def seen_images(data: DictConfig, transform: ImageTransform) -> dict[str, Any]:
    """What has to be done to an image, in plain types: for those who use the weights without Imago."""
    normalise = transform.normalisation
    return {
        **looks(data),
        "normalisation": None if normalise is None else {"mean": normalise.mean, "std": normalise.std},
    }


def image_size_of(data: DictConfig) -> Size:
    """`data.image_size`; ValueError where it is none."""
    size: Any = OmegaConf.to_container(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size
    pair(size)
    return size


def eval_transform_of(data: DictConfig) -> ImageTransform:
    """What the `data` group does to images that are scored, without their folder."""
    transform: ImageTransform = make(data.eval_transform)
    further = make(data.transform) if data.get("transform") is not None else None
    fill = list(data.fill) if data.get("fill") is not None else FILL
    return transform.completed(image_size_of(data), data.get("fit", "crop"), fill, further)


def decoding_of(data: DictConfig) -> Decoding:
    """How the files of the `data` group are decoded; with `range: auto`, as where nothing is known of the images."""
    greatest = data.get("range", "auto")
    return Decoding(PLAIN.greatest if greatest == "auto" else greatest, data.get("icc", True))


def looks(data: DictConfig) -> dict[str, Any]:
    """The settings of the `data` group that say how a network sees an image: plain types."""
    content: Any = OmegaConf.to_container(data, resolve=True)
    return {key: content[key] for key in SEEN_KEYS if key in content}
