"""Files at a URL of fsspec: tries with a limit, limits of time, and a sentence for each way to fail."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from imago.data.shard_files import ShardError
from imago.errors import UserError
from imago.files import DISK_ERRORS

log = logging.getLogger(__name__)

REPAIR = "Copy it there again, or write the shards again with ml-shard"
TRIES = 5
DELAY = 1.0  # seconds before the second try; then twice as many each time
LONGEST_DELAY = 60.0  # seconds, if a server asks for more (Retry-After)
TIMEOUT = 60.0  # seconds without an answer, or in which less than a PART came
PART = 2**20
PASSING = (400, 408, 425, 429)  # of HTTP's 4xx: an answer that is none, too late, too early, too many
SMALL = 2**16  # bytes of a file that is read into memory


class Remote:
    """Files in the folder `url`, over a connection of each process."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition(":")
        self.root = f"{scheme.lower()}:{rest}".rstrip("/")
        self._connection: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_connection": None}

    def small(self, name: str) -> bytes:
        """Return a file of at most `SMALL` bytes."""
        content = bytearray()

        def attempt() -> None:
            content.clear()
            self._read(name, SMALL, content.extend)

        self._retried(name, attempt)
        return bytes(content)

    def copy(self, name: str, file: BinaryIO, size: int, is_whole: Callable[[], bool]) -> None:
        """Write a file of `size` bytes over the beginning of `file`.

        Raises:
            ShardError: It is not there, or arrives whole in no try.
            OSError: The disk refuses it.
        """

        def attempt() -> None:
            file.seek(0)
            came = self._read(name, size, file.write)
            if came != size:
                raise UserError(f"{came} of {size} bytes came")
            file.flush()
            if not is_whole():
                raise UserError("its bytes are not those that were written")

        self._retried(name, attempt)

    def _read(self, name: str, most: int, write: Callable[[bytes], object]) -> int:
        """Read a file in blocks; returns their number of bytes. One with more than `most` is not read to its end."""
        came, part, since = 0, 0, time.monotonic()
        with closing(self._opened(name)) as stream:
            while block := stream.read(PART):
                came += len(block)
                if came > most:
                    raise UserError(f"more than {most} bytes came")
                write(block)
                if came - part >= PART:
                    part, since = came, time.monotonic()
                elif time.monotonic() - since > TIMEOUT:
                    raise UserError(f"less than {PART // 10**6} MB came in {TIMEOUT:.0f} seconds")
        return came

    def _retried(self, name: str, attempt: Callable[[], None]) -> None:
        """Call `attempt` until it succeeds, at most `TRIES` times with growing delays."""
        for number in range(TRIES):
            try:
                return attempt()
            except FileNotFoundError as error:
                raise ShardError(f"{name} is not at {self.root}. {REPAIR}") from error
            except ImportError as error:
                raise ShardError(f"{self.root} cannot be read: {error}") from error
            except Exception as error:  # each protocol has exceptions of its own
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                why, delay = _reason(error), max(DELAY * 2**number, _asked_delay(error))
                log.info("Try %d of %d to download %s from %s: %s", number + 1, TRIES, name, self.root, why)
                if _is_refusal(error):
                    raise ShardError(
                        f"{self.root} refuses {name} ({why}). If it needs a password, put it into ~/.netrc, or where "
                        "the client of the store looks for it"
                    ) from error
            if number + 1 < TRIES:
                time.sleep(delay)
        raise ShardError(
            f"{name} could not be downloaded from {self.root} in {TRIES} tries; the last one: {why}. Make sure "
            "that the server can be reached, and start again"
        )

    def _opened(self, name: str) -> Any:
        if self._connection is None or self._connection[0] != os.getpid():
            from fsspec.core import url_to_fs

            files, folder = url_to_fs(self.root, **_options(self.root), skip_instance_cache=True)
            self._connection = os.getpid(), files, folder
        _, files, folder = self._connection
        # as a stream, because not every server sends parts; and without asking for the size first, because fsspec
        # takes every failure of that for a missing file
        stream = {"block_size": 0, "size": 1} if self.root.startswith("http") else {}
        return files.open(f"{folder}/{name}", "rb", **stream)


def check_url(url: str) -> None:
    """Raise UserError unless a URL is that of a folder, of a known protocol, and without a password."""
    if "::" in url:
        raise UserError(f"data.shards={url}: chains of protocols (A::B) are not read. Type the URL of a folder.")
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise UserError(
            "data.shards= must be the URL of a folder, without a query and without a password, which the report would "
            "show. Put a password into ~/.netrc, or where the client of the store looks for it."
        )
    from fsspec import available_protocols

    if parts.scheme not in available_protocols():
        raise UserError(
            f"data.shards={url}: {parts.scheme}:// is no protocol that fsspec knows, such as https:// or s3://."
        )
    if parts.scheme in ("http", "https") and not parts.netloc:
        raise UserError(f"data.shards={url} names no server. Type https://HOST/DIR.")


def _options(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    text = str(error) if status is None else f"HTTP {status} {getattr(error, 'message', '')}" if status else ""
    return text.partition("\n")[0].strip() or type(error).__name__


def _is_refusal(error: Exception) -> bool:
    """Whether another try would be refused, too."""
    status = getattr(error, "status", None)
    is_final = isinstance(status, int) and 400 <= status < 500 and status not in PASSING
    return is_final or isinstance(error, PermissionError)


def _asked_delay(error: Exception) -> float:
    """Seconds that a server asks to wait (Retry-After)."""
    headers = getattr(error, "headers", None) or {}
    asked = str(headers.get("Retry-After", ""))
    return min(float(asked), LONGEST_DELAY) if asked.isdecimal() else 0.0
