"""The names of torchvision's classification models, without importing it."""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path


@cache
def torchvision_names() -> list[str]:
    """As `torchvision.models.list_models(module=torchvision.models)` gives them, read from its source."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    names: list[str] = []
    for path in Path(folder, "models").glob("*.py"):
        registered = re.findall(
            r"^@register_model\((.*?)\)\n(?:@.*\n|\w.*\n|\s+.*\n|\))*?def (\w+)", path.read_text(), re.M
        )
        names += [given.strip("\"'") or function for given, function in registered]
    return sorted(names)


def check_name(name: str) -> None:
    """Raises ValueError, with the closest names, unless torchvision has the classification model `name`."""
    known = torchvision_names()
    if name not in known:
        close = sorted(difflib.get_close_matches(name, known, n=8, cutoff=0.7))
        offered = f"the closest are {', '.join(close)}" if close else f"there are {', '.join(known)}"
        raise ValueError(f"model.net.name={name} is no classification model of torchvision; {offered}.")
