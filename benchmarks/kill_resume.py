"""Kills training runs at random moments, starts the same command again, and compares with a run that nobody killed.

A kill is SIGKILL to the whole process group: no handler runs. The harness waits until the run says, through a pipe,
that it has entered the phase to be hit, then waits a random part of what that phase usually takes, and kills; the phase
in which it died is the last that was entered and not left. Start-ups are killed in fresh interpreters, the other phases
in processes forked from one that has imported everything, which saves seconds per kill.

Compared, to the bit: weights and optimizer state of `last.ckpt`, the metrics of every epoch and of every validation
(metrics.jsonl, csv/metrics.csv), and the predictions on the test split.

    python benchmarks/kill_resume.py                 # 240 kills, half an hour
    python benchmarks/kill_resume.py --kills 16 --configurations 2
    python benchmarks/kill_resume.py --kills 20 --processes 1 2 3    # single processes: see kill_ranks.py
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked
REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "src"), str(REPO / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from kill_ranks import WORDS, RankTally, kill_ranks, show_ranks  # noqa: E402
from PIL import Image  # noqa: E402

PHASES = ("start-up", "training", "saving", "validation")
USUALLY = {"start-up": 6.0, "training": 0.02, "saving": 0.02, "validation": 0.03}  # seconds
FEWEST = 30  # kills in a phase, for a result that says something about it
PIPE = "IMAGO_KILL_PIPE"
BASE = (
    "model=simple_cnn",
    "data.image_size=16",
    "data.batch_size=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=4",
    "trainer.val_check_interval=3",
    "logger=csv",
    "report.splits=[test]",
    "callbacks.early_stopping=null",
    "+callbacks.phases={_target_: kill_resume.phases}",
    "auto_resume=true",
)


@dataclass
class Tally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lost: int = 0
    different: list[str] = field(default_factory=list)


def phases() -> Any:
    """A callback that tells the harness which phase begins and ends."""
    from lightning.pytorch import Callback

    pipe = int(os.environ[PIPE]) if PIPE in os.environ else None

    def tell(word: str) -> None:
        if pipe is not None:
            os.write(pipe, f"{word}\n".encode())

    class Phases(Callback):
        def setup(self, trainer: Any, *_: Any, **__: Any) -> None:
            nonlocal pipe
            pipe = pipe if trainer.is_global_zero else None
            io = trainer.strategy.checkpoint_io
            save = type(io).save_checkpoint

            def told(*args: Any, **kwargs: Any) -> None:
                tell("saving")
                save(io, *args, **kwargs)
                tell("left")

            io.save_checkpoint = told

        def on_train_batch_start(self, *_: Any) -> None:
            tell("training")

        def on_train_batch_end(self, *_: Any) -> None:
            tell("left")

        def on_validation_start(self, *_: Any) -> None:
            tell("validation")

        def on_validation_end(self, *_: Any) -> None:
            tell("left")

    return Phases()


def draw_images(root: Path) -> Path:
    """Three classes of noise in three colours: 40 to train on, 12 to validate on."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 4)):
        for label, colour in enumerate(((60, 80, 190), (70, 180, 80), (190, 70, 60))):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count - (split == "train" and label == 0) * 2):
                pixels = np.clip(np.array(colour) + generator.integers(-60, 60, (20, 20, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


def run_here(words: Sequence[str], log: Path) -> None:
    """In a forked child: the command, as if it had been typed."""
    os.setsid()
    sys.argv = ["src/train.py", *words]
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from imago.train import main

    main()


class Started:
    """One start of the command, in a process group of its own."""

    def __init__(self, words: Sequence[str], log: Path, fresh: bool) -> None:
        self.read, write = os.pipe()
        os.set_inheritable(write, True)
        self.phase, self.said = "start-up", b""
        os.environ[PIPE] = str(write)
        if fresh:
            environment = os.environ | {"PYTHONPATH": str(REPO / "benchmarks"), "PYTHONWARNINGS": "ignore"}
            with log.open("a") as file:
                command = [sys.executable, str(REPO / "src" / "train.py"), *words]
                started = subprocess.Popen(
                    command, stdout=file, stderr=file, env=environment, pass_fds=[write], start_new_session=True
                )
            self.pid, self.wait, self.ended = started.pid, started.wait, lambda: started.poll() is not None
        else:
            forked = multiprocessing.get_context("fork").Process(target=run_here, args=(words, log))
            forked.start()
            assert forked.pid is not None
            self.pid, self.ended = forked.pid, lambda: not forked.is_alive()
            self.wait = lambda: (forked.join(), forked.exitcode)[1]
        os.close(write)
        del os.environ[PIPE]

    def listen(self, seconds: float) -> None:
        """Follows the phases, at most for so long."""
        if select.select([self.read], [], [], seconds)[0]:
            said = os.read(self.read, 4096)
            if not said:
                time.sleep(min(seconds, 0.01))
            self.said += said
            *words, self.said = self.said.split(b"\n")
            for word in words:
                self.phase = "" if word == b"left" else word.decode()

    def kill_in(self, phase: str, occurrence: int, delay: float) -> str | None:
        """Kills it; returns the phase in which it died, None if it ended before."""
        if not self.wait_for(phase, occurrence, delay):
            return None
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self.listen(0)
        return self.phase or "between"

    def wait_for(self, phase: str, occurrence: int, delay: float) -> bool:
        """Waits for the phase to begin that often, and `delay` seconds of it; returns whether the run is alive."""
        before, seen = "start-up", 0
        while phase != "start-up" and not self.ended():
            self.listen(1.0)
            seen += self.phase == phase and before != phase
            before = self.phase
            if seen >= occurrence:
                break
        until = time.monotonic() + delay
        while time.monotonic() < until and not self.ended():
            self.listen(max(0.0, until - time.monotonic()))
            if phase != "start-up" and self.phase != phase:
                break
        return not self.ended()

    def close(self) -> None:
        os.close(self.read)


def finish(words: Sequence[str], log: Path) -> int:
    """Lets it run to its end; returns its exit status."""
    started = Started(words, log, fresh=False)
    while not started.ended():
        started.listen(1.0)
    code = started.wait()
    started.close()
    return code


def outcome(folder: Path) -> dict[str, Any]:
    """All that has to be the same."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        logged = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return {
        "weights": checkpoint["state_dict"],
        "optimizer": checkpoint["optimizer_states"],
        "epochs": (folder / "metrics.jsonl").read_text(),
        "logged": logged,
        "predictions": (folder / "reports" / "predictions_test.csv").read_text(),
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are the same, to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def _differences(expected: list[Any], found: list[Any]) -> list[str]:
    rows = [f"+ {row}" for row in found if row not in expected] + [f"- {row}" for row in expected if row not in found]
    return ["", *rows, f"{len(expected)} rows, now {len(found)}"] if expected != found else []


def kill_and_compare(words: list[str], wanted: list[str], work: Path, tally: Tally, drawn: random.Random) -> None:
    """Runs with these settings, killed once in each of the `wanted` phases, several times per run."""
    reference = work / "reference"
    if code := finish([*words, f"hydra.run.dir={reference}"], work / "reference.log"):
        raise RuntimeError(f"The run that nobody killed ended with {code}: {(work / 'reference.log').read_text()}")
    expected = outcome(reference)
    wanted = list(wanted)
    while wanted:
        folder, log = work / f"killed_{tally.runs}", work / f"killed_{tally.runs}.log"
        command = [*words, f"hydra.run.dir={folder}"]
        history: list[str] = []
        for _ in range(min(len(wanted), drawn.randint(2, 6))):
            phase = wanted[0]
            started = Started(command, log, fresh=phase == "start-up")
            hit = started.kill_in(phase, drawn.randint(1, 6), drawn.uniform(0, USUALLY[phase]))
            started.close()
            if hit is None:
                break  # it was through
            tally.kills[hit] += 1
            history.append(hit)
            if hit == phase:
                wanted.pop(0)
        code = finish(command, log)
        tally.runs += 1
        if code or json.loads((folder / "status.json").read_text())["status"] != "completed":
            tally.lost += 1
            print(f"LOST after {history}: {log.read_text()[-2000:]}", flush=True)
            continue
        found = outcome(folder)
        different = [name for name in expected if not equal(expected[name], found[name])]
        if different:
            tally.different.append(f"{folder.name} after {history}: {', '.join(different)}")
            print(
                "DIFFERENT",
                tally.different[-1],
                *_differences(expected["logged"], found["logged"]),
                sep="\n  ",
                flush=True,
            )
        else:
            shutil.rmtree(folder)
    shutil.rmtree(reference)


def main(arguments: Sequence[str] | None = None) -> Tally | RankTally:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=240, help="that hit the phase they were meant for")
    parser.add_argument("--configurations", type=int, default=8, help="of workers, accumulation and saving")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, nargs="+", help="kill single processes, and resume on one of these")
    given = parser.parse_args(arguments)
    drawn = random.Random(given.seed)
    torch.set_num_threads(1)
    import imago.training.trainer  # for the forks

    del imago
    if given.processes:
        with tempfile.TemporaryDirectory() as temporary:
            images = draw_images(Path(temporary, "images"))
            base = [word for word in BASE if word.partition("=")[0] not in ("model", "data.batch_size")]
            words = [*base, *WORDS, f"data.data_dir={images}", f"paths.log_dir={temporary}/logs"]
            return kill_ranks(sys.modules[__name__], words, given.processes, given.kills, Path(temporary), drawn)
    configurations = list(product((0, 2), (1, 3), (1, 3)))
    drawn.shuffle(configurations)
    each = -(-given.kills // given.configurations)
    tally = Tally()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        images = draw_images(Path(temporary, "images"))
        for number, (workers, accumulate, every) in enumerate(configurations[: given.configurations]):
            words = [
                *BASE,
                f"data.data_dir={images}",
                f"data.num_workers={workers}",
                f"trainer.accumulate_grad_batches={accumulate}",
                f"callbacks.resume.every_n_train_steps={every}",
                f"paths.log_dir={temporary}/logs",
            ]
            wanted = [PHASES[index % len(PHASES)] for index in range(each)]
            drawn.shuffle(wanted)
            work = Path(temporary, str(number))
            work.mkdir()
            kill_and_compare(words, wanted, work, tally, drawn)
            print(
                f"workers {workers}, accumulation {accumulate}, save every {every}: "
                f"so far {sum(tally.kills.values())} kills in {tally.runs} runs, {tally.lost} lost, "
                f"{len(tally.different)} different, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return tally


def show(tally: Tally | RankTally) -> int:
    """Prints the table of docs/reliability.md; returns the exit status."""
    if isinstance(tally, RankTally):
        return show_ranks(tally)
    print("\n| killed in | kills |\n| --- | --- |")
    for phase, count in sorted(tally.kills.items(), key=lambda entry: [*PHASES, "between"].index(entry[0])):
        print(f"| {phase} | {count} |")
    print(
        f"\n{sum(tally.kills.values())} kills in {tally.runs} runs: {tally.lost} lost, {len(tally.different)} different"
    )
    few = [phase for phase in PHASES if tally.kills[phase] < FEWEST]
    if few:
        print(f"Fewer than {FEWEST} kills in {', '.join(few)}: this says little about it")
    return int(bool(tally.lost or tally.different or few))


if __name__ == "__main__":
    sys.exit(show(main()))
