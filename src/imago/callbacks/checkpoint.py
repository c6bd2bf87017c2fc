"""How checkpoints of a run are written."""

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from imago.checkpoints import BEST, check_whole, read_checkpoint
from imago.signing import KeyFileError, sign
from imago.writing import replacing

log = logging.getLogger(__name__)


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, reads it back and renames: a checkpoint is whole, or the one before is still there.

    `on_full_disk`: `stop` raises where a file cannot be written, `continue` says it and goes on without.
    """

    on_full_disk = "stop"
    has_said_why_unsigned = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """With `storage_options={"keep": NAME}` the file that was there before is kept under that name.

        Raises:
            OSError: With the free space, where the file cannot be written; the target is as it was.
        """
        try:
            self._save(checkpoint, Path(path), (storage_options or {}).get("keep"))
        except OSError as error:
            if self.on_full_disk == "stop":
                raise
            log.error("%s. The run goes on without it (callbacks.resume.on_full_disk=continue)", error)

    def _save(self, checkpoint: dict[str, Any], path: Path, keep: str | None) -> None:
        if "imago" in checkpoint:
            self._sign(checkpoint)
        try:
            with replacing(path) as temporary:
                # a file of our own: torch's would stay open, and keep its space, as long as the error is looked at
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                check_whole(temporary)
                if keep is not None and path.is_file():
                    _link(path, path.with_name(keep))
        except RuntimeError as error:  # all that torch's writer knows
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(f"The checkpoint {path} could not be written ({free:.0f} MB are free): {error}") from error

    def _sign(self, checkpoint: dict[str, Any]) -> None:
        """So that this user's commands read it as their own. Where that is not possible, preflight has tried whether
        they can do without."""
        try:
            checkpoint["imago"]["signature"] = sign(checkpoint)
        except (KeyFileError, TypeError, RuntimeError) as error:
            if not self.has_said_why_unsigned:
                log.warning("Checkpoints are not signed, so they are read like a stranger's: %s", error)
            self.has_said_why_unsigned = True

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


def alias(path: Path, other: Path) -> None:
    """Gives the content of `path` a second name; a copy, where the disk knows no links."""
    with replacing(other) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _link(path: Path, other: Path) -> None:
    """Gives `path` the second name `other`; where the disk knows no links, the only one."""
    try:
        with replacing(other) as temporary:
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
    except OSError:
        os.replace(path, other)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint that keeps the best so far when a run goes on in another folder.

    Its parent forgets the best score there, so that the first epoch would become the best, however bad. With other
    file names (several of the best are kept, or `filename` names the epoch), best.ckpt is a second name of the best.
    Where validation runs within epochs, it saves after each.
    """

    @property
    def best_file(self) -> Path | None:
        """best.ckpt, once there is one."""
        return Path(self.best_model_path).with_name(Path(BEST).name) if self.best_model_path else None

    def _save_monitor_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        super()._save_monitor_checkpoint(trainer, monitor_candidates)
        best = Path(self.best_model_path)
        if self.best_file is not None and self.best_file != best and trainer.is_global_zero and best.is_file():
            alias(best, self.best_file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if str(self.monitor).startswith("val/") and pl_module.validated_epoch != trainer.current_epoch:
            return  # Lightning still has the value of an earlier validation
        super().on_train_epoch_end(trainer, pl_module)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.save_top_k not in (0, 1) and self.filename is not None and "{" not in self.filename:
            self.filename = f"{self.filename}_{{epoch:03d}}_{{step}}"
        if trainer.val_check_interval != 1.0 and str(self.monitor).startswith("val/"):
            self._save_on_train_epoch_end = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # the run goes on
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | self._paths(state_dict))

    def _paths(self, state: dict[str, Any]) -> dict[str, Any]:
        """Files of this folder instead of what the state names: it may be a stranger's, and Lightning removes what it
        takes for an earlier checkpoint, folders too. The best one is copied here from where the run was."""
        assert self.dirpath is not None

        def here(path: Any) -> str:
            file = Path(self.dirpath or "", Path(str(path)).name)
            return str(file) if path and file.suffix == self.FILE_EXTENSION and file.is_file() else ""

        kept = state["best_k_models"] if isinstance(state["best_k_models"], dict) else {}
        if not state["best_model_path"] or here(state["best_model_path"]):
            return {
                "dirpath": self.dirpath,
                "best_model_path": here(state["best_model_path"]),
                "best_k_models": {here(path): score for path, score in kept.items() if here(path)},
                "kth_best_model_path": here(state["kth_best_model_path"]),
                "last_model_path": here(state["last_model_path"]),
            }
        earlier = Path(str(state["best_model_path"]))
        name = earlier.name if "{" in str(self.filename) else f"{self.filename}{self.FILE_EXTENSION}"
        path = Path(self.dirpath, name)
        if not _is_checkpoint(path if path.is_file() else earlier):
            log.warning("%s is gone: the best checkpoint is that of the epochs from now on", earlier)
            return {key: getattr(self, key) for key in state if key != "monitor"}
        if not path.is_file():
            with replacing(path) as temporary:
                shutil.copyfile(earlier, temporary)
        return {
            "dirpath": self.dirpath,
            "best_model_path": str(path),
            "best_k_models": {str(path): state["best_model_score"]} if kept else {},
            "kth_best_model_path": str(path) if kept else "",
            "last_model_path": "",
        }


def _is_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint of ours: the path stands in a file that may be a stranger's."""
    try:
        read_checkpoint(path, mmap=True)
    except (OSError, ValueError):
        return False
    return True
