"""Files of models of one's own: what their top lacks."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from imago.config.root import CONFIG_DIR

TOP = "  defaults:\n    - default"


def own_model_file(folders: Iterable[str | Path], option: str) -> Path | None:
    """The file of `model=option` in these folders of configs; None if Imago ships it, or there is none."""
    own = [Path(folder, "model", f"{option}.yaml") for folder in folders if Path(folder) != Path(CONFIG_DIR)]
    return next((file for file in own if file.is_file()), None)


def has_defaults(file: Path) -> bool:
    """Whether a YAML file begins with a list of defaults."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return isinstance(content, dict) and bool(content.get("defaults"))


def lacks_default(file: Path) -> str:
    """What to say of the file of a model that takes over nothing from Imago's."""
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown} lacks the defaults of all models: losses, optimizer and schedule. Put at its top\n{TOP}"
