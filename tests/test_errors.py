"""Users' mistakes, typed as they are made; docs/errors.md is what is printed (`make docs` writes it)."""

import os
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import REPO, SMALL, draw_classes

PAGE = REPO / "docs" / "errors.md"
MOST_LINES = 10


@dataclass
class Mistake:
    """`words` are typed after `python src/train.py`; WORK stands for a folder that `prepare` fills."""

    title: str
    words: Sequence[str]
    prepare: Callable[[Path], object] = lambda work: None
    made_before_a_run: bool = False
    most_bytes: int | None = None  # of a file: stands in for a full disk


def classes(work: Path, **counts: int) -> None:
    draw_classes(work / "photos", counts)


def unknown_class(work: Path) -> None:
    draw_classes(work / "photos" / "train", {"blue": 4, "red": 4})
    draw_classes(work / "photos" / "val", {"green": 4, "red": 4})


def class_without_images(work: Path) -> None:
    classes(work, blue=4, red=4)
    (work / "photos" / "green").mkdir()


def cut_image(work: Path) -> None:
    classes(work, blue=12, red=12)
    for path in (work / "photos" / "blue").glob("00[0-2].png"):
        path.write_bytes(path.read_bytes()[:60])


def own_experiment(text: str) -> Callable[[Path], None]:
    def write(work: Path) -> None:
        (work / "my_configs" / "experiment").mkdir(parents=True)
        (work / "my_configs" / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)

    return write


def finished_run(work: Path) -> None:
    (work / "run").mkdir()
    (work / "run" / "status.json").write_text('{"status": "completed"}')


def damaged_checkpoint(work: Path) -> None:
    (work / "best.ckpt").write_bytes(b"PK half a file")


PHOTOS = "data.data_dir=WORK/photos"
GOOD = {"prepare": lambda work: classes(work, blue=8, red=8)}
MISTAKES = [
    Mistake("No data", ["data=image_folder"]),
    Mistake("A folder that does not exist", ["data.data_dir=/photos"]),
    Mistake("A folder without class folders", [PHOTOS], lambda work: (work / "photos").mkdir(), made_before_a_run=True),
    Mistake("One class", [PHOTOS], lambda work: classes(work, blue=4), made_before_a_run=True),
    Mistake("A class folder without images", [PHOTOS], class_without_images, made_before_a_run=True),
    Mistake("A class in val that is missing in train", [PHOTOS], unknown_class, made_before_a_run=True),
    Mistake("An image that cannot be read", [PHOTOS, *SMALL], cut_image, made_before_a_run=True),
    Mistake("A head on a network without pretrained weights", [PHOTOS, *SMALL, "model.probe=only"], **GOOD),
    Mistake("A typo in a key", ["data.batchsize=64"], made_before_a_run=True),
    Mistake("A key without its group", ["batch_size=64"], made_before_a_run=True),
    Mistake(
        "An argument of the Trainer that is not in the config", ["trainer.inference_mode=false"], made_before_a_run=True
    ),
    Mistake("A typo in a group", ["trainr=gpu"], made_before_a_run=True),
    Mistake("A typo in an option", ["experiment=digit"], made_before_a_run=True),
    Mistake("A group set to null", ["logger=null"], made_before_a_run=True),
    Mistake("A wrong type", ["experiment=digits", "trainer.max_epochs=many"]),
    Mistake("A wrong type of a top-level setting", ["seed=abc"], made_before_a_run=True),
    Mistake("A batch size of 0", ["experiment=digits", "data.batch_size=0"]),
    Mistake("A value that is not a number", ["experiment=digits", "data.batch_size=abc"]),
    Mistake("A negative number of workers", ["experiment=digits", "data.num_workers=-1"]),
    Mistake(
        "A typo in an experiment of your own",
        ["--config-dir=WORK/my_configs", "experiment=mine", "data=digits"],
        own_experiment("trainer:\n  max_epoch: 3\n"),
    ),
    Mistake(
        "An unknown key in an experiment of your own",
        ["--config-dir=WORK/my_configs", "experiment=mine"],
        own_experiment("learning_rate: 3\n"),
        made_before_a_run=True,
    ),
    Mistake(
        "An argument that a target of your own does not have",
        [
            "experiment=digits",
            "+model.scheduler.gama=0.1",
            "model.scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
            "~model.scheduler.warmup",
            "~model.scheduler.floor",
        ],
    ),
    Mistake(
        "A loss that takes one-hot labels",
        ["experiment=digits", "model.criterions.criterions.ce._target_=torch.nn.BCEWithLogitsLoss"],
    ),
    Mistake("A path with special characters of Hydra", ["data.data_dir=/photos (2)/{a}"], made_before_a_run=True),
    Mistake("A path with a comma", ["data.data_dir=/photos,old"], made_before_a_run=True),
    Mistake("A file name with =", ["experiment=digits", "ckpt_path=epoch=3.ckpt"], made_before_a_run=True),
    Mistake("A network that does not exist", [PHOTOS, "model.net.name=resnet81"], **GOOD),
    Mistake("Weights that do not exist", [PHOTOS, "model.net.weights=IMAGENET"], **GOOD),
    Mistake(
        "An image size that the network does not take",
        [PHOTOS, "model.net.name=vit_b_16", "model.net.weights=null", "data.image_size=100"],
        **GOOD,
    ),
    Mistake(
        "Images that are too small for the network",
        [
            PHOTOS,
            "model.net.name=alexnet",
            "model.net.weights=null",
            "data.image_size=32",
            "data.num_workers=0",
            "trainer=cpu",
            "logger=[]",
            "callbacks.model_summary=null",
        ],
        **GOOD,
    ),
    Mistake(
        "A frozen backbone without pretrained weights",
        [PHOTOS, *SMALL, "model=simple_cnn", "model.freeze=backbone"],
        **GOOD,
    ),
    Mistake("A monitor that does not exist", [PHOTOS, *SMALL, "monitor=val/acurracy"], **GOOD),
    Mistake("A monitor without its stage", [PHOTOS, *SMALL, "monitor=acc"], **GOOD),
    Mistake("A monitor with a value per class", [PHOTOS, *SMALL, "monitor=val/f1_per_class"], **GOOD),
    Mistake("A checkpoint that does not exist", [PHOTOS, *SMALL, "ckpt_path=/best.ckpt"], **GOOD),
    Mistake(
        "A damaged checkpoint",
        [PHOTOS, *SMALL, "ckpt_path=WORK/best.ckpt"],
        lambda work: (classes(work, blue=8, red=8), damaged_checkpoint(work)),
    ),
    Mistake("Images that do not fit into the cache", [PHOTOS, *SMALL, "data.cache=ram", "data.cache_gb=0"], **GOOD),
    Mistake("Two settings that cannot be combined", ["experiment=digits", "data.decode=fast", "data.cache=disk"]),
    Mistake("No GPU", ["experiment=digits", "trainer=gpu"]),
    Mistake("More GPUs than there are", ["experiment=digits", "trainer=ddp", "trainer.devices=4"]),
    Mistake("A number of devices that is 0", ["experiment=digits", "trainer.devices=0"]),
    Mistake("A run folder with a finished run", ["experiment=digits", "hydra.run.dir=WORK/run"], finished_run),
    Mistake("A folder to resume that is not a run", ["resume=WORK/run"], made_before_a_run=True),
    Mistake(
        "experiment= together with resume=",
        ["resume=WORK/run", "experiment=digits"],
        finished_run,
        made_before_a_run=True,
    ),
    Mistake("Several mistakes at once", [PHOTOS, "monitor=acc", "data.batch_size=0", "trainer.max_epochs=many"]),
    Mistake(
        "A log folder that cannot be written",
        ["experiment=digits", "hydra.run.dir=WORK/file/run"],
        lambda work: (work / "file").touch(),
        made_before_a_run=True,
    ),
    Mistake("A loss that is not finite", [PHOTOS, *SMALL, "model/optimizer=sgd", "model.optimizer.lr=1e30"], **GOOD),
    Mistake("A full disk", [PHOTOS, *SMALL, "model=simple_cnn"], **GOOD, most_bytes=300_000),
    Mistake("A package that is not installed", ["experiment=digits", "logger=wandb"]),
]


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """Title -> what the console showed."""
    return {}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_message_is_short_and_last_and_the_exit_status_is_not_0(mistake, command, tmp_path, monkeypatch, printed):
    if "GPU" in mistake.title and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("torch.version.cuda", "13.0")  # a build without CUDA has a message of its own
    if mistake.title == "A package that is not installed":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    mistake.prepare(tmp_path)
    words = [word.replace("WORK", str(tmp_path)) for word in mistake.words]
    own_folder = next((Path(word.partition("=")[2]) for word in words if word.startswith("hydra.run.dir=")), None)
    with files_of_at_most(mistake.most_bytes):
        run = command("train", *words, folder=own_folder)
    lines = run.output.strip().splitlines()
    assert run.exit_code not in (0, None)
    assert "Traceback" not in run.output
    assert "\x1b" not in run.output
    assert "\r" not in run.output
    assert not mistake.made_before_a_run or not (run.dir / "status.json").exists()
    first = next(number for number, line in enumerate(lines) if "ERROR" in line or line.startswith("Error:"))
    assert len(lines[first:]) <= MOST_LINES, run.output
    if "ERROR" in lines[first] and run.dir.exists():
        assert "Traceback" in run.text("train.log")
        assert run.json("status.json")["status"] == "failed"
    printed[mistake.title] = readable("\n".join(lines[first:]), tmp_path)
    if not os.environ.get("WRITE_DOCS"):  # test_the_page_has_all_mistakes_and_nothing_else writes it
        assert section(mistake, printed[mistake.title]) in PAGE.read_text(), "type make docs"


@contextmanager
def files_of_at_most(most: int | None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if most is not None else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def readable(text: str, work: Path) -> str:
    text = re.sub(r"^\d\d:\d\d:\d\d ERROR   ", "", text).removeprefix("Error: ")
    text = re.sub(rf"{re.escape(str(work))}/run_\d+", "RUN", text)
    text = re.sub(r"\.photos\.?\w*", ".photos", text.replace(str(work), "WORK"))
    return re.sub(r"\(\d+ MB are free\)", "(… MB are free)", text)


INTRODUCTION = """# Errors

These are the messages for common mistakes, written by the tests (`make docs`). The exit status is not 0. Settings that
cannot work, and [parts of your own](extend/README.md) that do not fit, are refused before a run folder is made. Data
and what networks, losses and transforms do with them are checked when the run has begun: `status.json` in its folder
then says `failed` with the same message, and the log there has the traceback. WORK and RUN stand for folders. [Coming
from other trainers](coming_from.md) lists the settings of other trainers.

"""


def section(mistake: Mistake, said: str) -> str:
    """The mistake's part of the page."""
    typed = " ".join(word for word in mistake.words if word not in SMALL)
    return f"## {mistake.title}\n\n`{f'python src/train.py {typed}'.strip()}`\n\n```\n{said.rstrip()}\n```\n"


def test_the_page_has_all_mistakes_and_nothing_else(printed):
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(INTRODUCTION + "\n".join(section(each, printed[each.title]) for each in MISTAKES))
    text = PAGE.read_text()
    assert text.startswith(INTRODUCTION)
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles == ["# Errors", *(f"## {mistake.title}" for mistake in MISTAKES)], "type make docs"
    assert text.count("```") == 2 * len(MISTAKES)
