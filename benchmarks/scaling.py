"""Two processes against one on the CPU, ours and torchrun with plain DistributedDataParallel.

The peer is a script as a careful person would write it: torchvision's ImageFolder and v2 transforms, a DataLoader with
a DistributedSampler, AdamW. Network (ResNet-18 from scratch at 32 pixels), global batch and steps are the same, each
process has one thread and loads its own images. They take turns. An epoch is the difference between a run of three and
one of one, halved, so that starting up does not count. The efficiency is the epoch of one process, divided by twice
that of two. That of the CPU time, which waiting and other work on the machine do not enter, is the time of one process
divided by that of both together. The limit is the efficiency of two runs of half the batch on one process, at once and
without a word between them: two processes cannot do better on cores that share memory and caches.

    python benchmarks/scaling.py --data_dir PATH/cifar10_small --turns 3
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BATCH, STEPS, SIZE = 128, 40, 32
PEER = """
import sys, torch, torchvision
from itertools import islice
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

folder, epochs, size, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
torch.manual_seed(42)
torch.distributed.init_process_group("gloo")
processes = torch.distributed.get_world_size()
crop = [v2.RandomResizedCrop(size, (0.2, 1.0)), v2.RandomHorizontalFlip(), v2.ToImage()]
end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
images = ImageFolder(f"{folder}/train", v2.Compose([*crop, *end]))
sampler = DistributedSampler(images) if processes > 1 else RandomSampler(images)
loader = DataLoader(images, batch // processes, sampler=sampler, drop_last=True)
net = torchvision.models.resnet18(num_classes=len(images.classes)).to(memory_format=torch.channels_last)
net = torch.nn.parallel.DistributedDataParallel(net) if processes > 1 else net
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4)
for epoch in range(epochs):
    if processes > 1:
        sampler.set_epoch(epoch)
    for inputs, labels in islice(loader, steps):
        loss = torch.nn.functional.cross_entropy(net(inputs.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.distributed.destroy_process_group()
"""


def ours(processes: int, epochs: int, data_dir: Path, place: Path, batch: int = BATCH) -> list[str]:
    words = [f"data.data_dir={data_dir}", f"data.image_size={SIZE}", f"data.batch_size={batch}", "data.num_workers=0"]
    words += ["model=resnet18", "model.net.weights=null", "data.cache=none", f"trainer.max_epochs={epochs}", "seed=42"]
    words += [f"trainer.limit_train_batches={STEPS}", "trainer.limit_val_batches=0", "test=false", "logger=[]"]
    words += ["preflight=false", "callbacks.resume.every_n_minutes=null", f"hydra.run.dir={place}/{epochs}"]
    words += ["trainer=cpu"] if processes == 1 else ["trainer=ddp_sim", f"trainer.devices={processes}"]
    return [sys.executable, str(ROOT / "src" / "train.py"), *words]


def peer(processes: int, epochs: int, data_dir: Path, place: Path, batch: int = BATCH) -> list[str]:
    script = place / "peer.py"
    script.write_text(PEER, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*torchrun, str(script), str(data_dir), *map(str, (epochs, SIZE, batch, STEPS))]


def cpu_seconds() -> float:
    """CPU time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def finish(commands: Sequence[Sequence[str]]) -> np.ndarray:
    """Run commands at once; seconds until the last has ended, and CPU seconds of all."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    began = np.array([time.perf_counter(), cpu_seconds()])
    with tempfile.TemporaryFile("w+") as said:
        runs = [subprocess.Popen(words, cwd=ROOT, env=env, stdout=said, stderr=said) for words in commands]
        ends = [run.wait() for run in runs]
        if any(ends):
            said.seek(0)
            raise SystemExit(f"{commands}\n{said.read()[-6000:]}")
    return np.array([time.perf_counter(), cpu_seconds()]) - began


def epoch_seconds(who: Callable[..., list[str]], processes: int, data_dir: Path, runs: int = 1) -> np.ndarray:
    """Seconds of an epoch without the start of the processes, wall-clock and CPU, of `runs` runs that share the batch
    and know nothing of one another."""
    seconds = []
    for epochs in (1, 3):
        with tempfile.TemporaryDirectory() as folder:
            places = [Path(folder, str(run)) for run in range(runs)]
            for place in places:
                place.mkdir()
            seconds.append(finish([who(processes, epochs, data_dir, place, BATCH // runs) for place in places]))
    return (seconds[1] - seconds[0]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    peers = "torchrun and plain DDP"
    efficiency: dict[str, list[np.ndarray]] = {"ours": [], peers: []}
    limit: dict[str, list[np.ndarray]] = {"ours": [], peers: []}
    for turn in range(args.turns):
        for name, who in (("ours", ours), (peers, peer)):
            one, two = (epoch_seconds(who, processes, args.data_dir) for processes in (1, 2))
            apart = epoch_seconds(who, 1, args.data_dir, runs=2)
            efficiency[name].append(one / two / [2, 1])
            limit[name].append(one / apart / [2, 1])
            times = ", ".join(f"{seconds.round(1)} s" for seconds in (one, two, apart))
            print(f"turn {turn + 1}, {name}: {times}, {efficiency[name][-1]}, limit {limit[name][-1]}", flush=True)
    for column, clock in enumerate(("wall-clock", "CPU")):
        reached = {name: np.array(efficiency[name])[:, column] for name in efficiency}
        of_limit = {name: reached[name] / np.array(limit[name])[:, column] for name in efficiency}
        for what, values in (("efficiency", reached), ("of its limit", of_limit)):
            medians = ", ".join(f"{name} {np.median(values[name]):.3f}" for name in values)
            ratios = values["ours"] / values[peers]
            print(f"{clock}, {what}: {medians}; ratio {np.median(ratios):.3f}, best {ratios.max():.3f}, n={args.turns}")


if __name__ == "__main__":
    main()
