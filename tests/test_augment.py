"""data/augment: levels and single augmentations, as functions of (seed, epoch, index)."""

from contextlib import closing

import pytest
import torch
from helpers import write_mnist
from hydra.utils import instantiate

import imago
from imago.data.transforms import RandomErasing, RandomVerticalFlip
from imago.errors import UserError

MIXUP = "+data.train_transform.batch.mixup._target_=imago.data.MixUp"
SMALL = ("model=tiny_net", "recipe=none", "data.image_size=16", "data.batch_size=8", "data.cache=none")


def train_batches(folder, *words: str, workers: int = 0) -> list[dict]:
    """The batches of the first epoch, as the network gets them."""
    words = (f"data.data_dir={folder}", *SMALL, *words, f"data.num_workers={workers}")
    data = instantiate(imago.load_config(*words).data, _convert_="all")
    with closing(data.train_dataloader()) as loader:
        return [data.train_transform.batch(batch) for batch in loader]


def differing(one: list[dict], other: list[dict]) -> float:
    """Fraction of the images that differ."""
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a["image"], b["image"], strict=True)]
    return sum(not torch.equal(a, b) for a, b in pairs) / len(pairs)


@pytest.mark.quick
def test_each_level_changes_the_images_and_none_leaves_them_as_they_are_scored(colours):
    plain = train_batches(colours)
    levels = {name: train_batches(colours, f"data/augment={name}") for name in ("none", "light", "medium", "strong")}
    everything = "data/augment=[strong,trivial_augment,aug_mix,color_jitter,rotation,vertical_flip,random_erasing]"
    levels["everything"] = train_batches(colours, everything)
    for name, batches in levels.items():
        assert [b["index"].tolist() for b in batches] == [b["index"].tolist() for b in plain]
        assert all(differing(batches, other) > 0.9 for kind, other in levels.items() if kind != name)
    scored = train_batches(colours, "data.train_transform=${data.eval_transform}")
    assert differing(levels["none"], scored) == 0
    assert differing(levels["everything"], train_batches(colours, everything, workers=2)) == 0


def test_what_is_typed_beside_an_option_wins_and_the_option_over_recipe_and_data():
    def transform(*words):
        return imago.load_config("model=resnet18", "data.data_dir=PATH", *words).data.train_transform

    none = transform("recipe=large", "data/augment=none")
    assert none.box._target_ == "imago.data.CenterBox"
    assert none.pixels is none.batch.flip is none.batch.mixup is None
    typed = transform("data/augment=[none,rotation]", "data.train_transform.pixels.rotation.degrees=45")
    assert (typed.pixels.rotation.degrees, list(typed.pixels)) == (45, ["rotation"])
    with pytest.raises(UserError, match="Unknown option data/augment=strng. The closest are strong"):
        transform("data/augment=[light,strng]")
    light = transform("recipe=medium", "data/augment=light", "data.train_transform.box.scale=[0.5,1]")
    assert (light.box.scale, light.pixels) == ([0.5, 1], None)


def test_the_samples_show_it_whichever_box_the_data_have(command, tmp_path):
    write_mnist(tmp_path / "sets")
    words = ["mode=samples", "data=mnist", f"data.data_dir={tmp_path}/sets", "data/augment=[none,light,rotation]"]
    run = command("visualise", *words, "samples=1")  # the box of light has no options of that of MNIST, or of none
    assert run.exit_code == 0, run.output
    assert (run.dir / "samples.png").is_file()


class Counting(torch.nn.Module):
    """A batch step that asks for the number of classes."""

    num_classes = None

    def forward(self, batch: dict) -> dict:
        return {"classes": self.num_classes}


def test_batch_steps_get_the_number_of_classes_and_a_note_says_what_mixed_images_count_as(colours):
    cfg = imago.load_config(f"data.data_dir={colours}", *SMALL, MIXUP)
    transform = instantiate(cfg.data.train_transform, _convert_="all")
    transform.batch.steps["counting"] = Counting()
    data = instantiate(cfg.data, train_transform=transform, _convert_="all")
    batch = data.some_images("train", 4, torch.device("cpu"))
    assert batch["classes"] == 3
    assert 0.5 <= batch["share"] <= 1
    assert "train metrics count the label with the larger share of each mixed image" in " ".join(data.notes)


def erase(step: RandomErasing, index: list[int], epoch: int = 0) -> torch.Tensor:
    """Which pixels of images of ones become 0, bool (n, 12, 20)."""
    image = torch.ones(len(index), 3, 12, 20)
    return step({"image": image, "index": torch.tensor(index), "epoch": epoch})["image"][:, 0] == 0


def test_erasing_depends_on_the_image_and_the_epoch_but_not_on_the_batch():
    step = RandomErasing(0.5, scale=(0.1, 0.3), seed=1)
    whole = erase(step, list(range(400)))
    erased = whole.flatten(1).any(dim=1)
    assert 0.4 < erased.float().mean() < 0.6
    areas = whole.flatten(1).float().mean(dim=1)[erased]
    assert areas.min() > 0.05
    assert areas.max() < 0.35
    for mask in whole[erased]:  # a rectangle
        assert torch.equal(mask, mask.any(dim=1)[:, None] & mask.any(dim=0)[None, :])
    assert torch.equal(erase(step, [7, 300, 2]), whole[[7, 300, 2]])
    assert not torch.equal(erase(step, list(range(400)), epoch=1), whole)
    with pytest.raises(UserError, match="scale must be the least value, above 0, and the greatest, at most 1; got"):
        RandomErasing(scale=(0.1, 2.0))


def test_a_vertical_flip_is_drawn_apart_from_the_horizontal_one():
    batch = {"image": torch.rand(40, 3, 4, 4), "index": torch.arange(40), "epoch": 0}
    flipped = RandomVerticalFlip(0.5, seed=1)(batch)["image"]
    rows = [torch.equal(a, b.flip(-2)) for a, b in zip(flipped, batch["image"], strict=True)]
    assert 10 < sum(rows) < 30
    assert all(torch.equal(flipped[n], batch["image"][n]) for n, turned in enumerate(rows) if not turned)
