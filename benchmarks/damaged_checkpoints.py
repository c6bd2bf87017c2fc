"""Damaged copies of a checkpoint: each has to be refused in one sentence, or read exactly as it was written.

Half of the damages are flipped bits (two thirds of these in the zip's directory and headers, where no checksum is),
half are files that end too early.

    python benchmarks/damaged_checkpoints.py --tries 2000
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from kill_resume import equal

ROOT = Path(__file__).resolve().parent.parent
HEADERS = (b"PK\x03\x04", b"PK\x07\x08")
HEADER_BYTES = 60


def unchecked(content: bytes) -> list[int]:
    """Where bytes stand that no checksum covers."""
    places = list(range(content.index(b"PK\x01\x02"), len(content)))
    starts = [start for start in range(len(content)) if content.startswith(HEADERS, start)]
    return places + [place for start in starts for place in range(start, min(start + HEADER_BYTES, len(content)))]


def damaged(content: bytes, places: list[int], chance: random.Random, number: int) -> bytes:
    """A copy that is cut off, or has one flipped bit."""
    if number % 2:
        return content[: chance.randrange(len(content))]
    copy = bytearray(content)
    place = chance.choice(places) if number % 3 else chance.randrange(len(content))
    copy[place] ^= 1 << chance.randrange(8)
    return bytes(copy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IMAGO_KEY_FILE"] = f"{folder}/key"
        words = [
            "experiment=digits",
            "model=tiny_net",
            "trainer=cpu",
            "trainer.max_epochs=1",
            "logger=[]",
            "test=false",
        ]
        command = [sys.executable, str(ROOT / "src" / "train.py"), *words, f"hydra.run.dir={folder}/run"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        from imago.checkpoint.read import read_checkpoint

        source, copy = Path(folder, "run", "checkpoints", "last.ckpt"), Path(folder, "copy.ckpt")
        content, right = source.read_bytes(), read_checkpoint(source)
        places, chance = unchecked(content), random.Random(options.seed)
        counts = {"refused": 0, "read as it was written": 0, "silently wrong": 0, "another error": 0}
        for number in range(options.tries):
            copy.write_bytes(damaged(content, places, chance, number))
            try:
                outcome = "read as it was written" if equal(read_checkpoint(copy), right) else "silently wrong"
            except ValueError as error:
                outcome = "refused" if str(error).startswith(f"ckpt_path={copy} ") else "another error"
            except Exception:
                outcome = "another error"
            counts[outcome] += 1
    print("| outcome | files |\n| --- | --- |")
    for outcome, files in counts.items():
        print(f"| {outcome} | {files} |")


if __name__ == "__main__":
    main()
