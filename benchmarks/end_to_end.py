"""Two epochs of resnet18 at 224 pixels on a folder of photographs, as whole processes: time and peak memory.

`raw` is a script as a careful person would write it (ImageFolder, torchvision's v2 transforms, DataLoader with as many
workers as there are cores, AdamW, accuracy on val); timm's train.py runs as it is shipped, and tuned
(`--channels-last`). Batch size, network and epochs are the same, from scratch, on the CPU with all threads; ours with
its defaults on (metrics, checkpoints, TensorBoard), without the scores at the end, as the others have none. They take
turns. An epoch is the difference between a run of three and one of one, halved, so that starting up does not
count; memory is the greatest of the process itself, in megabytes.

    git clone https://github.com/huggingface/pytorch-image-models
    pip install timm
    python benchmarks/end_to_end.py --data_dir PATH/hymenoptera_data --timm pytorch-image-models --turns 2
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAW = """
import sys, torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

folder, epochs, size, batch, workers = sys.argv[1], *map(int, sys.argv[2:])
torch.manual_seed(42)
end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
crop = [v2.RandomResizedCrop(size, (0.2, 1.0)), v2.RandomHorizontalFlip()]
sets = [
    ImageFolder(f"{folder}/train", v2.Compose([*crop, *end])),
    ImageFolder(f"{folder}/val", v2.Compose([v2.Resize(size * 8 // 7), v2.CenterCrop(size), *end])),
]
train, val = (
    DataLoader(each, batch, shuffle=each is sets[0], num_workers=workers, persistent_workers=True) for each in sets
)
net = resnet18(num_classes=len(sets[0].classes))
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4)
for epoch in range(epochs):
    net.train()
    for images, labels in train:
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        right = sum((net(images).argmax(1) == labels).sum().item() for images, labels in val)
    print(epoch, right / len(sets[1]))
"""


def commands(given: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Name -> words; `EPOCHS` and `OUT` are filled in."""
    root, size, batch, cores = str(given.data_dir), given.image_size, given.batch_size, os.cpu_count() or 1
    train = str(Path(__file__).resolve().parents[1] / "src" / "train.py")
    net = ["model.net.weights=null", "trainer.max_epochs=EPOCHS", f"data.image_size={size}", f"data.batch_size={batch}"]
    own = [f"data.data_dir={root}", *net, "trainer=cpu", "test=false", "hydra.run.dir=OUT"]
    own.append(f"paths.cache_dir={folder}/cache")
    found = {
        "raw": [sys.executable, "-c", RAW, root, "EPOCHS", *map(str, (size, batch, cores))],
        "ours": [sys.executable, train, *own],
        "ours, no cache": [sys.executable, train, *own, "data.cache=none"],
    }
    if given.timm is not None:
        words = ["--data-dir", root, "--train-split", "train", "--val-split", "val", "--model", "resnet18"]
        words += ["--num-classes", "2", "--epochs", "EPOCHS", "--batch-size", str(batch), "--img-size", str(size)]
        words += ["--workers", str(cores), "--device", "cpu", "--opt", "adamw", "--lr", "3e-4", "--output", "OUT"]
        words += ["--no-prefetcher", "--warmup-epochs", "0", "--cooldown-epochs", "0"]
        found["timm"] = [given.python, str(given.timm.resolve() / "train.py"), *words]
        found["timm, tuned"] = [*found["timm"], "--channels-last"]
    return found


def measured(words: list[str]) -> tuple[float, float]:
    """Wall seconds of the process, and the most memory it had, in megabytes."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(words, stdout=told, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(f"{' '.join(words)[:300]}\n{told.read()[-3000:].decode()}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="a folder with train/ and val/")
    parser.add_argument("--timm", type=Path, help="a clone of huggingface/pytorch-image-models")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs timm")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    epochs: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.turns):
            for name, words in commands(given, Path(folder)).items():
                seconds = []
                for count in (1, 3):
                    filled = {
                        "EPOCHS": str(count),
                        "OUT": f"{folder}/{name.replace(', ', '_').replace(' ', '_')}_{turn}_{count}",
                    }
                    full = [word.replace("EPOCHS", filled["EPOCHS"]).replace("OUT", filled["OUT"]) for word in words]
                    found, most = measured(full)
                    seconds.append(found)
                epochs.setdefault(name, []).append((seconds[1] - seconds[0]) / 2)
                whole.setdefault(name, []).append((seconds[0] + seconds[1]) / 2)
                memory.setdefault(name, []).append(most)
                print(f"turn {turn + 1}: {name}: {epochs[name][-1]:.1f} s per epoch, {most:.0f} MB", flush=True)
    print("| | s per epoch | of raw | two epochs, with starting up, s | of raw | peak memory, MB | of raw |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in epochs:
        cells = []
        for kind in (epochs, whole, memory):
            ratios = [own / raw for own, raw in zip(kind[name], kind["raw"], strict=True)]
            cells += [f"{statistics.median(kind[name]):.1f}", f"{statistics.median(ratios):.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
