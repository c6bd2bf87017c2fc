"""The whole picture can be seen: images of another shape than the network's are cropped, squashed or padded."""

import numpy as np
import pytest
import torch
from helpers import SMALL
from PIL import Image, ImageOps

import imago
from imago.data.crops import SEEN, CenterBox, PaddedCropBox, RandomResizedBox, WholeBox, pair, seen_fraction
from imago.data.survey import LITTLE_SEEN
from imago.data.transforms import ImageTransform


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The classes differ at the ends of long images only."""
    root, generator = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for name, at in (("left", 5), ("right", 195)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 60, (40, 240, 3))
                pixels[5:35, at : at + 40] = generator.integers(180, 255, (30, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def image(height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("height", "width"), [(40, 240), (240, 40), (33, 100), (64, 64)])
@pytest.mark.parametrize("size", [32, (24, 48), (50, 20)])
def test_padding_is_that_of_pillow(height, width, size):
    rows, columns = pair(size)
    seen = ImageTransform(CenterBox(1.0)).completed(size, "pad", (1, 2, 3)).image(image(height, width), size)
    canvas = max(height, -(-width * rows // columns)), max(width, -(-height * columns // rows))
    picture = Image.new("RGB", canvas[::-1], (1, 2, 3))
    pixels = Image.fromarray(image(height, width).permute(1, 2, 0).numpy())
    picture.paste(pixels, ((canvas[1] - width) // 2, (canvas[0] - height) // 2))
    whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(seen, ImageTransform(WholeBox()).image(whole, size))
    if size == 32 and {height, width} == {40, 240}:
        assert np.array_equal(
            np.array(picture), np.array(ImageOps.pad(pixels, (max(height, width),) * 2, color=(1, 2, 3)))
        )


@pytest.mark.parametrize("size", [32, (24, 48)])
def test_squashing_shows_all_of_it(size):
    squashed = ImageTransform(CenterBox(1.0)).completed(size, "squash")
    assert torch.equal(squashed.image(image(40, 240), size), ImageTransform(WholeBox()).image(image(40, 240), size))
    assert seen_fraction(squashed.box, 40, 240) == 1


def test_cropping_to_another_shape_takes_the_largest_of_that_shape():
    box = ImageTransform(CenterBox(1.0)).completed((20, 60)).box
    assert box(40, 240) == (0, 60, 40, 120)
    assert box(240, 40) == (113, 0, 14, 40)
    plain = ImageTransform(CenterBox(0.875))
    assert plain.completed(32).box is plain.box  # squares are cut as ever


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_random_boxes_stay_on_the_canvas(fit):
    transform = ImageTransform(RandomResizedBox((0.1, 1.0), (0.75, 1.33))).completed((24, 48), fit)
    assert transform.randomness == "box"
    for height, width in ((40, 240), (240, 40), (7, 7), (1, 900)):
        for _ in range(50):
            box = transform.box(height, width)
            assert min(box.height, box.width) >= 1
            assert isinstance(box, PaddedCropBox) == (fit == "pad")
            if fit != "pad":
                assert box.top >= 0
                assert box.left >= 0
                assert box.top + box.height <= height
                assert box.left + box.width <= width
            assert transform.image(image(height, width), (24, 48)).shape == (3, 24, 48)


def test_grey_images_have_grey_margins():
    grey = ImageTransform(CenterBox(1.0)).completed(8, "pad", (10, 20, 60)).image(image(2, 8)[:1], 8)
    assert grey[0, 0, 0] == 30


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fit": "stretch"}, "must be crop, squash or pad"),
        ({"fill": [0, 0]}, "red, green and blue"),
        ({"fill": [0, 0, 256]}, "0 to 255"),
    ],
)
def test_other_words_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        ImageTransform(CenterBox()).completed(8, **given)
    for size in (0, [8], [8, 0], [8, 8, 8], "8"):
        with pytest.raises(ValueError, match="must be the side of a square"):
            pair(size)


WIDE = ("model=simple_cnn", "trainer.max_epochs=12", "model.optimizer.lr=0.02", "data.image_size=32",
        "data.train_transform.batch.flip=null", "data.train_transform.box.scale=[0.9,1]")  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [["data.fit=squash"], ["data.fit=pad", "data.image_size=[32,64]", "data.cache=disk"]],
    ids=["squash", "pad"],
)
def test_what_stands_at_the_ends_is_learnt_and_seen_by_every_command(command, wide, words):
    words = [f"data.data_dir={wide}", *SMALL, *WIDE, *words]
    run = command("train", *words)
    assert run.exit_code == 0, run.output
    assert run.json("reports/metrics_test.json")["acc"] == 1.0
    assert "the network sees" not in run.output
    scored = command("eval", f"ckpt_path={run.dir}", "data.cache=none")
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    predicted = command("inference", f"ckpt_path={run.dir}", f"source={wide}/val", "tta=five_crop")
    assert predicted.exit_code == 0, predicted.output
    assert (
        command("inference", f"ckpt_path={run.dir}", f"source={wide}/val").json("reports/metrics_test.json")["acc"]
        == 1.0
    )
    classifier = imago.load_classifier(run.dir)
    assert [p.class_name for p in classifier.predict(sorted((wide / "val").rglob("*.png")))] == ["left"] * 6 + [
        "right"
    ] * 6
    assert command("export", f"ckpt_path={run.dir}").exit_code == 0


def test_little_of_the_picture_is_said(command, wide):
    run = command("train", f"data.data_dir={wide}", *SMALL, "trainer.max_epochs=1")
    assert "the network sees 13% of an image (median)" in run.output
    photo = seen_fraction(CenterBox(0.875), 480, 640)
    assert LITTLE_SEEN < photo < SEEN  # an ordinary photograph: only `ml-doctor` notes it
    assert "data.fit=pad" in run.output
    doctor = command("doctor", f"data.data_dir={wide}")
    assert "the network sees 13% of an image" in " ".join(doctor.output.split())
    assert command("doctor", f"data.data_dir={wide}", "data.fit=squash").exit_code == 0


def test_vision_transformers_see_squares(train):
    run = train("model=torchvision", "model.net.name=vit_b_16", "model.net.weights=null", "data.image_size=[32,64]")
    assert "data.image_size=[32, 64]: vit_b_16 needs square images. Type data.image_size=32" in run.output
