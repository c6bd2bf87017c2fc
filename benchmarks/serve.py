"""Loads `ml-serve` over the loopback device: throughput, latency, overload, memory, and bodies that are no images.

The peer is the service that docs/inference.md shows: FastAPI and uvicorn, one image per request, no batches. Both serve
the same checkpoint to the same clients, in turns: connections of one process, each of which sends its next request when
it has the answer.

    python benchmarks/serve.py                       # a ResNet-18 at 224 pixels, with random weights
    python benchmarks/serve.py --net small           # a small network at 16 pixels
    python benchmarks/serve.py --net small --only memory fuzz
    python benchmarks/serve.py --only throughput --weight 40960     # on a busy machine with cgroups v1, as root
"""

import argparse
import asyncio
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
NAIVE = """
import sys
import imago
import uvicorn
from fastapi import Body, FastAPI, HTTPException

app, classifier = FastAPI(), imago.load_classifier(sys.argv[1])

@app.post("/predict")
def predict(image: bytes = Body()) -> dict[str, float]:
    prediction = classifier.predict(image, on_error="return")
    if prediction.error is not None:
        raise HTTPException(422, prediction.error)
    return dict(prediction.top)

@app.get("/health")
def health() -> str:
    return "ok"

uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""
NETS = {
    "resnet18": ["model=torchvision", "model.net.name=resnet18", "model.net.weights=null", "data.image_size=224"],
    "small": ["model=simple_cnn", "data.image_size=16"],
}
PORT, BOUNDARY = 8790, "b0undary"
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
TIMEOUT_S = 120


def photograph(seed: int, size: tuple[int, int], kind: str = "JPEG") -> bytes:
    """A smooth picture with some noise, as a file."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size)
    noise = generator.integers(-8, 8, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def form(files: Sequence[tuple[bytes, bytes]], end: bytes = b"--") -> bytes:
    """The body of a form with files (header lines, content)."""
    parts = [b"--%s\r\n%s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), head, content) for head, content in files]
    return b"".join([*parts, b"--", BOUNDARY.encode(), end, b"\r\n"])


def fuzzed(seed: int) -> tuple[str, bytes]:
    """A body that is damaged somewhere, and its content type."""
    drawn = random.Random(seed)
    content = bytearray(photograph(seed % 7, (40, 30), FORMATS[seed % len(FORMATS)]))
    how = drawn.randrange(4)
    if how == 0:
        content = content[: drawn.randrange(len(content))]
    elif how == 1:
        content = bytearray(drawn.randbytes(drawn.randrange(2000)))
    else:
        for _ in range(drawn.choice((1, 3, 30))):
            content[drawn.randrange(min(len(content), drawn.choice((40, 400, 10**6))))] = drawn.randrange(256)
    if drawn.random() < 0.5:
        kind = drawn.choice(("image/png", "application/octet-stream", "application/x-www-form-urlencoded", "x"))
        return kind, bytes(content)
    name = drawn.choice((b"a.jpg", b"../../etc/passwd", b"\xff\x00\n", b"x" * 3000, b'"', b"", "ü".encode()))
    heads = [b'Content-Disposition: form-data; name="images"; filename="%s"' % name]
    heads += [b'Content-Disposition: form-data; name="images"', b"Content-Disposition: form-data", b"", b":" * 50]
    files = [(drawn.choice(heads), bytes(content)) for _ in range(drawn.choice((0, 1, 1, 2, 40)))]
    body = bytearray(form(files, drawn.choice((b"--", b""))))
    if drawn.random() < 0.5:
        body[drawn.randrange(min(len(body), 200))] = drawn.randrange(256)
    kinds = (f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data", "multipart/form-data; boundary=")
    kinds += (f"multipart/form-data; boundary={BOUNDARY}; charset=none", f"multipart/form-data; boundary={'x' * 5000}")
    return drawn.choice(kinds[:1] * 4 + kinds), bytes(body)


def request(content: bytes, kind: str = "image/jpeg") -> bytes:
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Client:
    """A connection that is opened again when the server has closed it. `answers` has (status, seconds), and status 0
    where no answer came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.answers: list[tuple[int, float]] = []

    async def send(self, message: bytes) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._status_of(message)
        except (OSError, EOFError, TimeoutError):
            status, self.streams = 0, None
        self.answers.append((status, time.perf_counter() - began))

    async def _status_of(self, message: bytes) -> int:
        self.streams = self.streams or await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        if b"connection: close" in head:
            writer.close()
            self.streams = None
        return int(head.split()[1])


async def load(port: int, messages: Callable[[int], bytes], count: int, clients: int) -> list[tuple[int, float]]:
    """Send `count` requests on `clients` connections; returns status and seconds of each."""
    numbers = iter(range(count))

    async def work(client: Client) -> None:
        for number in numbers:
            await client.send(messages(number))

    connections = [Client(port) for _ in range(clients)]
    await asyncio.gather(*map(work, connections))
    return [answer for client in connections for answer in client.answers]


@contextmanager
def running(words: Sequence[str], port: int) -> Iterator[int]:
    """The server that `words` start, as its process id, from its first answer on. SIGTERM ends it."""
    command = [sys.executable, "-W", "ignore", *words]
    # in a session of its own, Linux gives it a share of a busy machine that does not depend on its number of threads
    process = subprocess.Popen(command, cwd=REPO, env=environment(), start_new_session=True)
    weigh(process.pid, str(port))
    try:
        for _ in range(1200):
            assert process.poll() is None, "the server has ended"
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def weigh(pid: int, name: str) -> None:
    """With --weight, give a process a control group of its own, before it starts threads."""
    if "WEIGHT" in os.environ:
        group = Path("/sys/fs/cgroup/cpu", f"serve_{name}")
        group.mkdir(exist_ok=True)
        (group / "cpu.shares").write_text(os.environ["WEIGHT"])
        (group / "cgroup.procs").write_text(str(pid))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO / "src")}


def batching(checkpoint: Path, folder: Path, *settings: str) -> Any:
    words = [f"ckpt_path={checkpoint}", f"port={PORT}", f"paths.log_dir={folder}/logs", *settings]
    return running(["-m", "imago.serve", *words], PORT)


def naive(checkpoint: Path) -> Any:
    return running(["-c", NAIVE, str(checkpoint), str(PORT + 1)], PORT + 1)


def trained(net: str, folder: Path) -> Path:
    """The folder of a short run on a few pictures: the weights do not matter."""
    for number in range(24):
        file = folder / "data" / f"class_{number % 3}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photograph(number, (64, 64)))
    words = [f"data.data_dir={folder}/data", *NETS[net], "trainer.max_epochs=1", "logger=[]", "test=false"]
    words += ["data.num_workers=0", "data.batch_size=8", f"hydra.run.dir={folder}/run", "trainer.accelerator=cpu"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "imago.train", *words],
        cwd=REPO, env=environment(), check=True, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    return folder / "run"


def describe(answers: Sequence[tuple[int, float]], seconds: float) -> dict[str, Any]:
    times = np.array([time for status, time in answers if status == 200]) * 1000
    p50, p99 = np.percentile(times, (50, 99)) if len(times) else (0, 0)
    statuses = dict(sorted(Counter(status for status, _ in answers).items()))
    return {
        "per second": round(len(times) / seconds, 1),
        "p50 ms": round(p50),
        "p99 ms": round(p99),
        "answers": statuses,
    }


def timed(port: int, messages: Callable[[int], bytes], count: int, clients: int, pid: int = 0) -> dict[str, Any]:
    began, before = time.perf_counter(), cpu_seconds(pid)
    answers = asyncio.run(load(port, messages, count, clients))
    cpu = 1000 * (cpu_seconds(pid) - before) / count
    return describe(answers, time.perf_counter() - began) | ({"CPU ms": round(cpu, 1)} if pid else {})


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far: other work on the machine changes it little."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(checkpoint: Path, folder: Path, options: argparse.Namespace) -> None:
    contents = [request(photograph(seed, options.size)) for seed in range(16)]
    results: dict[str, list[dict[str, Any]]] = {"ml-serve": [], "naive": []}
    with batching(checkpoint, folder, *options.more) as ours, naive(checkpoint) as theirs:
        for turn in range(options.turns):
            for name, port, pid in (("ml-serve", PORT, ours), ("naive", PORT + 1, theirs)):
                timed(port, lambda n: contents[n % 16], options.clients * 2, options.clients)  # warm
                results[name].append(timed(port, lambda n: contents[n % 16], options.count, options.clients, pid))
                print(f"turn {turn} {name}: {results[name][-1]}", flush=True)
    for key in ("per second", "p50 ms", "p99 ms", "CPU ms"):
        a, b = ([turn[key] for turn in results[name]] for name in results)
        ratio = median(x / y for x, y in zip(a, b, strict=True))
        print(f"{key}: {median(a)} against {median(b)}, ratio {ratio:.2f} (n = {options.turns})")


def overload(checkpoint: Path, folder: Path, options: argparse.Namespace) -> None:
    contents = [request(photograph(seed, options.size)) for seed in range(16)]
    with batching(checkpoint, folder, f"max_in_flight={options.clients}"):
        result = timed(PORT, lambda n: contents[n % 16], 4 * options.count, 4 * options.clients)
    print(f"4 x overload, {4 * options.clients} clients, {options.clients} in flight: {result}", flush=True)


def resident(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def memory(checkpoint: Path, folder: Path, options: argparse.Namespace) -> None:
    contents = [request(photograph(seed, options.size)) for seed in range(16)]
    with batching(checkpoint, folder) as pid:
        for number in range(11):
            print(f"memory after {1000 * number} requests: {resident(pid):.0f} MB", flush=True)
            if number < 10:
                asyncio.run(load(PORT, lambda n: contents[n % 16], 1000, options.clients))


def fuzz(checkpoint: Path, folder: Path, options: argparse.Namespace) -> None:
    good = request(photograph(0, options.size))
    with batching(checkpoint, folder) as pid:
        timed(PORT, lambda _: good, 50, 4)
        before = resident(pid)
        result = timed(PORT, lambda n: request(*reversed(fuzzed(n))), options.bodies, 8)  # type: ignore[arg-type]
        after = timed(PORT, lambda _: good, 50, 4)
        with urlopen(f"http://127.0.0.1:{PORT}/health") as health:
            state = json.load(health)
        print(
            f"{options.bodies} fuzzed bodies: {result}; {before:.0f} to {resident(pid):.0f} MB; then {after}, {state}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", choices=NETS, default="resnet18")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--count", type=int, default=400, help="requests of a turn")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 400), help="width and height of the images")
    parser.add_argument("--more", nargs="*", default=[], help="settings of ml-serve, for the throughput")
    parts = {"throughput": throughput, "overload": overload, "memory": memory, "fuzz": fuzz}
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--weight", type=int, help="cpu.shares of each server, and of the clients")
    options = parser.parse_args(arguments)
    options.size = tuple(options.size)
    if options.weight is not None:
        os.environ["WEIGHT"] = str(options.weight)
        weigh(os.getpid(), "clients")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = trained(options.net, Path(folder))
        for name in options.only:
            parts[name](checkpoint, Path(folder), options)


if __name__ == "__main__":
    main()
