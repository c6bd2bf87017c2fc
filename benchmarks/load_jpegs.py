"""JPEGs to batches, one thread: ours against torchvision's ImageFolder with Pillow and transforms of version 1.

The peer is what tutorials show: RandomResizedCrop, flip, ToTensor, Normalize; Resize, CenterCrop, ToTensor, Normalize.
Ours does the same through the data module's own loader: decode, box, resize in uint8, one normalisation per batch. What
Pillow makes of the same boxes is compared first: the mean and the greatest difference in grey levels. Then the two take
turns (A B A B …), in CPU time; the ratio of each turn is printed, their median and best.

    python benchmarks/load_jpegs.py --data_dir PATH/hymenoptera_data --turns 7
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.folders import read_tree
from imago.data.loading import EvalBatchSampler, ImageDataset, Loader
from imago.data.stages import CenterBox, ImageTransform, Normalize, RandomHorizontalFlip, RandomResizedBox

SCALE, MEAN, STD = (0.2, 1.0), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def peer(folder: Path, size: int, batch: int, training: bool) -> Callable[[], list[Tensor]]:
    whole = round(size / 0.875)
    box = [transforms.Resize(whole), transforms.CenterCrop(size)]
    if training:
        box = [transforms.RandomResizedCrop(size, SCALE), transforms.RandomHorizontalFlip()]
    steps = transforms.Compose([*box, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    loader = DataLoader(ImageFolder(str(folder / "train"), steps), batch)
    return lambda: [images for images, _ in loader]


def ours(folder: Path, size: int, batch: int, training: bool) -> Callable[[], list[Tensor]]:
    images = read_tree(folder, 0.1, 0).splits["train"]
    steps: dict[str, Any] = {"flip": RandomHorizontalFlip()} if training else {}
    box = RandomResizedBox(SCALE) if training else CenterBox(0.875)
    transform = ImageTransform(box, batch=steps | {"normalize": Normalize(MEAN, STD)})
    loader = Loader(ImageDataset(images, transform, size, seed=0), EvalBatchSampler(len(images), batch), num_workers=0)
    return lambda: [transform.batch(each)["image"] for each in loader]


def differences(folder: Path, size: int) -> tuple[float, float]:
    """Between ours and Pillow, which decodes, cuts out the same box and resizes it."""
    images, box = read_tree(folder, 0.1, 0).splits["train"], CenterBox(0.875)
    found = []
    for index, path in enumerate(images.paths):
        picture = Image.open(folder / path).convert("RGB")
        top, left, height, width = box(picture.height, picture.width)
        picture = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        own = ImageTransform(box).image(images.read(index), size).permute(1, 2, 0).numpy()
        found.append(np.abs(np.asarray(picture).astype(int) - own))
    return float(np.mean(found)), float(np.max(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="a folder with train/ and val/, of JPEGs")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(
        "differences in grey levels: mean {:.3f}, greatest {:.0f}".format(
            *differences(given.data_dir, given.image_size)
        )
    )
    for training in (False, True):
        options = (given.data_dir, given.image_size, given.batch_size, training)
        theirs, own = peer(*options), ours(*options)
        count = sum(len(images) for images in own())
        ratios = []
        for _ in range(given.turns):
            seconds = []
            for load in (theirs, own):
                start = time.process_time()
                load()
                seconds.append(time.process_time() - start)
            ratios.append(seconds[0] / seconds[1])
            name = "train" if training else "eval"
            speeds = [count / each for each in seconds]
            print(
                f"{name}: ImageFolder {speeds[0]:.0f}, ours {speeds[1]:.0f} images/s, {ratios[-1]:.2f} times",
                flush=True,
            )
        print(f"{name}: median {statistics.median(ratios):.2f}, best {max(ratios):.2f} times, n={len(ratios)}")


if __name__ == "__main__":
    main()
