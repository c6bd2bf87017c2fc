"""JPEGs to batches: ours against torchvision's ImageFolder with Pillow, timm's loader and DALI's CPU pipeline.

The peer of the ratios is what tutorials show: ImageFolder, RandomResizedCrop, flip, ToTensor, Normalize; Resize,
CenterCrop, ToTensor, Normalize. timm and DALI do it with their own loaders, where they are installed. Ours does it
through its own: decode, box, resize in uint8, one normalisation per batch; `fast` is data.decode=fast, `cached` is
data.cache=ram, filled before. What Pillow makes of the same boxes is compared first: mean and greatest difference in
grey levels, exact and fast. All take turns (A B C A B C …); the median and the best ratio of the images per second are
printed. Without workers CPU time is counted, of one thread; with workers the time on the wall.

    python benchmarks/load_jpegs.py --data_dir PATH/hymenoptera_data --turns 7
    python benchmarks/load_jpegs.py --data_dir PATH/hymenoptera_data --megapixels 3 --turns 3
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.cache import Cache
from imago.data.crops import CenterBox, RandomResizedBox
from imago.data.dataset import ImageDataset
from imago.data.folders import read_tree
from imago.data.loader import Loader
from imago.data.samplers import EvalBatchSampler
from imago.data.transforms import ImageTransform, Normalize, RandomHorizontalFlip

SCALE, MEAN, STD = (0.2, 1.0), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PEER = "ImageFolder"
Load = Callable[[], int]
"""Loads all images once; returns how many."""


def image_folder(folder: Path, size: int, batch: int, training: bool, workers: int) -> Load:
    whole = round(size / 0.875)
    box = [transforms.Resize(whole), transforms.CenterCrop(size)]
    if training:
        box = [transforms.RandomResizedCrop(size, SCALE), transforms.RandomHorizontalFlip()]
    steps = transforms.Compose([*box, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    loader = DataLoader(
        ImageFolder(str(folder / "train"), steps), batch, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(images) for images, _ in loader)


def timm_loader(folder: Path, size: int, batch: int, training: bool, workers: int) -> Load:
    from timm.data import create_dataset, create_loader

    loader: Iterable[Any] = create_loader(
        create_dataset("", str(folder / "train")),
        input_size=(3, size, size),
        batch_size=batch,
        is_training=training,
        use_prefetcher=False,
        scale=SCALE,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )
    return lambda: sum(len(images) for images, _ in loader)


def dali(folder: Path, size: int, batch: int, training: bool, workers: int) -> Load:
    from nvidia.dali import fn, pipeline_def, types

    count = len(read_tree(folder, 0.1, 0).splits["train"])

    @pipeline_def
    def steps() -> Any:
        files, _ = fn.readers.file(file_root=str(folder / "train"), name="files")
        if training:
            images = fn.decoders.image_random_crop(files, device="cpu", random_area=list(SCALE))
            images = fn.resize(images, size=size, antialias=True)
            mirror: Any = fn.random.coin_flip()
        else:
            images = fn.resize(fn.decoders.image(files, device="cpu"), resize_shorter=round(size / 0.875))
            mirror = 0
        return fn.crop_mirror_normalize(
            images,
            crop=(size, size),
            mirror=mirror,
            dtype=types.FLOAT,
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
        )

    # without working ahead: its threads would compute while the next contender is measured
    ahead = {"exec_async": False, "exec_pipelined": False}
    pipeline = steps(batch_size=batch, num_threads=max(1, workers), device_id=None, **ahead)
    pipeline.build()

    def load() -> int:
        for _ in range(-(-count // batch)):
            pipeline.run()
        return count

    return load


def ours(
    folder: Path, size: int, batch: int, training: bool, workers: int, fast: bool = False, cached: bool = False
) -> Load:
    images = read_tree(folder, 0.1, 0).splits["train"]
    images.decode = "fast" if fast else "exact"
    steps: dict[str, Any] = {"flip": RandomHorizontalFlip()} if training else {}
    box = RandomResizedBox(SCALE) if training else CenterBox(0.875)
    transform = ImageTransform(box, batch=steps | {"normalize": Normalize(MEAN, STD)})
    source = images
    if cached and training:
        source = Cache("ram", Path()).keep(images, "train", "whole", images.read)
    elif cached:
        source = Cache("ram", Path()).keep(
            images, "resized", "", lambda i: transform.resized(images.read_box(i, box, size), size)
        )
        transform = transform.with_box(CenterBox(1.0))
    loader = Loader(ImageDataset(source, transform, size, seed=0), EvalBatchSampler(len(images), batch), workers)
    return lambda: sum(len(transform.batch(each)["image"]) for each in loader)


def differences(folder: Path, size: int, fast: bool) -> tuple[float, float]:
    """Between ours and Pillow, which decodes, cuts out the same box and resizes it."""
    images, box = read_tree(folder, 0.1, 0).splits["train"], CenterBox(0.875)
    images.decode = "fast" if fast else "exact"
    transform, means, greatest = ImageTransform(box), [], 0
    for index, path in enumerate(images.paths):
        picture = Image.open(folder / path).convert("RGB")
        top, left, height, width = box(picture.height, picture.width)
        picture = picture.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        own = transform.resized(images.read_box(index, box, size), size).permute(1, 2, 0).numpy()
        difference = np.abs(np.asarray(picture).astype(int) - own)
        means.append(difference.mean())
        greatest = max(greatest, int(difference.max()))
    return float(np.mean(means)), greatest


def enlarged(folder: Path, to: Path, megapixels: float, most: int = 60) -> Path:
    """Some images of train at about so many pixels, with a little noise, as JPEGs."""
    draw = np.random.default_rng(0)
    for file in sorted((folder / "train").glob("*/*.jpg"))[:: max(1, 244 // most)]:
        picture = Image.open(file).convert("RGB")
        factor = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
        picture = picture.resize(
            (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(picture) + draw.normal(0, 3, (picture.height, picture.width, 1))
        (to / "train" / file.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            to / "train" / file.parent.name / file.name, quality=92
        )
    return to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="a folder with train/ and val/, of JPEGs")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--megapixels", type=float, help="enlarge some of the images first")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.data_dir
        if given.megapixels is not None:
            folder = enlarged(folder, Path(temporary), given.megapixels)
        for fast in (False, True):
            mean, greatest = differences(folder, given.image_size, fast)
            what = "fast" if fast else "exact"
            print(f"{what}: differences in grey levels: mean {mean:.3f}, greatest {greatest}", flush=True)
        for training in (False, True):
            compare(given, (folder, given.image_size, given.batch_size, training, given.workers), training)


def compare(given: argparse.Namespace, options: tuple[Path, int, int, bool, int], training: bool) -> None:
    clock = time.perf_counter if given.workers else time.process_time
    contenders: dict[str, Load] = {PEER: image_folder(*options)}
    for name, make in (("timm", timm_loader), ("DALI (CPU)", dali)):
        with suppress(ImportError):
            contenders[name] = make(*options)
    contenders["ours"] = ours(*options)
    contenders["ours, fast"] = ours(*options, fast=True)
    contenders["ours, cached"] = ours(*options, cached=True)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(given.turns + 1):
        for name, load in contenders.items():
            start = clock()
            count = load()
            if turn:  # the first one warms up
                speeds[name].append(count / (clock() - start))
    for name, found in speeds.items():
        ratios = [own / peer for own, peer in zip(found, speeds[PEER], strict=True)]
        print(
            f"{'train' if training else 'eval'}: {name:<13} {statistics.median(found):7.0f} images/s, {PEER} times "
            f"{statistics.median(ratios):.2f}, best {max(ratios):.2f}, n={len(ratios)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
