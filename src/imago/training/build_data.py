"""Makes the data module of a `data` node, for training or to score a checkpoint."""

import inspect
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from imago.checkpoint.fits import check_draw
from imago.checkpoint.read import LAST, read_checkpoint
from imago.config.invocation import override_key
from imago.data.contract import check_module
from imago.data.module import ImageDataModule
from imago.data.relabel import changed_labels
from imago.errors import CREATING_DATA, MissingFileError, UserError, noted
from imago.evaluation.from_config import make
from imago.lightning_internals import option_of
from imago.run.folder import RunFolder
from imago.terminal import counted

FEW, LARGEST_VAL = 20, 0.5
"""Number of val images below which a run warns, and the largest fraction of train that it suggests for val."""


def make_data(
    node: DictConfig,
    trained: Mapping[str, Any] | None = None,
    typed: Sequence[str] = (),
    recorded: Mapping[str, Any] | None = None,
) -> ImageDataModule:
    """Make the data of a `data` node. To score a checkpoint whose entry `imago` is `trained`, its training images are
    left out; `typed` overrides may choose any labelled images. `recorded` is the entry of a checkpoint that is resumed
    or scored, whose draws of val and test are repeated."""
    make_module = make(node, _partial_=True)
    parameters = inspect.signature(make_module.func).parameters
    recorded = recorded if trained is None else trained
    options = {"recorded": recorded} if recorded is not None and "recorded" in parameters else {}
    if trained is None:
        check_module(data := _made(make_module, node, options))
        return data
    is_typed = any(override_key(word).startswith(("data.data_dir", "data.dataset")) for word in typed)
    options |= {"trained": trained} if is_typed and "trained" in parameters else {}
    data = _made(make_module, node, options)
    check_draw(trained, data, "")
    _check_test_ratio(node, trained, data, typed)
    if what := changed_labels(data.sets, trained):
        data.say(what)
    data.leave_out_trained(trained)
    return data


def _made(make_module: Callable[..., Any], node: DictConfig, options: Mapping[str, Any]) -> Any:
    """Make the data module; what its constructor raises says so in a note, and which setting names a missing file."""
    with noted(CREATING_DATA):
        try:
            return make_module(**options)
        except FileNotFoundError as error:
            name = next((name for name in node if error.filename and str(node[name]) == str(error.filename)), None)
            if name is None:
                raise
            raise MissingFileError(f"data.{name!s}={error.filename} does not exist.") from error


def recorded_draws(cfg: DictConfig, run: RunFolder) -> Mapping[str, Any] | None:
    """Entry `imago` of the checkpoint that the run starts from or replays, whose draws are repeated; None without."""
    replayed = Path(cfg.replay) / "checkpoints" / LAST if cfg.get("replay") is not None else None
    file = run.resume_from or cfg.get("ckpt_path") or replayed
    return read_checkpoint(file, mmap=True)["imago"] if file is not None and Path(file).is_file() else None


def _chooses(cfg: DictConfig) -> bool:
    """Whether a run has several checkpoints to choose from: the head alone is one, and a trial has none."""
    return cfg.preflight != "only" and cfg.model.get("probe") != "only"


def warn_of_test_on_val(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> None:
    """Warn if the split that chooses the checkpoint of a run is also scored as its test split."""
    is_scored = cfg.test and "test" in cfg.report.splits and _chooses(cfg)
    if not is_scored or option_of(trainer, "fast_dev_run") or data.scored_split("test") != "val":
        return
    monitors = [str(c.monitor) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    if (monitor := next((name for name in monitors if name.startswith("val/")), None)) is None:
        return
    advice = "type data.test_ratio=0.2" if "test_ratio" in cfg.data else "give data with a test split"
    if data.sets.drawn_val is not None and cfg.data.get("data_dir") and not cfg.data.get("split_file"):
        advice += f", or write the splits once with ml-split {shlex.quote(str(data.sets.root))}"
    data.say(
        f"val also chooses the checkpoint (monitor={monitor}), so its scores as test are too good. For an honest test "
        f"split, {advice}"
    )


def warn_of_few_val_images(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> None:
    """Warn if a val split of very few images chooses the checkpoint of a run."""
    images = len(data.split("val"))
    is_tried = option_of(trainer, "fast_dev_run")
    if images >= FEW or is_tried or not _chooses(cfg) or not cfg.monitor.startswith("val/"):
        return
    is_drawn = data.sets.drawn_val is not None
    drawn_test = data.sizes["test"] if data.sets.drawn_test is not None else 0
    total = images + data.sizes["train"] + drawn_test  # of which data.val_ratio is a fraction
    ratio = math.ceil(20 * FEW / total) / 20  # in steps of 0.05
    advice = "give data with more val images"
    left = total - drawn_test - round(ratio * total)
    if is_drawn and "val_ratio" in cfg.data and cfg.data.get("fold") is None and ratio <= LARGEST_VAL and left > images:
        advice = f"type data.val_ratio={ratio:g}, which leaves {left} images to train on"
    elif is_drawn:
        advice = "give more images" + (", or fewer folds" if cfg.data.get("fold") is not None else "")
    data.say(
        f"val has {counted(images, 'image')}, and chooses the checkpoint (monitor={cfg.monitor}), largely by chance. "
        f"For a steadier choice {advice}"
    )


def _check_test_ratio(
    node: DictConfig, trained: Mapping[str, Any], data: ImageDataModule, typed: Sequence[str]
) -> None:
    """Raise UserError if a typed `data.test_ratio` would draw images that were trained on, or none."""
    if not node.get("test_ratio") or "data.test_ratio" not in map(override_key, typed):
        return
    if trained.get("drawn_test") is None:
        raise UserError(
            f"data.test_ratio={node.test_ratio}: the checkpoint was trained without it, so it has seen the images of "
            "such a test split. Leave it out. To score other images, type data.data_dir=PATH"
        )
    if data.sets.drawn_test is None:
        raise UserError(
            f"data.test_ratio={node.test_ratio}: these data are not those of the checkpoint, so all their labelled "
            "images are scored. Leave it out."
        )
