"""Kills single processes of a training on several, and resumes it on another number: `kill_resume.py --processes`.

A run begins on the largest number of processes. At a random moment of a phase, a random process gets SIGKILL, and all
must be gone within 30 seconds. The same command then resumes on a number that is drawn, until the run has ended.

Compared with a run of one process that nobody killed: the images of each step of all processes together, as often as
it was repeated; weights and losses to 1e-5; all further metrics exactly. The network has neither BatchNorm nor dropout.
"""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ATTEMPT, STEPS = "IMAGO_KILL_ATTEMPT", "steps"
SECONDS = 30  # in which all processes of a run must be gone
CLOSE = 1e-5
WORDS = (
    "model=tiny_net",
    "model.net._target_=kill_ranks.Plain",
    "model/optimizer=sgd",
    "data.batch_size=7",  # batches of 7 images and a last one of 5: three processes have 2, 2 and 3, or 2, 3 and none
    "callbacks.resume.every_n_train_steps=1",
    "+callbacks.steps={_target_: kill_ranks.steps}",
    "trainer.strategy=ddp",
)

Step = tuple[int, int]  # epoch, batch


class Plain(nn.Sequential):
    """Two linear layers on 16 x 16 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 24), nn.ReLU(), nn.Linear(24, num_classes))


def steps() -> Any:
    """A callback that notes the images of each step in a file of this process and start of the command."""
    from lightning.pytorch import Callback

    from imago.definitions import STEP_WEIGHT

    class Steps(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            folder = Path(trainer.default_root_dir, STEPS)
            folder.mkdir(exist_ok=True)
            images = batch["index"].tolist() if batch.get(STEP_WEIGHT) != 0 else []
            with (folder / f"{os.environ[ATTEMPT]}_{trainer.global_rank}.jsonl").open("a") as file:
                file.write(json.dumps([trainer.current_epoch, batch_idx, images]) + "\n")

    return Steps()


@dataclass
class RankTally:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)
    changes: int = 0
    runs: int = 0
    steps: int = 0
    lost: int = 0
    different: list[str] = field(default_factory=list)
    slowest: float = 0.0


def images_of_steps(folder: Path) -> list[dict[Step, list[int]]]:
    """For each start of the command: step -> images of all its processes, sorted; the last step may be incomplete."""
    attempts: dict[int, dict[Step, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.jsonl")):
        attempt = int(file.name.partition("_")[0])
        for line in file.read_text().splitlines():
            epoch, batch, images = json.loads(line)
            attempts[attempt][epoch, batch] += images
    return [{step: sorted(images) for step, images in attempts[key].items()} for key in sorted(attempts)]


def wrong_steps(expected: dict[Step, list[int]], attempts: Sequence[dict[Step, list[int]]]) -> tuple[int, list[str]]:
    """How many steps no start of the command has completed, and the steps whose images are others."""
    complete, different = set(), []
    for number, attempt in enumerate(attempts):
        for step, images in attempt.items():
            if images == expected[step]:
                complete.add(step)
            elif step != max(attempt) or Counter(images) - Counter(expected[step]):
                different.append(f"start {number}, step {step}: {images}, not {expected[step]}")
    return len(expected.keys() - complete), different


def processes_of(rank_0: int) -> list[int]:
    """The processes of a run in the order of their ranks, without loader workers."""
    children = [int(pid) for pid in Path(f"/proc/{rank_0}/task/{rank_0}/children").read_text().split()]
    ranks = [pid for pid in children if b"imago.cli.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [rank_0, *sorted(ranks)]


def is_alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill_one(
    started: Any, phase: str, occurrence: int, delay: float, drawn: random.Random
) -> tuple[str, int, float] | None:
    """Kill a random process in a phase. Returns the phase in which it died, its rank, and the seconds until all were
    gone; None if the run had ended before."""
    if not started.wait_for(phase, occurrence, delay):
        return None
    pids = processes_of(started.pid)
    rank = drawn.randrange(len(pids))
    hit, began = started.phase or "between", time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    while any(map(is_alive, pids)) and time.monotonic() - began < 4 * SECONDS:
        started.listen(0.05)
    seconds = time.monotonic() - began
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)
    started.wait()
    return hit, rank, seconds


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Weights and metrics that are not those of the run that nobody killed."""
    weights: dict[str, Tensor] = found["weights"]
    wrong = [
        f"{name}: {float((weights[name] - value).abs().max()):.2g}"
        for name, value in expected["weights"].items()
        if not torch.allclose(weights[name], value, rtol=0, atol=CLOSE)
    ]
    rows = [[json.loads(line) for line in each["epochs"].splitlines()] for each in (found, expected)]
    if len(rows[0]) != len(rows[1]):
        return [*wrong, f"{len(rows[0])} epochs"]
    for row, expected_row in zip(*rows, strict=True):
        for name, value in expected_row.items():
            if abs(row[name] - value) > (CLOSE if "loss" in name else 0):
                wrong.append(f"{name} of epoch {row['epoch']}: {row[name]}, not {value}")
    return wrong


def kill_ranks(
    harness: Any, words: Sequence[str], counts: Sequence[int], kills: int, work: Path, drawn: random.Random
) -> RankTally:
    """Run, kill and resume until `kills` processes have been killed; `harness` is kill_resume.py."""
    tally, began = RankTally(), time.monotonic()
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.environ[ATTEMPT] = "0"
    reference = work / "reference"
    if code := harness.finish([*words, "trainer.devices=1", f"hydra.run.dir={reference}"], work / "reference.log"):
        raise RuntimeError(f"The reference ended with {code}: {(work / 'reference.log').read_text()}")
    expected, (images,) = harness.outcome(reference), images_of_steps(reference / STEPS)
    while sum(tally.kills.values()) < kills:
        folder, log = work / f"killed_{tally.runs}", work / f"killed_{tally.runs}.log"
        count, attempt, history = max(counts), 0, []
        for _ in range(min(kills - sum(tally.kills.values()), drawn.randint(3, 7))):
            os.environ[ATTEMPT], phase = str(attempt), drawn.choice(harness.PHASES)
            command = [*words, f"trainer.devices={count}", f"hydra.run.dir={folder}"]
            started = harness.Started(command, log, fresh=False)
            killed = kill_one(started, phase, drawn.randint(1, 6), drawn.uniform(0, 5 * harness.USUALLY[phase]), drawn)
            started.close()
            if killed is None:
                break  # it had ended
            hit, rank, seconds = killed
            history.append(f"{hit}, rank {rank} of {count}, {seconds:.1f} s")
            tally.kills[hit] += 1
            tally.ranks[rank] += 1
            tally.slowest = max(tally.slowest, seconds)
            before, count, attempt = count, drawn.choice(counts), attempt + 1
            tally.changes += before != count
        os.environ[ATTEMPT] = str(attempt)
        code = harness.finish([*words, f"trainer.devices={count}", f"hydra.run.dir={folder}"], log)
        tally.runs += 1
        if code or json.loads((folder / "status.json").read_text())["status"] != "completed":
            tally.lost += len(images)
            print(f"LOST after {history}: {log.read_text()[-2000:]}", flush=True)
            continue
        attempts = images_of_steps(folder / STEPS)
        lost, different = wrong_steps(images, attempts)
        tally.steps += sum(map(len, attempts))
        tally.lost += lost
        tally.different += [
            f"{folder.name}: {what}" for what in different + differences(harness.outcome(folder), expected)
        ]
        print(f"{folder.name}: {history}, then {count}: {lost} lost, {len(tally.different)} different", flush=True)
        shutil.rmtree(folder)
    print(f"{time.monotonic() - began:.0f} s")
    return tally


def show_ranks(tally: RankTally) -> int:
    """Print the row of docs/reliability.md; returns the exit status."""
    print(f"\nkilled in {dict(tally.kills)}, ranks {dict(tally.ranks)}")
    print(
        f"{sum(tally.kills.values())} kills in {tally.runs} runs, {tally.changes} times another number of processes, "
        f"{tally.steps} steps: {tally.lost} lost, {len(tally.different)} different; all processes were gone within "
        f"{tally.slowest:.1f} s"
    )
    print(*tally.different, sep="\n")
    return int(bool(tally.lost or tally.different or tally.slowest > SECONDS))
