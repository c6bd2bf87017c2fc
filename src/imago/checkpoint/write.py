"""Atomic writing of checkpoints: whole, or not at all."""

import errno
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from imago.checkpoint.read import read_checkpoint
from imago.checkpoint.signing import KeyFileError, sign
from imago.errors import DiskError
from imago.files import atomic_write

log = logging.getLogger(__name__)


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Checkpoint writer: reads a temporary file back and renames it, so that it is whole, or the old one remains.

    `on_full_disk`: `stop` raises if a file cannot be written, `continue` logs the error and continues without the file.
    """

    on_full_disk = "stop"
    has_said_why_unsigned = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint. With `storage_options={"keep": NAME}`, the previous file is kept under that name.

        Raises:
            OSError: The file cannot be written; names the free space. The target is unchanged.
        """
        try:
            self._save(checkpoint, Path(path), (storage_options or {}).get("keep"))
        except OSError as error:
            if self.on_full_disk == "stop":
                raise
            log.error("%s. The run continues without it (callbacks.resume.on_full_disk=continue)", error)

    def _save(self, checkpoint: dict[str, Any], path: Path, keep: str | None) -> None:
        if "imago" in checkpoint:
            self._sign(checkpoint)
        try:
            with atomic_write(path) as temporary:
                # a file object of our own: torch's would stay open, and keep its space, while the error is handled
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                check_whole(temporary)
                if keep is not None and path.is_file():
                    _link(path, path.with_name(keep))
        except RuntimeError as error:  # the only type that torch's writer raises
            free = shutil.disk_usage(path.parent).free / 1e6
            is_short = "unexpected pos" in str(error)  # fewer bytes were written than given
            why = "the disk, or your share of it, is full. Free some space, or type another paths.log_dir="
            why = why if is_short else str(error)
            raise DiskError(f"The checkpoint {path} could not be written ({free:.0f} MB are free): {why}") from error

    def _sign(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint, so that this user's commands recognise it as their own. Preflight has checked whether
        they can do without, in case it fails."""
        try:
            checkpoint["imago"]["signature"] = sign(checkpoint)
        except (KeyFileError, TypeError, RuntimeError) as error:
            if not self.has_said_why_unsigned:
                log.warning("Checkpoints are not signed, and will be read like those of strangers: %s", error)
            self.has_said_why_unsigned = True

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


def alias(path: Path, other: Path) -> None:
    """Give the content of `path` the second name `other`; a copy, if the file system has no hard links."""
    with atomic_write(other) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _link(path: Path, target: Path) -> None:
    """Link `path` as `target`; rename it, if the file system has no hard links."""
    try:
        with atomic_write(target) as temporary:
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
    except OSError:
        os.replace(path, target)


def check_whole(path: Path) -> None:
    """Raise OSError unless every part of a checkpoint has the checksum that was written with it."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise OSError(errno.EIO, f"{path} reads back differently than it was written ({damaged})")
