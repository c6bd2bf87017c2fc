"""Predictions of images in memory, by one network or several, over one or several views of each image."""

import copy
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from imago.data.colour import Decoding
from imago.data.decode import BadImageError, read_image
from imago.data.transforms import ImageTransform
from imago.data.tta import views
from imago.evaluation.classifier import Classifier, Floats
from imago.evaluation.pixels import DAMAGED, with_channels
from imago.evaluation.prediction import Prediction
from imago.evaluation.rows import BEST, MANY_CLASSES
from imago.files import strict
from imago.serving.limits import check_pixels


class Seen(NamedTuple):
    """An image as each network sees it in each view, uint8 (channels, height, width), and what is wrong with it."""

    views: list[Tensor]
    warning: str | None = None


class Predictor:
    """Weighted mean of the probabilities of all members, each averaged over the views of `tta`, as in `ml-inference`.

    Both methods may be called from several threads at once.

    Args:
        members: Classifiers with the same classes. A single one may be calibrated.
        weights: Weight of each member; None for equal ones.
        tta: Views of an image: `none`, `flip`, `five_crop` or `ten_crop`.
    """

    def __init__(
        self, members: Sequence[Classifier], weights: Sequence[float] | None = None, tta: str = "none"
    ) -> None:
        shares = np.array(weights if weights is not None else [1.0] * len(members), dtype=float)
        self.members = list(members)
        self.looks: list[tuple[Classifier, float]] = []
        for member, share in zip(members, shares / shares.sum(), strict=True):
            transforms = views(member.transform, tta)
            self.looks += [(_looking(member, transform), float(share) / len(transforms)) for transform in transforms]

    @property
    def class_names(self) -> list[str]:
        """Class names, in the order of the networks' outputs."""
        return self.members[0].class_names

    @property
    def is_calibrated(self) -> bool:
        """Whether predictions say if they are accepted."""
        return self.members[0].calibration is not None

    def read(self, content: bytes, name: str, max_pixels: int) -> Seen:
        """Decode the bytes of an image file, and apply the crop and pixel stages.

        Raises:
            BadImageError: It cannot be used as an image, or is too large. `name` is its name in the message.
        """
        check_pixels(content, name, max_pixels)
        pixels: dict[Decoding, Tensor] = {}
        damage: dict[str, str] = {}
        for look, _ in self.looks:
            if look.decoding not in pixels:
                whole = read_image(io.BytesIO(content), name, look.decoding, damage)
                pixels[look.decoding] = with_channels(whole, look.channels)
        seen = [look.see(pixels[look.decoding]) for look, _ in self.looks]
        return Seen(seen, next((DAMAGED % what for what in damage.values()), None))

    def predict(self, images: Sequence[Seen]) -> list[Prediction]:
        """Predict images, as `read` returns them."""
        if len(self.looks) == 1:
            log_probabilities, predicted = self.looks[0][0].forward([image.views[0] for image in images])
        else:
            total: Floats | float = 0.0
            for place, (look, share) in enumerate(self.looks):
                total = total + share * np.exp(look.forward([image.views[place] for image in images])[0])
            with np.errstate(divide="ignore"):
                log_probabilities = np.log(total)
            predicted = log_probabilities.argmax(axis=1).tolist()
        return self.members[0].describe(log_probabilities, predicted)


def _looking(member: Classifier, transform: ImageTransform) -> Classifier:
    """Return a classifier with another transform, and the same network."""
    look = copy.copy(member)
    look.transform = transform
    return look


def answer(name: str | None, prediction: Prediction, warning: str | None = None) -> dict[str, Any]:
    """Plain values of a prediction, under the names of the columns of `ml-inference`."""
    is_long = len(prediction.probabilities) >= MANY_CLASSES
    probabilities = dict(prediction.top[:BEST]) if is_long else prediction.probabilities
    values = {
        "name": name,
        "prediction": prediction.class_name,
        "probability": prediction.probability,
        "probabilities": probabilities,
        "accepted": prediction.accepted,
        "set": prediction.set,
        "warning": warning,
        "error": prediction.error,
    }
    return strict(values)


def unreadable(name: str | None, error: BadImageError) -> dict[str, Any]:
    """Plain values in place of a prediction, with the reason in `error`."""
    return answer(name, Prediction(None, None, error=str(error)))
