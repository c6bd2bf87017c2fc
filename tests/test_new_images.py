"""Images that a checkpoint has not seen: a labelled set is scored with one command, without what it was trained on."""

import json
import shutil
import unicodedata

import pytest
from helpers import draw_classes, photograph

from imago.cli.run_columns import Columns
from imago.run.overview import find_runs


def score(command, run, folder, *more):
    return command("eval", f"ckpt_path={run.dir}", f"data.data_dir={folder}", *more)


def accuracy(run, split="test") -> tuple[float, int]:
    metrics = run.json(f"reports/metrics_{split}.json")
    return metrics["acc"], metrics["n"]


@pytest.fixture
def new(tmp_path):
    return draw_classes(tmp_path / "new", {"blue": 6, "green": 5, "red": 4}, seed=7)


def test_class_folders_are_the_test_split(trained, command, new):
    run = score(command, trained, new)
    assert run.exit_code == 0, run.output
    assert accuracy(run)[1] == 15
    assert "drawn" not in run.output
    for name in ("classification_report_test.txt", "confusion_matrix_test.csv", "predictions_test.csv", "data.json"):
        assert (run.dir / "reports" / name).is_file()
    assert (run.dir / "report.html").is_file()
    assert run.json("reports/metrics_test.json")["baseline_acc"] == pytest.approx(6 / 15)  # blue, as in training


def test_test_alone_and_some_classes_and_others(trained, command, tmp_path, new):
    (tmp_path / "alone").mkdir()
    shutil.copytree(new, tmp_path / "alone" / "test")
    shutil.rmtree(tmp_path / "alone" / "test" / "green")
    draw_classes(tmp_path / "drawn", {"red": 3})
    (tmp_path / "drawn" / "red").rename(tmp_path / "alone" / "test" / "wasp")
    run = score(command, trained, tmp_path / "alone")
    assert run.exit_code == 0, run.output
    assert accuracy(run)[1] == 10
    assert "3 images of test are in folders that are not a class: wasp" in run.output
    assert "of the 10 images in class folders (outside of them: 3)" in " ".join(run.output.split())


def test_another_order_and_spelling_of_classes_changes_nothing(trained, command, new, tmp_path):
    best = score(command, trained, new)
    (new / "blue").rename(new / unicodedata.normalize("NFD", "blue"))
    (tmp_path / "new" / "green").rename(tmp_path / "kept")
    again = score(command, trained, new)
    rows = {line.split(",")[1]: line.split(",")[2:6] for line in best.text("reports/predictions_test.csv").splitlines()}
    for line in again.text("reports/predictions_test.csv").splitlines()[1:]:
        assert rows[line.split(",")[1]] == line.split(",")[2:6]


def test_what_is_no_labelled_set_is_said(trained, command, tmp_path, new):
    shutil.copytree(new / "red", tmp_path / "flat")
    run = score(command, trained, tmp_path / "flat")
    assert run.exit_code == 1
    assert "no folder for any class of the checkpoint" in run.output
    assert f"ml-inference source={tmp_path}/flat" in run.output
    (new / "red").rename(new / "Red")
    (new / "blue").rename(new / "blu")
    shutil.rmtree(new / "green")
    assert "Did you mean 'red' for 'Red', 'blue' for 'blu'" in score(command, trained, new).output


def test_an_unlabelled_test_folder_is_left_out(train, own_colours):
    (own_colours / "test").mkdir()
    for number in range(3):
        shutil.copy(own_colours / "val" / "red" / "000.png", own_colours / "test" / f"{number}.png")
    for _ in range(2):  # then in a folder of its own
        run = train(f"data.data_dir={own_colours}")
        assert run.exit_code == 0, run.output
        assert (
            f"test is not used, because it has no class folders. To predict it: ml-inference source={own_colours}/test"
            in run.output
        )
        assert "test (on val)" in run.output
        (own_colours / "test_images").mkdir()
        shutil.move(own_colours / "test", own_colours / "test_images" / "images")
        (own_colours / "test_images").rename(own_colours / "test")
    shutil.move(own_colours / "test" / "images", own_colours / "test" / "reds")
    assert (
        "test has classes that are missing in train: reds. Did you mean 'red'"
        in train(f"data.data_dir={own_colours}").output
    )


def test_images_that_it_was_trained_on_are_left_out(trained, command, colours, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(colours / "val", mixed)
    for number in range(4):
        shutil.copy(colours / "train" / "red" / f"00{number}.png", mixed / "red" / f"another_name_{number}.png")
    scored = score(command, trained, mixed)
    assert accuracy(scored)[1] == 15
    assert "4 of the 19 images of test are images that the checkpoint was trained on, and are excluded" in scored.output
    assert "red/another_name_0.png" in scored.output
    assert "another_name" not in scored.text("reports/predictions_test.csv")
    only = score(command, trained, colours / "train")
    assert only.exit_code == 1
    assert "39 of the 39 images of test are images that the checkpoint was trained on. Nothing is left" in only.output
    predicted = command("inference", f"ckpt_path={trained.dir}", f"source={mixed}")
    assert "The checkpoint was trained on 4 of the 19 images: the accuracy is too good" in predicted.output


def test_a_folder_that_grows_moves_nobody(train, command, tmp_path):
    folder = draw_classes(tmp_path / "grow", {"blue": 40, "green": 40, "red": 40})
    run = train(f"data.data_dir={folder}", "report.splits=[train,val]")
    before = {line.split(",")[1] for line in run.text("reports/predictions_val.csv").splitlines()[1:]}
    trained_on = {line.split(",")[1] for line in run.text("reports/predictions_train.csv").splitlines()[1:]}
    more = draw_classes(tmp_path / "more", {"blue": 20, "green": 20, "red": 20}, seed=3)
    for name in ("blue", "green", "red"):
        for file in (more / name).iterdir():
            shutil.move(file, folder / name / f"new_{file.name}")
    scored = command("eval", f"ckpt_path={run.dir}", "split=val", "calibrate=true")
    assert scored.exit_code == 0, scored.output
    after = {line.split(",")[1] for line in scored.text("reports/predictions_val.csv").splitlines()[1:]}
    assert before < after
    assert not after & trained_on
    gone_on = train(f"data.data_dir={folder}", f"ckpt_path={run.dir}/checkpoints/last.ckpt", "trainer.max_epochs=3")
    assert gone_on.exit_code == 0, gone_on.output
    other = command("eval", f"ckpt_path={run.dir}", "split=val", "seed=7")
    assert "was trained with a different val split drawn from train" in other.output


def test_the_same_images_in_two_splits_are_said(train, own_colours):
    shutil.rmtree(own_colours / "val")
    (own_colours / "val").symlink_to(own_colours / "train")
    run = train(f"data.data_dir={own_colours}")
    assert "39 of the 39 images of val are also in train, which makes its scores too good" in run.output
    assert "are also in train" in run.text("report.html")


def test_predictions_with_labels_have_the_same_reports(trained, command, new):
    scored = score(command, trained, new)
    predicted = command("inference", f"ckpt_path={trained.dir}", f"source={new}")
    assert predicted.exit_code == 0, predicted.output
    ours, theirs = (run.json("reports/metrics_test.json") for run in (predicted, scored))
    assert ours["split"] == "source"
    for key in ("acc", "n", "baseline_acc"):
        assert ours[key] == theirs[key]
    assert ours["per_class"] == theirs["per_class"]
    assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], abs=1e-6)
    assert (predicted.dir / "plots" / "confusion_matrix_test.png").is_file()
    assert (predicted.dir / "report.html").is_file()
    flat = command("inference", f"ckpt_path={trained.dir}", f"source={new}/red")
    assert not (flat.dir / "reports" / "metrics_test.json").is_file()


def test_a_private_run_does_not_say_whom_it_was_trained_on(train):
    run = train(
        "strategy=dp", "strategy.noise_multiplier=1.0", "test=false", "model.scheduler=null", "data.batch_size=8"
    )
    assert run.exit_code == 0, run.output
    assert "train_images" not in run.checkpoint()["imago"]
    assert "strategy=dp without strategy.target_epsilon=" in run.output


def test_a_run_tells_that_it_was_scored_again(train, command):
    run = train("trainer.max_epochs=1")
    first, second = (command("eval", f"ckpt_path={run.dir}", f"split={split}") for split in ("val", "[train,val]"))
    rows = [json.loads(line) for line in run.text("scored_again.jsonl").splitlines()]
    assert [(row["folder"], row["asked"]) for row in rows] == [
        (str(first.dir), "val"),
        (str(second.dir), "train"),
        (str(second.dir), "val"),
    ]
    assert rows[0]["acc"] == first.json("reports/metrics_val.json")["acc"]
    assert "Scored again" in run.text("report.html")
    assert str(second.dir) in run.text("report.md")
    (overview,) = find_runs(run.dir)
    assert Columns([overview]).named("later").cell(overview).plain == f"{rows[2]['acc']:.4f} val ({rows[2]['n']})"
    assert overview.to_plain()["scored_again"][0]["acc"] == rows[0]["acc"]


def test_a_class_may_be_called_like_a_split(train, command, tmp_path):
    for split, count in (("train", 8), ("val", 3), ("test", 3)):
        draw_classes(tmp_path / "drawn" / split, {"blue": count, "red": count}, seed=count)
        (tmp_path / "drawn" / split / "red").rename(tmp_path / "drawn" / split / "test")
    run = train(f"data.data_dir={tmp_path}/drawn", "trainer.max_epochs=1", "report.splits=[val]")
    predicted = command("inference", f"ckpt_path={run.dir}", f"source={tmp_path}/drawn", "rows=0")
    labels = {line.split(",")[1]: line.split(",")[2] for line in predicted.text("predictions.csv").splitlines()[1:]}
    assert len(labels) == 28
    assert all(label == path.split("/")[1] for path, label in labels.items())


def test_other_content_under_the_same_names_is_known_again(train, command, tmp_path):
    from PIL import Image

    for number, split in enumerate(("train", "val")):
        drawn = draw_classes(tmp_path / f"drawn_{split}", {"blue": 6, "red": 6}, seed=number)
        for file in drawn.rglob("*.png"):
            to = tmp_path / "raw" / split / file.parent.name / f"{file.stem}.bmp"
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).resize((20, 20)).save(to)  # all files are of one size
    run = train(f"data.data_dir={tmp_path}/raw", "trainer.max_epochs=1", "report.splits=[val]")
    for before, after in (("train", "kept"), ("val", "train"), ("kept", "val")):
        (tmp_path / "raw" / before).rename(tmp_path / "raw" / after)
    scored = command("eval", f"ckpt_path={run.dir}", "split=val")
    assert "12 of the 12 images of val are images that the checkpoint was trained on" in scored.output
    assert scored.exit_code == 1


def test_what_an_earlier_run_has_seen_is_known_too(train, command, new, colours):
    first = train("trainer.max_epochs=1", "report.splits=[val]")
    words = [f"data.data_dir={new}", "data.val_ratio=0.4", "report.splits=[val]"]
    goes_on = train(*words, f"ckpt_path={first.dir}/checkpoints/last.ckpt", "trainer.max_epochs=2")
    assert goes_on.exit_code == 0, goes_on.output
    assert "The data have changed: the best value, early stopping and label margins start again" in goes_on.output
    assert goes_on.json("status.json")["best_value"] == goes_on.history[1]["val/acc"]
    assert goes_on.json("reports/metrics_val.json")["acc"] == pytest.approx(goes_on.history[1]["val/acc"])
    begun = train(*words, f"model.init_from={first.dir}", "trainer.max_epochs=1")
    for run in (goes_on, begun):
        scored = score(command, run, colours / "train")
        assert "39 of the 39 images of test are images that the checkpoint was trained on" in scored.output


def test_the_same_data_elsewhere_are_the_same_without_what_was_left_out(train, command, tmp_path):
    folder = draw_classes(tmp_path / "all", {"blue": 20, "green": 20, "red": 20})
    (folder / "blue" / "000.png").write_bytes(b"")
    (tmp_path / "exclude.txt").write_text("red/003.png\n")
    words = [f"data.data_dir={folder}", f"data.exclude={tmp_path}/exclude.txt", "data.on_bad_image=skip"]
    run = train(*words, "trainer.max_epochs=1", "report.splits=[val]")
    moved = shutil.copytree(folder, tmp_path / "moved")
    scored = score(command, run, moved, "split=val")
    assert scored.exit_code == 0, scored.output
    assert scored.json("reports/metrics_val.json") == run.json("reports/metrics_val.json")


def test_damage_inside_is_said_with_and_without_a_cache(train, command, tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / "jpegs" / split / name).mkdir(parents=True)
            for number in range(count):
                photograph(number, 400).save(
                    tmp_path / "jpegs" / split / name / f"{split}{number}{name}.jpg", quality=92
                )
    file = tmp_path / "jpegs" / "val" / "a" / "val0a.jpg"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 120] = bytes(120)
    file.write_bytes(content)
    words = [f"data.data_dir={tmp_path}/jpegs", "report.splits=[val]", "trainer.max_epochs=3"]
    runs = [train(*words, more) for more in ("data.num_workers=2", "data.cache=disk", "data.cache=disk")]
    for run in runs:
        assert run.exit_code == 0, run.output
        assert "val0a.jpg is damaged inside" in run.output
        assert "1 file damaged inside, with wrong pixels from some point on" in run.text("summary.txt")
    predicted = command("inference", f"ckpt_path={run.dir}", f"source={tmp_path}/jpegs/val")
    assert "val0a.jpg is damaged inside" in predicted.output


def test_names_that_are_no_text_go_through_every_command(train, command, tmp_path):
    folder = draw_classes(tmp_path / "latin", {"blue": 8, "red": 8})
    (folder / "blue" / "000.png").rename(folder / "blue" / "caf\udce9.png")
    run = train(f"data.data_dir={folder}", "trainer.max_epochs=1", "logger=tensorboard", "report.splits=[train,val]")
    assert run.exit_code == 0, run.output
    predicted = command("inference", f"ckpt_path={run.dir}", f"source={folder}", "gallery=true")
    assert predicted.exit_code == 0, predicted.output
    assert b"caf\xe9.png" in (predicted.dir / "predictions.csv").read_bytes()
    assert command("doctor", f"data.data_dir={folder}").exit_code in (0, 1)
