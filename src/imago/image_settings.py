"""What the `data` group says of images, apart from where they are."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from imago.data.colour import PLAIN, Decoding
from imago.data.stages import FILL, ImageTransform, Size, pair

SEEN_KEYS = ("image_size", "fit", "fill", "range", "icc", "eval_transform", "transform")


def image_size_of(data: DictConfig) -> Size:
    """`data.image_size`; ValueError where it is none."""
    size: Any = OmegaConf.to_container(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size
    pair(size)
    return size


def eval_transform_of(data: DictConfig) -> ImageTransform:
    """What the `data` group does to images that are scored, without their folder."""
    transform: ImageTransform = instantiate(data.eval_transform, _convert_="all")
    further = instantiate(data.transform, _convert_="all") if data.get("transform") is not None else None
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
