"""Networks and transforms of a config, as far as they are needed to look at images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from imago.config.allow_list import TRANSFORMS
from imago.config.invocation import override_key
from imago.config.load_target import load_target
from imago.config.schema import shipped
from imago.config.tree import nodes
from imago.data.colour import PLAIN, Decoding
from imago.data.crops import FILL, Size, pair
from imago.data.transforms import ImageTransform
from imago.errors import UserError
from imago.model.module import DictModule

SEEN_KEYS = ("image_size", "fit", "fill", "interpolation", "range", "icc", "eval_transform", "transform")


def make(node: DictConfig, **options: Any) -> Any:
    """Make the object of a node, with plain arguments. Hydra is imported here, so that the rest of the package works
    without it."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all", **options)


def check_modules(cfg: DictConfig, entry: Mapping[str, Any], path: str | Path, is_own: bool) -> None:
    """Import what makes the network and the transforms of a checkpoint, whose targets have been accepted.

    Raises:
        MissingModuleError: There is no such module here.
        UserError: It cannot be imported, or lacks the class or function.
    """
    parts = [(key, node) for key in ("model", *TRANSFORMS) for key, node in nodes(OmegaConf.select(cfg, key), key)]
    for key, target in ((key, str(node._target_)) for key, node in parts):
        if target in shipped():
            continue
        try:
            load_target(target)
        except UserError as error:
            folder = entry.get("own_code", {}).get(target.partition(".")[0]) if is_own else None
            trained = f" In training it was in {folder}." if folder is not None else ""
            raise type(error)(f"{key} of {path} is {target}: {error}{trained}") from error


def make_model(node: DictConfig, class_names: Sequence[str]) -> DictModule:
    """Make a `model` node. The names are passed afterwards: as arguments of `make` they would be part of the config,
    and a folder named `${…}` would be resolved."""
    return make(node, _partial_=True)(class_names=list(class_names))


def seen_images(data: DictConfig, transform: ImageTransform) -> dict[str, Any]:
    """Preprocessing of an image, in plain types, for users of the weights without Imago."""
    normalise = transform.normalisation
    return {
        **looks(data),
        "normalisation": None if normalise is None else {"mean": normalise.mean, "std": normalise.std},
    }


def image_size_of(data: DictConfig) -> Size:
    """`data.image_size`. Raises ValueError if it is not an image size."""
    size: Any = OmegaConf.to_container(data.image_size) if OmegaConf.is_list(data.image_size) else data.image_size
    pair(size)
    return size


def eval_transform_of(data: DictConfig) -> ImageTransform:
    """Transform of the `data` group for images that are scored. It needs no folder of images."""
    transform: ImageTransform = make(data.eval_transform)
    further = make(data.transform) if data.get("transform") is not None else None
    fill = list(data.fill) if data.get("fill") is not None else FILL
    options = {key: data[key] for key in ("fit", "interpolation") if key in data}
    return transform.completed(image_size_of(data), fill=fill, further=further, **options)


def decoding_of(data: DictConfig) -> Decoding:
    """Decoding of files in the `data` group. `range: auto` is the default, because nothing is known of the images."""
    greatest = data.get("range", "auto")
    return Decoding(PLAIN.greatest if greatest == "auto" else greatest, data.get("icc", True))


def looks(data: DictConfig) -> dict[str, Any]:
    """Settings of the `data` group that determine how a network sees an image, as plain types."""
    seen = {key: data[key] for key in SEEN_KEYS if key in data}
    return {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in seen.items()
    }


def typed_looks(overrides: Sequence[str]) -> list[str]:
    """Typed words that change how a network sees an image."""
    seen = tuple(f"data.{key}." for key in SEEN_KEYS)
    return [word for word in overrides if f"{override_key(word).replace('/', '.')}.".startswith(seen)]
