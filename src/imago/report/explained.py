"""Pictures of where a network looked, in a report."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imago.files import NUMBER
from imago.report.content import SAMPLE, is_of_best, read_pictures, read_report

EXPLAINED = {"method!": str, "pictures!": [{**SAMPLE, "prediction!": str, "probability!": NUMBER}]}
METHODS = {
    "grad_cam": "Grad-CAM: the last map of features, weighed by the gradients of the answer",
    "occlusion": "Occlusion: by how much the answer's logit falls where a part is covered",
}
STRONGEST = 0.65  # share of the colour where the map is 1


def explained_file(folder: Path, split: str) -> Path:
    """Path of the explained answers of a split."""
    return folder / "reports" / f"explained_{split}.json"


def read_explained(folder: Path, split: str) -> dict[str, Any] | None:
    """Method and pictures of a split; None without any, or if `best.ckpt` was written since."""
    file = explained_file(folder, split)
    if not is_of_best(folder, file):
        return None
    content = read_report(folder, f"reports/{file.name}", EXPLAINED)
    if content is None or content["method"] not in METHODS:
        return None
    return {"method": METHODS[content["method"]], "pictures": read_pictures(content["pictures"])}


def heat(picture: Image.Image, values: NDArray[np.float64]) -> Image.Image:
    """The picture with a map (height, width) from 0 to 1 over it: the higher, the more it is coloured, up to red."""
    from matplotlib import colormaps

    resized = Image.fromarray(values.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    share = np.asarray(resized, dtype=np.float64)[..., None].clip(0, 1)
    colour = colormaps["jet"](share[..., 0])[..., :3] * 255
    mixed = np.asarray(picture, dtype=np.float64) * (1 - STRONGEST * share) + colour * STRONGEST * share
    return Image.fromarray(mixed.round().astype(np.uint8))
