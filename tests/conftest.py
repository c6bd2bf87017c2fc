"""Fixtures: data, folders, and the commands as a person types them, in process."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from helpers import HYMENOPTERA, SMALL, Command, Run, draw_classes, type_command

from imago.definitions import STOPPING

MEMORY = Path("/dev/shm")


def pytest_configure() -> None:
    """A run writes some ninety files durably; where memory can hold them, this takes no time."""
    gc.set_threshold(100_000, 20, 100)  # there are a million objects, and most stay
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to Ctrl-C
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries report all that is set aside as leaked


@pytest.fixture(autouse=True)
def hearing() -> Iterator[None]:
    """A command ends as a program does, deaf to further signals; the next test hears them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *STOPPING)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    more += ["plots.format=png"]
    overrides = [f"data.data_dir={colours}", *SMALL, *more, f"paths.log_dir={folder}/logs"]
    return type_command("train", overrides, folder / "run")
