"""How checkpoints of a run are written."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from imago.checkpoints import read_checkpoint
from imago.writing import replacing

log = logging.getLogger(__name__)


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or the one before is still there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError, with the free space, where the file cannot be written; the target is as it was."""
        path = Path(path)
        try:
            # a file of our own: torch's would stay open, and keep its space, as long as the error is looked at
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # all that torch's writer knows
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(f"The checkpoint {path} could not be written ({free:.0f} MB are free): {error}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint that keeps the best so far when a run goes on in another folder.

    Its parent forgets the best score there, so that the first epoch would become the best, however bad.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["dirpath"] != self.dirpath:
            state_dict = state_dict | self._moved(state_dict)
        super().load_state_dict(state_dict)

    def _moved(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with the best checkpoint copied to this folder; as at the start where it is gone."""
        assert self.dirpath is not None
        earlier, path = Path(state["best_model_path"]), Path(self.dirpath, f"{self.filename}{self.FILE_EXTENSION}")
        if not state["best_model_path"] or not earlier.is_file():
            log.warning("%s is gone: the best checkpoint is that of the epochs from now on", earlier)
            return {key: getattr(self, key) for key in state if key != "monitor"}
        with replacing(path) as temporary:
            shutil.copyfile(earlier, temporary)
        kept = {str(path): state["best_model_score"]} if state["best_k_models"] else {}
        return {
            "dirpath": self.dirpath,
            "best_model_path": str(path),
            "best_k_models": kept,
            "kth_best_model_path": str(path) if kept else "",
            "last_model_path": "",
        }
