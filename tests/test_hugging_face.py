from itertools import chain

import datasets
import pytest
import torch
from helpers import SMALL, draw_classes, rows, same

from imago.data.crops import CenterBox
from imago.data.hugging_face import HuggingFaceDataModule
from imago.data.transforms import ImageTransform, Normalize

TRANSFORM = ImageTransform(CenterBox(1.0), batch={"normalize": Normalize(mean=[0.5] * 3, std=[0.5] * 3)})
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    draw_classes(root / "train", {"blue": 14, "green": 12, "red": 13})
    draw_classes(root / "test", {"blue": 5, "green": 5, "red": 5}, seed=1)
    return root


@pytest.fixture(scope="module")
def loaded(folder, tmp_path_factory):
    return datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def parquet(loaded, tmp_path_factory):
    root = tmp_path_factory.mktemp("parquet")
    for split, part in loaded.items():
        part.to_parquet(root / f"{split}.parquet")
    return root


def module(dataset, **options) -> HuggingFaceDataModule:
    return HuggingFaceDataModule(
        lambda: dataset, TRANSFORM, TRANSFORM, **{"num_workers": 0, "image_size": 16} | options
    )


def test_parquet_and_image_folder_train_to_the_same_bits(command, folder, parquet):
    files = f"data.dataset.data_files={{train: {parquet}/train.parquet, test: {parquet}/test.parquet}}"
    one = command("train", "data=hugging_face", "data.dataset.path=parquet", files, *SMALL, "trainer.max_epochs=4")
    two = command(
        "train",
        "data=hugging_face",
        "data.dataset.path=imagefolder",
        f"data.dataset.data_dir={folder}",
        *SMALL,
        "trainer.max_epochs=4",
    )
    assert (one.exit_code, two.exit_code) == (0, 0), one.output + two.output
    assert same(one.weights(), two.weights())
    assert "no val split" in one.text("summary.txt")
    assert one.json("reports/metrics_test.json")["n"] == 15
    assert rows(one, "test")[0]["path"] == "test/00"
    assert one.history[-1]["train/acc"] > 0.6


def test_it_gives_what_a_folder_gives(loaded, folder):
    from imago.data.image_folder import ImageFolderDataModule

    ours = ImageFolderDataModule(TRANSFORM, TRANSFORM, str(folder), image_size=16, num_workers=0)
    theirs = module(loaded)
    assert theirs.class_names == ours.class_names
    for a, b in zip(ours.test_dataloader(), theirs.test_dataloader(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("image", "label", "index"))


def test_workers_change_nothing(loaded):
    given = module(loaded, num_workers=2)
    batches = list(given.train_dataloader())
    given.teardown("fit")
    for a, b in zip(batches, module(loaded).train_dataloader(), strict=True):
        assert torch.equal(a["image"], b["image"])


def test_labels_may_be_text_or_numbers(loaded):
    names = ["blue", "green", "red"]
    as_text = loaded.map(lambda row: {"what": names[row["label"]]}, remove_columns="label")
    assert module(as_text, label_column="what").class_names == names
    as_number = loaded.map(lambda row: {"what": row["label"] * 10}).remove_columns("label")
    given = module(as_number, label_column="what")
    assert given.class_names == ["0", "10", "20"]
    assert set(given.split("test").labels) == {0, 1, 2}


def test_the_fingerprint_follows_the_data(loaded):
    assert module(loaded).sets.fingerprint() == module(loaded).sets.fingerprint()
    fewer = datasets.DatasetDict(loaded | {"train": loaded["train"].select(range(20, 35))})
    assert module(fewer).sets.fingerprint() != module(loaded).sets.fingerprint()


def test_bad_images_are_named_or_left_out(loaded, tmp_path):
    def spoil(row, index):
        return {"image": {"bytes": b"no image", "path": None} if index == 3 else row["image"]}

    raw = loaded.cast_column("image", datasets.Image(decode=False))
    spoilt = datasets.DatasetDict(raw | {"train": raw["train"].map(spoil, with_indices=True)})
    given = module(spoilt)
    with pytest.raises(ValueError, match=r"train/03: not an image"):
        list(chain(given.train_dataloader(), given.val_dataloader()))
    assert module(spoilt, on_bad_image="skip", cache_dir=str(tmp_path)).skipped == ["train/03: not an image"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "img"}, "data.image_column=img: unknown column. The columns are image, label"),
        ({"label_column": "labels"}, "data.label_column=labels: unknown column"),
    ],
)
def test_columns_that_are_not_there_are_said(loaded, options, message):
    with pytest.raises(ValueError, match=message):
        module(loaded, **options)


def test_a_label_that_train_lacks_and_unlabelled_rows_are_refused(loaded):
    names = ["blue", "green", "red"]
    as_text = loaded.map(lambda row: {"what": names[row["label"]]}, remove_columns="label")
    other = as_text["test"].map(lambda row, index: {"what": "pink" if index == 2 else row["what"]}, with_indices=True)
    with pytest.raises(ValueError, match="Row 2 of the test split has the label pink, which is not a class of train"):
        module(datasets.DatasetDict(as_text | {"test": other}), label_column="what")
    hidden = loaded["test"].map(lambda row, index: {"label": -1 if index == 0 else row["label"]}, with_indices=True)
    with pytest.raises(ValueError, match="Row 0 of the test split has the label -1"):
        module(datasets.DatasetDict(loaded | {"test": hidden}))
    hidden = loaded["test"].map(lambda row: {"label": -1})
    given = module(datasets.DatasetDict(loaded | {"test": hidden}))
    assert "test" not in given.sizes
    assert any("because its labels are hidden" in note for note in given.notes)


def test_without_a_data_set_or_a_network_it_is_said_what_to_type(command, tmp_path, monkeypatch):
    run = command("train", "data=hugging_face")
    assert "data.dataset.path=NAME" in run.error
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    run = command("train", "data=hugging_face", f"data.dataset.path={tmp_path}/nowhere")
    assert run.exit_code == 1
    assert "The data set could not be loaded" in run.error
    assert "data.dataset.path=FOLDER" in run.error
