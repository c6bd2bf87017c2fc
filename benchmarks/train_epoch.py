"""One training epoch of ours against a raw PyTorch loop: same images, network, optimizer and batch size.

The raw loop is what a careful person would write: torchvision's ImageFolder and v2 transforms, a DataLoader, AdamW,
loss and accuracy accumulated on the device. Ours counts the same, through its metrics callback, without loggers,
checkpoints and progress bar. The two take turns (A B A B …); the ratio of each pair is printed, their median and best.

    python benchmarks/train_epoch.py --pairs 7
    python benchmarks/train_epoch.py --data_dir PATH --image_size 128 --workers 2
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.callbacks.metrics import MetricsCallback
from imago.data.crops import CenterBox, RandomResizedBox
from imago.data.digits import write_digits
from imago.data.image_folder import ImageFolderDataModule
from imago.data.transforms import ImageTransform, Normalize, RandomHorizontalFlip
from imago.model.losses import CriterionsComposition
from imago.model.metrics import MetricsComposition
from imago.model.module import DictModule
from imago.model.networks import SimpleCNN

SCALE, MEAN, STD = (0.7, 1.0), [0.5] * 3, [0.5] * 3
EPOCHS = 3  # per turn; the first is not counted


class RawLoop:
    def __init__(self, folder: Path, size: int, batch_size: int, workers: int) -> None:
        steps = [v2.RandomResizedCrop(size, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()]
        steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        images = ImageFolder(folder / "train", v2.Compose(steps))
        self.loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        self.net = SimpleCNN(len(images.classes))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)

    def epoch(self) -> float:
        return raw_epoch(self.net, self.optimizer, self.loader)


def raw_epoch(
    net: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Seconds of an epoch that counts loss and accuracy as tensors."""
    start = time.perf_counter()
    net.train()
    losses, right = torch.zeros(()), torch.zeros((), dtype=torch.long)
    for images, labels in batches:
        logits = net(images)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.detach() * len(labels)
        right += (logits.argmax(1) == labels).sum()
    return time.perf_counter() - start


class Stopwatch(Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, *_) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class Ours:
    def __init__(self, folder: Path, size: int, batch_size: int, workers: int) -> None:
        batch = {"flip": RandomHorizontalFlip(), "normalize": Normalize(MEAN, STD)}
        transform = ImageTransform(RandomResizedBox(SCALE), batch=batch)
        evaluation = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize(MEAN, STD)})
        self.data = ImageFolderDataModule(
            transform, evaluation, str(folder), image_size=size, batch_size=batch_size, num_workers=workers
        )

    def epochs(self) -> list[float]:
        metrics = partial(MetricsComposition, {"acc": partial(MulticlassAccuracy, average="micro")})
        losses = CriterionsComposition({"ce": torch.nn.CrossEntropyLoss()})
        model = DictModule(self.data.class_names, SimpleCNN, losses, partial(torch.optim.AdamW, lr=1e-3))
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=EPOCHS,
                accelerator="cpu",
                callbacks=[watch, MetricsCallback(metrics, "acc")],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                default_root_dir=folder,
                use_distributed_sampler=False,
            )
            trainer.fit(model, datamodule=self.data)
        return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="a folder with train/ and val/; the embedded digits if not given")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = arguments.data_dir or write_digits(str(Path(__file__).resolve().parent.parent / "data"))
    options = (folder, arguments.image_size, arguments.batch_size, arguments.workers)
    raw, ours = RawLoop(*options), Ours(*options)
    ratios = []
    for pair in range(arguments.pairs):
        theirs = min([raw.epoch() for _ in range(EPOCHS)][1:])
        own = min(ours.epochs()[1:])
        ratios.append(own / theirs)
        print(f"pair {pair + 1}: raw loop {theirs:.3f} s, ours {own:.3f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ours / raw loop: median {statistics.median(ratios):.2f}, best {min(ratios):.2f}, n={len(ratios)}")


if __name__ == "__main__":
    main()
