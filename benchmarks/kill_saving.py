"""Kills a process while it saves checkpoints, again and again, and counts those that cannot be read afterwards.

SIGKILL, at a random moment of saving a 25 MB checkpoint over the one before, with the temporary folder of the system on
another file system than the checkpoint. After each kill `last.ckpt` and the one before have to be whole, to the last
checksum, and to hold one of the states that were being written.

    python benchmarks/kill_saving.py                # 1,000 kills
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the saving process is forked
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

from imago.checkpoint.read import PREVIOUS
from imago.checkpoint.write import WholeFileCheckpointIO, check_whole


def save_for_ever(path: Path, numbers: int, begun: int) -> None:
    io = WholeFileCheckpointIO()
    while True:
        os.write(begun, b".")
        state = {"weights": torch.full((numbers,), time.monotonic())}
        io.save_checkpoint({"state_dict": state}, path, {"keep": PREVIOUS})


def is_whole(path: Path) -> bool:
    try:
        check_whole(path)
        weights = torch.load(path, weights_only=True)["state_dict"]["weights"]
    except Exception as error:
        print(f"{path.name}: {error}")
        return False
    return bool((weights == weights[0]).all())


def main(arguments: Sequence[str] | None = None) -> dict[str, int]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--megabytes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    drawn = random.Random(given.seed)
    counts = {"kills": 0, "in the middle of a file": 0, "unreadable": 0}
    with tempfile.TemporaryDirectory() as folder:
        if Path("/dev/shm").is_dir():
            os.environ["TMPDIR"] = "/dev/shm"
        path = Path(folder, "last.ckpt")
        WholeFileCheckpointIO().save_checkpoint({"state_dict": {"weights": torch.zeros(9)}}, path)
        begun = time.monotonic()
        WholeFileCheckpointIO().save_checkpoint(
            {"state_dict": {"weights": torch.zeros(int(given.megabytes * 250_000))}}, path
        )
        usual = time.monotonic() - begun
        for _ in range(given.kills):
            read, write = os.pipe()
            numbers = int(given.megabytes * 250_000)
            saving = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path, numbers, write))
            saving.start()
            for _ in range(drawn.randint(1, 2)):
                os.read(read, 1)
            time.sleep(drawn.uniform(0, 1.2 * usual))
            assert saving.pid is not None
            os.kill(saving.pid, signal.SIGKILL)
            saving.join()
            os.close(read)
            os.close(write)
            left_over = list(Path(folder).glob(".*.tmp"))
            counts["kills"] += 1
            counts["in the middle of a file"] += bool(left_over)
            there = [each for each in (path, path.with_name(PREVIOUS)) if each.exists()]
            counts["unreadable"] += path not in there or not all(map(is_whole, there))
            for each in left_over:
                each.unlink()
    return counts


if __name__ == "__main__":
    found = main()
    print(", ".join(f"{count} {what}" for what, count in found.items()))
    sys.exit(int(found["unreadable"] > 0))
