"""What the `data` group says of images, apart from where they are."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from imago.data.stages import FILL, ImageTransform, Size, pair


def image_size_of(data: DictConfig) -> Size:
    """`data.image_size`; ValueError where it is none."""
    size: Any = OmegaConf.to_container(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size
    pair(size)
    return size


def eval_transform_of(data: DictConfig) -> ImageTransform:
    """What the `data` group does to images that are scored, without their folder."""
    made = instantiate({key: data.get(key) for key in ("eval_transform", "transform")}, _convert_="all")
    fill = data.get("fill")
    return made["eval_transform"].completed(
        image_size_of(data), data.get("fit", "crop"), list(fill) if fill is not None else FILL, made["transform"]
    )


def looks(data: DictConfig) -> dict[str, Any]:
    """The settings of the `data` group that say how a network sees an image: plain types."""
    content: Any = OmegaConf.to_container(data, resolve=True)
    return {key: content[key] for key in ("image_size", "fit", "fill", "eval_transform", "transform") if key in content}
