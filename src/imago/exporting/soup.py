"""A greedy soup: the mean of the weights of several trainings, as far as val gains by it.

Wortsman et al. (2022), "Model soups", arXiv 2203.05482.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from imago.checkpoint.fits import load_weights
from imago.checkpoint.read import Checkpoint, find_checkpoint
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.dp.published import privacy_of
from imago.errors import UserError
from imago.evaluation.collect import score
from imago.run.folder import RunFolder
from imago.terminal import shortened
from imago.training.build import build_to_score

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]
OF_THE_SIGNATURE = "signature"


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint, by its file, with its accuracy on val."""

    file: Path
    checkpoint: Checkpoint
    accuracy: float


def write_soup(cfg: DictConfig, run: RunFolder, path: Path) -> None:
    """Score each checkpoint on val, average those that val gains by, and write a checkpoint of the average.

    Raises:
        UserError: There are fewer than two, or they have other networks, classes or preprocessing, or were private.
    """
    files = [Path(cfg.ckpt_path)]
    for name in cfg.average_of:
        file = find_checkpoint(str(name), Path(cfg.paths.log_dir), "average_of")
        if file.resolve() not in [known.resolve() for known in files]:
            files.append(file)
    if len(files) < 2:
        raise UserError(f"average_of={list(cfg.average_of)} names no checkpoint besides {files[0]}.")
    data, model, trainer = build_to_score(cfg, run)
    if "val" not in data.sets.splits:
        raise UserError("format=soup needs a val split, which says whether an average is better.")

    def accuracy(weights: Weights) -> float:
        model.load_state_dict(weights)
        return float(score(trainer, model, data, "val").metrics["acc"])

    ingredients: list[Ingredient] = []
    for file in files:
        checkpoint = load_weights(model, data, file)
        _check_alike(file, checkpoint, files[0], ingredients[0].checkpoint if ingredients else checkpoint)
        ingredients.append(Ingredient(file, checkpoint, accuracy(checkpoint["state_dict"])))
        log.info("%s: accuracy %.4f on val", file, ingredients[-1].accuracy)
    kept, weights, best = greedy(ingredients, accuracy)
    if len(kept) == 1:
        log.warning("No average is as good on val as %s alone, which is what is written", kept[0].file)
    else:
        log.info("The mean of %d of %d checkpoints: accuracy %.4f on val", len(kept), len(ingredients), best)
    entry = _entry(ingredients[0].checkpoint["imago"], kept)
    WholeFileCheckpointIO().save_checkpoint({"state_dict": weights, "imago": entry}, path)
    run.sections["Soup"] = {"checkpoints": shortened([one.file for one in kept], 20), "accuracy on val": best}


def greedy(
    ingredients: Sequence[Ingredient], accuracy: Callable[[Weights], float]
) -> tuple[list[Ingredient], Weights, float]:
    """Begin with the best, and add one after the other where the accuracy does not fall. Returns those that were kept,
    their mean and its accuracy."""
    first, *others = sorted(ingredients, key=lambda one: -one.accuracy)
    kept, weights, best = [first], dict(first.checkpoint["state_dict"]), first.accuracy
    for one in others:
        trial = mean_of([part.checkpoint["state_dict"] for part in (*kept, one)])
        value = accuracy(trial)
        if value >= best:
            kept, weights, best = [*kept, one], trial, value
        log.info("with %s: accuracy %.4f on val, %s", one.file, value, "kept" if kept[-1] is one else "left out")
    return kept, weights, best


def mean_of(states: Sequence[Weights]) -> Weights:
    """Mean of each tensor; counters are those of the first."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


def _check_alike(file: Path, checkpoint: Checkpoint, first_file: Path, first: Checkpoint) -> None:
    """Raise UserError for a checkpoint whose images look different to its network, or that was trained in private."""
    entry, own = first["imago"], checkpoint["imago"]
    keys = ("image_size", "fit", "fill", "interpolation", "range", "eval_transform", "transform", "normalisation")
    if differing := [key for key in keys if entry.get(key) != own.get(key)]:
        raise UserError(f"average_of: {file} sees images in another way than {first_file} ({', '.join(differing)}).")
    if privacy_of(file, own) is not None:
        raise UserError(f"{file} was trained with strategy=dp: choosing by val would not be covered by its epsilon.")


def _entry(entry: dict[str, Any], kept: Sequence[Ingredient]) -> dict[str, Any]:
    """The entry `imago` of the soup: that of the first checkpoint, with all images that were seen."""
    entries = [one.checkpoint["imago"] for one in kept]
    what = f"the mean of {len(kept)} checkpoints (greedy soup): {shortened([one.file for one in kept], 20)}"
    timestamp = datetime.now().astimezone().isoformat(timespec="microseconds")
    made = {key: value for key, value in entry.items() if key != OF_THE_SIGNATURE}
    made |= {"weights": what if len(kept) > 1 else entries[0].get("weights", ""), "timestamp": timestamp}
    for key in ("train_images", "val_images"):
        parts = [part.get(key) for part in entries]
        made[key] = torch.unique(torch.cat(parts)) if all(part is not None for part in parts) else None
    made["unrecorded"] = next((part["unrecorded"] for part in entries if part.get("unrecorded")), "")
    return made
