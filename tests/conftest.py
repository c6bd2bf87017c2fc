"""Runs the commands in process, as a person types them, on small images that the tests draw themselves."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, one core each: before torch counts them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image

REPO = Path(__file__).resolve().parent.parent
sys.path.append(str(REPO / "benchmarks"))
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
)


@dataclass
class Run:
    """What a command left behind."""

    dir: Path
    exit_code: int
    output: str

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


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in train/ (14, 12 and 13 images) and val/ (5 each); no test/. Not to be changed."""
    root = tmp_path_factory.mktemp("colours")
    draw_classes(root / "train", {"blue": 14, "green": 12, "red": 13})
    draw_classes(root / "val", {"blue": 5, "green": 5, "red": 5}, seed=1)
    return root


@pytest.fixture
def own_colours(colours: Path, tmp_path: Path) -> Path:
    """A copy of `colours` that a test may spoil."""
    return Path(shutil.copytree(colours, tmp_path / "own_colours"))


@pytest.fixture(scope="session")
def hymenoptera() -> Path:
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"the photographs of ants and bees are not at {HYMENOPTERA}")
    return HYMENOPTERA


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`paths.data_dir` of all runs: the digits are written once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session", autouse=True)
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints are signed with a key of the tests, not with that of whoever runs them."""
    file = tmp_path_factory.mktemp("config") / "key"
    os.environ["IMAGO_KEY_FILE"] = str(file)
    return file


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reaches the network, and torch's hub cache starts empty."""

    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network in the tests")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))


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
        patch.setattr("rich._console", None)  # the next one prints to what is stdout now
        try:
            module = name if Path(f"{name}.py").is_file() else f"imago.{name}"
            sys.path.append(os.getcwd())
            import_module(module).main()
        except SystemExit as stop:
            code = stop.code
    for path in folder.glob("checkpoints/*.ckpt"):  # whatever happened: whole, and plain types only
        assert torch.load(path, map_location="cpu", weights_only=True)["imago"]["schema"] == 2
    words = output.getvalue() + (code if isinstance(code, str) else "")
    return Run(folder, 1 if isinstance(code, str) else code or 0, words)


def type_in_subprocess(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Types `python src/train.py <words>` in a process of its own, which runs `code` first."""
    start = f"{code}\nimport runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", start, "src/train.py", *words],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO / "tests"), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
        start_new_session=True,  # signals to its group are not for the tests
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is born deaf to Ctrl-C
    )


def size_of(batch: dict[str, Any]) -> int:
    """Images of a batch, for callbacks that ask for them."""
    return len(batch["label"])


Command = Callable[..., Run]


@pytest.fixture
def command(tmp_path: Path, data_dir: Path) -> Command:
    """`command("train", *overrides)`: data, caches and logs stand in temporary folders."""
    folders = iter(range(1000))

    def run_it(name: str, *overrides: str, folder: Path | None = None) -> Run:
        paths = [f"paths.data_dir={data_dir}", f"paths.cache_dir={tmp_path}/cache", f"paths.log_dir={tmp_path}/logs"]
        return type_command(name, [*paths, *overrides], folder or tmp_path / f"run_{next(folders)}")

    return run_it


@pytest.fixture
def train(command: Command, colours: Path) -> Command:
    """Trains a tiny network for two epochs on `colours`, unless the overrides say otherwise."""

    def run_it(*overrides: str, folder: Path | None = None) -> Run:
        return command("train", f"data.data_dir={colours}", *SMALL, *overrides, folder=folder)

    return run_it


@pytest.fixture(scope="session")
def trained(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with all that is on by default, and the CSV logger. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    more = ["logger=[tensorboard,csv]", "report.splits=[train,val,test]", "trainer.max_epochs=6", "tags=[spring,leaf]"]
    overrides = [f"data.data_dir={colours}", *SMALL, *more, f"paths.log_dir={folder}/logs"]
    return type_command("train", overrides, folder / "run")
