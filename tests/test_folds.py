"""`data.fold=`, and `ml-cv`: every image is predicted once by a network that has not seen it."""

import csv
import io
import json
import math
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers import SMALL, Command, Run, draw_classes, rows, same, type_in_subprocess, write_mnist
from PIL import Image
from test_test_ratio import sets_of
from torchvision.datasets import MNIST

from imago import compare, cv, split, status
from imago.checkpoint.fits import check_draw
from imago.cli.fold_words import FoldPlan
from imago.data.crops import CenterBox
from imago.data.folds import divide
from imago.data.hugging_face import HuggingFaceDataModule
from imago.data.image_folder import ImageFolderDataModule
from imago.data.images import ImageSets, class_counts
from imago.data.split_files import read_rows
from imago.data.torchvision_set import TorchVisionDataModule
from imago.data.transforms import ImageTransform
from imago.definitions import rounded_up
from imago.evaluation.cv_report import report
from imago.evaluation.pool import FoldRun, Pool, spread
from imago.run.find import find_run
from imago.train import main as train

WORDS = (*SMALL, "report.splits=[val,test]", "trainer.max_epochs=1")


def folds_of(counts: list[int], folds: int, **options: object) -> list[ImageSets]:
    made = []
    for fold in range(folds):
        sets = sets_of(counts)
        divide(sets, 0.1, 0, fold=fold, folds=folds, **options)  # type: ignore[arg-type]
        made.append(sets)
    return made


@pytest.mark.quick
def test_each_image_is_in_one_drawn_fold_and_classes_are_divided_evenly():
    for test_ratio in (None, 0.2):
        all_sets = folds_of([50, 31, 12, 3], 5, test_ratio=test_ratio)
        held_out = [set(sets.splits["val"].paths) for sets in all_sets]
        tests = {tuple(sets.splits["test"].paths) for sets in all_sets if test_ratio}
        assert len(tests) == (1 if test_ratio else 0)
        pool = 96 - sum(map(len, tests))
        assert sum(map(len, held_out)) == len(set.union(*held_out)) == pool
        assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
        for sets in all_sets:
            assert len(sets.splits["train"]) + len(sets.splits["val"]) == pool
            assert not set(sets.splits["train"].paths) & set(sets.splits["val"].paths)
            assert list(sets.splits) == ["train", "val", *["test"] * bool(test_ratio)]
        for label in range(4):
            counts = [list(class_counts(sets.splits["val"], sets.class_names).values())[label] for sets in all_sets]
            assert max(counts) - min(counts) <= 1
    shuffled = sets_of([50, 31, 12, 3], shuffled=True)
    divide(shuffled, 0.1, 0, 0.2, fold=2, folds=5)
    assert set(shuffled.splits["val"].paths) == set(all_sets[2].splits["val"].paths)


def test_images_that_are_added_later_move_no_other_one_of_a_checkpoint():
    for fold in range(4):
        few, many, other = sets_of([61, 80]), sets_of([100, 120]), sets_of([61, 80])
        divide(few, 0.1, 0, 0.2, fold=fold, folds=4)
        entry = {"drawn_val": few.drawn_val, "drawn_test": few.drawn_test}
        divide(many, 0.1, 0, 0.2, entry, fold=fold, folds=4)
        assert all(set(few.splits[split].paths) <= set(many.splits[split].paths) for split in few.splits)
        assert len(many.splits["val"]) > len(few.splits["val"])
        assert {"drawn_val": many.drawn_val, "drawn_test": many.drawn_test} == entry
        divide(other, 0.1, 0, 0.2, fold=(fold + 1) % 4, folds=4)
        with pytest.raises(ValueError, match=f"Type seed=0 data.folds=4 data.fold={fold}$"):
            check_draw(entry, SimpleNamespace(sets=other, class_names=other.class_names), "run.ckpt")
        check_draw(entry, SimpleNamespace(sets=other, class_names=other.class_names), "run.ckpt", ["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 5}, "data.folds=5 without data.fold: type the fold that is val, data.fold=0 to 4. ml-cv folds=5"),
        ({"fold": 1}, "data.fold=1 of how many. Add data.folds=5"),
        ({"fold": 5, "folds": 5}, "folds count from 0, so that the last of data.folds=5 is 4"),
        ({"fold": 0, "folds": 19}, "data.folds=19: 18 images cannot be divided into so many"),
    ],
)
def test_folds_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        divide(sets_of([9, 9]), 0.1, 0, **options)
    with pytest.raises(ValueError, match="Each class needs images in two folds or more, and class1 has them in one"):
        divide(sets_of([9, 1]), 0.1, 0, fold=0, folds=5)


def test_no_draw_divides_the_groups_of_a_file(tmp_path):
    draw_classes(tmp_path / "photos", {"blue": 12, "red": 12})
    words = ("--group-regex", r"/0*\d", "--output", tmp_path / "splits.csv")
    type_split(str(tmp_path / "photos"), "--test", "0", *map(str, words))
    sets = read_rows(tmp_path / "splits.csv", None)
    divide(sets, 0.1, 0)
    assert list(sets.splits) == ["train", "val"]
    for options, said in (
        (
            {"fold": 0, "folds": 5},
            r"data.folds=5 draws single images, and would .* Write .*: ml-split PHOTOS --folds 5 ",
        ),
        (
            {"test_ratio": 0.2},
            r"data.test_ratio=0.2 draws single images, and .* ml-split PHOTOS --test 0.2 --group-reg",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            divide(read_rows(tmp_path / "splits.csv", None), 0.1, 0, **options)


def test_all_kinds_of_data_have_folds(colours, tmp_path):
    """Train and val are divided together: 39 and 15 images of `colours`."""
    datasets = pytest.importorskip("datasets")
    write_mnist(tmp_path / "sets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(colours), cache_dir=str(tmp_path / "hf"))
    look = ImageTransform(CenterBox(1.0))
    options = {"num_workers": 0, "image_size": 16, "folds": 3, "cache_dir": str(tmp_path / "cache")}
    held_out: dict[str, list[str]] = {}
    for fold in range(3):
        for data in (
            ImageFolderDataModule(look, look, str(colours), fold=fold, **options),
            HuggingFaceDataModule(lambda: loaded, look, look, fold=fold, **options),
            TorchVisionDataModule(MNIST, look, look, str(tmp_path / "sets"), fold=fold, **options),
        ):
            val = data.split("val")
            assert data.sizes["train"] + len(val) == (400 if "sets" in data.sets.root else 54)
            held_out.setdefault(type(data).__name__, []).extend(val.paths)
    assert {name: len({*paths}) for name, paths in held_out.items()} == {
        "ImageFolderDataModule": 54,
        "HuggingFaceDataModule": 54,
        "TorchVisionDataModule": 400,
    }
    white, black = Image.new("L", (8, 8), 255), Image.new("L", (8, 8))
    sets = datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {"image": [picture] * 4, "label": [0, 1] * 2},
                datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}),
            )
            for name, picture in (("train", white), ("validation", black))
        }
    )
    data = HuggingFaceDataModule(lambda: sets, look, look, fold=0, **options)
    for name in ("train", "val"):  # rows of both splits keep their pixels
        images = data.split(name)
        assert [float(images.read(n).float().mean()) for n in range(len(images))] == [
            255.0 if path.startswith("train") else 0.0 for path in images.paths
        ]


def type_cv(*words: str) -> tuple[int, str]:
    """Types `ml-cv WORDS` in this process. Returns the exit status, and what was printed."""
    output, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", ["ml-cv", *words])
        patch.setattr("rich._console", None)
        try:
            cv.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
            output.write(str(stop.code))
    return code, output.getvalue()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a cross-validation of 3 folds with a test split, whose fold 1 fails while a file `marker` exists."""
    root = tmp_path_factory.mktemp("cv")
    draw_classes(root / "photos", {"blue": 16, "green": 14, "red": 15})
    fails = f"+callbacks.fails={{_target_: snapshots.FailsIn, folder: fold_1, marker: {root}/marker}}"
    paths = [f"paths.cache_dir={root}/cache", f"paths.log_dir={root}/logs"]
    return [
        f"data.data_dir={root}/photos",
        "folds=3",
        "data.test_ratio=0.2",
        *WORDS,
        "trainer.max_epochs=2",
        fails,
        *paths,
    ]


@pytest.fixture(scope="module")
def validated(words: list[str]) -> Path:
    """The folder of a finished cross-validation, whose fold 1 had failed first. Not to be changed."""
    root = Path(words[-1].partition("=")[2]).parent
    (root / "marker").touch()
    code, said = type_cv(*words)
    assert code == 1, said
    assert "fold 1: RuntimeError: no power" in said
    assert "Not finished: fold 1. Remove the cause, and type the same words again." in said
    (folder,) = (root / "logs" / "cv").iterdir()
    assert folder.name.startswith("data_dir_photos")
    states = [entry["state"] for entry in json.loads((folder / "cv.json").read_text())["folds"]]
    assert states == ["completed", "failed", "completed"]
    assert not (folder / "predictions_oof.csv").exists()
    weights = (folder / "fold_0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    (root / "marker").unlink()
    code, said = type_cv(*words)
    assert code == 0, said
    assert "fold 1 of 3" in said
    assert (folder / "fold_0" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == weights  # it was not trained again
    assert "Pooled: 36 images, each predicted once" in said
    assert len(list((root / "logs" / "cv").iterdir())) == 1
    code, again = type_cv(*words)
    assert code == 0
    assert "Pooled: 36 images" in again
    assert "Scoring" not in again
    return folder


def pooled_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions_oof.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_once_by_a_network_that_has_not_seen_it(validated):
    assert find_run("latest", validated.parent.parent).parent == validated
    pooled = pooled_rows(validated)
    runs = [Run(validated / f"fold_{fold}", 0, "") for fold in range(3)]
    tests = [{row["path"] for row in rows(run, "test")} for run in runs]
    assert tests[0] == tests[1] == tests[2]
    photos = Path(runs[0].json("reports/data.json")["root"])
    everything = {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
    assert [row["path"] for row in pooled] == sorted(everything - tests[0])
    assert [row["index"] for row in pooled] == [str(index) for index in range(len(pooled))]
    for run in runs:
        own = {row["path"]: row for row in rows(run, "val")}
        of_pool = {row["path"]: row for row in pooled if row["fold"] == run.dir.name[-1]}
        assert {path: {**row, "index": ""} for path, row in own.items()} == {
            path: {key: value for key, value in row.items() if key != "fold"} | {"index": ""}
            for path, row in of_pool.items()
        }
        trained = run.checkpoint("best")["imago"]["train_images"]
        assert len(trained) == 36 - len(own)
    content = json.loads((validated / "cv.json").read_text())
    right = sum(row["correct"] == "1" for row in pooled)
    assert content["pooled"]["acc"] == right / 36
    assert content["pooled"]["interval"][0] < right / 36 <= content["pooled"]["interval"][1]
    assert sum(map(sum, content["pooled"]["confusion"])) == 36
    accuracies = [run.json("reports/metrics_val.json")["acc"] for run in runs]
    assert content["mean"]["val"]["acc"]["mean"] == pytest.approx(sum(accuracies) / 3)
    assert content["mean"]["test"]["acc"]["sd"] >= 0
    page = (validated / "cv.html").read_text()
    assert f"Accuracy {right / 36:.4f}" in page
    assert 'src="data:image/png;base64,' in page
    assert page.count("report.html") == 3


def test_files_of_all_folds_go_when_one_is_unfinished_again(validated, tmp_path):
    copy = Path(shutil.copytree(validated, tmp_path / "copy"))
    state = json.loads((copy / "fold_1" / "status.json").read_text())
    (copy / "fold_1" / "status.json").write_text(json.dumps(state | {"warnings": ["2 of the 12 images are in train"]}))
    runs = [FoldRun(fold, copy / f"fold_{fold}") for fold in range(3)]
    report(copy, runs, ["folds=3"])
    assert "<li>fold 1: 2 of the 12 images are in train</li>" in (copy / "cv.html").read_text()
    assert len({run.data["labels"] for run in runs}) == 1
    runs[2].data["labels"] = "others"
    with pytest.raises(ValueError, match="The folds have different labels of the same images. The data have changed"):
        report(copy, runs, ["folds=3"])
    (copy / "fold_1" / "reports" / "predictions_val.csv").unlink()
    report(copy, [FoldRun(fold, copy / f"fold_{fold}") for fold in range(3)], ["folds=3"])
    assert not [*copy.glob("*_oof.*"), *copy.glob("ensemble.txt")]
    assert json.loads((copy / "cv.json").read_text())["pooled"] is None
    assert "<code>ml-cv folds=3</code>" in (copy / "cv.html").read_text()


def test_the_folds_are_compared_and_shown_as_one_training(validated, monkeypatch, capsys):
    def said(command: ModuleType, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ml-…", *map(str, words)])
        monkeypatch.setattr("rich._console", None)
        monkeypatch.setenv("COLUMNS", "140")
        command.main()
        return capsys.readouterr().out

    table = said(compare, validated, "--sort", "val/acc")
    assert f"3 runs below {validated} in 1 row" in table
    assert "different sets of images" not in table
    assert "Each seed draws" not in table
    again = said(compare, validated, validated)
    assert "A and B are right equally often, on average over 3 folds" in again
    shown = said(status, validated)
    assert [f"fold_{fold}" in shown for fold in range(3)] == [True] * 3
    assert "mean ± sd" in shown


def test_the_checkpoints_are_an_ensemble_for_inference(validated, command: Command):
    word = (validated / "ensemble.txt").read_text().strip()
    assert word.count("best.ckpt") == 3
    run = command("inference", word, "split=test")
    assert run.exit_code == 0, run.output
    together = rows_of(run.dir / "predictions_test.csv")
    single = [rows(Run(validated / f"fold_{fold}", 0, ""), "test") for fold in range(3)]
    mean = [sum(float(fold[index]["prob_red"]) for fold in single) / 3 for index in range(len(together))]
    assert [float(row["prob_red"]) for row in together] == pytest.approx(mean, abs=1e-5)
    assert "images that the checkpoint was trained on" not in run.output
    refused = command("inference", word, "split=val")
    assert refused.exit_code == 1
    assert "was trained with a different val split" in refused.error
    photos = Run(validated / "fold_0", 0, "").json("reports/data.json")["root"]
    assert command("inference", word, f"source={photos}/blue").exit_code == 0


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_killed_cross_validation_goes_on_with_the_same_words_and_ends_with_the_same_bits(validated, words, tmp_path):
    there = [*words, f"hydra.sweep.dir={tmp_path}/killed"]
    code = f"""
import os, pathlib, sys, threading, time
def kill():
    while not pathlib.Path({str(tmp_path)!r}, "killed/fold_1/checkpoints/last.ckpt").exists():
        time.sleep(0.005)
    os.kill(os.getpid(), 9)
threading.Thread(target=kill, daemon=True).start()
from imago import cv
sys.argv = ["ml-cv", *{there!r}]
cv.main()
sys.exit(0)
"""
    done = type_in_subprocess(code=code)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert not (tmp_path / "killed" / "fold_2").exists()
    status, said = type_cv(*there)
    assert status == 0, said
    for name in ("predictions_oof.csv", "confusion_matrix_oof.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (validated / name).read_bytes()
    for fold in range(3):
        weights = (Run(folder / f"fold_{fold}", 0, "").weights() for folder in (tmp_path / "killed", validated))
        assert same(*weights)
    before = [(tmp_path / "killed" / name).read_bytes() for name in ("cv.json", "cv.html", "ensemble.txt")]
    code, said = type_cv(*there, "seed=7")
    assert code == 1
    assert "has a cross-validation with other words" in said
    assert "Cross-validation: " not in said
    assert [(tmp_path / "killed" / name).read_bytes() for name in ("cv.json", "cv.html", "ensemble.txt")] == before


def test_folds_of_a_file_are_trained_with_privacy_and_what_they_spend_adds_up(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    draw_classes(tmp_path / "photos", {"blue": 16, "red": 16})
    type_split("photos", "--folds", "2", "--test", "0.25", "--group-regex", r"/\d+", "--output", "splits.csv")
    private = ("strategy=dp", "strategy.noise_multiplier=1.0", "model.scheduler=null")
    paths = [f"paths.cache_dir={tmp_path}/cache", f"paths.log_dir={tmp_path}/logs"]
    file = ("data.split_file=splits.csv", *WORDS, *private, *paths)
    for extra, message in (
        (["folds=3"], "folds=3: the split file has 2"),
        (["data.test_ratio=0.2"], "images of one group could be in train and test"),
    ):
        code, said = type_cv(*file, *extra)
        assert code == 1
        assert message in said
    code, said = type_cv(*file)
    assert code == 0, said
    assert "Privacy: epsilons and deltas of jobs on the same images add up" in said
    (folder,) = [path for path in (tmp_path / "logs" / "cv").iterdir() if (path / "predictions_oof.csv").exists()]
    fold_of = {row["path"]: row["fold"] for row in rows_of_file(tmp_path / "splits.csv")}
    pooled = pooled_rows(folder)
    assert {row["path"]: row["fold"] for row in pooled} == {path: fold for path, fold in fold_of.items() if fold}
    epsilons = [json.loads((folder / f"fold_{n}" / "status.json").read_text())["epsilon"] for n in range(2)]
    assert (
        f"epsilon {rounded_up(sum(map(Decimal, map(str, epsilons))))}"
        in json.loads((folder / "cv.json").read_text())["privacy"]
    )
    copy = Path(shutil.copytree(folder / "fold_0", tmp_path / "copy"))
    refused = command("train", f"resume={copy}", "data.fold=1", "trainer.max_epochs=2", folder=copy)
    assert refused.exit_code == 1
    assert "was trained with a different val split" in refused.output
    assert "Type data.fold=0" in refused.output


def rows_of_file(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()[1:]))


def type_split(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ml-split", *words])
        patch.setattr("rich._console", None)
        split.main()


def test_the_number_of_folds_of_an_experiment_file_counts(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - digits\ndata:\n  folds: 3\n"
    )
    words = ["--config-dir", str(tmp_path), "experiment=mine"]
    train.register(words)
    assert FoldPlan.of(words).folds == 3
    assert FoldPlan.of([*words, "folds=4"]).folds == 4


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["-m"], "-m: ml-cv runs the folds of one setting"),
        (["seed=1,2"], "seed=1,2 has several values"),
        (["data.fold=1"], "data.fold=1: ml-cv runs all folds"),
        (["folds=1"], "folds must be one whole number, 2 or more; got 1"),
        (["--folds=3"], "--folds=3 is not a flag of ml-cv. Type the number of folds as folds=5."),
        (["data.data_dir=nowhere"], "data.data_dir=nowhere does not exist."),
        (["preflight=only"], "preflight=only: only ml-train tries a run without training it"),
        (["resume=latest"], "to continue a cross-validation, type the words with which it was started"),
        (["ckpt_path=x.ckpt"], "its weights may have seen the images of a fold"),
        (["seed=null"], "seed=null would draw other folds in each run"),
        (["hydra.sweep.dir=CONFIGS"], "configs has files, and no cross-validation: data"),
        (["debug=fdr"], "trainer.fast_dev_run: ml-cv pools the predictions for all images"),
        (["report.splits=[test]"], "lacks val, whose predictions ml-cv pools"),
        (["data.calibration_ratio=0.5"], "data.calibration_ratio=0.5: ml-cv predicts each image of a fold, so that"),
        (["hydra.run.dir=x"], "Type hydra.sweep.dir="),
        (["--config-dir", "CONFIGS", "data=own"], "own.Data has no folds"),
        (["data.image_sise=8"], "data.image_sise"),
        (["trainer.max_epochs=many"], "trainer.max_epochs must be a whole number or null, got many"),
    ],
)
def test_words_that_do_not_fit_are_refused_before_a_fold_is_trained(extra, message, tmp_path):
    words = ["experiment=digits", "folds=3", f"paths.log_dir={tmp_path}", f"paths.data_dir={tmp_path}/data"]
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "own.yaml").write_text("_target_: own.Data\n")
    extra = [word.replace("CONFIGS", f"{tmp_path}/configs") for word in extra]
    code, said = type_cv(*[word for word in words if "folds=1" not in extra or word != "folds=3"], *extra)
    assert code == 1
    assert message in said
    assert said.count(message) <= 3
    assert not list(tmp_path.glob("cv/*/fold_*/checkpoints"))


def test_a_loss_that_is_no_number_ends_no_cross_validation(tmp_path):
    rows = [{"label": "a", "prediction": "a", "loss": "0.1"}, {"label": "b", "prediction": "", "loss": ""}]
    assert math.isnan(Pool(["a", "b"], rows).metrics["cross_entropy"])
    for fold, loss in enumerate((None, 0.1)):  # JSON has no NaN
        reports = tmp_path / str(fold) / "reports"
        reports.mkdir(parents=True)
        (reports.parent / "status.json").write_text('{"status": "completed"}')
        (reports / "predictions_val.csv").write_text("path,label,prediction,loss\n")
        score = {"split": "val", "n": 2, "acc": 0.5, "f1": 0.5, "cross_entropy": loss}
        (reports / "metrics_val.json").write_text(json.dumps(score))
    assert spread([FoldRun(fold, tmp_path / str(fold)) for fold in (0, 1)])["val"].keys() == {"acc", "f1"}
