"""Images of the run's own data, for the proof of an export and for the ranges of 8-bit numbers."""

import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig

from imago.config.invocation import Invocation
from imago.config.missing_data import lacks_images
from imago.data.decode import BadImageError
from imago.data.images import Images
from imago.data.module import ImageDataModule
from imago.data.sources import UNKNOWN
from imago.errors import UserError
from imago.evaluation.classifier import Classifier
from imago.evaluation.pixels import read_pixels
from imago.exporting.odd_images import odd_images
from imago.exporting.proof import Case
from imago.training.build_data import make_data

log = logging.getLogger(__name__)

IS_CHOSEN = ("data.data_dir", "data.split_file", "data.shards", "data.dataset", "data")
"""Settings by which a person says where the images are; those that a checkpoint names may be gone."""


MISSING = (
    "The images of the run are not here, so the export is compared on odd images alone. To compare it on a test split: "
    "data.data_dir=PATH"
)


def data_of(cfg: DictConfig, entry: Mapping[str, Any], invocation: Invocation) -> ImageDataModule | None:
    """Make the data of a run, without its training images; None, with a warning, if they are not here."""
    if lacks_images(cfg.data):
        log.warning("%s", MISSING)
        return None
    try:
        return make_data(cfg.data, entry, invocation.overrides)
    except (UserError, OSError) as error:
        if any(key in invocation.keys for key in IS_CHOSEN):
            raise
        log.warning("%s: %s", MISSING, error)
        return None


def spread(images: Images, count: int) -> list[int]:
    """Indices of at most `count` images, at equal distances: the classes of a folder come one after the other."""
    return np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)).tolist()


def cases_of_split(images: Images, count: int, channels: int) -> Iterator[Case]:
    """Yield images of a split that can be read."""
    for index in spread(images, count):
        try:
            pixels = read_pixels(images.read(index), channels, images.decoding)
        except BadImageError as error:
            log.warning("%s", error)
            continue
        label = int(images.labels[index])
        shown = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())
        yield Case(str(images.paths[index]), shown, None if label == UNKNOWN else label)


def odd_cases(classifier: Classifier) -> Iterator[Case]:
    """Yield the odd images, decoded as files are."""
    for name, content in odd_images():
        pixels = read_pixels(io.BytesIO(content), classifier.channels, classifier.decoding)
        yield Case(name, np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), is_odd=True)
