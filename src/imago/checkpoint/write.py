"""Checkpoints that are written whole, or not at all."""

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
            with atomic_write(path) as temporary:
                # a file of our own: torch's would stay open, and keep its space, as long as the error is looked at
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                check_whole(temporary)
                if keep is not None and path.is_file():
                    _link(path, path.with_name(keep))
        except RuntimeError as error:  # all that torch's writer knows
            free = shutil.disk_usage(path.parent).free / 1e6
            raise DiskError(f"The checkpoint {path} could not be written ({free:.0f} MB are free): {error}") from error

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
    with atomic_write(other) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _link(path: Path, other: Path) -> None:
    """Gives `path` the second name `other`; where the disk knows no links, the only one."""
    try:
        with atomic_write(other) as temporary:
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
    except OSError:
        os.replace(path, other)


def check_whole(path: Path) -> None:
    """Raises OSError unless every part of a checkpoint has the checksum that was written with it."""
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise OSError(errno.EIO, f"{path} reads back differently than it was written ({damaged})")
