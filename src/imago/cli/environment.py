"""The shell that a command is typed in: the file `.env` of the current folder."""

import importlib.util
import os
import re
import sys
from pathlib import Path

from imago.errors import UserError
from imago.masking import masked
from imago.terminal import plain

ENV_FILE = ".env"
REFUSED = re.compile(r"(LD_|DYLD_|PYTHON|GIT_|IMAGO_|HYDRA_|TORCH_FORCE_)|(PATH|SHELL|IFS|BASH_ENV)$")
"""Variables that decide which code runs, or which checkpoints are trusted: a file beside the data may not set them."""


def prepare_shell() -> None:
    """Read `.env`.

    Raises:
        UserError: It cannot be read.
    """
    if (note := read_env_file()) is not None:
        print(masked(plain(note)), file=sys.stderr)  # stdout may be read by a program, as that of --cfg is


def read_env_file() -> str | None:
    """Set the variables of `.env` that are not set yet; returns what the user should know about them, if anything.

    The package python-dotenv reads the file; without it, the note says what to install.
    """
    if not Path(ENV_FILE).is_file():
        return None
    if importlib.util.find_spec("dotenv") is None:
        return "Note: .env was not read. To read it: pip install 'imago[dotenv]'"
    from dotenv import dotenv_values

    try:
        values = {name: value for name, value in dotenv_values(ENV_FILE).items() if value is not None}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f".env cannot be read: {error}") from error
    refused = sorted(name for name in values if REFUSED.match(name))
    os.environ.update({name: value for name, value in values.items() if name not in {*os.environ, *refused}})
    return f"Note: .env may not set {', '.join(refused)}. Set it in the shell." if refused else None
