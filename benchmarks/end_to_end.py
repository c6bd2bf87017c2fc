"""Two epochs of a ResNet at 224 pixels on a folder of photographs, as whole processes: time and peak memory.

`raw` is a script as a careful person would write it (ImageFolder, torchvision's v2 transforms, DataLoader with as many
workers as there are cores, AdamW, accuracy on val); timm's train.py runs as it is shipped, and tuned
(`--channels-last`). Batch size, network and epochs are the same, from scratch, on the CPU with all threads; ours with
its defaults on (metrics, checkpoints, TensorBoard), without the scores at the end, as the others have none. They take
turns. An epoch is the difference between a run of three and one of one, halved, so that starting up does not
count; memory is the greatest of the process itself, in megabytes.

With `--gpu` all of them run on one GPU in bf16 with channels_last. `--copies` repeats the photographs, so that an epoch
is long enough to be timed.

    git clone https://github.com/huggingface/pytorch-image-models
    pip install timm
    python benchmarks/end_to_end.py --data_dir PATH/hymenoptera_data --timm pytorch-image-models --turns 2
    python benchmarks/end_to_end.py --data_dir PATH/hymenoptera_data --gpu --net resnet50 --copies 20 --batch_size 128
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RAW = """
import sys, torch, torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

folder, device, name, epochs, size, batch, workers = *sys.argv[1:4], *map(int, sys.argv[4:])
gpu = device == "cuda"
layout = torch.channels_last if gpu else torch.contiguous_format
torch.manual_seed(42)
end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
crop = [v2.RandomResizedCrop(size, (0.2, 1.0)), v2.RandomHorizontalFlip()]
sets = [
    ImageFolder(f"{folder}/train", v2.Compose([*crop, *end])),
    ImageFolder(f"{folder}/val", v2.Compose([v2.Resize(size * 8 // 7), v2.CenterCrop(size), *end])),
]
train, val = (
    DataLoader(each, batch, shuffle=each is sets[0], num_workers=workers, persistent_workers=True, pin_memory=gpu)
    for each in sets
)

def batches(loader):
    for images, labels in loader:
        yield images.to(device, non_blocking=True, memory_format=layout), labels.to(device, non_blocking=True)

net = getattr(torchvision.models, name)(num_classes=len(sets[0].classes)).to(device, memory_format=layout)
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, fused=gpu)
mixed = torch.autocast(device, torch.bfloat16, enabled=gpu)
for epoch in range(epochs):
    net.train()
    for images, labels in batches(train):
        with mixed:
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad(), mixed:
        right = sum((net(images).argmax(1) == labels).sum() for images, labels in batches(val))
    print(epoch, right.item() / len(sets[1]))
"""


def commands(given: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Name -> words; `EPOCHS` and `OUT` are filled in."""
    root, size, batch = str(given.data_dir), given.image_size, given.batch_size
    cores = min(os.cpu_count() or 1, 8)
    device = "cuda" if given.gpu else "cpu"
    train = str(Path(__file__).resolve().parents[1] / "src" / "train.py")
    net = ["model.net.weights=null", "trainer.max_epochs=EPOCHS", f"data.image_size={size}", f"data.batch_size={batch}"]
    own = [f"data.data_dir={root}", *net, f"model.net.name={given.net}", "test=false", "hydra.run.dir=OUT"]
    own += [f"trainer={'amp' if given.gpu else 'cpu'}", f"data.num_workers={cores}", f"paths.cache_dir={folder}/cache"]
    found = {
        "raw": [sys.executable, "-c", RAW, root, device, given.net, "EPOCHS", *map(str, (size, batch, cores))],
        "ours": [sys.executable, train, *own],
        "ours, no cache": [sys.executable, train, *own, "data.cache=none"],
    }
    if given.gpu:
        found["ours, decode=fast"] = [sys.executable, train, *own, "data.cache=none", "data.decode=fast"]
    if given.timm is not None:
        words = ["--data-dir", root, "--train-split", "train", "--val-split", "val", "--model", given.net]
        words += ["--num-classes", "2", "--epochs", "EPOCHS", "--batch-size", str(batch), "--img-size", str(size)]
        words += ["--workers", str(cores), "--device", device, "--opt", "adamw", "--lr", "3e-4", "--output", "OUT"]
        words += ["--warmup-epochs", "0", "--cooldown-epochs", "0"]
        words += ["--amp", "--amp-dtype", "bfloat16", "--pin-mem"] if given.gpu else ["--no-prefetcher"]
        found["timm"] = [given.python, str(given.timm.resolve() / "train.py"), *words]
        found["timm, tuned"] = [*found["timm"], "--channels-last"]
    return found


def repeated(data_dir: Path, copies: int, folder: Path) -> Path:
    """The same splits and classes, with `copies` of each photograph."""
    for source in data_dir.rglob("*.*"):
        if source.is_file():
            target = folder / source.relative_to(data_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            for number in range(copies):
                shutil.copy(source, target.with_stem(f"{target.stem}_{number}"))
    return folder


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
    parser.add_argument("--gpu", action="store_true", help="on one GPU, in bf16")
    parser.add_argument("--net", default="resnet18", help="a name that torchvision and timm share")
    parser.add_argument("--copies", type=int, default=1, help="of each photograph")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    given = parser.parse_args()
    epochs: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.copies > 1:
            given.data_dir = repeated(given.data_dir, given.copies, Path(folder, "data"))
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
