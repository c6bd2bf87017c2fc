"""data=csv and data=torchvision: tables of images, and data sets by name."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from helpers import SMALL, draw_classes, rows, same, write_mnist
from scipy.io import savemat
from torchvision import datasets

from imago.data import CenterBox, ImageTransform, TorchVisionDataModule, torchvision_dataset
from imago.data.split_files import read_table
from imago.errors import UserError


@pytest.fixture
def table(tmp_path):
    """A CSV of images of three classes; those of green have the weight 4."""
    folder = draw_classes(tmp_path / "photos", {"blue": 20, "green": 5, "red": 15})
    lines = [
        f"photos/{file.relative_to(folder)},{file.parent.name},{'4' if file.parent.name == 'green' else ''},"
        f"{'val' if file.stem in ('001', '004') else 'train'}"
        for file in sorted(folder.rglob("*.png"))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,weight,split", *lines]))
    return tmp_path / "table.csv"


def test_a_table_of_images_is_trained_on_by_its_weights_and_exactly_resumed(table, command):
    words = ["data=csv", f"data.split_file={table}", *SMALL, "data.sampler=weights", "model.scheduler=null"]
    run = command("train", *words)
    assert run.exit_code == 0, run.output
    assert "an epoch draws blue 14 (of 18), green 9 (of 3), red 10 (of 13) images of train" in run.text("summary.txt")
    short = command("train", *words, "trainer.max_epochs=1")
    resumed = command("train", f"resume={short.dir}", "trainer.max_epochs=2", folder=short.dir)
    assert resumed.exit_code == 0, resumed.output
    assert same(run.weights(), resumed.weights())
    first = [row["path"] for row in rows(run, "test")][:3]
    assert first == [f"photos/{file}.png" for file in ("blue/001", "blue/004", "green/001")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("https://example.org/a.png,red", "https://example.org/a.png is a URL. Download the images first"),
        ("a.png,blue", "a.png is listed 2 times. An image is drawn more often by a column weight"),
        ("b.png,red,much", "could not convert string to float: 'much'"),
        ("b.png,red,-1", "the weight of b.png is -1. It must be 0 or more"),
        ("b.png,red,1,trian", "b.png is in 'trian', which is no split"),
        ("b.png,", "an image has no label: b.png"),
    ],
)
def test_what_a_table_cannot_have_is_refused(tmp_path, row, message):
    (tmp_path / "table.csv").write_text(f"path,label,weight,split\na.png,blue,1,train\n{row}\n")
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "table.csv")


def loaded(name: str, root, **options) -> TorchVisionDataModule:
    look = ImageTransform(CenterBox(1.0))
    return TorchVisionDataModule(
        partial(torchvision_dataset, name=name), look, look, str(root), 0.1, image_size=32, **options
    )


def write_cifar(root, monkeypatch) -> None:
    """A tiny CIFAR10 in its own files, whose pixels are the label."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file, count in (("data_batch_1", 40), ("test_batch", 20)):
        labels = [number % 4 for number in range(count)]
        pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, axis=1)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    names = ["airplane", "automobile", "bird", "cat"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})


def write_svhn(root, monkeypatch) -> None:
    """A tiny SVHN in its own files, whose pixels are the label; the digit 0 is 10 in them."""
    files = {}
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 10
        pixels = np.broadcast_to(labels.astype(np.uint8), (32, 32, 3, count))
        savemat(root / f"{split}.mat", {"X": pixels, "y": np.where(labels == 0, 10, labels)[:, None]})
        files[split] = ["", f"{split}.mat", None]
    monkeypatch.setattr(datasets.SVHN, "split_list", files)


@pytest.mark.parametrize(
    ("write", "name", "classes"),
    [(write_cifar, "CIFAR10", ["airplane", "automobile", "bird", "cat"]), (write_svhn, "SVHN", list("0123456789"))],
)
def test_sets_are_read_in_their_own_format(write, name, classes, tmp_path, monkeypatch):
    write(tmp_path, monkeypatch)
    data = loaded(name, tmp_path)
    assert data.class_names == classes
    assert (sum(data.sizes.values()), data.sizes["test"]) == (60, 20)
    batch = data.some_images("test", 20, torch.device("cpu"))
    assert batch["image"].shape == (20, 3, 32, 32)
    assert all((image == label).all() for image, label in zip(batch["image"], batch["label"], strict=True))
    assert loaded(name, tmp_path).facts == data.facts


def test_a_set_is_chosen_by_name_and_grey_images_fit_any_network(command, tmp_path):
    write_mnist(tmp_path / "sets")
    (tmp_path / "sets" / "MNIST").rename(tmp_path / "sets" / "FashionMNIST")
    words = ["data=torchvision", f"data.data_dir={tmp_path}/sets", *SMALL, "trainer.max_epochs=1", "data.batch_size=64"]
    run = command("train", *words, "data.dataset.name=FashionMNIST")
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["n"] == 60
    assert run.json("reports/metrics_test.json")["per_class"].keys() == {*datasets.FashionMNIST.classes}
    scored = command("eval", f"ckpt_path={run.dir}", folder=tmp_path / "eval")
    assert scored.exit_code == 0, scored.output
    wrong = command("train", *words, "data.dataset.name=fashionmist", folder=tmp_path / "wrong")
    assert "data.dataset.name=fashionmist is none of CIFAR10, CIFAR100, " in wrong.output
    assert "Did you mean FashionMNIST?" in wrong.output
    assert "Type data.dataset.name= with one of" in command("train", *words, folder=tmp_path / "none").output
