"""An epoch over 55,000 images of 28x28 pixels in memory, with a small network, against raw PyTorch loops.

`loader` is the loop of most tutorials: a Dataset whose transform scales and normalises each image, and a DataLoader.
`sliced` is what a careful person would write: batches are slices of one uint8 tensor, normalised as a whole, with the
same fused optimizer. Both count loss and accuracy as tensors. Ours has everything on: metrics, progress, CSV log,
checkpoints. They take turns (A B C A B C …); the ratios of each turn are printed, their median and best. With
`--random_boxes` a box is drawn for each image, and resized; `sliced` has no way to do that, and is left out.

    python benchmarks/train_small_images.py --turns 5
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchvision.transforms import v2
from train_epoch import raw_epoch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.backbones import SimpleDenseNet
from imago.building import NoProfiler
from imago.callbacks.checkpoint import RunCheckpoint, WholeFileCheckpointIO
from imago.callbacks.metrics import MetricsCallback
from imago.callbacks.progress import PlainProgress
from imago.callbacks.resume import ResumeCheckpoint
from imago.criterions import CriterionsComposition
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.stages import CenterBox, ImageTransform, Normalize, RandomResizedBox
from imago.data.torchvision_set import MemoryImages
from imago.loggers import CSVLogger
from imago.metrics import MetricsComposition
from imago.module import DictModule

COUNT, VAL, CLASSES, BATCH = 55_000, 500, 10, 128
MEAN, STD = [0.1307], [0.3081]
SCALE, RATIO = (0.7, 1.0), (0.9, 1.1)
NETWORK = partial(SimpleDenseNet, in_features=784, hidden=[64, 128, 64])


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """Images whose brightest row tells their class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randint(120, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), 0, 2 * labels] = 230
    return images, labels


class OneByOne(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: Tensor, random_boxes: bool) -> None:
        self.images, self.labels = images, labels.tolist()
        box = [v2.RandomResizedCrop(28, SCALE, RATIO)] if random_boxes else []
        self.transform = v2.Compose([*box, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def sliced(images: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    for indices in torch.randperm(len(images)).split(BATCH):
        yield (images[indices].float() / 255 - MEAN[0]) / STD[0], labels[indices]


class RawLoop:
    """`batches` gives those of an epoch."""

    def __init__(self, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], fused: bool) -> None:
        self.batches = batches
        self.net = NETWORK(num_classes=CLASSES)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=fused)

    def epoch(self) -> float:
        return raw_epoch(self.net, self.optimizer, self.batches())


class Stopwatch(Callback):
    """The second epoch: from its first batch to its checkpoints."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.starts.append(time.perf_counter())

    def on_train_end(self, *_) -> None:
        self.seconds = time.perf_counter() - self.starts[-1]


def ours(images: Tensor, labels: Tensor, val_images: Tensor, val_labels: Tensor, random_boxes: bool) -> float:
    splits = {
        "train": MemoryImages(images, [str(number) for number in range(len(images))], labels.tolist()),
        "val": MemoryImages(val_images, [str(number) for number in range(len(val_images))], val_labels.tolist()),
    }
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        transform = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize(MEAN, STD)})
        in_training = transform.with_box(RandomResizedBox(SCALE, RATIO)) if random_boxes else transform
        sets = ImageSets("memory", [str(label) for label in range(CLASSES)], splits)
        data = ImageDataModule(sets, in_training, transform, 28, BATCH, 0, "error", 1, f"{folder}/cache")
        metrics = partial(
            MetricsComposition,
            {
                "acc": partial(MulticlassAccuracy, average="micro"),
                "f1": partial(MulticlassF1Score, average="macro"),
                "f1_per_class": partial(MulticlassF1Score, average=None),
            },
        )
        losses = CriterionsComposition({"ce": torch.nn.CrossEntropyLoss()})
        model = DictModule(data.class_names, NETWORK, losses, partial(torch.optim.Adam, lr=1e-3))
        model.seed = 1
        best = RunCheckpoint(folder, "best", monitor="val/acc", mode="max", enable_version_counter=False)
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            callbacks=[watch, MetricsCallback(metrics, "acc"), PlainProgress(), best, ResumeCheckpoint(folder)],
            logger=CSVLogger(folder),
            plugins=[WholeFileCheckpointIO()],
            profiler=NoProfiler(),
            enable_model_summary=False,
            default_root_dir=folder,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(model, datamodule=data)
    return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--random_boxes", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "imago"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    images, labels = drawn(COUNT)
    loader = DataLoader(OneByOne(images, labels, arguments.random_boxes), BATCH, shuffle=True)
    peers = {"loader": RawLoop(lambda: loader, fused=False)}
    if not arguments.random_boxes:
        peers["sliced"] = RawLoop(lambda: sliced(images, labels), fused=True)
    for peer in peers.values():
        peer.epoch()
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(arguments.turns):
        seconds = {name: peer.epoch() for name, peer in peers.items()}
        seconds["ours"] = ours(images, labels, *drawn(VAL), arguments.random_boxes)
        for name in peers:
            ratios[name].append(seconds["ours"] / seconds[name])
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)
    for name, found in ratios.items():
        print(f"ours / {name}: median {statistics.median(found):.2f}, best {min(found):.2f}, of {len(found)} turns")


if __name__ == "__main__":
    main()
