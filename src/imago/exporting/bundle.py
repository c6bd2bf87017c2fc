"""One zip with all that a person without Imago needs: `format=bundle`."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from imago.files import atomic_write, strict
from imago.report.model_card import CARD_FILE
from imago.report.page import markdown_text

PREDICT = "predict.py"
README = """# {names}

An image classifier of {classes} classes, exported by Imago {imago}.

    pip install -r requirements.txt
    python predict.py PHOTO.jpg

| file | content |
| --- | --- |
| `model.onnx` | image of any size, uint8 (height, width, {channels}), to {calibrated} probabilities (1, classes) |
| `predict.py` | decodes image files, and prints the most likely class |
| `model.safetensors` | the weights, which `imago.load_classifier` reads, too |
| `class_names.json` | the classes, in the order of the probabilities |
| `model_card.md` | data, scores and limits, as far as the run is known |
| `export.json` | on which images `model.onnx` was compared with the checkpoint, and what differed |
"""


def predict_script() -> str:
    """Text of `predict.py`."""
    return Path(__file__).with_name("predict.py.txt").read_text(encoding="utf-8")


def write_bundle(
    onnx: Path, weights: Path, card: str, metadata: Mapping[str, Any], record: Mapping[str, Any], path: Path
) -> None:
    """Write the zip: the ONNX file and the weights, which were made before, and what explains them. `card` is the text
    of the model card, empty without one."""
    import onnxruntime  # by its module: the package may be onnxruntime-gpu

    needed = {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__, "pillow": PIL.__version__}
    names = metadata["class_names"]
    title = ", ".join(markdown_text(name).replace("<", "&lt;") for name in names[:3]) + ", …" * (len(names) > 3)
    readme = README.format(
        names=title,
        classes=len(names),
        imago=metadata["imago_version"],
        channels=metadata["channels"],
        calibrated="calibrated" if metadata["calibrated"] else "uncalibrated",
    )
    texts = {
        PREDICT: predict_script(),
        "README.md": readme,
        "class_names.json": _json(names),
        "export.json": _json(record),
        **({CARD_FILE: card} if card else {}),
        "requirements.txt": "".join(f"{name}>={number.partition('+')[0]}\n" for name, number in needed.items()),
    }
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
        archive.write(onnx, "model.onnx", zipfile.ZIP_STORED)  # weights do not compress
        archive.write(weights, "model.safetensors", zipfile.ZIP_STORED)


def _json(content: Any) -> str:
    return json.dumps(strict(content), indent=2, ensure_ascii=False) + "\n"
