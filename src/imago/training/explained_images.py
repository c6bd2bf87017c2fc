"""Images of a run with what its network looked at: the worst mistakes, the least certain, and a right one per class."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from imago.checkpoint.read import BEST
from imago.data.decode import BadImageError
from imago.data.images import Images
from imago.errors import UserError
from imago.evaluation.explain import Explainer
from imago.evaluation.loading import of_checkpoint
from imago.files import write_json
from imago.report.content import read_images
from imago.report.explained import explained_file, heat
from imago.report.thumbnails import LARGE, data_uri, resized
from imago.run.answers import Answers, read_answers
from imago.run.overview import Overview
from imago.terminal import counted
from imago.training.label_suspects import data_of_run

log = logging.getLogger(__name__)

MOST_CLASSES = 24


def explain_run(folder: Path, paths: DictConfig, method: str) -> Path:
    """Write `reports/explained_<split>.json` for the report of the run in `folder`, for test, or else val. `paths` is
    the group of this command. Returns its path.

    Raises:
        UserError: The run was not scored, or its images are not in its data any more.
    """
    data = data_of_run(folder, paths)
    split = next((split for split in ("test", "val") if split in data.sets.splits), None)
    if split is None:
        raise UserError(f"run={folder} has neither a test nor a val split.")
    answers = read_answers(Overview.read(folder), split)
    images = data.sets.splits[split]
    explainer = Explainer(of_checkpoint(folder / BEST, key="run"), method)
    if method == "auto":
        why = "" if explainer.layer is not None else ": no map of 4 x 4 places or more stands shortly before the logits"
        log.info("Method: %s%s", explainer.method, why)
    places = {path: i for i, path in enumerate(images.paths)}
    chosen = [row for row in _chosen(folder, split, answers) if row["path"] in places]
    if not chosen:
        raise UserError(f"run={folder}: none of the images in its reports is in {data.sets.root} now.")
    pictures = [row | {"image": image} for row in chosen if (image := _picture(explainer, images, places, row))]
    log.info("Explained %s of %s by %s", counted(len(pictures), "answer"), split, explainer.method)
    path = explained_file(folder, split)
    write_json(path, {"method": explainer.method, "pictures": pictures})
    return path


def _chosen(folder: Path, split: str, answers: Answers) -> list[dict[str, Any]]:
    """Path, label, prediction and probability of each image to explain."""
    noteworthy = read_images(folder, split) or {}
    rows = [row for kind in ("mistakes", "unsure") for row in noteworthy.get(kind, [])]
    surest: dict[str, int] = {}
    for i, (label, answer, probability) in enumerate(
        zip(answers.labels, answers.predictions, answers.probabilities, strict=True)
    ):
        if label == answer and (label not in surest or probability > answers.probabilities[surest[label]]):
            surest[label] = i
    rows += [
        {
            "path": answers.paths[i],
            "label": label,
            "prediction": label,
            "probability": answers.probabilities[i],
        }
        for label, i in sorted(surest.items())[:MOST_CLASSES]
    ]
    keys = ("path", "label", "prediction", "probability")
    return list({row["path"]: {key: row[key] for key in keys} for row in rows}.values())


def _picture(explainer: Explainer, images: Images, places: Mapping[str, int], row: Mapping[str, Any]) -> str | None:
    """The image as the network saw it, beside it with the map; None if it cannot be read."""
    classifier = explainer.classifier
    try:
        pixels = classifier.see(images.read(places[row["path"]]))
    except BadImageError as error:
        log.warning("%s", error)
        return None
    values = explainer(pixels, classifier.class_names.index(row["prediction"]))
    return data_uri(_side_by_side(pixels, values))


def _side_by_side(pixels: Tensor, values: NDArray[np.float64]) -> Image.Image:
    seen = resized(Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()), LARGE)
    pair = Image.new("RGB", (2 * seen.width, seen.height))
    pair.paste(seen, (0, 0))
    pair.paste(heat(seen, values), (seen.width, 0))
    return pair
