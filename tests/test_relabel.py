"""data.relabel: a CSV of corrected labels, which changes neither files nor splits."""

import shutil

import pytest
from helpers import draw_classes, rows

from imago.data.crops import CenterBox
from imago.data.image_folder import ImageFolderDataModule
from imago.data.images import class_counts
from imago.data.transforms import ImageTransform, Normalize

TRANSFORM = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize([0.5] * 3, [0.5] * 3)})


@pytest.fixture
def corrections(tmp_path):
    """`corrections(*lines)` writes a CSV."""

    def write(*lines: str, header: str = "path,label", encoding: str = "utf-8"):
        file = tmp_path / "corrections.csv"
        file.write_bytes("\r\n".join([header, *lines, ""]).encode(encoding))
        return file

    return write


def module(data_dir, relabel=None, **options) -> ImageFolderDataModule:
    options = {"image_size": 16, "batch_size": 8, "num_workers": 0, "seed": 0} | options
    relabel = None if relabel is None else str(relabel)
    return ImageFolderDataModule(TRANSFORM, TRANSFORM, str(data_dir), relabel=relabel, **options)


def labels(data: ImageFolderDataModule) -> dict[str, str]:
    return {
        path: data.class_names[label]
        for images in data.sets.splits.values()
        for path, label in zip(images.paths, images.labels, strict=True)
    }


@pytest.mark.quick
def test_labels_change_and_nothing_else(colours, corrections):
    file = corrections("train/red/000.png,blue", "val/red/001.png,green", "train/red/001.png,red")
    before, after = module(colours), module(colours, file)
    assert labels(after) == labels(before) | {"train/red/000.png": "blue", "val/red/001.png": "green"}
    assert after.sizes == before.sizes
    assert [list(images.paths) for images in after.sets.splits.values()] == [
        list(images.paths) for images in before.sets.splits.values()
    ]
    assert f"relabelled 2 of 54 images: 1 in train, 1 in val ({file}); 1 have that label already" in after.notes
    (warning,) = set(after.warnings) - set(before.warnings)
    assert warning.startswith("data.relabel changes the labels of 1 image of val: if they were chosen by what")
    assert after.facts["fingerprint"] != before.facts["fingerprint"]
    assert after.facts["as_read"] == before.facts["as_read"]
    assert after.facts["counts"]["train"] == {"blue": 15, "green": 12, "red": 12}
    assert after.facts["relabel"]["images"] == 2


def test_drawn_splits_stay_as_they_are(tmp_path, corrections):
    root = draw_classes(tmp_path / "flat", {"blue": 12, "red": 12})
    file = corrections(*(f"red/{number:03d}.png,blue" for number in range(8)))
    before, after = (module(root, relabel, test_ratio=0.3) for relabel in (None, file))
    assert {name: list(images.paths) for name, images in before.sets.splits.items()} == {
        name: list(images.paths) for name, images in after.sets.splits.items()
    }
    assert labels(after) != labels(before)


def test_tables_of_spreadsheets_and_of_reports_are_read(colours, corrections):
    for file in (
        corrections('"train/red/000.png", blue ', encoding="utf-8-sig"),
        corrections("0.93,train/red/000.png,12,blue", header="confidence,path,index,label"),
    ):
        assert labels(module(colours, file))["train/red/000.png"] == "blue"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["train/red/000.png,blu"], ["line 2: 'blu' is not a class. Did you mean 'blue'?", "blue, green, red"]),
        (
            ["train/red/000.png,blue", "train/red/000.png,green"],
            ["line 3: train/red/000.png is listed twice", "line 2"],
        ),
        (["train/red/000.png,blue", "train/red/000.png,blue"], ["line 3: train/red/000.png is listed twice"]),
        (["red/012.png,blue"], [": red/012.png is not an image of", "Did you mean train/red/012.png?"]),
        ([r"train\red\012.png,blue"], [r"train\red\012.png is not an image of", "Did you mean train/red/012.png?"]),
        (["train/red/000.png"], ["line 2 has no label. Each line is path,label."]),
        (["train/red/000.png,blue,green"], ["line 2 has more fields than the first line"]),
        ([], ["lists no images"]),
        ([f"train/red/{n:03d}.png,blue" for n in range(13)], ["leaves no image of red in train"]),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_line(colours, corrections, lines, words):
    with pytest.raises(ValueError, match="data.relabel=") as error:
        module(colours, corrections(*lines))
    assert all(word in str(error.value) for word in words), error.value


def test_a_table_of_another_kind_is_refused(colours, corrections, tmp_path):
    with pytest.raises(ValueError, match="line 1: there is no column label; the first line is 'path,class'"):
        module(colours, corrections("train/red/000.png,blue", header="path,class"))
    with pytest.raises(ValueError, match="the file is not UTF-8. Save it as CSV in UTF-8"):
        module(colours, corrections("train/red/000.png,blue", encoding="utf-16"))
    with pytest.raises(FileNotFoundError, match="data.relabel=.*nothing.csv does not exist"):
        module(colours, tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        module(colours, tmp_path)


def test_a_mistake_in_the_labels_leaves_no_run_folder(train, colours, corrections):
    unknown = train(f"data.data_dir={colours}", f"data.relabel={corrections('train/red/000.png,bleu')}")
    assert unknown.last_line.endswith("'bleu' is not a class. Did you mean 'blue'? The classes are blue, green, red.")
    assert not unknown.dir.exists()
    missing = train(f"data.data_dir={colours}", "data.relabel=labels.csv")
    assert missing.last_line.startswith("Error: data.relabel=labels.csv does not exist. Give a CSV")
    assert not missing.dir.exists()


def test_what_is_left_out_stays_left_out(colours, corrections, tmp_path):
    (tmp_path / "exclude.txt").write_text("train/red/000.png\n")
    file = corrections("train/red/000.png,blue", "train/red/001.png,blue")
    data = module(colours, file, exclude=str(tmp_path / "exclude.txt"))
    assert data.warnings == module(colours).warnings  # val and test are as they were
    assert "excluded 1 file (data.exclude): 1 in train: train/red/000.png" in data.notes
    assert "train/red/000.png" not in labels(data)
    assert f"relabelled 1 of 53 images: 1 in train ({file}); 1 are left out by data.exclude" in data.notes


def test_a_run_carries_its_labels(train, command, own_colours, corrections, monkeypatch):
    table = own_colours.parent / "table.csv"
    names = [f"{p.relative_to(own_colours)},{p.parent.name},{p.parts[-3]}" for p in own_colours.rglob("*.png")]
    table.write_text("\n".join(["path,label,split", *names]) + "\n")
    file = corrections("val/red/000.png,blue", "train/red/000.png,blue")
    monkeypatch.chdir(file.parent)  # checkpoints carry the absolute path
    words = [f"data.relabel={file.name}", f"data.split_file={table}", "data.cache=disk", "trainer.max_epochs=3"]
    run = train(f"data.data_dir={own_colours}", *words)
    assert run.exit_code == 0, run.output
    monkeypatch.chdir("/")
    assert "relabelled 2 of 54 images" in run.text("summary.txt")
    assert next(row["label"] for row in rows(run, "test") if row["path"] == "val/red/000.png") == "blue"
    again = command("eval", f"ckpt_path={run.dir}")
    assert again.exit_code == 0, again.output
    assert again.text("reports/predictions_test.csv") == run.text("reports/predictions_test.csv")
    assert "labels differ" not in again.output
    corrections("val/red/000.png,green")
    other = command("eval", f"ckpt_path={run.dir}")
    assert "labels differ from those of the checkpoint's run: it had data.relabel=" in other.output
    monkeypatch.chdir(file.parent)
    resumed = command("train", f"resume={run.dir}", "trainer.max_epochs=4", folder=run.dir)
    assert resumed.exit_code == 0, resumed.output
    assert "labels differ from those of the checkpoint's run" in resumed.output
    file.unlink()
    gone = command("eval", f"ckpt_path={run.dir}")
    assert gone.exit_code == 1
    assert "does not exist. Give a CSV with the columns path and label, or type data.relabel=null" in gone.output


def test_the_labels_of_new_data_are_their_own(trained, command, tmp_path, corrections):
    new = draw_classes(tmp_path / "new", {"blue": 3, "red": 3}, seed=9)
    file = corrections("red/000.png,blue")
    scored = command("eval", f"ckpt_path={trained.dir}", f"data.data_dir={new}", f"data.relabel={file}")
    assert scored.exit_code == 0, scored.output
    assert sum(row["label"] == "blue" for row in rows(scored, "test")) == 4
    for words in (["inference", f"ckpt_path={trained.dir}", f"source={new}"], ["doctor", f"data.data_dir={new}"]):
        refused = command(*words, f"data.relabel={file}")
        assert refused.exit_code != 0
        assert "data.relabel" in refused.output


def test_images_and_originals_are_not_touched(own_colours, corrections):
    (own_colours / "test").mkdir()
    shutil.copytree(own_colours / "val" / "red", own_colours / "test" / "red")
    before = {path: path.read_bytes() for path in own_colours.rglob("*") if path.is_file()}
    data = module(own_colours, corrections("test/red/000.png,green"))
    assert class_counts(data.sets.splits["test"], data.class_names) == {"blue": 0, "green": 1, "red": 4}
    assert {path: path.read_bytes() for path in own_colours.rglob("*") if path.is_file()} == before
