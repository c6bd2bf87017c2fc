"""What comes out of training, over seeds: ours against a raw PyTorch loop of the same recipe.

The raw loop is ImageFolder, torchvision v2 transforms, a DataLoader and AdamW with the same schedule; of both the epoch
with the best accuracy on val is scored on test (val where there is no test). Which epoch is best is a matter of luck:
the mean of the last epochs on val is compared too. Mean and standard deviation over the seeds are printed, and Welch's
test that the means are equal.

    python benchmarks/accuracy.py --seeds 5
    python benchmarks/accuracy.py --data_dir PATH/hymenoptera_data --seeds 3
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_ind
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.data.digits import write_digits
from imago.model.networks import SimpleCNN
from imago.model.optimizers import warmup_cosine

ROOT = Path(__file__).resolve().parent.parent
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALF = [0.5] * 3, [0.5] * 3
LAST = 5  # epochs


def raw(folder: Path, seed: int, of_digits: bool, size: int, epochs: int) -> tuple[float, float]:
    """Accuracy of the best epoch on the scored split, and mean accuracy of the last epochs on val."""
    torch.manual_seed(seed)
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*(HALF if of_digits else IMAGENET))]
    scale, ratio = ((0.7, 1.0), (0.9, 1.1)) if of_digits else ((0.2, 1.0), (0.75, 1.3333))
    crop = [v2.RandomResizedCrop(size, scale, ratio), *([] if of_digits else [v2.RandomHorizontalFlip()])]
    whole = [v2.Resize(size if of_digits else round(size / 0.875)), v2.CenterCrop(size)]
    last = "test" if (folder / "test").is_dir() else "val"
    sets = [
        ImageFolder(str(folder / split), v2.Compose([*(crop if split == "train" else whole), *end]))
        for split in ("train", "val", last)
    ]
    batch = 64 if of_digits else 32
    train, val, test = (DataLoader(each, batch, shuffle=each is sets[0]) for each in sets)
    classes = len(sets[0].classes)
    net = SimpleCNN(classes, channels=[32, 64, 128], dropout=0.2) if of_digits else resnet18(num_classes=classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.003 if of_digits else 0.0003)
    schedule = warmup_cosine(optimizer, total_steps=epochs * len(train), warmup=0.05)
    found: list[float] = []
    scored = 0.0
    for _ in range(epochs):
        net.train()
        for images, labels in train:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found.append(accuracy(net, val))
        if found[-1] > max(found[:-1], default=-1.0):
            scored = accuracy(net, test)
    return scored, float(np.mean(found[-LAST:]))


@torch.no_grad()
def accuracy(net: torch.nn.Module, batches: DataLoader) -> float:
    net.eval()
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / len(batches.dataset)  # type: ignore[arg-type]


def ours(folder: Path, seed: int, of_digits: bool, size: int, epochs: int) -> tuple[float, float]:
    words = ["experiment=digits"] if of_digits else [f"data.data_dir={folder}", "model.net.weights=null"]
    with tempfile.TemporaryDirectory() as run:
        words += [
            f"seed={seed}",
            f"data.image_size={size}",
            f"trainer.max_epochs={epochs}",
            "trainer=cpu",
            "logger=[]",
            f"hydra.run.dir={run}/run",
        ]
        words += ["report.splits=[test]", "callbacks.early_stopping=null", f"paths.cache_dir={run}/cache"]
        command = [sys.executable, str(ROOT / "src" / "train.py"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        history = [json.loads(line) for line in Path(run, "run/metrics.jsonl").read_text().splitlines()]
        scored = json.loads(Path(run, "run/reports/metrics_test.json").read_text())["acc"]
        return scored, float(np.mean([epoch["val/acc"] for epoch in history[-LAST:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="a folder with train/ and val/; the embedded digits if not given")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    of_digits = given.data_dir is None
    folder = write_digits(str(ROOT / "data")) if of_digits else given.data_dir
    options = (of_digits, given.image_size or (16 if of_digits else 64), given.epochs)
    found: dict[str, list[tuple[float, float]]] = {"raw": [], "ours": []}
    for seed in range(given.seeds):
        for name, run in (("raw", raw), ("ours", ours)):
            found[name].append(run(folder, seed, *options))
            print(f"seed {seed}, {name}: {found[name][-1][0]:.4f}, {found[name][-1][1]:.4f}", flush=True)
    for column, what in enumerate(("the best epoch, scored", f"mean of the last {LAST} epochs on val")):
        both = {name: [values[column] for values in rows] for name, rows in found.items()}
        means = [f"{name} {np.mean(values):.4f} +- {np.std(values, ddof=1):.4f}" for name, values in both.items()]
        p = ttest_ind(both["raw"], both["ours"], equal_var=False).pvalue
        print(f"{what}: {', '.join(means)}, n={given.seeds}, p = {p:.2f}")


if __name__ == "__main__":
    main()
