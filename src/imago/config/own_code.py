"""Imports of one's own code: only modules that were named, from the folder where they were named.

The current folder is not on `sys.path`. It may hold a stranger's files beside a data set or a checkpoint, and libraries
look for dozens of optional packages by name: whatever is called like one of them would run.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class OwnCode(MetaPathFinder):
    """Finds the top-level modules in `folders`, and what those import from beside them.

    `folders` maps the name of a module to the folder that it stands in. Installed packages win: this finder is asked
    last.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del target
        if path is not None:  # a module in a package, which knows where it is
            return None
        folder = self.folders.get(fullname) or self._folder_of_importer()
        spec = PathFinder.find_spec(fullname, [str(folder)]) if folder is not None else None
        if spec is not None and folder is not None:
            self.folders[fullname] = folder
        return spec

    def _folder_of_importer(self) -> Path | None:
        """The folder of the module whose import statement is being executed, if it was found here."""
        frame = sys._getframe(2)
        while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("importlib"):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return None
        folder = self.folders.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        is_there = folder is not None and Path(str(frame.f_globals.get("__file__", ""))).is_relative_to(folder)
        return folder if is_there else None

    def loaded(self, targets: Iterable[str]) -> dict[str, str]:
        """Module -> folder, as text, of those that `targets` such as `my_net.Net` name and that were imported here."""
        modules = {target.partition(".")[0] for target in targets}
        return {name: str(self.folders[name]) for name in sorted(modules & self.folders.keys() & sys.modules.keys())}


def allow_imports(targets: Iterable[str], folder: Path) -> None:
    """Let the modules that `targets` such as `my_net.Net` name be imported from `folder`.

    A module that is being imported from another folder stays there.
    """
    for target in targets:
        module = target.partition(".")[0]
        if module.isidentifier() and module not in OWN_CODE.folders:
            OWN_CODE.folders[module] = folder.absolute()
    if OWN_CODE not in sys.meta_path:
        sys.meta_path.append(OWN_CODE)


def is_writable_by_others(folder: Path) -> bool:
    """Whether another user could put a module into `folder`: into shared or temporary folders everybody can."""
    if not hasattr(os, "getuid"):
        return False
    try:
        facts = [os.stat(place) for place in (folder, *folder.glob("*.py"))]
    except OSError:
        return True
    return any(
        each.st_uid not in (0, os.getuid())
        or each.st_mode & 0o002
        or (each.st_mode & 0o020 and each.st_gid != os.getgid())  # a group of one's own is usual
        for each in facts
    )


OWN_CODE = OwnCode()
"""The one finder of the process."""
