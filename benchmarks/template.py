"""Commands and training epochs, as whole processes, against ashleve/lightning-hydra-template.

Both train their MNIST example on drawn images in MNIST's files: 55,000 to train on, 5,000 to validate on, the same
dense net, Adam and batches of 128, on the CPU with one thread. An epoch is (three epochs - one epoch) / 2, so that
starting up does not count. Both have their defaults on, and a CSV log, which tells what they had learnt; ours also
clips gradients. `tuned` is the template with as many workers as there are cores. They take turns (A B A B …); printed
are the medians and the ratios ours / template, of the medians and of the best turn.

    git clone https://github.com/ashleve/lightning-hydra-template
    pip install rootutils hydra-colorlog
    python benchmarks/template.py --template lightning-hydra-template --turns 3
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

OURS, TEMPLATE, TUNED = "ours", "template", "template tuned"
CLASSES, SIZE = 10, 28


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """Images of noise, in which two rows a little brighter than the rest tell the class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randint(200, (count, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    for row in (0, 1):
        images[torch.arange(count), 2 * labels + row] += 20
    return images, labels.to(torch.uint8)


def write_mnist(folder: Path, train: int, test: int) -> None:
    """As torchvision.datasets.MNIST finds them: a magic number, the sizes, the bytes."""
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("t10k", test)):
        for name, values in zip(("images-idx3", "labels-idx1"), drawn(count), strict=True):
            header = b"".join(number.to_bytes(4, "big") for number in (0x800 + values.dim(), *values.shape))
            (folder / f"{split}-{name}-ubyte").write_bytes(header + values.numpy().tobytes())


def last_accuracy(run: Path) -> float:
    (path,) = run.glob("csv/**/metrics.csv")
    with path.open(newline="") as file:
        return [float(row["val/acc"]) for row in csv.DictReader(file) if row["val/acc"]][-1]


class Bench:
    """Runs them in turn and prints the rows."""

    def __init__(self, template: Path, python: str, turns: int, images: int, folder: Path) -> None:
        self.turns, self.folder, self.runs = turns, folder, 0
        self.accuracy: dict[str, float] = {}
        test, val = images // 6, images // 12
        write_mnist(folder / "data" / "MNIST" / "raw", images, test)
        ours = [sys.executable, str(Path(__file__).resolve().parents[1] / "src" / "train.py")]
        theirs = [python, str(template / "src" / "train.py")]
        self.commands = {OURS: ours, TEMPLATE: theirs, TUNED: theirs}
        split = f"data.train_val_test_split=[{images - val},{val},{test}]"
        self.examples = {
            OURS: ["experiment=example", "trainer.min_epochs=null", f"paths.cache_dir={folder / 'cache'}"],
            TEMPLATE: [split],
            TUNED: [split, f"data.num_workers={os.cpu_count()}"],
        }

    def run(self, who: str, *words: str) -> float:
        """Wall seconds of the process."""
        command, environment = [*self.commands[who], *words], os.environ | {"OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return seconds

    def train(self, who: str, *words: str) -> tuple[float, Path]:
        """Wall seconds of a run of the example, and its folder."""
        self.runs += 1
        run = self.folder / "logs" / str(self.runs)
        folders = (f"data.data_dir={self.folder / 'data'}", f"paths.log_dir={run.parent}", f"hydra.run.dir={run}")
        return self.run(who, *self.examples[who], *folders, *words), run

    def epoch(self, who: str) -> float:
        options = ("trainer=cpu", "test=False", "logger=csv")
        one, _ = self.train(who, *options, "trainer.max_epochs=1")
        three, run = self.train(who, *options, "trainer.max_epochs=3")
        self.accuracy[who] = last_accuracy(run)
        return (three - one) / 2

    def compare(self, what: str, seconds: Callable[[str], float], peers: tuple[str, ...] = (TEMPLATE,)) -> None:
        """Prints a row for each peer."""
        found: dict[str, list[float]] = {who: [] for who in (OURS, *peers)}
        for turn in range(self.turns):
            for who, times in found.items():
                times.append(seconds(who))
                print(f"{what}, turn {turn + 1}: {who} {times[-1]:.2f} s", file=sys.stderr)
        own = statistics.median(found[OURS])
        for peer in peers:
            its = statistics.median(found[peer])
            best = min(a / b for a, b in zip(found[OURS], found[peer], strict=True))
            name = what if peer == TEMPLATE else f"{what}, {peer}"
            print(f"| {name} | {own:.2f} | {its:.2f} | {own / its:.2f} | {best:.2f} | {self.turns} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="a clone of ashleve/lightning-hydra-template")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the template")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000, help="a twelfth of them validates")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.template.resolve(), given.python, given.turns, given.images, Path(folder))
        print("| what | ours, median s | template, median s | ratio of medians | best ratio | n |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        bench.compare("`--help`", lambda who: bench.run(who, "--help"))
        bench.compare("`--cfg job`", lambda who: bench.run(who, "--cfg", "job"))
        bench.compare("`debug=fdr`", lambda who: bench.train(who, "debug=fdr")[0])
        bench.compare("a training epoch", bench.epoch, (TEMPLATE, TUNED))
    print("val/acc after three epochs: " + ", ".join(f"{who} {value:.3f}" for who, value in bench.accuracy.items()))


if __name__ == "__main__":
    main()
