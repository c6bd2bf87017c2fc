"""Files that are written whole or not at all, and files that somebody else may have written."""

import errno
import json
import logging
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imago.errors import DiskError, UserError
from imago.masking import masked

log = logging.getLogger(__name__)

DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there takes its place when the block ends without an error.

    Raises:
        OSError: The disk refuses it; names `path` and the free space.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        raise DiskError(f"{path} could not be written ({free:.0f} MB are free): {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """So that the name survives a power cut, too; not every system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replaces the text of `path` at once, without secrets; what is no Unicode, in the name of a file, is escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(masked(text), encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """The same for a folder that is not there yet; what an earlier, killed attempt left is removed first."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync_folder(temporary)
        os.rename(temporary, path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Replaces `path` with strict JSON."""
    write_text(path, json.dumps(strict(content), indent=2, ensure_ascii=False) + "\n")


def strict(value: Any) -> Any:
    """`value` as strict JSON can hold it: a number that is not finite becomes None, one of NumPy a plain one."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


MEGABYTE = 2**20
NUMBER = (int, float)
TEXT = (str, type(None))


class UnreadableError(UserError):
    """The file is not one of ours."""


def read_text(path: Path, most: int = MEGABYTE) -> str:
    """The text of a regular file of at most `most` bytes; a pipe or a device would never end.

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is another kind of file, larger, or not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableError(f"{path} is not a regular file.")
        content = file.read(most + 1)
    if len(content) > most:
        raise UnreadableError(f"{path} is larger than {most // MEGABYTE} MB, as no file of a run is.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path} is not text in UTF-8.") from error


def read_json(path: Path, shape: Any, most: int = MEGABYTE) -> Any:
    """The content of a JSON file, as far as it fits `shape` (see `fitting`).

    Raises:
        OSError: It cannot be opened.
        UnreadableError: It is not JSON, or does not fit.
    """
    try:
        content = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path} is damaged: it is not JSON.") from error
    fitted = fitting(content, shape)
    if fitted is MISFIT:
        raise UnreadableError(f"{path} is damaged: it holds something else than Imago writes there.")
    return fitted


MISFIT = object()


def fitting(value: Any, shape: Any) -> Any:
    """`value` as far as it fits, or MISFIT.

    A shape is a type or several; `[shape]`, a list of such; `{"*": shape}`, a dictionary of such under any names; or
    `{name: shape}`: other names are left out, and so is what does not fit, unless the name ends in `!`: then the whole
    is a misfit.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return MISFIT
        entries = [fitting(entry, shape[0]) for entry in value]
        return MISFIT if any(entry is MISFIT for entry in entries) else entries
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return MISFIT
        if "*" in shape:
            pairs = {name: fitting(entry, shape["*"]) for name, entry in value.items()}
            return MISFIT if any(entry is MISFIT for entry in pairs.values()) else pairs
        kept: dict[str, Any] = {}
        for key, part in shape.items():
            name = key.removesuffix("!")
            entry = fitting(value[name], part) if name in value else MISFIT
            if entry is not MISFIT:
                kept[name] = entry
            elif key != name:
                return MISFIT
        return kept
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds or object in kinds)
    return value if fits else MISFIT


@contextmanager
def log_write_errors(what: str) -> Iterator[None]:
    """Inside, what the disk refuses is said, once for each `what`, and the run goes on."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):  # Lightning wraps them
            raise
        if what not in _reported:
            _reported.add(what)
            log.error("%s cannot be written, the run goes on without: %s", what, error.__cause__ or error)


_reported: set[str] = set()
