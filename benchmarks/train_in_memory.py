"""An epoch over images in memory against raw PyTorch loops: 55,000 of 28 pixels with a small network.

`loader` is the loop of most tutorials: a Dataset whose transform scales and normalises each image, and a DataLoader.
`sliced` is what a careful person would write: batches are slices of one uint8 tensor, normalised as a whole, with the
same fused optimizer. Both count loss and accuracy as tensors. Ours has everything on: metrics, progress, CSV log,
checkpoints. They take turns (A B C A B C …); the ratios of each turn are printed, their median and best.

With `--random_boxes` a box is drawn for each image, and resized; `sliced` has no way to do that, and is left out.
With `--resnet18` there are 128 images of 224 pixels, where the network is all; `tuned` is `sliced` with weights and
images in channels_last, as ours has them by default; `loader` is left out.

    python benchmarks/train_in_memory.py --turns 5
    python benchmarks/train_in_memory.py --turns 5 --random_boxes
    python benchmarks/train_in_memory.py --turns 5 --resnet18
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchvision.models import resnet18
from torchvision.transforms import v2
from train_epoch import raw_epoch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.callbacks.best_checkpoint import RunCheckpoint
from imago.callbacks.last_checkpoint import ResumeCheckpoint
from imago.callbacks.metrics import MetricsCallback
from imago.callbacks.progress import PlainProgress
from imago.checkpoint.write import WholeFileCheckpointIO
from imago.data.crops import CenterBox, RandomResizedBox
from imago.data.images import ImageSets
from imago.data.module import ImageDataModule
from imago.data.torchvision_set import MemoryImages
from imago.data.transforms import ImageTransform, Normalize
from imago.model.losses import CriterionsComposition
from imago.model.metrics import MetricsComposition
from imago.model.module import DictModule
from imago.model.networks import SimpleDenseNet
from imago.training.loggers import CSVLogger
from imago.training.trainer import NoProfiler

CLASSES = 10
SCALE, RATIO = (0.7, 1.0), (0.9, 1.1)
Pixels = tuple[Tensor, Tensor]  # uint8 images, labels


@dataclass(frozen=True)
class Task:
    train: int
    val: int
    channels: int
    size: int
    batch_size: int
    network: Callable[..., torch.nn.Module]

    @property
    def mean(self) -> list[float]:
        return [0.1307] * self.channels

    @property
    def std(self) -> list[float]:
        return [0.3081] * self.channels

    def drawn(self, count: int) -> Pixels:
        """Images whose brightest row tells their class."""
        generator = torch.Generator().manual_seed(count)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        shape = (count, self.channels, self.size, self.size)
        images = torch.randint(120, shape, generator=generator, dtype=torch.uint8)
        images[torch.arange(count), :, 2 * labels] = 230
        return images, labels


SMALL = Task(55_000, 500, 1, 28, 128, partial(SimpleDenseNet, in_features=784, hidden=[64, 128, 64]))
RESNET18 = Task(128, 32, 3, 224, 32, resnet18)


class OneByOne(Dataset[tuple[Tensor, int]]):
    def __init__(self, task: Task, images: Tensor, labels: Tensor, random_boxes: bool) -> None:
        self.images, self.labels = images, labels.tolist()
        box = [v2.RandomResizedCrop(task.size, SCALE, RATIO)] if random_boxes else []
        self.transform = v2.Compose([*box, v2.ToDtype(torch.float32, scale=True), v2.Normalize(task.mean, task.std)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def sliced(task: Task, images: Tensor, labels: Tensor, memory_format: torch.memory_format) -> Iterable[Pixels]:
    mean, std = torch.tensor(task.mean)[:, None, None], torch.tensor(task.std)[:, None, None]
    images = images.contiguous(memory_format=memory_format)
    for indices in torch.randperm(len(images)).split(task.batch_size):
        yield (images[indices].float() / 255 - mean) / std, labels[indices]


class RawLoop:
    """`batches` gives those of an epoch."""

    def __init__(
        self,
        task: Task,
        batches: Callable[[], Iterable[Pixels]],
        fused: bool,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.batches = batches
        self.net = task.network(num_classes=CLASSES).to(memory_format=memory_format)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=fused)

    def epoch(self) -> float:
        return raw_epoch(self.net, self.optimizer, self.batches())


class Stopwatch(Callback):
    """The second epoch: from its first batch to its last, and to its checkpoints."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.starts.append(time.perf_counter())

    def on_train_batch_end(self, *_) -> None:
        self.steps = time.perf_counter() - self.starts[-1]

    def on_train_end(self, *_) -> None:
        self.whole = time.perf_counter() - self.starts[-1]


def ours(task: Task, random_boxes: bool, **splits: Pixels) -> Stopwatch:
    memory = {
        name: MemoryImages(images, [str(number) for number in range(len(images))], labels.tolist())
        for name, (images, labels) in splits.items()
    }
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        transform = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize(task.mean, task.std)})
        in_training = transform.with_box(RandomResizedBox(SCALE, RATIO)) if random_boxes else transform
        sets = ImageSets("memory", [str(label) for label in range(CLASSES)], memory)
        data = ImageDataModule(
            sets, in_training, transform, task.size, task.batch_size, 0, "error", 1, f"{folder}/cache"
        )
        metrics = partial(
            MetricsComposition,
            {
                "acc": partial(MulticlassAccuracy, average="micro"),
                "f1": partial(MulticlassF1Score, average="macro"),
                "f1_per_class": partial(MulticlassF1Score, average=None),
            },
        )
        losses = CriterionsComposition({"ce": torch.nn.CrossEntropyLoss()})
        model = DictModule(data.class_names, task.network, losses, partial(torch.optim.Adam, lr=1e-3))
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
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--random_boxes", action="store_true")
    kind.add_argument("--resnet18", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "imago"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    task = RESNET18 if arguments.resnet18 else SMALL
    images, labels = task.drawn(task.train)
    loader = DataLoader(OneByOne(task, images, labels, arguments.random_boxes), task.batch_size, shuffle=True)
    plain, tuned = torch.contiguous_format, torch.channels_last
    peers = {}
    if not arguments.resnet18:
        peers["loader"] = RawLoop(task, lambda: loader, fused=False)
    if not arguments.random_boxes:
        peers["sliced"] = RawLoop(task, lambda: sliced(task, images, labels, plain), fused=True)
    if arguments.resnet18:
        peers["tuned"] = RawLoop(task, lambda: sliced(task, images, labels, tuned), fused=True, memory_format=tuned)
    for peer in peers.values():
        peer.epoch()
    ratios = defaultdict[str, list[float]](list)
    for turn in range(arguments.turns):
        seconds = {name: peer.epoch() for name, peer in peers.items()}
        watch = ours(task, arguments.random_boxes, train=(images, labels), val=task.drawn(task.val))
        for name in peers:
            ratios[f"ours / {name}"].append(watch.whole / seconds[name])
            ratios[f"ours, without validation and checkpoints / {name}"].append(watch.steps / seconds[name])
        seconds |= {"ours": watch.whole, "without validation and checkpoints": watch.steps}
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)
    for name, found in ratios.items():
        print(f"{name}: median {statistics.median(found):.2f}, best {min(found):.2f}, of {len(found)} turns")


if __name__ == "__main__":
    main()
