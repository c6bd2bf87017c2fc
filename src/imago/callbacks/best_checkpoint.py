"""`best.ckpt`: the checkpoint of the best validation."""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from imago.checkpoint.read import BEST, read_checkpoint
from imago.checkpoint.write import alias
from imago.files import atomic_write

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but it keeps the best score when a run is resumed in another folder.

    Its parent forgets the score there, so that the first epoch would become the best, however bad. With other file
    names (several checkpoints are kept, or `filename` contains the epoch), best.ckpt is a second name of the best one.
    If validation runs within epochs, a checkpoint is saved after each validation.
    """

    @property
    def best_file(self) -> Path | None:
        """Path of best.ckpt; None while there is no best checkpoint."""
        return Path(self.best_model_path).with_name(Path(BEST).name) if self.best_model_path else None

    def save_candidate(self, trainer: Trainer) -> bool:
        """Save the present weights if their value of the monitored metric is known and the best so far. Returns whether
        there is such a value."""
        candidates = self._monitor_candidates(trainer)
        if self.monitor not in candidates:
            return False
        self._save_topk_checkpoint(trainer, candidates)
        return True

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
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # the run is resumed
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | self._paths(state_dict))

    def _paths(self, state: dict[str, Any]) -> dict[str, Any]:
        """Replace the paths in `state`, which may be untrusted, by files of this folder: Lightning removes what it
        takes for an earlier checkpoint, even folders. The best one is copied here from the run's earlier folder."""
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
            log.warning("%s no longer exists: the best checkpoint is chosen from the epochs after this one", earlier)
            return {key: getattr(self, key) for key in state if key != "monitor"}
        if not path.is_file():
            with atomic_write(path) as temporary:
                shutil.copyfile(earlier, temporary)
        return {
            "dirpath": self.dirpath,
            "best_model_path": str(path),
            "best_k_models": {str(path): state["best_model_score"]} if kept else {},
            "kth_best_model_path": str(path) if kept else "",
            "last_model_path": "",
        }


def _is_checkpoint(path: Path) -> bool:
    """Whether `path`, which comes from a file that may be untrusted, is a checkpoint of Imago."""
    try:
        read_checkpoint(path, mmap=True)
    except (OSError, ValueError):
        return False
    return True
