"""Imports of user code: only modules that were named, from the folder in which they were named.

The current folder is not on `sys.path`. It may hold untrusted files beside a data set or a checkpoint, and libraries
look for dozens of optional packages by name: any file named like one of them would run.
"""

import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from imago.config.load_target import LIBRARIES


class OwnCode(MetaPathFinder):
    """Find the top-level modules in `folders`, and the modules beside them that they import.

    `folders` maps the name of a module to its folder. Installed packages win: this finder is asked last.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self._found: set[str] = set()
        self._kept: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if path is not None:  # a module in a package, which knows its location
            return None
        folder = self.folders.get(fullname) or self._folder_of_importer()
        spec = PathFinder.find_spec(fullname, [str(folder)]) if folder is not None else None
        if spec is not None and folder is not None:
            self.folders[fullname] = folder
            self._found.add(fullname)
        return spec

    def _folder_of_importer(self) -> Path | None:
        """Folder of the module whose import statement is being executed, if this finder found it."""
        frame = sys._getframe(2)
        while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("importlib"):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return None
        folder = self.folders.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        is_there = folder is not None and Path(str(frame.f_globals.get("__file__", ""))).is_relative_to(folder)
        return folder if is_there else None

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Inside, modules may be allowed and imported. Afterwards these are forgotten: another run may mean others by
        their names, or the same ones after they were edited. Those of `keeping` are set aside meanwhile."""
        folders, found = self.folders, self._found
        aside = {name: sys.modules.pop(name) for name in self._kept & sys.modules.keys()}
        tops = {_top(name) for name in aside}
        self.folders, self._found = {name: folders[name] for name in folders.keys() - tops}, found - tops
        names, found_before, imported_before = {*self.folders}, set(self._found), set(sys.modules)
        try:
            yield
        finally:
            ours = (self._found - found_before) | (self.folders.keys() - names)  # Python itself may have found some
            for name in sys.modules.keys() - imported_before:
                if _top(name) in ours:
                    del sys.modules[name]
            sys.modules.update(aside)
            self.folders, self._found = folders, found

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, modules are imported for an object that outlives this block, such as a classifier."""
        imported_before = set(sys.modules)
        try:
            yield
        finally:
            ours = self._found | self.folders.keys()
            self._kept |= {name for name in sys.modules.keys() - imported_before if _top(name) in ours}

    def loaded(self, targets: Iterable[str]) -> dict[str, str]:
        """Module -> folder, as text, of the imported modules that `targets` such as `my_net.Net` name."""
        modules = {target.partition(".")[0] for target in targets}
        return {name: str(self.folders[name]) for name in sorted(modules & self.folders.keys() & sys.modules.keys())}


def _top(module: str) -> str:
    return module.partition(".")[0]


def allow_imports(targets: Iterable[str], folder: Path) -> None:
    """Allow the modules that `targets` such as `my_net.Net` name to be imported from `folder`.

    A module that is already imported from another folder stays there, and one that `folder` lacks may be in another.
    """
    for target in targets:
        module = target.partition(".")[0]
        if module.isidentifier() and module not in OWN_CODE.folders and _holds(folder, module):
            OWN_CODE.folders[module] = folder.absolute()
    if OWN_CODE not in sys.meta_path:
        sys.meta_path.append(OWN_CODE)


def _holds(folder: Path, module: str) -> bool:
    """Whether a folder has a file, or a subfolder, with the code of a module."""
    return (folder / module).is_dir() or any(folder.glob(f"{module}.*"))


def inherits(target: str, base: str) -> bool:
    """Whether the class that `target` names can be imported and inherits from the one that is defined as `base`."""
    parents = getattr(imported(target), "__mro__", ())
    return base in (f"{parent.__module__}.{parent.__qualname__}" for parent in parents)


def imported(target: str) -> Any:
    """The class or function that `target` names; None if it cannot be imported."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:  # whatever the module does
        return None


def own_file(module: str) -> Path | None:
    """The file of an imported module that is neither Imago's nor in an installed package; None for others."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "/")
    places = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    is_installed = {"site-packages", "dist-packages"} & {*file.parts} or any(map(file.is_relative_to, places))
    is_library = module.partition(".")[0] in (*LIBRARIES, "imago", "timm")
    return file if file.suffix == ".py" and not is_installed and not is_library else None


def own_files(modules: Iterable[str]) -> dict[str, Path]:
    """Module -> file of the `modules` that are one's own, and of those that they import at their top."""
    todo, files = list(modules), dict[str, Path]()
    while todo:
        name = todo.pop()
        if name in files or (file := own_file(name)) is None:
            continue
        files[name] = file
        for value in vars(sys.modules[name]).values():
            module = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            todo += [module] if isinstance(module, str) else []
    return dict(sorted(files.items()))


def is_writable_by_others(folder: Path) -> bool:
    """Whether another user could put a module into `folder`, as anyone can in shared or temporary folders."""
    if not hasattr(os, "getuid"):
        return False
    try:
        facts = [os.stat(place) for place in (folder, *folder.glob("*.py"))]
    except OSError:
        return True
    return any(
        entry.st_uid not in (0, os.getuid())
        or entry.st_mode & 0o002
        or (entry.st_mode & 0o020 and entry.st_gid != os.getgid())  # most users have a group of their own
        for entry in facts
    )


OWN_CODE = OwnCode()
"""The only finder of the process."""
MAKERS: "WeakKeyDictionary[Any, Callable[..., Any]]" = WeakKeyDictionary()
"""Network -> the class or function that made it."""
