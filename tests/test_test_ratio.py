"""data.test_ratio: a test split that is drawn from train, and stays the same for everything that scores it."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import SMALL, Command, Run, draw_classes, rows, type_command, write_mnist

from imago.checkpoint.fits import check_draw
from imago.data.crops import CenterBox
from imago.data.folder_images import FolderImages
from imago.data.folds import divide
from imago.data.hugging_face import HuggingFaceDataModule
from imago.data.images import ImageSets, class_counts
from imago.data.split_files import read_rows
from imago.data.split_plan import draw
from imago.data.transforms import ImageTransform

RATIO = "data.test_ratio=0.25"


def sets_of(counts: list[int], shift: int = 0, shuffled: bool = False) -> ImageSets:
    """A train split without files: `counts` images of each class, numbered from `shift` on."""
    images = [(f"class{label}/{shift + n}.png", label) for label, count in enumerate(counts) for n in range(count)]
    if shuffled:
        random.Random(0).shuffle(images)
    train = FolderImages(Path(), [path for path, _ in images], [label for _, label in images])
    return ImageSets("images", [f"class{label}" for label in range(len(counts))], {"train": train})


def drawn(
    sets: ImageSets, val_ratio: float = 0.1, seed: int = 0, test_ratio: float | None = 0.2
) -> dict[str, set[str]]:
    sets.draw_splits(val_ratio, seed, test_ratio)
    return {name: set(images.paths) for name, images in sets.splits.items()}


@pytest.mark.quick
def test_every_image_is_in_one_split_and_the_order_of_files_does_not_matter():
    sets = sets_of([50, 30, 20])
    splits = drawn(sets)
    assert list(splits) == ["train", "val", "test"]
    assert len(set.union(*splits.values())) == sum(map(len, splits.values())) == 100
    assert class_counts(sets.splits["test"], sets.class_names) == {"class0": 10, "class1": 6, "class2": 4}
    assert class_counts(sets.splits["val"], sets.class_names) == {"class0": 5, "class1": 3, "class2": 2}
    assert drawn(sets_of([50, 30, 20], shuffled=True)) == splits
    assert drawn(sets_of([50, 30, 20]), seed=1)["test"] != splits["test"]
    assert sets.drawn_test is not None
    assert {"test_ratio": 0.2, "seed": 0, "by": "ratio"}.items() <= sets.drawn_test.items()


@pytest.mark.parametrize("test_ratio", [None, 0])
def test_without_it_nothing_changes(test_ratio):
    plain, sets = sets_of([50, 3, 2]), sets_of([50, 3, 2])
    plain.draw_val(0.1, 0)
    sets.draw_splits(0.1, 0, test_ratio)
    assert {name: list(images.paths) for name, images in sets.splits.items()} == {
        name: list(images.paths) for name, images in plain.splits.items()
    }
    assert sets.drawn_test is None


def test_val_ratio_does_not_affect_test_and_test_hardly_val():
    counts = [1, 2, 3, 4, 5, 60]
    for seed in range(30):
        test = drawn(sets_of(counts), 0.1, seed)["test"]
        assert all(drawn(sets_of(counts), ratio, seed)["test"] == test for ratio in (0.01, 0.3, 0.5))
        with_test, without = drawn(sets_of([60, 60]), 0.1, seed), drawn(sets_of([60, 60]), 0.1, seed, None)
        assert with_test["val"] == without["val"]


def test_small_classes_keep_an_image_to_train_on():
    for seed in range(50):
        for ratio in (0.01, 0.2, 0.49):
            sets = sets_of([1, 2, 3, 4, 30])
            drawn(sets, 0.5, seed, ratio)
            counts = {
                name: list(class_counts(images, sets.class_names).values()) for name, images in sets.splits.items()
            }
            assert counts["train"][0] == 1
            assert all(counts["train"])
            assert [sum(of_class) for of_class in zip(*counts.values(), strict=True)] == [1, 2, 3, 4, 30]
            for split in ("val", "test"):
                assert all(part <= whole // 2 for part, whole in zip(counts[split], (1, 2, 3, 4, 30), strict=True))


def test_images_that_are_added_later_move_no_other_one_of_a_checkpoint():
    for seed in range(30):
        few, many = sets_of([60, 80], shuffled=True), sets_of([100, 120])
        before = drawn(few, seed=seed)
        entry = {"drawn_val": few.drawn_val, "drawn_test": few.drawn_test}
        many.draw_splits(0.1, seed, 0.2, entry)
        assert all(paths <= set(many.splits[split].paths) for split, paths in before.items())
        assert {"drawn_val": many.drawn_val, "drawn_test": many.drawn_test} == entry
        many = sets_of([100, 120])
        many.draw_splits(0.3, seed, 0.2, entry)
        data = SimpleNamespace(sets=many, class_names=many.class_names)
        with pytest.raises(ValueError, match=f"Type seed={seed} data.val_ratio=0.1"):
            check_draw(entry, data, "run.ckpt")


def test_a_data_module_that_does_not_pass_the_record_on_is_refused_when_images_were_added():
    few, many = sets_of([60, 80]), sets_of([100, 120])
    for sets in (few, many):
        drawn(sets)
    entry = {"drawn_val": few.drawn_val, "drawn_test": few.drawn_test}
    check_draw(entry, SimpleNamespace(sets=few, class_names=few.class_names), "run.ckpt")
    with pytest.raises(ValueError, match="The images have changed since. Make the data with recorded="):
        check_draw(entry, SimpleNamespace(sets=many, class_names=many.class_names), "run.ckpt")


def test_a_checkpoint_of_an_earlier_version_keeps_its_splits():
    """Their record has no places: the images below the ratio are drawn, however many these are."""
    entry = {f"drawn_{split}": {f"{split}_ratio": 0.2, "seed": 42, "by": "path"} for split in ("val", "test")}
    sets, now = sets_of([200], shuffled=True), sets_of([200], shuffled=True)
    now.draw_splits(0.2, 42, 0.2)
    sets.draw_splits(0.2, 42, 0.2, entry)
    assert {"drawn_val": sets.drawn_val, "drawn_test": sets.drawn_test} == entry
    assert class_counts(sets.splits["test"], sets.class_names) == {"class0": 42}
    assert "as the checkpoint records" in sets.notes[0]
    with pytest.raises(ValueError, match="was written by an earlier Imago"):
        check_draw(entry, SimpleNamespace(sets=now, class_names=now.class_names), "old.ckpt")


@pytest.mark.quick
def test_classes_that_are_far_from_their_share_are_named():
    sets = sets_of([60, 1, 3])
    drawn(sets, 0.2, test_ratio=None)
    (note,), (warning,) = sets.notes, sets.warnings
    assert "13 of the 64 train images (20%)" in note
    assert "stratified" in note
    assert note.endswith("class0 12 of 60, class1 0 of 1, class2 1 of 3")
    assert warning == "the share of 1 class differs from data.val_ratio=0.2 by more than half of it: class2 1 of 3"


def test_ml_split_draws_the_same_images():
    for seed in range(5):
        sets, images = sets_of([60, 41, 7, 2]), sets_of([60, 41, 7, 2]).splits["train"]
        assert isinstance(images, FolderImages)
        assert {name: set(part.paths) for name, part in draw(images, 0.15, 0.2, seed).items()} == drawn(
            sets, 0.15, seed
        )


@pytest.mark.parametrize(
    ("counts", "ratios", "message"),
    [
        ([9, 9], (0.1, 0.999), "data.test_ratio=0.999: must be above 0 and at most 0.5"),
        ([9, 9], (0.1, -0.1), "data.test_ratio=-0.1: must be above 0 and at most 0.5"),
        ([9, 9], (0.5, 0.5), "data.val_ratio=0.5 and data.test_ratio=0.5 leave nothing to train on"),
        ([1, 1], (0.1, 0.2), "data.test_ratio=0.2: images has too few images per class to draw a test split"),
        ([2, 2], (0.5, 0.4), "too few images per class to draw a val split from train. At least three"),
    ],
)
def test_fractions_that_cannot_work_are_refused(counts, ratios, message):
    with pytest.raises(ValueError, match=message):
        drawn(sets_of(counts), ratios[0], 0, ratios[1])


def test_a_folder_with_a_val_split_gives_test_from_train_alone(own_colours, train):
    shutil.copytree(own_colours / "val", own_colours / "test")
    refused = train(f"data.data_dir={own_colours}", RATIO)
    assert refused.exit_code == 1
    assert f"{RATIO}: {own_colours} has a test split already" in refused.output
    assert "data.test_ratio=null" in refused.output
    shutil.rmtree(own_colours / "test")
    run = train(f"data.data_dir={own_colours}", RATIO, "data.val_ratio=0.5", "trainer.max_epochs=1")
    assert "data.val_ratio: the data have a val split" in run.output
    run = train(f"data.data_dir={own_colours}", RATIO, "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    assert all(row["path"].startswith("train/") for row in rows(run, "test"))
    assert run.checkpoint()["imago"]["drawn_val"] is None


def test_a_table_without_test_rows_and_a_set_of_hugging_face_draw_it_too(tmp_path, own_colours):
    datasets = pytest.importorskip("datasets")
    table = tmp_path / "table.csv"
    names = [f"{path.relative_to(own_colours)},{path.parent.name}" for path in own_colours.rglob("*.png")]
    table.write_text("\n".join(["path,label", *names]) + "\n")
    sets = read_rows(table, own_colours)
    divide(sets, 0.1, 42, 0.25)
    assert 9 <= len(sets.splits["test"]) <= 17
    loaded = datasets.load_dataset("imagefolder", data_dir=str(own_colours / "train"), cache_dir=str(tmp_path / "hf"))
    look = ImageTransform(CenterBox(1.0))
    data = HuggingFaceDataModule(lambda: loaded, look, look, test_ratio=0.25, num_workers=0, image_size=16)
    assert sum(data.sizes.values()) == 39
    assert 6 <= data.sizes["test"] <= 13
    with pytest.raises(ValueError, match="the images of .* have row numbers instead of paths"):
        HuggingFaceDataModule(lambda: loaded, look, look, num_workers=0, relabel=str(table))


def test_sets_of_torchvision_have_a_test_split_already(command, tmp_path):
    write_mnist(tmp_path / "sets")
    run = command("train", "data=mnist", f"data.data_dir={tmp_path}/sets", *SMALL, RATIO)
    assert run.exit_code == 1
    assert "has a test split already" in run.output


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders without splits. Not to be changed."""
    return draw_classes(tmp_path_factory.mktemp("flat"), {"blue": 30, "green": 25, "red": 3})


@pytest.fixture(scope="module")
def drawn_run(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on `flat` with a drawn test split. Not to be changed."""
    words = [f"data.data_dir={flat}", *SMALL, RATIO, "report.splits=[train,val,test]", "data.cache=ram"]
    folder = tmp_path_factory.mktemp("drawn_run")
    run = type_command(
        "train", [*words, f"paths.cache_dir={folder}/cache", f"paths.log_dir={folder}/logs"], folder / "run"
    )
    assert run.exit_code == 0, run.output
    return run


def paths(run: Run, split: str) -> set[str]:
    return {row["path"] for row in rows(run, split)}


def test_a_run_scores_images_that_it_neither_trained_nor_was_chosen_on(drawn_run):
    assert drawn_run.json("reports/metrics_test.json")["split"] == "test"
    splits = [paths(drawn_run, split) for split in ("train", "val", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 58
    assert "were drawn as the test split (data.test_ratio=0.25, stratified" in drawn_run.text("summary.txt")
    page, note = drawn_run.text("report.html"), "were drawn as the test split"
    assert page.count(note) == 1
    assert note in page.partition("<h3>Notes</h3>")[2]  # a fact, and no warning
    assert not [text for text in drawn_run.json("status.json")["warnings"] if note in text]
    assert "scored as test" not in drawn_run.output
    assert "too good" not in drawn_run.output
    left = 58 - len(splits[2]) - 20  # data.val_ratio is a fraction of the images before test was drawn
    assert f"type data.val_ratio=0.35, which leaves {left} images to train on" in drawn_run.output
    assert drawn_run.checkpoint()["imago"]["drawn_test"]["test_ratio"] == 0.25


def test_a_class_without_images_in_a_split_is_said_with_its_count(drawn_run):
    absent = [split for split in ("val", "test") if not any(path.startswith("red") for path in paths(drawn_run, split))]
    assert absent
    left = sum(path.startswith("red") for path in paths(drawn_run, "train"))
    for split in absent:
        assert drawn_run.text("train.log").count(f"{split} lacks 1 of the 3 classes: red ({left} in train)") == 1


def test_evaluation_scores_the_same_images_also_when_the_folder_has_grown(drawn_run, command, flat, tmp_path):
    again = command("eval", f"ckpt_path={drawn_run.dir}")
    assert again.text("reports/predictions_test.csv") == drawn_run.text("reports/predictions_test.csv")
    for words, message in (
        ("data.test_ratio=0.3", "was trained with a different test split drawn from train"),
        ("seed=7", "was trained with a different"),
    ):
        refused = command("eval", f"ckpt_path={drawn_run.dir}", words)
        assert refused.exit_code == 1
        assert message in refused.output
    grown = Path(shutil.copytree(flat, tmp_path / "grown"))
    for file in draw_classes(tmp_path / "more", {"blue": 20, "green": 20}, seed=3).rglob("*.png"):
        shutil.copy(file, grown / file.parent.name / f"new_{file.name}")
    trained_on, held_out = paths(drawn_run, "train"), paths(drawn_run, "test")
    copy = Path(shutil.copytree(drawn_run.dir, tmp_path / "copy"))
    resumed = command("train", f"resume={copy}", "trainer.max_epochs=3", f"data.data_dir={grown}", folder=copy)
    assert resumed.exit_code == 0, resumed.output
    assert held_out < paths(resumed, "test")
    assert not paths(resumed, "test") & trained_on


def test_a_checkpoint_that_was_trained_without_it_is_not_scored_on_what_it_has_seen(train, command, flat):
    run = train(f"data.data_dir={flat}", "trainer.max_epochs=1")
    assert run.exit_code == 0, run.output
    said = "val also chooses the checkpoint (monitor=val/acc), so its scores as test are too good"
    assert run.output.count(said) == 2  # when it is noticed, and above the scores
    assert f"type data.test_ratio=0.2, or write the splits once with ml-split {flat}" in run.output
    for file in ("train.log", "summary.txt", "report.html"):
        assert "val also chooses the checkpoint" in run.text(file)
    scored = command("eval", f"ckpt_path={run.dir}", RATIO)
    assert scored.exit_code == 1
    assert f"{RATIO}: the checkpoint was trained without it" in scored.output
    resumed = command("train", f"resume={run.dir}", RATIO, "trainer.max_epochs=2", folder=run.dir)
    assert resumed.exit_code == 1
    assert "it was trained without data.test_ratio. Type data.test_ratio=null" in resumed.output


def test_the_privacy_accounting_counts_the_images_that_are_left(train: Command, flat):
    dp = ("strategy=dp", "strategy.noise_multiplier=1.0", "model.scheduler=null", "trainer.max_epochs=1")
    run = train(f"data.data_dir={flat}", RATIO, *dp)
    assert run.exit_code == 0, run.output
    size = run.json("reports/data.json")["counts"]["train"]
    assert f"{8 / sum(size.values()):.6g}"[:6] in run.text("summary.txt")
    scored = type_command("eval", [f"ckpt_path={run.dir}"], run.dir.parent / "scored")
    assert scored.json("reports/metrics_test.json")["n"] == run.json("reports/metrics_test.json")["n"]
