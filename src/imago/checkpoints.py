"""Reading a checkpoint safely, and saying what is wrong with one that does not fit."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from imago.data.module import ImageDataModule
from imago.module import DictModule
from imago.writing import replacing

Checkpoint = dict[str, Any]


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or the one before is still there."""

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Raises OSError, with the free space, where the file cannot be written; the target is as it was."""
        path = Path(path)
        try:
            # a file of our own: torch's would stay open, and keep its space, as long as the error is looked at
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer knows RuntimeError only
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(f"The checkpoint {path} could not be written ({free:.0f} MB are free): {error}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Checkpoint:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no checkpoint, damaged, or holds more than plain types.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"ckpt_path={path} is a folder: give a file in it, {path}/checkpoints/best.ckpt for example.")
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={path} is not there.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no common class for what a damaged file raises
        raise ValueError(f"ckpt_path={path} is damaged or no checkpoint of Imago.") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "imago"} <= checkpoint.keys():
        raise ValueError(f"ckpt_path={path} is no checkpoint of Imago; model.net.weights= takes plain weights.")
    return checkpoint


def check_fits(checkpoint: Checkpoint, model: DictModule, data: ImageDataModule, path: str | Path) -> None:
    """Raises ValueError unless the checkpoint holds this network for these classes, and trained on none of this val."""
    drawn, now = checkpoint["imago"]["drawn_val"], data.sets.drawn_val
    if drawn is not None and now is not None and drawn != now:
        raise ValueError(
            f"ckpt_path={path} was trained with another draw of val from train, so it has seen images of this one. "
            f"Type seed={drawn['seed']} data.val_ratio={drawn['val_ratio']}"
        )
    trained, given = checkpoint["imago"]["class_names"], list(model.class_names)
    if trained != given:
        raise ValueError(
            f"ckpt_path={path} was trained on other classes.\n"
            f"  checkpoint: {', '.join(trained)}\n  data:       {', '.join(given)}"
        )
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    lacking = sorted(ours.keys() - theirs.keys())
    foreign = sorted(theirs.keys() - ours.keys())
    reshaped = sorted(name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape)
    if lacking or foreign or reshaped:
        counts = {"missing in it": lacking, "unknown to this network": foreign, "of another shape": reshaped}
        found = "; ".join(f"{len(names)} {what} ({names[0]}, …)" for what, names in counts.items() if names)
        raise ValueError(
            f"ckpt_path={path} holds another network than this run's: {found}.\n"
            "Type the same model= and model.net.name= as in the run that wrote it."
        )


def load_weights(model: DictModule, data: ImageDataModule, path: str | Path) -> None:
    """Loads the weights of a checkpoint into `model`, if it fits."""
    checkpoint = read_checkpoint(path)
    check_fits(checkpoint, model, data, path)
    model.load_state_dict(checkpoint["state_dict"])
