"""Signatures of checkpoints: those made with this user's key are the user's own, all others are a stranger's.

HMAC-SHA256 (RFC 2104) over what a checkpoint records of its run, including the config, and over its weights. Whoever
has the key file can sign, so only its owner can read it.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imago.errors import UserError

log = logging.getLogger(__name__)

KEY_BYTES = 32
VARIABLE = "IMAGO_KEY_FILE"


class KeyFileError(UserError):
    """The key cannot be read or created."""


def key_file() -> Path:
    """Path of the key: `$IMAGO_KEY_FILE`, or `imago/key` in the user's configuration folder."""
    if path := os.environ.get(VARIABLE):
        return Path(path).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config and Path(config).is_absolute() else Path.home() / ".config") / "imago" / "key"


def sign(checkpoint: Mapping[str, Any]) -> str:
    """Signature of a checkpoint by this user's key, which is created if there is none.

    Raises:
        KeyFileError: The key cannot be read or created.
    """
    return _signature(_key(make=True), checkpoint)


def is_signed(checkpoint: Mapping[str, Any]) -> bool:
    """Whether this user's key has signed the checkpoint as it is."""
    signature = checkpoint["imago"].get("signature")
    if not isinstance(signature, str):
        return False
    try:
        return hmac.compare_digest(signature, _signature(_key(make=False), checkpoint))
    except (KeyFileError, TypeError, ValueError) as error:  # no key, or content that cannot be signed
        log.debug("The signature of a checkpoint cannot be checked: %s", error)
        return False


def why_unsigned() -> str | None:
    """Reason why checkpoints cannot be signed here; None if they can."""
    try:
        _key(make=True)
    except KeyFileError as error:
        return str(error)
    return None


def _key(make: bool) -> bytes:
    file = key_file()
    try:
        if make and not file.exists():
            _make(file)
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as opened:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise KeyFileError(f"{file} is not a file. Remove it, or set {VARIABLE}= to another file.")
            if os.name == "posix" and (facts.st_mode & 0o077 or facts.st_uid != os.getuid()):
                raise KeyFileError(
                    f"{file}, which signs your checkpoints, is accessible to others. Type chmod 600 {file} (you must "
                    "own it), or remove it to get a new key"
                )
            key = opened.read(4 * KEY_BYTES).strip()
    except OSError as error:
        raise KeyFileError(
            f"The key that signs checkpoints cannot be read or created: {error}. Set {VARIABLE}= to a file in "
            "a folder that you own"
        ) from error
    if len(key) < 2 * KEY_BYTES:
        raise KeyFileError(f"{file} is damaged: it does not contain a key. Remove it to get a new one")
    return key


def _make(file: Path) -> None:
    """Create the key file. Several processes may do so at once: the first one wins, and none reads a partial key."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as opened:
            opened.write(secrets.token_hex(KEY_BYTES).encode())
            opened.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, file)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("Created a new key that signs checkpoints: %s", file)


def _signature(key: bytes, checkpoint: Mapping[str, Any]) -> str:
    entries = {name: value for name, value in checkpoint["imago"].items() if name != "signature"}
    digest = hmac.new(key, digestmod=hashlib.sha256)
    _add(digest, entries)
    _add(digest, dict(checkpoint["state_dict"]))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Add plain types and tensors to the digest. Each begins with its type and length: no two contents look alike."""
    if isinstance(value, Mapping):
        digest.update(f"d{len(value)};".encode())
        for name in sorted(value, key=lambda name: (type(name).__name__, str(name))):
            _add(digest, name)
            _add(digest, value[name])
    elif isinstance(value, list | tuple):
        digest.update(f"l{len(value)};".encode())
        for entry in value:
            _add(digest, entry)
    elif isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError("a tensor claims more memory than it has")
        digest.update(f"t{value.numel()};".encode())
        _add(digest, f"{value.dtype} {list(value.shape)}")
        if not value.numel():
            return  # one from an empty array of NumPy has no step to view it by
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content.tobytes() if content.size < 2**20 else content)
    elif value is None or isinstance(value, bool | int | float | str):
        text = json.dumps(value).encode()
        digest.update(f"{type(value).__name__}{len(text)};".encode())
        digest.update(text)
    else:
        raise TypeError(f"{type(value).__name__} cannot be signed")
