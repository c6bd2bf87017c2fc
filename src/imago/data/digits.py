"""The handwritten digits that scikit-learn ships, as a tree of image files."""

import logging
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from imago.files import atomic_folder

log = logging.getLogger(__name__)

SHARES = {"val": 0.15, "test": 0.15}


def write_digits(root: str) -> Path:
    """Return the folder `root`/digits with `train/ val/ test/` of 1,797 PNGs of 8x8 pixels, written at the first call.

    The split is stratified and always the same. Source: UCI ML hand-written digits, by `sklearn.datasets.load_digits`.
    """
    folder = Path(root) / "digits"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".digits.lock")):
        if not folder.is_dir():
            log.info("Writing the embedded digits to %s", folder)
            with atomic_folder(folder) as temporary:
                _write(temporary)
    return folder


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rest, splits = np.arange(len(labels)), {}
    for split, share in SHARES.items():
        count = round(share * len(labels))
        rest, splits[split] = train_test_split(rest, test_size=count, stratify=labels[rest], random_state=0)
    for split, indices in {"train": rest, **splits}.items():
        for index in indices:
            path = folder / split / str(labels[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey[index]).save(path)
