"""Thumbnails of images, as text that fits into JSON and HTML."""

import base64
import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imago.data.decode import BadImageError, open_image
from imago.data.images import Images
from imago.report.label_errors import (
    confident_errors,
    knows_enough,
    likeliest_other,
    nearest,
    possible_label_errors,
)

SIDE, LARGE, SMALL = 112, 192, 48  # pixels; of pictures that are looked at more closely, and of their neighbours
NEIGHBOURS = 5
OF_EACH_KIND, MOST_LABEL_ERRORS = 12, 48
SAMPLES = 24


def thumbnail(images: Images, index: int, side: int = SIDE, largest: int = SIDE) -> Image.Image:
    """Image within `side` pixels, within `largest` if it has more; grey if it cannot be read.

    Tiny ones are enlarged without smoothing.
    """
    try:
        pixels = images.read(index)
    except BadImageError:
        return Image.new("RGB", (side, side), "#cccccc")
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())
    return resized(picture, min(max(side, *picture.size), max(side, largest)))


def resized(picture: Image.Image, longest: int) -> Image.Image:
    """Picture whose longer side has `longest` pixels, enlarged without smoothing."""
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def data_uri(picture: Image.Image) -> str:
    """Encode the picture as `data:image/jpeg;base64,…`."""
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_of(data_uri: str) -> Image.Image:
    """Decode the picture in a `data:` URI of a report; grey if there is none."""
    try:
        content = base64.b64decode(data_uri.partition(",")[2])
        with open_image(io.BytesIO(content)) as image:
            image.thumbnail((4 * SIDE, 4 * SIDE))
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return Image.new("RGB", (SIDE, SIDE), "#cccccc")


def samples(images: Images, class_names: Sequence[str]) -> list[dict[str, str]]:
    """First images of each class in turn, at most 24 in all: `label`, `path`, `image`."""
    labels = np.asarray(images.labels)
    classes = np.flatnonzero(np.bincount(labels))
    per_class = max(1, SAMPLES // len(classes))
    firsts = (np.flatnonzero(labels == label)[:per_class].tolist() for label in classes[:SAMPLES])
    chosen = [index for indices in firsts for index in indices][:SAMPLES]
    return [
        {"label": class_names[images.labels[i]], "path": images.paths[i], "image": data_uri(thumbnail(images, i))}
        for i in chosen
    ]


class Answers(Protocol):
    """Predictions for n images: `labels` and `predictions` int64 (n,), `log_probabilities` float64 (n, classes)."""

    class_names: list[str]
    paths: list[str]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    log_probabilities: NDArray[np.float64]
    margins: NDArray[np.float64] | None
    features: NDArray[np.float32] | None

    @property
    def doubts(self) -> NDArray[np.float64]:
        """Log-probabilities (n, classes) that contradict labels: those of held-out images, where there are some."""


def noteworthy_images(answers: Answers, images: Images, label_errors: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Find the `mistakes` with the highest loss, and the `unsure` answers with the lowest probability.

    With `label_errors`, and if the network `knows_enough`, there is also `possibly_mislabelled`. An entry has `path`,
    `label`, `prediction`, `probability`, `label_probability` and `image`. `images` are those of `answers`, in the same
    order.
    """
    log_p = answers.log_probabilities
    sure, of_label = log_p.max(axis=1), log_p[np.arange(len(answers.labels)), answers.labels]
    wrong = np.flatnonzero(answers.predictions != answers.labels)
    mistakes = wrong[np.argsort(of_label[wrong], kind="stable")][:OF_EACH_KIND]
    unsure = np.argsort(sure, kind="stable")[:OF_EACH_KIND]
    entries = {
        "mistakes": [_entry(answers, images, i, log_p, answers.predictions[i]) for i in mistakes.tolist()],
        "unsure": [_entry(answers, images, i, log_p, answers.predictions[i]) for i in unsure.tolist()],
    }
    if label_errors and knows_enough(answers.labels, answers.doubts, answers.margins):
        entries["possibly_mislabelled"] = _possibly_mislabelled(answers, images)
    return entries


def _entry(answers: Answers, images: Images, index: int, log_p: NDArray[np.float64], prediction: int) -> dict[str, Any]:
    return {
        "path": answers.paths[index],
        "label": answers.class_names[answers.labels[index]],
        "prediction": answers.class_names[prediction],
        "probability": float(np.exp(log_p[index, prediction])),
        "label_probability": float(np.exp(log_p[index, answers.labels[index]])),
        "image": data_uri(thumbnail(images, index, largest=LARGE)),
    }


def _possibly_mislabelled(answers: Answers, images: Images) -> list[dict[str, Any]]:
    """Entries of the `possible_label_errors`, up to 48.

    They also have `contradicted` (one of the `confident_errors`), `other`, the likeliest class beside the label,
    `held_out` where the answer is that of a head which was fitted without the image, `neighbours`, the images with the
    most similar features, and `margin`, the mean margin in training, where it is known.
    """
    labels, doubts, margins = answers.labels, answers.doubts, answers.margins
    is_contradicted, others = confident_errors(labels, doubts), likeliest_other(labels, doubts)
    listed = possible_label_errors(labels, doubts, OF_EACH_KIND, MOST_LABEL_ERRORS, margins)
    entries = []
    for i, neighbours in zip(listed.tolist(), _neighbours(answers, images, listed), strict=True):
        entry = _entry(answers, images, i, doubts, int(doubts[i].argmax()))
        entry |= {"contradicted": bool(is_contradicted[i]), "other": answers.class_names[others[i]]}
        entry |= {"held_out": True} if doubts is not answers.log_probabilities else {}
        entry |= {"margin": float(margins[i])} if margins is not None and not np.isnan(margins[i]) else {}
        entries.append(entry | {"neighbours": neighbours})
    return entries


def _neighbours(answers: Answers, images: Images, chosen: NDArray[np.int64]) -> list[list[dict[str, str]]]:
    """Label, path and small picture of the images that are most similar to each of the `chosen` ones; none without
    features."""
    if answers.features is None:
        return [[] for _ in chosen]
    rows = nearest(answers.features, chosen, NEIGHBOURS).tolist()
    shown = {
        i: {
            "label": answers.class_names[answers.labels[i]],
            "path": answers.paths[i],
            "image": data_uri(thumbnail(images, i, side=SMALL, largest=SMALL)),
        }
        for i in {i for row in rows for i in row}
    }
    return [[shown[i] for i in row] for row in rows]
