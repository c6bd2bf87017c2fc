"""Votes about the labels of train images: the margins of the training, and a head that has not seen the image."""

import logging
import time
from pathlib import Path

import numpy as np
import torch

from imago.evaluation.score import Score
from imago.model.linear_head import held_out_answers
from imago.model.module import DictModule
from imago.report.label_errors import read_held_out, read_margins

log = logging.getLogger(__name__)

MOST_WORK = 1e8
"""Most images x features x classes for which the second vote is worth its time, about 20 seconds of one core."""


def add_votes(score: Score, model: DictModule, folder: Path) -> None:
    """Add to the score of train images what a run in `folder` has noted of their labels: margins, and held-out answers.

    The latter are those of the head that came first, or else of heads on the features of the network that is scored,
    each fitted without a fifth of the images. These features have seen the label, the head has not.
    """
    if score.split != "train":
        return
    score.margins = read_margins(folder, score.indices, score.labels)
    score.held_out = read_held_out(folder, score.indices, score.labels)
    features, classes = score.features, len(score.class_names)
    if score.held_out is not None or score.margins is None or features is None:
        return
    has_all = len(np.unique(score.labels)) == classes and bool(np.isfinite(features).all())
    if not has_all:
        return
    if features.size * classes > MOST_WORK:
        log.info("Possible label errors: the network votes in place of a head, whose fit would take too long")
        return
    began = time.monotonic()
    weights = model.criterions.class_weights
    weights = weights.cpu() if weights is not None and bool((weights > 0).all()) else None
    labels = torch.from_numpy(score.labels)
    answers = held_out_answers(torch.from_numpy(features).double(), labels, classes, weights).numpy()
    score.held_out = np.where(np.isnan(answers), score.log_probabilities, answers)
    log.info("Possible label errors: heads on the features of train were fitted in %.1f s", time.monotonic() - began)
