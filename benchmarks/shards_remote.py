"""Training from shards at a URL that fails, killed twice, against one from the local shards that nobody disturbed.

Draws JPEGs of 48 pixels, writes them into shards, and serves these by an HTTP server of which some answers are dropped,
cut or delayed. A run of `data.shards=http://127.0.0.1:PORT/` is ended by SIGKILL in the middle of training, twice, and
resumed each time. Compared, to the bit: weights and optimizer of `last.ckpt`, and the metrics of the epochs.

    python benchmarks/shards_remote.py --images 100000
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "src"), str(REPO / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from kill_resume import equal  # noqa: E402
from PIL import Image  # noqa: E402

CLASSES, VAL = 10, 500
FAULTS = ("drop", "cut", "delay")
WORDS = (
    "model=simple_cnn",
    "data=shards",
    "data.image_size=48",
    "data.batch_size=64",
    "data.num_workers=1",
    "data.cache=none",
    "trainer.accelerator=cpu",
    "callbacks.early_stopping=null",
    "callbacks.resume.every_n_train_steps=10",
    "logger=[]",
    "report.splits=[val]",
)


def draw(root: Path, count: int) -> Path:
    """Draw coarse random images, tinted by their class, as JPEGs of 48 pixels."""
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", VAL)):
        for label in range(CLASSES):
            (root / split / f"class_{label}").mkdir(parents=True)
        for number in range(images):
            label = number % CLASSES
            tint = np.array([5 * label, 50 - 5 * label, 3 * label])
            coarse = generator.integers(0, 200, (6, 6, 3)) + tint
            picture = Image.fromarray(coarse.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
            file = BytesIO()
            picture.save(file, "JPEG", quality=85)
            (root / split / f"class_{label}" / f"{number:06d}.jpg").write_bytes(file.getvalue())
    return root


class Server(ThreadingHTTPServer):
    """Serves a folder; a share of the answers with tars fails, in a drawn way."""

    daemon_threads = True

    def __init__(self, folder: Path, share: float) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.share = folder, share
        self.drawn, self.lock = random.Random(0), threading.Lock()
        self.counts: Counter[str] = Counter()

    def handle_error(self, *_: Any) -> None:
        """Connections of killed runs break."""


class Answer(BaseHTTPRequestHandler):
    """One answer of the server."""

    server: Server

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        file = self.server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        with self.server.lock:
            is_faulty = name.endswith(".tar") and self.server.drawn.random() < self.server.share
            fault = self.server.drawn.choice(FAULTS) if is_faulty else "whole"
            self.server.counts[fault] += 1
        if fault == "drop":
            self.close_connection = True
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "delay":
            time.sleep(0.5)
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = fault == "cut"


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(REPO / "src" / "train.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(REPO / "src"), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def step_of(folder: Path) -> int:
    """Step of the last checkpoint; 0 before the first."""
    try:
        return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, mmap=True)["global_step"])
    except (OSError, RuntimeError, EOFError):
        return 0


def kill_beyond(step: int, process: subprocess.Popen[bytes], folder: Path) -> int:
    """Kill a run by SIGKILL a moment after it has saved `step`; returns the step of its last checkpoint."""
    while step_of(folder) < step:
        if process.poll() is not None:
            sys.exit(f"The run ended with {process.returncode} before step {step}: see the log in {folder.parent}")
        time.sleep(0.2)
    time.sleep(random.Random(step).uniform(0, 0.5))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return step_of(folder)


def outcome(folder: Path) -> dict[str, Any]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"weights": checkpoint["state_dict"], "optimizer": checkpoint["optimizer_states"], "epochs": epochs}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--shards", type=int, default=40, help="about so many")
    parser.add_argument("--share", type=float, default=0.3, help="of the answers that fail")
    parser.add_argument("--work", type=Path, help="folder that is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        return compare(options, work)


def compare(options: argparse.Namespace, work: Path) -> int:
    clock = time.monotonic()

    def said(what: str) -> None:
        print(f"{time.monotonic() - clock:6.0f} s  {what}", flush=True)

    photos, shards = draw(work / "photos", options.images), work / "shards"
    said(f"{options.images:,} images of 48 pixels drawn")
    size = options.images * 3.6e-3 / options.shards  # MB: 1.1 kB, padded, and 1.5 kB of headers and label
    words = [str(photos), "--output", str(shards), "--shard-mb", f"{size:.3f}"]
    subprocess.run([sys.executable, "-c", "from imago.shard import main; main()", *words], check=True, cwd=REPO / "src")
    said(f"{len(list(shards.glob('train-*.tar')))} shards of train written")
    with Server(shards, options.share) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, run, log = f"http://127.0.0.1:{server.server_port}", work / "killed", work / "killed.log"
        shared = [*WORDS, f"data.window={options.window}", f"trainer.max_steps={options.steps}"]
        paths = [f"paths.cache_dir={work}/cache", f"paths.log_dir={work}/logs"]
        process = start([*shared, *paths, f"data.shards={url}", f"hydra.run.dir={run}"], log)
        for part in (1, 2):
            step = kill_beyond(part * options.steps // 3, process, run)
            said(f"killed; its last checkpoint has step {step} of {options.steps}")
            process = start([f"resume={run}", *paths, f"hydra.run.dir={run}"], log)
        if process.wait():
            sys.exit(f"The resumed run ended with {process.returncode}: {log.read_text()[-2000:]}")
        said(f"done; answers of the server: {dict(server.counts)}")
        server.shutdown()
    whole = start([*shared, *paths, f"data.shards={shards}", f"hydra.run.dir={work}/whole"], work / "whole.log")
    if whole.wait():
        sys.exit(
            f"The run that nobody killed ended with {whole.returncode}: {(work / 'whole.log').read_text()[-2000:]}"
        )
    said("the run from the local shards, which nobody killed, is done")
    given, expected = outcome(run), outcome(work / "whole")
    different = [name for name in expected if not equal(given[name], expected[name])]
    print(f"different: {', '.join(different)}" if different else "weights, optimizer and metrics: equal to the bit")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
