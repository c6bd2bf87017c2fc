"""`ml-new my_project`: a folder with configs, a network, images, a test and a Makefile, on top of installed Imago.

Each file of project_template/ is one of the project: in its name dots are for the slashes of folders, and `package` is
for the name of the project, as PROJECT is in its text.
"""

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from imago.errors import UserError
from imago.files import atomic_folder
from imago.terminal import closed_pipe_allowed, fail, say

TEMPLATES = Path(__file__).with_name("project_template")
FOLDERS = ("configs.experiment", "configs.data", "configs.model", "package", "tests")
WORD = "PROJECT"
HELP = """Make a project: a folder with configs, a network, images, a test and a Makefile, on top of installed Imago.

Usage: ml-new FOLDER

  ml-new my_project && cd my_project && make train
"""
"""Text of `ml-new --help`."""


def main() -> None:
    """Command line of `ml-new`."""
    words = sys.argv[1:]
    if {"--help", "-h"} & {*words}:
        print(HELP, end="")
        return
    with closed_pipe_allowed():
        try:
            if len(words) != 1 or words[0].startswith("-") or not words[0]:
                raise UserError("Type ml-new FOLDER, for example ml-new my_project.")
            folder = Path(words[0]).expanduser()
            for file in make_project(folder):
                say(f"  {file}")
        except (UserError, OSError) as error:
            fail(str(error))
        say(f"Next: cd {folder} && make train")


def make_project(folder: Path) -> list[Path]:
    """Write a project into the new `folder`, whole or not at all. Returns its files.

    Raises:
        UserError: The folder exists, or its name cannot be that of a Python package.
    """
    name = folder.absolute().name
    if folder.exists():
        raise UserError(f"{folder} already exists, and nothing is overwritten. Type another name.")
    _check_name(name)
    files: list[Path] = []
    with atomic_folder(folder.absolute()) as temporary:
        for template in sorted(TEMPLATES.glob("*.tmpl")):
            file = temporary / _place(template.name.removesuffix(".tmpl"), name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(template.read_text(encoding="utf-8").replace(WORD, name), encoding="utf-8")
            files.append(folder / file.relative_to(temporary))
    return sorted(files)


def _place(template: str, name: str) -> Path:
    """Path in the project of the file that a template is for."""
    if template == "gitignore":
        return Path(".gitignore")
    for folder in FOLDERS:
        if template.startswith(f"{folder}."):
            parts = [name if part == "package" else part for part in folder.split(".")]
            return Path(*parts, template.removeprefix(f"{folder}."))
    return Path(template)


def _check_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        meant = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        meant = meant if meant.isidentifier() and not keyword.iskeyword(meant) else "my_project"
        raise UserError(f"{name} cannot be the name of a Python package. Type ml-new {meant}, for example.")
    if name in ("configs", "tests", "data", "logs"):
        raise UserError(f"{name} is the name of a folder of each project. Type ml-new my_project, for example.")
    if name in sys.builtin_module_names or _is_installed(name):
        raise UserError(
            f"{name} is the name of a Python package that is installed. Type ml-new my_{name}, for example."
        )


def _is_installed(name: str) -> bool:
    """Whether Python finds a package of this name elsewhere than in the current folder."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else [*(spec.submodule_search_locations or [])]
    return not all(Path(place).is_relative_to(Path.cwd()) for place in places)


if __name__ == "__main__":
    main()
