"""Imports the class or function that a `_target_` names, with a message for each way to miss it."""

import difflib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

from imago.errors import MissingModuleError, UserError, message_of

LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "datasets")
MOST_NAMES = 8
HOW_TO_IMPORT = (
    "Type the command in the folder of your module, or after PYTHONPATH=FOLDER. In Python, add the folder to sys.path."
)


def load_target(target: str) -> Any:
    """Return the class or function that a `_target_` names.

    Raises:
        UserError: There is no such module, or no such name in it, or the module cannot be imported.
    """
    names = target.split(".")
    if not all(names) or (len(names) == 1 and importlib.util.find_spec(target) is None):
        raise UserError(f"a _target_ names its module too, for example my_module.{names[-1] or 'MyClass'}.")
    part: Any = _imported(names[:-1] or names)
    for name in filter(None, target.removeprefix(part.__name__).split(".")):
        if not hasattr(part, name):
            raise UserError(f"{_name_of(part)} has no {name}.{_instead(name, part)}")
        part = getattr(part, name)
    if isinstance(part, ModuleType):
        raise UserError(f"{target} is a module, and a _target_ is a class or a function in it.{_content(part)}")
    return part


def _imported(parts: list[str]) -> ModuleType:
    """Import the innermost module of `a.b.C`: the rest are classes."""
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"{name} cannot be imported. {message_of(error)}") from error
        except Exception as error:  # whatever the module does
            raise UserError(f"{name} cannot be imported. {message_of(error)}") from error
    known = [module.name for module in pkgutil.iter_modules([str(Path.cwd())])] + [*LIBRARIES, "imago"]
    close = difflib.get_close_matches(parts[0], known, n=1)
    meant = f"Did you mean {close[0]}?" if close else HOW_TO_IMPORT
    raise MissingModuleError(f"there is no module {parts[0]} in {Path.cwd()}, and none is installed. {meant}")


def _instead(name: str, part: Any) -> str:
    modules = [module.name for module in pkgutil.iter_modules(getattr(part, "__path__", []))]
    known = [entry for entry in dir(part) if not entry.startswith("_")] + modules
    if close := difflib.get_close_matches(name, known, n=3):
        return f" Did you mean {' or '.join(f'{_name_of(part)}.{entry}' for entry in close)}?"
    places = list(getattr(part, "__path__", []))
    return _content(part) or (f" It is {places[0]}. {HOW_TO_IMPORT}" if places else "")


def _content(part: Any) -> str:
    """The names of what a module or a class defines itself."""
    own = [name for name in dir(part) if getattr(getattr(part, name, None), "__module__", None) == part.__name__]
    public = [name for name in own if not name.startswith("_")]
    return f" It has {', '.join(public[:MOST_NAMES])}." if public else ""


def _name_of(part: Any) -> str:
    return part.__name__ if isinstance(part, ModuleType) else f"{part.__module__}.{part.__qualname__}"
