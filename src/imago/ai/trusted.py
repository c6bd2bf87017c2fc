"""Trust in generated code, by its hash: a file of the user's own, outside of any project, lists what may run."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from imago.checkpoint.signing import key_file
from imago.errors import UserError
from imago.files import write_text

FILE = "trusted_code.txt"
IS_TYPED: ContextVar[bool] = ContextVar("trust_generated", default=False)
"""Whether `trust_generated=true` was typed for this run."""


@contextmanager
def trust_typed(is_typed: bool) -> Iterator[None]:
    """Inside, stored code that is made is trusted from then on, if `trust_generated=true` was typed."""
    token = IS_TYPED.set(is_typed)
    try:
        yield
    finally:
        IS_TYPED.reset(token)


def digest_of(code: str) -> str:
    """SHA-256 of code."""
    return hashlib.sha256(code.encode()).hexdigest()


def is_trusted(code: str) -> bool:
    """Whether the user has said that this code may run."""
    file = _file()
    return file.is_file() and digest_of(code) in {line.partition(" ")[0] for line in file.read_text().splitlines()}


def remember(code: str, name: str) -> None:
    """Record that this code may run."""
    file = _file()
    lines = file.read_text() if file.is_file() else ""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, f"{lines}{digest_of(code)} {name}\n")


def trust(file: str | Path) -> None:
    """Say that a file of generated code was read, and may run: the same as `trust_generated=true`, for notebooks.

    Raises:
        UserError: There is no such file.
    """
    if not Path(file).is_file():
        raise UserError(f"{file} does not exist.")
    remember(Path(file).read_text(encoding="utf-8"), Path(file).name)


def _file() -> Path:
    return key_file().with_name(FILE)
