"""What a person reads of an exception."""

import re

from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """A mistake that a person can mend. The message is whole sentences: what was given, what is valid, what to type."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named is not there."""


class DiskError(UserError, OSError):
    """The disk cannot take, or give, a file."""


class DownloadError(UserError, ConnectionError):
    """Something could not be downloaded."""


class DivergenceError(UserError, FloatingPointError):
    """The loss is not finite any more."""


TOO_SMALL = "The images are too small for this network: type a larger data.image_size="
REMEDIES = {  # a part of what a library says -> what to type
    "OutOfMemoryError": "The device is full: type a smaller data.batch_size=, or trainer=amp",
    "Output size is too small": TOO_SMALL,
    "Kernel size can't be greater than actual input size": TOO_SMALL,
    "to have 3 channels, but got 1": "This network takes colour images, the data are grey: type model=mnist",
    "divisible by partition size": "This network takes multiples of 224: type data.image_size=224",
    "Expected more than 1 value per channel when training": TOO_SMALL,
    "view size is not compatible": "This network uses .view: type model.channels_last=false, or use .flatten in it",
    "No space left on device": "The disk is full: remove something, or type another paths.log_dir=",
}
INTERNAL = r"^\s*(full_key|object_type|reference_type)\b"  # lines of OmegaConf that help nobody


def interpolation_message(text: str) -> str | None:
    """What OmegaConf says of a `${…}` that leads nowhere, in words; None where it says something else."""
    if found := re.search(r"Interpolation key '([^']*)' not found", text):
        return f"${{{found.group(1)}}}: there is no setting {found.group(1)} to take a value from"
    if found := re.search(r"Environment variable '([^']*)' not found", text):
        return f"The environment variable {found.group(1)} is not set, and a setting takes its value from it"
    return None


def message_of(error: BaseException) -> str:
    """The cause in words: a UserError speaks for itself, of the rest the kind is named."""
    key = None
    while type(error).__name__ == "InstantiationException" and isinstance(error.__cause__, Exception):  # Hydra's
        key = next((line.split(":", 1)[1].strip() for line in str(error).splitlines() if "full_key:" in line), key)
        error = error.__cause__
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    speaks = isinstance(error, UserError) and bool(text)
    kind = "" if speaks else f"{type(error).__name__}: "
    where = f"\n(while making {key})" if key is not None and not speaks else ""
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key) if error.full_key else None
        plain = "\n".join(line for line in text.splitlines() if not re.match(INTERNAL, line))
        return f"{f'{key}: ' if key else ''}{interpolation_message(text) or plain}"
    remedy = next((f"\n{words}" for sign, words in REMEDIES.items() if sign in kind + text), "")
    return f"{kind}{text}{where}{remedy}"


def user_error_in(error: BaseException | None) -> UserError | None:
    """The UserError that other exceptions, of Hydra or OmegaConf, were raised from; None without one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


NO_DATA = """No data is chosen. Type one of
  python src/train.py data.data_dir=PATH       (PATH: class folders, or train/ val/ test/ of class folders)
  python src/train.py experiment=digits        (handwritten digits, embedded: nothing to download)"""
NO_DATASET = """No data set is chosen. Type one of
  data.dataset.path=NAME                                             (on the hub)
  data.dataset.path=imagefolder data.dataset.data_dir=FOLDER         (a folder)
  data.dataset.path=parquet data.dataset.data_files=FILE             (a file)"""
