import pytest
import torch
from helpers import write_mnist
from torchvision.datasets import MNIST

from imago.data.crops import CenterBox, RandomResizedBox
from imago.data.dataset import ImageDataset, collate
from imago.data.torchvision_set import MemoryImages
from imago.data.transforms import ImageTransform


def test_the_example_people_know(command, tmp_path):
    write_mnist(tmp_path / "sets")
    run = command(
        "train", "experiment=example", f"data.data_dir={tmp_path}/sets", "logger=[]", "trainer.accelerator=cpu"
    )
    assert run.exit_code == 0, run.output
    assert len(run.history) == 10
    assert run.json("reports/metrics_test.json")["n"] == 60
    assert run.json("reports/metrics_test.json")["acc"] > 0.9
    assert "no val split" in run.text("summary.txt")
    assert run.weights()["net.features.0.0.weight"].shape == (128, 784)


def test_without_network_it_is_said_what_to_do(command, tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    run = command("train", "experiment=example", f"data.data_dir={tmp_path}/none")
    assert run.exit_code == 1
    error = run.error
    for words in (
        "MNIST could not be downloaded",
        f"in {tmp_path}/none/MNIST",
        "data.data_dir=PATH",
        "experiment=digits",
    ):
        assert words in error
    assert "Traceback" not in run.output


@pytest.mark.parametrize("options", [["trainer=ddp_sim"], ["data.num_workers=2"]])
def test_it_works_in_several_processes(command, tmp_path, options):
    write_mnist(tmp_path / "sets")
    run = command(
        "train",
        "experiment=example",
        f"data.data_dir={tmp_path}/sets",
        "logger=[]",
        "trainer.accelerator=cpu",
        *options,
        "trainer.min_epochs=1",
        "trainer.max_epochs=1",
        "report.splits=[test]",
    )
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["n"] == 60


@pytest.mark.parametrize(("share", "size"), [(1.0, 28), (0.8, 20)])
def test_a_batch_in_one_piece_is_that_of_its_images(share, size):
    pixels = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8)
    images = MemoryImages(pixels, [f"{number}" for number in range(40)], [number % 3 for number in range(40)])
    left = images.without({"3", "7"})
    for each in (images, left):
        dataset = ImageDataset(each, ImageTransform(CenterBox(share)), size, seed=1)
        positions = [(2, index) for index in (5, 30, 0, 17)]
        sliced, one_by_one = dataset.__getitems__(positions), collate([dataset[position] for position in positions])
        assert isinstance(sliced, dict)
        assert sliced.keys() == one_by_one.keys()
        assert all(torch.equal(torch.as_tensor(sliced[key]), torch.as_tensor(one_by_one[key])) for key in sliced)
    random = ImageDataset(images, ImageTransform(RandomResizedBox()), size, seed=1)
    assert isinstance(random.__getitems__([(0, 1)]), list)  # each with random numbers of its own
