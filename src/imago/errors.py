"""Exceptions, and the messages that users read."""

import re
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """A mistake that the user can fix. The message is whole sentences: what was given, what is valid, what to type."""


class MissingFileError(UserError, FileNotFoundError):
    """A named file or folder does not exist."""


class MissingModuleError(UserError, ModuleNotFoundError):
    """The module of a class or function of one's own cannot be found."""


class MissingKeyError(UserError, KeyError):
    """A batch has no entry of that name."""

    __str__ = Exception.__str__  # a KeyError shows quotation marks


class DiskError(UserError, OSError):
    """A file cannot be written to, or read from, the disk."""


class OutOfMemoryError(UserError, MemoryError):
    """A batch does not fit into the memory of the device."""


class DownloadError(UserError, ConnectionError):
    """A download failed."""


class DivergenceError(UserError, FloatingPointError):
    """The loss is no longer finite."""


class IncompleteError(UserError):
    """A command has done its work, but not for everything: its run is `completed`, and its exit status is 1."""


CREATING_DATA = "while creating data"
"""Note on an error that was raised while the images of a run were looked up."""
BUILDING = "building the run"
"""Note on an error that was raised before a run had begun to train or to score."""


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Add a note, such as CREATING_DATA, to what is raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


TOO_SMALL = "The images are too small for this network. Type a larger data.image_size="
KILLED = "{} where memory is used up. Type data.num_workers=0, or a smaller data.batch_size="
REMEDIES = {  # part of a library's message -> what to type
    "OutOfMemoryError": "The device is out of memory. Type a smaller data.batch_size=, or trainer=amp",
    "Output size is too small": TOO_SMALL,
    "Kernel size can't be greater than actual input size": TOO_SMALL,
    "to have 3 channels, but got 1": "This network needs colour images, but the data are grey. Type model=mnist",
    "divisible by partition size": "This network needs image sizes that are multiples of 224. Type data.image_size=224",
    "Expected more than 1 value per channel when training": TOO_SMALL,
    "view size is not compatible": "This network uses .view. Type model.channels_last=false, or use .flatten in it",
    "'train_transform' and 'eval_transform'": "Write defaults: [default] at the top of its file, which has both",
    "killed by signal: Bus error": "The shared memory is full. Type data.num_workers=0, or docker run --shm-size=8g",
    "DataLoader worker": KILLED.format("The system kills loader workers"),
    "The closure hasn't been executed": "step(self, closure) of an optimizer begins with loss = closure()",
    "No space left on device": "The disk is full. Free some space, or type another paths.log_dir=",
}
INTERNAL = r"^\s*(full_key|object_type|reference_type)\b"  # lines of OmegaConf's messages that do not help


def interpolation_message(text: str) -> str | None:
    """Message for a `${…}` that OmegaConf cannot resolve; None for its other errors."""
    if missing := re.search(r"Interpolation key '([^']*)' not found", text):
        return f"${{{missing.group(1)}}} refers to an unknown setting: {missing.group(1)}"
    if missing := re.search(r"Environment variable '([^']*)' not found", text):
        return f"The environment variable {missing.group(1)} is not set, but a setting refers to it"
    return None


def kind_of(value: object) -> str:
    """Words for what a function has returned, where something else is needed."""
    return "None (is a return missing?)" if value is None else f"a {type(value).__name__}"


def cause_of(error: BaseException) -> BaseException:
    """The exception that Hydra wrapped when it made an object; `error` itself if it did not."""
    return next((wrapper.__cause__ or wrapper for wrapper in reversed(_wrappers(error))), error)


def _wrappers(error: BaseException) -> list[BaseException]:
    wrappers = []
    while type(error).__name__ == "InstantiationException" and isinstance(error.__cause__, Exception):
        wrappers.append(error)
        error = error.__cause__
    return wrappers


def message_of(error: BaseException) -> str:
    """Message of the error's cause: that of a UserError alone, of other errors with their type."""
    key = None
    for wrapper in _wrappers(error):
        key = next((line.split(":", 1)[1].strip() for line in str(wrapper).splitlines() if "full_key:" in line), key)
    error = cause_of(error)
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    speaks = isinstance(error, UserError) and bool(text)
    kind = "" if speaks else f"{type(error).__name__}: "
    creating = [f"while creating {key}"] if key is not None else []
    places = [] if speaks else [*creating, *_notes(error), *place_in_own_code(error)]
    where = f"\n({'; '.join(places)})" if places else ""
    if isinstance(error, OmegaConfBaseException):
        key = str(error.full_key) if error.full_key else None
        plain = "\n".join(line for line in text.splitlines() if not re.match(INTERNAL, line))
        return f"{f'{key}: ' if key else ''}{interpolation_message(text) or plain}"
    remedy = next((f"\n{words}" for sign, words in REMEDIES.items() if sign in kind + text and words not in text), "")
    return f"{kind}{text}{where}{remedy}"


def _notes(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", []) if note.startswith("while ")]


def place_in_own_code(error: BaseException) -> list[str]:
    """File, line and function of the user's code that raised `error`, or called what raised it; empty for none."""
    paths = sysconfig.get_paths()
    libraries = [Path(__file__).parent, *(Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        is_library = "site-packages" in file.parts or any(file.is_relative_to(folder) for folder in libraries)
        if file.is_file() and not is_library:
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            return [f"{shown}, line {frame.lineno}, in {frame.name}"]
    return []


def user_error_in(error: BaseException | None) -> UserError | None:
    """The UserError from which an exception of Hydra or OmegaConf was raised; None without one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def no_data(program: str = "ml-train") -> str:
    """Message for a command without data; `program` is the command as it was typed."""
    lines = [
        (f"{program} data.data_dir=PATH", "(PATH: class folders, or train/ val/ test/ of class folders)"),
        (f"{program} experiment=digits", "(embedded handwritten digits: nothing to download)"),
    ]
    return "\n".join(["No data was chosen. Type one of", *(f"  {typed:<44} {what}" for typed, what in lines)])


NO_SHARDS = """No shards were chosen. Type
  ml-shard PHOTOS --output DIR                 (writes them once)
  ml-train data=shards data.shards=DIR"""
NO_CSV = """No table of images was chosen. Type
  ml-train data=csv data.split_file=FILE       (a CSV with the columns path and label)"""
NO_DATASET = """No data set was chosen. Type one of
  data.dataset.path=NAME                                             (on the hub)
  data.dataset.path=imagefolder data.dataset.data_dir=FOLDER         (a folder)
  data.dataset.path=parquet data.dataset.data_files=FILE             (a file)"""
