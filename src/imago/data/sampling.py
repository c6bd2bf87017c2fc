"""How often each train image is drawn in an epoch: `data.sampler`."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from imago.data.images import Images, ImageSets, class_counts
from imago.errors import UserError
from imago.model.losses import class_weight_tensor
from imago.terminal import shortened

SAMPLERS = ("balanced", "sqrt", "weights")
MOST_NAMED = 20
WEIGHTS = "the weights of the images"
"""Name of a digest of the weights, beside settings that decide on the batches of an epoch."""


def draw_weights(sets: ImageSets, sampler: str | None, sample_weights: Mapping[str, float] | None) -> Tensor | None:
    """Return weights of the train images, float64 (n,): an image is drawn as often as its weight says, compared with
    the others. None if each is drawn once. What is drawn of each class is added to the notes.

    Raises:
        UserError: There is no such sampler, it has no weights, or they are not those of the classes.
    """
    if sampler is None:
        if sample_weights is not None:
            raise UserError("data.sample_weights has no effect without data.sampler=weights. Add it, or remove both.")
        return None
    if sampler not in SAMPLERS:
        raise UserError(f"data.sampler must be {', '.join(SAMPLERS)} or null, got {sampler}.")
    if (images := sets.splits.get("train")) is None:
        return None
    weights = _weights(sets, images, sampler, sample_weights)
    labels = torch.as_tensor(np.asarray(images.labels, np.int64))
    drawn = torch.zeros(len(sets.class_names), dtype=torch.float64).index_add_(0, labels, weights)
    drawn *= len(images) / drawn.sum()
    counts = class_counts(images, sets.class_names)
    of_classes = [f"{name} {n:.0f} (of {counts[name]})" for name, n in zip(counts, drawn.tolist(), strict=True)]
    sets.notes.append(f"data.sampler={sampler}: an epoch draws {shortened(of_classes, MOST_NAMED)} images of train")
    return weights


def _weights(sets: ImageSets, images: Images, sampler: str, sample_weights: Mapping[str, float] | None) -> Tensor:
    labels = torch.as_tensor(np.asarray(images.labels, np.int64))
    if sampler != "weights":
        if sample_weights is not None:
            raise UserError(f"data.sampler={sampler} has weights of its own. Remove data.sample_weights.")
        counts = torch.bincount(labels, minlength=len(sets.class_names)).double()
        return 1 / (counts if sampler == "balanced" else counts.sqrt())[labels]
    if sample_weights is not None:
        if sets.weights:
            raise UserError(f"data.sample_weights, and the weights of {sets.root}: remove one of them.")
        weights = class_weight_tensor(sample_weights, sets.class_names, "data.sample_weights").double()[labels]
    elif sets.weights:
        weights = torch.tensor([sets.weights[path] for path in images.paths], dtype=torch.float64)
    else:
        raise UserError(
            "data.sampler=weights needs weights: 'data.sample_weights={NAME: 5}' for the images of a class, or a "
            "column weight in data.split_file=FILE."
        )
    if not weights.sum() > 0:
        raise UserError(f"data.sampler=weights: all train images of {sets.root} have the weight 0.")
    return weights
