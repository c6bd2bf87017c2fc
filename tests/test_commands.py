"""The console scripts beside train and eval."""

import csv
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from helpers import REPO, SMALL, draw_classes
from PIL import Image

from imago import split
from imago.config.root import IN_CLONE

SCRIPTS = (
    "ml-train",
    "ml-eval",
    "ml-inference",
    "ml-visualise",
    "ml-export",
    "ml-serve",
    "ml-split",
    "ml-shard",
    "ml-compare",
    "ml-cv",
)


def script(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip("Imago is not installed here: no console scripts")
    return str(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_worked_examples_and_imports_nothing_heavy(name, tmp_path):
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [script(name), "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    examples = done.stdout.lower().partition("examples")[2]
    assert examples.count(f"  {name} ") >= 2
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "torchvision", "lightning", "numpy", "matplotlib"}
    assert list(tmp_path.iterdir()) == []


def test_completion_can_be_installed():
    done = subprocess.run([script("ml-train"), "-sc", "install=bash"], capture_output=True, text=True, check=True)
    assert "complete" in done.stdout


def test_samples_are_drawn_as_they_are_trained_on(command, colours):
    run = command("visualise", "mode=samples", f"data.data_dir={colours}", "samples=3", "data.image_size=32")
    assert run.exit_code == 0, run.output
    with Image.open(run.dir / "samples.png") as picture:
        width, height = picture.size
        assert len(picture.convert("RGB").getcolors(10**6)) > 100
    assert width > height > 300


@pytest.mark.parametrize("mode", ["curves", "predictions"])
def test_a_run_is_drawn_from_its_folder_alone(command, trained, mode):
    run = command("visualise", f"mode={mode}", f"run={trained.dir}")
    assert run.exit_code == 0, run.output
    with Image.open(run.dir / f"{mode}.png") as picture:
        assert picture.width > 300
        assert len(picture.convert("RGB").getcolors(10**6)) > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["mode=pictures"],
            "mode must be launch, samples, predictions, curves, report, labels or explain, got pictures",
        ),
        (["mode=samples"], "No data was chosen"),
        (["samples=0"], "samples must be 1 or more, got 0"),
        (["logdir=/nowhere"], "logdir=/nowhere has no TensorBoard files"),
        (["mode=curves"], "latest: no run in"),
        (["mode=report", "run=/nowhere"], "/nowhere is not a run folder"),
        (["prt=1"], "Unknown setting prt (command line). Did you mean port=1?"),
    ],
)
def test_what_cannot_be_shown_is_said(command, words, message):
    run = command("visualise", *words)
    assert run.exit_code != 0
    assert message in run.output


def test_tensorboard_is_served_on_this_machine_only(tmp_path, command, colours):
    run = command(
        "train", f"data.data_dir={colours}", *SMALL, "logger=tensorboard", "trainer.max_epochs=1", "test=false"
    )
    words = [f"logdir={run.dir}", "port=0", f"paths.log_dir={tmp_path}/logs"]
    process = subprocess.Popen(
        [script("ml-visualise"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = next(line for line in process.stdout if "TensorBoard shows" in line)
        address = next(word for word in line.split() if word.startswith("http"))
        assert address.startswith("http://localhost:")
        with urllib.request.urlopen(address, timeout=30) as page:
            assert b"tensor" in page.read().lower()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def split_command(monkeypatch, capsys, *words) -> str:
    monkeypatch.setattr(sys, "argv", ["ml-split", *map(str, words)])
    monkeypatch.setattr("rich._console", None)
    split.main()
    return capsys.readouterr().out


def test_a_split_file_is_stratified_seeded_and_trained_on(tmp_path, monkeypatch, capsys, command):
    photos = draw_classes(tmp_path / "photos", {"blue": 20, "green": 10, "red": 10})
    shown = split_command(monkeypatch, capsys, photos, "--val", 0.2, "--test", 0.1, "--output", tmp_path / "one.csv")
    split_command(monkeypatch, capsys, photos, "--val", 0.2, "--test", 0.1, "--output", tmp_path / "two.csv")
    split_command(
        monkeypatch, capsys, photos, "--val", 0.2, "--test", 0.1, "--seed", 1, "--output", tmp_path / "three.csv"
    )
    one, two, three = ((tmp_path / f"{name}.csv").read_text() for name in ("one", "two", "three"))
    assert one == two
    assert one.splitlines()[1:] != three.splitlines()[1:]
    table = list(csv.DictReader(one.splitlines()[1:]))
    counts = {split: sum(row["split"] == split for row in table) for split in ("train", "val", "test")}
    assert 6 <= counts["val"] <= 10
    assert 3 <= counts["test"] <= 5
    blue = {split: sum(row["split"] == split and row["label"] == "blue" for row in table) for split in counts}
    assert 3 <= blue["val"] <= 5
    assert len({row["path"] for row in table}) == 40
    assert f"│ blue │ {blue['train']} │ {blue['val']} │ {blue['test']} │ 20 │" in " ".join(shown.split())
    assert f"{counts['val'] / 40:.1%}" in shown
    run = command("train", f"data.split_file={tmp_path}/one.csv", *SMALL)
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["n"] == counts["test"]
    assert run.checkpoint()["imago"]["class_names"] == ["blue", "green", "red"]
    assert f"the splits are those of {tmp_path}/one.csv" in run.output


def test_copies_are_a_tree_to_train_on(tmp_path, monkeypatch, capsys, command):
    photos = draw_classes(tmp_path / "photos", {"blue": 8, "red": 8})
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    split_command(monkeypatch, capsys, photos, "--copy-to", tmp_path / "copies", "--val", 0.25, "--test", 0.25)
    assert {path: path.read_bytes() for path in photos.rglob("*.png")} == before
    assert len(list((tmp_path / "copies").rglob("*.png"))) == 16
    run = command("train", f"data.data_dir={tmp_path}/copies", *SMALL)
    assert run.json("reports/metrics_test.json")["n"] == len(list((tmp_path / "copies" / "test").rglob("*.png")))


@pytest.mark.quick
def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    photos = draw_classes(tmp_path / "photos", {"blue": 8, "red": 8})
    shown = split_command(monkeypatch, capsys, photos, "--output", tmp_path / "x.csv", "--dry-run")
    assert "Images per split" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--val", "0.6", "--test", "0.5", "--dry-run"], "must be fractions with a sum below 1"),
        ([], "Choose an output"),
        (["--output", "there.csv"], "there.csv already exists"),
        (["data.test_ratio=20%", "--dry-run"], r"Type: ml-split \S+ --test 0.2 --dry-run"),
        (["--test-ratio", "20", "--val=15", "seed=7"], r"Type: ml-split \S+ --test 0.2 --val=0.15 --seed 7"),
        (["--ratio", "0.2"], "unrecognized arguments: --ratio 0.2. Type, for example: ml-split PHOTOS --val 0.1"),
    ],
)
def test_a_split_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").touch()
    photos = draw_classes(tmp_path / "photos", {"blue": 8, "red": 8})
    with pytest.raises(SystemExit, match=message):
        split_command(monkeypatch, capsys, photos, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a folder. Type the folder that has one folder of images per class: ml-split"),
        (["--dry-run"], "the folder is missing. Type, for example: ml-split PHOTOS"),
        (["data.data_dir=my photos"], "Type: ml-split 'my photos'"),
    ],
)
def test_a_split_of_no_folder_says_what_to_type(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=message):
        split_command(monkeypatch, capsys, *words)


def test_a_folder_that_is_split_already_is_refused(colours, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="is already split into train, val"):
        split_command(monkeypatch, capsys, colours, "--dry-run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Make it with: ml-split"),
        ("a,b\n", "is none that ml-split wrote, and no CSV with the columns path, label"),
        ("path;label\na/1.png;a\n", "separated by semicolons: save it with commas"),
        (
            '# imago split: {"class_names": ["a", "b"], "data_dir": "/nowhere"}\nsplit,path,label\ntrain,a/1.png,a\n',
            "is gone",
        ),
    ],
)
def test_a_split_file_that_cannot_be_used_is_refused(tmp_path, command, content, message):
    if content is not None:
        (tmp_path / "file.csv").write_text(content)
    run = command("train", f"data.split_file={tmp_path}/file.csv", *SMALL)
    assert run.exit_code == 1
    assert message in run.error


def test_this_is_a_clone():
    assert IN_CLONE is (REPO / "configs").is_dir()
