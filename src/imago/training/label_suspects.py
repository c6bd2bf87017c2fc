"""The images of a run whose labels may be wrong, read again from its data, for the page on which a person decides."""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from imago.checkpoint.read import BEST, read_checkpoint
from imago.config.allow_list import check_targets
from imago.config.carried import leave_out_training, read_checkpoint_config
from imago.data.images import Images
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.evaluation.loading import check_own_code
from imago.report.label_decisions import Decisions
from imago.report.label_page import Suspect
from imago.report.label_ranking import Ranked, ranking_file, read_ranking
from imago.report.thumbnails import LARGE, thumbnail
from imago.training.build_data import make_data

SPLITS = ("train", "val")


def suspects_and_decisions(folder: Path, paths: DictConfig) -> tuple[list[Suspect], Decisions]:
    """Images that may be mislabelled, of train and then of val, and the decisions that were made about them. `paths` is
    the group of this command.

    Raises:
        UserError: The run has ranked no images, or they are not in its data any more.
    """
    ranked = {split: read_ranking(file) for split in SPLITS if (file := ranking_file(folder, split)).is_file()}
    if not any(ranked.values()):
        raise UserError(
            f"run={folder} has no list of possibly mislabelled images in reports/. It is written at the end of "
            "a training, with report.pictures=true, where the network knows enough to doubt a label."
        )
    data = data_of_run(folder, paths)
    places = {path: (images, i) for images in data.sets.splits.values() for i, path in enumerate(images.paths)}
    suspects = [
        _suspect(row, places, data.class_names) for rows in ranked.values() for row in rows if row.path in places
    ]
    if not suspects:
        raise UserError(f"run={folder}: none of the images in reports/label_errors_*.csv is in {data.sets.root} now.")
    return suspects, Decisions(folder, data.class_names, data.sets.excluded, data.sets.corrections)


def data_of_run(folder: Path, paths: DictConfig) -> ImageDataModule:
    """The data of a run, from the config in its checkpoint, with its draws. Like `ml-eval`, it makes what a checkpoint
    without your signature names only if that is on the allow-list."""
    file = folder / BEST
    checkpoint = read_checkpoint(file)
    is_own = check_own_code(checkpoint)
    content = read_checkpoint_config(checkpoint["imago"].get("config"), file, is_own)
    cfg = OmegaConf.create({**content, "paths": OmegaConf.to_container(paths, resolve=True)})
    leave_out_training(cfg, ("data",))
    if not is_own:
        check_targets(cfg, ("data",), ())
    return make_data(cfg.data, recorded=checkpoint["imago"])


def _suspect(row: Ranked, places: dict[str, tuple[Images, int]], class_names: list[str]) -> Suspect:
    near = [Ranked(path, "", "") for path in row.neighbours if path in places]
    images, index = places[row.path]
    return Suspect(
        path=row.path,
        label=class_names[images.labels[index]],
        suggestion=row.suggestion,
        picture=partial(thumbnail, images, index, side=LARGE, largest=2 * LARGE),
        neighbours=[_suspect(neighbour, places, class_names) for neighbour in near],
    )
