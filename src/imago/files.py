"""Atomic writing of files and folders, and reading of files that may be untrusted."""

import difflib
import errno
import json
import logging
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any

from imago.errors import DiskError, UserError
from imago.masking import masked

log = logging.getLogger(__name__)

BLOCK = 512
"""Unit of `st_blocks`, whatever the file system."""
DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; its file replaces `path` if the block ends without an error.

    Raises:
        DiskError: The disk refuses the file; the message names `path` and the free space.
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


def did_you_mean(path: str | Path, *words: str) -> str:
    """Sentence that names the file or folder, or the one of `words`, that resembles a `path` which does not exist;
    empty without any."""
    close: Sequence[str | Path] = difflib.get_close_matches(str(path), words, n=1)
    with suppress(OSError):
        asked = Path(path).expanduser()
        missing = next((part for part in [*reversed(asked.parents), asked] if not part.exists()), None)
        if not close and missing is not None:
            names = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=1)
            there = [missing.with_name(name) for name in names]
            whole = [folder / asked.relative_to(missing) for folder in there]
            close = [path for path in whole if path.exists()] or there
    return f" Did you mean {close[0]}?" if close else ""


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that they survive a power cut; not every system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the text of `path` atomically, without secrets; invalid Unicode, as in file names, is escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(masked(text), encoding="utf-8", errors="backslashreplace")


def quoted_path(path: str) -> str:
    """Line of a list of paths (`data.exclude`): as it is, or as a JSON string if it would be misread."""
    return path if path.isprintable() and path == path.strip() and path[:1] not in '#"' else json.dumps(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to the new `path` if the block ends without an error.

    Leftovers of an earlier, killed attempt are removed first.
    """
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
    """Write `content` to `path` as strict JSON."""
    write_text(path, _json(content))


def overwrite_json(path: Path, content: Any) -> None:
    """Write `content` over the JSON in `path`, into the space that the file has already.

    Raises:
        OSError: It does not fit there, and the file is unchanged.
    """
    encoded = masked(_json(content)).encode("utf-8", errors="backslashreplace")
    with path.open("r+b") as file:
        room = getattr(os.fstat(file.fileno()), "st_blocks", 0) * BLOCK
        if len(encoded) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        file.write(encoded)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _json(content: Any) -> str:
    return json.dumps(strict(content), indent=2, ensure_ascii=False) + "\n"


def strict(value: Any) -> Any:
    """Convert `value` to strict JSON: numbers that are not finite become None, those of NumPy plain numbers,
    and dates, as YAML reads them, text."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, date):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


MEGABYTE = 2**20
NUMBER = (int, float)
TEXT = (str, type(None))


class UnreadableError(UserError):
    """The file is not one that Imago writes."""


def read_text(path: Path, most: int = MEGABYTE) -> str:
    """Read the text of a regular file of at most `most` bytes; a pipe or a device would never end.

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
        raise UnreadableError(f"{path} is larger than {most // MEGABYTE} MB, the limit for files of a run.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path} is not text in UTF-8.") from error


def read_json(path: Path, shape: Any, most: int = MEGABYTE) -> Any:
    """Read the part of a JSON file that fits `shape` (see `fitting`).

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
        raise UnreadableError(f"{path} is damaged: its content is not what Imago writes there.")
    return fitted


MISFIT = object()


def fitting(value: Any, shape: Any) -> Any:
    """Return the part of `value` that fits `shape`, or MISFIT.

    A shape is a type or a tuple of types; `[shape]`, a list; `{"*": shape}`, a dictionary with any keys; or
    `{name: shape}`, a dictionary whose other keys (without a `*`), and entries that do not fit, are dropped. If a name
    ends in `!`, the whole is a misfit unless that entry fits.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return MISFIT
        entries = [fitting(entry, shape[0]) for entry in value]
        return MISFIT if any(entry is MISFIT for entry in entries) else entries
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return MISFIT
        named = {key.removesuffix("!") for key in shape}
        others = [name for name in value if name not in named] if "*" in shape else []
        kept = {name: fitting(value[name], shape["*"]) for name in others}
        if any(entry is MISFIT for entry in kept.values()):
            return MISFIT
        for key, part in shape.items():
            if key == "*":
                continue
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
    """Log write errors of the disk inside the block, once per `what`, instead of raising them."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):  # Lightning wraps them
            raise
        if what not in _reported:
            _reported.add(what)
            log.error("%s cannot be written, and the run continues without it: %s", what, error.__cause__ or error)


def forget_write_errors() -> None:
    """Let each write error be logged again, in the next run of the process."""
    _reported.clear()


_reported: set[str] = set()
