"""What test modules share: commands typed in process or in one of their own, and images that are drawn."""

import atexit
import csv
import gc
import io
import json
import os
import re
import runpy
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, one core each: before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from forked_ranks import SUBPROCESS, fork_context
from hydra._internal.hydra import Hydra
from matplotlib.figure import Figure
from PIL import Image, ImageCms

from imago import shard
from imago.cli.hydra_internals import interpolations_parsed_once

PARSED_ONCE = interpolations_parsed_once()
PARSED_ONCE.__enter__()  # in tests that compose without a command, too, and in forks

REPO = Path(__file__).resolve().parent.parent
HYMENOPTERA = REPO.parent / "shared" / "data" / "hymenoptera_data"
SMALL = (
    "model=tiny_net",
    "data.image_size=16",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "logger=[]",
    "report.splits=[test]",
    "plots.format=svg",  # which `type_command` and `type_in_subprocess` do not draw
)


@dataclass
class Run:
    """What a command left behind."""

    dir: Path
    exit_code: int
    output: str

    @property
    def error(self) -> str:
        """What went wrong: in `status.json`, or on the console where it was refused before it had a folder."""
        if (self.dir / "status.json").is_file():
            return str(self.json("status.json")["error"])
        return re.split(r"Error: |ERROR +", self.output, maxsplit=1)[-1]

    def json(self, name: str) -> Any:
        return json.loads((self.dir / name).read_text())

    def text(self, name: str) -> str:
        return (self.dir / name).read_text()

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        return torch.load(self.dir / "checkpoints" / f"{name}.ckpt", weights_only=True)

    def weights(self, name: str = "last") -> dict[str, torch.Tensor]:
        return self.checkpoint(name)["state_dict"]

    @property
    def history(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.text("metrics.jsonl").splitlines()]

    @property
    def last_line(self) -> str:
        return self.output.strip().splitlines()[-1]


def draw_classes(root: Path, counts: dict[str, int], seed: int = 0, size: int = 20) -> Path:
    """A tree `root/<class>/<n>.png`; the classes differ in colour, the images in noise."""
    colours = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = generator.integers(-40, 40, (size, size + number % 5, 3))
            pixels = np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")
    return root


_modules_set_aside = [0]


def _set_aside_what_is_imported() -> None:
    """Else the garbage collector walks through all modules again in every third run, for half a second."""
    if len(sys.modules) > _modules_set_aside[0] + 100:
        _modules_set_aside[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


def save_figure(figure: Figure, file: Any, **options: Any) -> None:
    """The figures of a run are made, but an svg is not drawn, which would take a third of a short run."""
    Path(file).write_text("<svg/>") if options.get("format") == "svg" else draw_figure(figure, file, **options)


draw_figure = Figure.savefig


def _compose_once(patch: pytest.MonkeyPatch, overrides: Sequence[str]) -> None:
    """Hydra composes everything once more for `hydra.mode`: an eighth of a short run."""
    if not any(word.startswith(("-", "hydra", "hparams_search")) for word in overrides):
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)


def type_command(name: str, overrides: Sequence[str], folder: Path) -> Run:
    """Types `python src/<name>.py <overrides>`, in this process."""
    output = io.StringIO()
    where = [] if "-m" in overrides else [f"hydra.run.dir={folder}"]
    code: int | str | None = 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        folders = [
            word for word in overrides if word.startswith("--config-dir")
        ]  # argparse wants these before the others
        patch.setattr(sys, "argv", [f"src/{name}.py", *folders, *where, *(w for w in overrides if w not in folders)])
        patch.setattr(sys, "path", list(sys.path))
        _compose_once(patch, overrides)
        patch.setattr(Figure, "savefig", save_figure)
        patch.setattr("imago.cli.processes.subprocess", SUBPROCESS)
        patch.setattr("rich._console", None)  # the next one prints to what is stdout now
        try:
            module = name if Path(f"{name}.py").is_file() else f"imago.{name}"
            sys.path.append(os.getcwd())
            import_module(module).main()
        except SystemExit as stop:
            code = stop.code
    for path in folder.glob("checkpoints/*.ckpt"):  # whatever happened: whole, and plain types only
        assert "imago" in torch.load(path, map_location="cpu", weights_only=True)
    _set_aside_what_is_imported()
    words = output.getvalue() + (code if isinstance(code, str) else "")
    return Run(folder, 1 if isinstance(code, str) else code or 0, words)


def type_shard(*words: object) -> None:
    """Types `ml-shard <words>`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ml-shard", *map(str, words)])
        patch.setattr("rich._console", None)
        shard.main()


def _in_a_fork(words: Sequence[str], code: str, environment: dict[str, str], folder: Path, script: str) -> None:
    """The process of `type_in_subprocess`: a session, standard streams, environment and handlers of its own."""
    os.setsid()  # signals to its group are not for the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to Ctrl-C
    os.chdir(REPO)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        setattr(sys, name, io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), write_through=True))
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    Figure.savefig = save_figure
    sys.argv = ["-c", script, *words]
    try:
        exec(code, {"__name__": "__main__"})
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def start_in_subprocess(folder: Path, *words: str, code: str = "", script: str = "src/train.py") -> BaseProcess:
    """Starts `python <script> <words>`, as `type_in_subprocess` does. `folder` gets the files stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(REPO / "tests"), "PYTHONWARNINGS": "ignore"}
    process = fork_context().Process(target=_in_a_fork, args=(words, code, environment, folder, script))
    process.start()
    return process


def type_in_subprocess(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Types `python src/train.py <words>` in a process of its own, which runs `code` first.

    It is forked from one that has only imported what a run imports, which saves three seconds each time.
    """
    with TemporaryDirectory() as folder:
        process = start_in_subprocess(Path(folder), *words, code=code)
        process.join(timeout=600)
        assert process.exitcode is not None, "it has not ended after 10 minutes"
        said = [Path(folder, name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, process.exitcode, *said)


def type_in_new_interpreter(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The same in an interpreter that has imported nothing before."""
    start = f"{code}\nimport runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", start, "src/train.py", *words],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO / "tests"), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def size_of(batch: dict[str, Any]) -> int:
    """Images of a batch, for callbacks that ask for them."""
    return len(batch["label"])


Command = Callable[..., Run]


def rows(run: Run, split: str) -> list[dict[str, str]]:
    with (run.dir / "reports" / f"predictions_{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def write_idx(path, values):
    """The format of MNIST's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def write_mnist(root):
    """A tiny MNIST: the height of a bright bar is the digit."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 400), ("t10k", 60)):
        digits = np.arange(count) % 10
        images = generator.integers(0, 60, (count, 28, 28))
        for image, digit in zip(images, digits, strict=True):
            image[2 * digit : 2 * digit + 6, 4:20] = 230
        write_idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", digits)


def photograph(seed: int, size: int = 96) -> Image.Image:
    """Something smooth, unlike noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def swapped_profile() -> bytes:
    """A colour profile that takes red for green."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"XXXX").replace(b"gXYZ", b"rXYZ").replace(b"XXXX", b"gXYZ")


def damaged_jpeg() -> bytes:
    """A photograph that decoders read with wrong pixels from its middle on."""
    file = io.BytesIO()
    photograph(1).save(file, "JPEG")
    content = bytearray(file.getvalue())
    middle = len(content) * 2 // 3
    content[middle : middle + 4] = b"\xff\xd0\xff\xd0"
    return bytes(content)
