"""Makes the data module of a `data` node, for training or to score a checkpoint."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from imago.checkpoint.fits import check_draw
from imago.config.invocation import override_key
from imago.data.contract import check_module
from imago.data.module import ImageDataModule
from imago.data.relabel import changed_labels
from imago.errors import UserError
from imago.evaluation.from_config import make
from imago.lightning_internals import option_of


def make_data(node: DictConfig, trained: Mapping[str, Any] | None = None, typed: Sequence[str] = ()) -> ImageDataModule:
    """Make the data of a `data` node. To score a checkpoint whose entry `imago` is `trained`, its training images are
    left out; `typed` overrides may choose any labelled images."""
    make_module = make(node, _partial_=True)
    if trained is None:
        check_module(data := make_module())
        return data
    is_typed = any(override_key(word).startswith(("data.data_dir", "data.dataset")) for word in typed)
    takes_it = is_typed and "trained" in inspect.signature(make_module.func).parameters
    data = make_module(trained=trained) if takes_it else make_module()
    check_draw(trained, data, "")
    _check_test_ratio(node, trained, data, typed)
    if what := changed_labels(data.sets, trained):
        data.say(what)
    data.leave_out_trained(trained)
    return data


def warn_of_test_on_val(cfg: DictConfig, data: ImageDataModule, trainer: Trainer) -> None:
    """Warn if the split that chooses the checkpoint of a run is also scored as its test split."""
    is_scored = cfg.test and "test" in cfg.report.splits and cfg.preflight != "only"
    if not is_scored or option_of(trainer, "fast_dev_run") or data.scored_split("test") != "val":
        return
    monitors = [str(c.monitor) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    if (monitor := next((name for name in monitors if name.startswith("val/")), None)) is None:
        return
    advice = "type data.test_ratio=0.2" if "test_ratio" in cfg.data else "give data with a test split"
    if data.sets.drawn_val is not None and cfg.data.get("data_dir") and not cfg.data.get("split_file"):
        advice += f", or write the splits once with ml-split {data.sets.root}"
    data.say(
        f"val also chooses the checkpoint (monitor={monitor}), so its scores as test are too good. For an honest test "
        f"split, {advice}"
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
