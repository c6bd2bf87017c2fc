"""imago.load_classifier: images as a program has them, and predictions as it needs them."""

import io
import random
import re
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import damaged_jpeg, draw_classes, photograph, swapped_profile
from PIL import Image
from torchvision.transforms.v2 import RandomErasing

import imago
from imago.data.colour import PLAIN
from imago.data.decode import BadImageError, read_image
from imago.evaluation import Classifier, Prediction
from imago.evaluation.pixels import read_pixels

NAMES = ["blue", "green", "red"]


@pytest.fixture(scope="module")
def classifier(trained) -> Classifier:
    """Not to be changed."""
    return imago.load_classifier(trained.dir)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    root = draw_classes(tmp_path / "photos", {"blue": 3, "red": 4}, seed=5)
    return sorted(root.rglob("*.png"))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def see_through(mode: str) -> Image.Image:
    image = photograph(4)
    image.putalpha(Image.fromarray(np.tile(np.arange(96, dtype=np.uint8) * 2, (96, 1))))
    return image.convert(mode)


DEEP = Image.fromarray((np.arange(96 * 64, dtype=np.uint16) * 10).reshape(96, 64))
CONTENTS = {
    "jpeg": encoded(photograph(1), "JPEG"),
    "turned jpeg": encoded(photograph(2), "JPEG", exif=turned()),
    "jpeg with a profile": encoded(photograph(3), "JPEG", icc_profile=swapped_profile()),
    "cmyk": encoded(photograph(4).convert("CMYK"), "JPEG"),
    "grey": encoded(photograph(5).convert("L"), "PNG"),
    "16 bits": encoded(DEEP, "PNG"),
    "alpha": encoded(see_through("RGBA"), "PNG"),
    "alpha and profile": encoded(see_through("LA"), "PNG", icc_profile=swapped_profile()),
    "palette": encoded(photograph(6).convert("P"), "PNG", transparency=3),
    "animated gif": encoded(photograph(6), "GIF", save_all=True, append_images=[photograph(7)]),
    "bitmap": encoded(photograph(8).convert("1"), "BMP"),
    "webp": encoded(see_through("RGBA"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_pixels_are_those_of_the_file(tmp_path, content, channels):
    file = tmp_path / "image"
    file.write_bytes(content)
    wanted = read_pixels(file, channels, PLAIN)
    with file.open("rb") as opened, Image.open(file) as lazy, Image.open(file) as loaded:
        loaded.load()
        opened.seek(5)
        for given in (str(file), content, bytearray(content), memoryview(content), io.BytesIO(content), opened):
            assert torch.equal(read_pixels(given, channels, PLAIN), wanted)
        mode, info = loaded.mode, dict(loaded.info)
        for image in (lazy, lazy, loaded, loaded):
            assert torch.equal(read_pixels(image, channels, PLAIN), wanted)
        assert (loaded.mode, loaded.info) == (mode, info)
        assert not opened.closed
    assert wanted.shape[0] == channels
    if channels == 3:
        assert torch.equal(wanted, read_image(file))
    pixels = read_image(file)  # upright, in sRGB and on white
    for given in (pixels, pixels.permute(1, 2, 0).numpy(), Image.fromarray(pixels.permute(1, 2, 0).numpy())):
        assert torch.equal(read_pixels(given, channels, PLAIN), wanted)


@pytest.mark.parametrize("channels", [3, 1])
def test_arrays_with_other_channels_are_read_as_files_with_these(channels):
    grey, alpha = photograph(5).convert("L"), see_through("RGBA")
    for image in (grey, alpha, DEEP):
        pixels = np.array(image)
        wanted = read_pixels(encoded(image, "PNG"), channels, PLAIN)
        tensor = torch.from_numpy(pixels)
        same = [pixels, tensor] if pixels.ndim == 2 else []
        deep = np.atleast_3d(pixels)
        for given in (*same, deep, np.asfortranarray(deep), torch.from_numpy(deep).permute(2, 0, 1)):
            assert torch.equal(read_pixels(given, channels, PLAIN), wanted)
        assert torch.equal(read_pixels(deep[::-1], channels, PLAIN), wanted.flip(1))


@pytest.mark.quick
def test_one_image_has_one_prediction_and_several_have_a_list(classifier, files):
    one = classifier.predict(files[0])
    assert isinstance(one, Prediction)
    assert (one.class_name, one.error, one.accepted, one.set) == ("blue", None, None, None)
    assert list(one.probabilities) == NAMES
    assert sum(one.probabilities.values()) == pytest.approx(1)
    assert one.probability == max(one.probabilities.values())
    several = classifier.predict(files)
    assert [each.class_name for each in several] == ["blue"] * 3 + ["red"] * 4
    for given in (tuple(files), iter(files), (file.read_bytes() for file in files), np.array(files, dtype=object)):
        assert classifier.predict(given) == several
    assert classifier.predict(np.array([str(file) for file in files])) == several
    pixels = [np.array(Image.open(file).resize((20, 20))) for file in files]
    stack = np.stack(pixels)
    wanted = classifier.predict(pixels)
    assert classifier.predict(stack) == classifier.predict(torch.from_numpy(stack).permute(0, 3, 1, 2)) == wanted
    with files[2].open("rb") as opened, Image.open(files[3]) as image:
        mixed = [str(files[0]), files[1].read_bytes(), opened, image, files[4], np.array(Image.open(files[5]))]
        assert classifier.predict([*mixed, files[6]]) == several
    assert classifier.predict([]) == classifier.predict(iter(())) == classifier.predict(stack[:0]) == []
    assert classifier.predict([files[0]]) == [one]
    with pytest.raises(FileNotFoundError):
        imago.load_classifier("nowhere.ckpt")
    assert {"load_classifier", "train", "Prediction"} <= {*dir(imago)}
    assert isinstance(classifier, imago.Classifier)
    with pytest.raises(AttributeError, match="has no attribute 'load'"):
        imago.load("x")


def test_the_most_likely_classes_come_first(classifier, files):
    one = classifier.predict(files[0])
    ranked = sorted(one.probabilities.items(), key=lambda pair: -pair[1])
    assert one.top == ranked
    assert one.top[0] == (one.class_name, one.probability)
    assert classifier.predict(files[0], top=2).top == ranked[:2]
    for bad in ({"top": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"top": True}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*: must be an integer of 1 or more"):
            classifier.predict(files, **bad)
    with pytest.raises(ValueError, match="on_error='none': must be 'raise' or 'return'"):
        classifier.predict(files, on_error="none")


def test_python_says_what_the_command_says(command, trained, classifier, files):
    """To the bit, with an unreadable image as well."""
    (files[0].parent / "002b.png").write_bytes(b"")
    run = command("inference", f"ckpt_path={trained.dir}", f"source={files[0].parent.parent}", "data.batch_size=3")
    lines = run.text("predictions.csv").splitlines()
    header = lines[0].split(",")
    told = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    paths = [files[0].parent.parent / row["path"] for row in told]
    predictions = classifier.predict(paths, batch_size=3, on_error="return")
    assert len(predictions) == 8
    for row, prediction in zip(told, predictions, strict=True):
        assert prediction.error == (row["error"] or None)
        assert prediction.class_name == (row["prediction"] or None)
        if prediction.error is None:
            assert prediction.probabilities == {name: float(row[f"prob_{name}"]) for name in NAMES}
    assert [bool(prediction.error) for prediction in predictions] == [*[False] * 3, True, *[False] * 4]


def test_an_unreadable_image_does_not_cost_the_others(classifier, files):
    given = [files[0], "nix.jpg", files[1], b"", files[2]]
    predictions = classifier.predict(given, on_error="return")
    assert [each.class_name for each in predictions] == ["blue", None, "blue", None, "blue"]
    assert [each.error for each in predictions] == [
        *(None, "nix.jpg: no such file"),
        *(None, "images[3]: an image of 0 bytes: the file is empty", None),
    ]
    assert (predictions[1].probability, predictions[1].probabilities, predictions[1].top) == (None, {}, [])
    assert classifier.predict(given, batch_size=1, on_error="return")[3] == predictions[3]
    assert classifier.predict(3, on_error="return").error.startswith("3 (int) is not an image. Give a path,")
    with pytest.raises(BadImageError, match=r"^nix\.jpg: no such file$"):
        classifier.predict(given)

    def camera():
        yield files[0]
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        classifier.predict(camera(), on_error="return")


CUT = CONTENTS["jpeg"][:-200]
PIXELS = np.zeros((8, 6, 3), np.uint8)


class Upload:
    filename = "a.jpg"

    async def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nix.jpg", "nix.jpg: no such file"),
        ("https://host/a.jpg", "https://host/a.jpg is a URL: download it first, and give the file or its bytes"),
        ("data:image/png;base64,AAAA", "is a data URL: give base64.b64decode("),
        ("FOLDER", "is a folder: give its files, or type ml-inference ckpt_path=RUN source="),
        ("photos/*.jpg", "photos/*.jpg is a pattern, not a file: give sorted(glob.glob('photos/*.jpg')), or type ml-"),
        ("/dev/zero", "a device or a pipe, not a file"),
        ("", "'': no such file"),
        ("x" * 5000, "Is it a path?"),
        ("a\0b", r"'a\x00b': no such file"),
        (b"", "an image of 0 bytes: the file is empty"),
        (b"a.jpg", "b'a.jpg', taken as the content of an image file: not an image"),
        (b"<html>404</html>", "it is a web page"),
        (CUT, f"an image of {len(CUT)} bytes: the file is truncated or damaged"),
        (io.StringIO("x"), 'open it in binary mode, open(path, "rb")'),
        (Upload(), "give its bytes, await file.read()"),
        (None, "None (NoneType) is not an image. Give a path, the bytes of an image file, an open binary file, a PIL"),
        ({"a": 1}, "dict is not an image. Give a path"),
        ([["a.jpg"]], "images[0]: list is not an image. Give a path"),
        (PIXELS.transpose(2, 0, 1), "has its channels first: give image.transpose(1, 2, 0)"),
        (torch.from_numpy(PIXELS), "has its channels last: give image.permute(2, 0, 1)"),
        (PIXELS[:0], "An array of shape (0, 6, 3) and type uint8 is not an image: its shape must be (height, width)"),
        (PIXELS[..., :2], "its shape must be (height, width)"),
        (PIXELS[None, None], "its shape must be (height, width)"),
        (PIXELS.ravel(), "If it holds the bytes of a file, give image.tobytes()"),
        (np.full((8, 6, 3), np.nan), "If these are from 0 to 1, give (image * 255).round().astype(numpy.uint8)"),
        (torch.zeros(3, 8, 6), "If these are from 0 to 1, give (image * 255).round().to(torch.uint8)"),
        (PIXELS.astype(bool), "Give image.astype(numpy.uint8) * 255"),
        (PIXELS.astype(np.int64), "If these are from 0 to 255, give image.astype(numpy.uint8)"),
        (PIXELS.astype(object), "type object: pixels must be uint8, 0 to 255, or uint16, 0 to 65535."),
        (torch.from_numpy(PIXELS.transpose(2, 0, 1)).to_sparse(), "has no pixels that can be read: "),
        (Image.new("F", (4, 4)), "a PIL image of mode F: float pixels have no fixed range"),
        (Image.new("RGB", (0, 4)), "a PIL image of mode RGB: it has no pixels"),
    ],
)
def test_what_is_not_an_image_is_said(classifier, tmp_path, image, words):
    image = str(tmp_path) if isinstance(image, str) and image == "FOLDER" else image
    with pytest.raises(BadImageError) as error:
        classifier.predict(image)
    assert words in str(error.value)


def test_bytes_have_the_limits_of_files(classifier, monkeypatch):
    content = encoded(Image.new("1", (300, 300)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for bomb in (content, io.BytesIO(content)):
        with pytest.raises(BadImageError, match="decompression bomb"):
            classifier.predict(bomb)
    for other in (encoded(photograph(1), "PDF"), encoded(photograph(1), "EPS"), encoded(photograph(1), "ICO")):
        with pytest.raises(BadImageError, match="not a supported image"):
            classifier.predict(other)


def test_a_generator_is_read_a_batch_at_a_time(classifier):
    alive, most, taken = set(), [0], []
    real = classifier._predict

    def camera():
        for number in range(40):
            image = np.full((64, 64, 3), number, np.uint8)
            alive.add(number)
            weakref.finalize(image, alive.discard, number)
            most[0] = max(most[0], len(alive))
            yield image

    def counted(batch, first, top):
        taken.append((first, len(batch)))
        return real(batch, first, top)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_predict", counted)
        assert len(classifier.predict(camera(), batch_size=16)) == 40
    assert taken == [(0, 16), (16, 16), (32, 8)]
    assert most[0] <= 3


def test_threads_get_the_results_of_one(trained):
    """Sizes, profiles and batch sizes mixed, from a classifier that has predicted nothing before."""
    contents = [*CONTENTS.values(), *(encoded(photograph(seed, 40 + seed), "PNG") for seed in range(20))]
    jobs = [(number % len(contents), 1 + number % 5) for number in range(48)]

    def predict(classifier, job):
        start, count = job
        return classifier.predict((contents * 2)[start : start + count], batch_size=3)

    alone = imago.load_classifier(trained.dir)
    wanted = [predict(alone, job) for job in jobs]
    shared = imago.load_classifier(trained.dir)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda job: predict(shared, job), jobs)) == wanted


def test_random_transforms_repeat_and_leave_the_generators_alone(trained):
    classifier = imago.load_classifier(trained.dir)
    classifier.transform.pixels = {"erase": RandomErasing(p=1.0, scale=(0.3, 0.5))}
    given = [photograph(seed) for seed in range(8)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = [random.random(), np.random.rand(), torch.rand(1).item()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = classifier.predict([*given, b""], on_error="return")[:-1]
    assert before == [random.random(), np.random.rand(), torch.rand(1).item()]
    assert classifier.predict([given[0]] * 2)[0] != classifier.predict([given[0]] * 2)[1]
    arrays = [np.array(image) for image in given]
    one = classifier.predict(arrays)
    assert [each.class_name for each in one] == [each.class_name for each in wanted]
    with ThreadPoolExecutor(8) as pool:
        assert all(result == one for result in pool.map(classifier.predict, [arrays] * 16))


def test_damaged_images_have_a_warning(classifier, caplog):
    """In threads as well: two files of one size have one name."""
    good, damaged = CONTENTS["jpeg"], damaged_jpeg()
    assert len(good) == len(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = classifier.predict(damaged)
    assert prediction.warning.startswith("damaged inside, and read with wrong pixels: ")
    assert f"an image of {len(damaged)} bytes is {prediction.warning}" in caplog.text
    assert repr(prediction).endswith(f", warning={prediction.warning!r})")
    assert "damaged inside" in prediction._repr_html_()
    with ThreadPoolExecutor(8) as pool:
        warned = [each.warning is not None for each in pool.map(classifier.predict, [good, damaged] * 20)]
    assert warned == [False, True] * 20


def test_an_argument_of_another_library_is_answered(classifier):
    with pytest.raises(
        TypeError, match=r"predict has no argument top_k. Did you mean top=1\? The arguments are images"
    ):
        classifier.predict("a.jpg", top_k=1)


def test_a_truncated_image_is_said_once(classifier, caplog):
    prediction = classifier.predict(CUT, on_error="return")
    assert "the file is truncated or damaged" in prediction.error
    assert (prediction.warning, caplog.text) == (None, "")


def test_a_prediction_shows_itself(classifier, files):
    one = classifier.predict(files[0])
    assert repr(one) == f"Prediction('blue', {one.probability:.4f})"
    assert one._repr_html_().count("<meter") == 3
    assert repr(Prediction(None, None, error="a.jpg: no such file")) == "Prediction(error='a.jpg: no such file')"
    assert "&lt;b&gt;" in Prediction(None, None, error="<b>")._repr_html_()
    flagged = Prediction("cat", 0.5, {"cat": 0.5, "dog": 0.5}, [("cat", 0.5)], accepted=False, set=["cat", "dog"])
    assert repr(flagged) == "Prediction('cat', 0.5000, accepted=False, set=['cat', 'dog'])"
    assert "Flagged for review" in flagged._repr_html_()


def test_a_classifier_shows_itself(classifier, trained):
    best = trained.dir / "checkpoints" / "best.ckpt"
    assert repr(classifier) == f"Classifier(TinyNet, 3 classes (blue, green, red), images of 16x16, cpu, {best})"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "takes one path: a run folder, a checkpoint, a .safetensors file of ml-export, or 'latest'. Got None"),
        (["a.ckpt", "b.ckpt"], "For an ensemble, load each of them, or type ml-inference 'ckpt_path=[A,B]'"),
        (3, "Got 3 (int)."),
    ],
)
def test_what_is_not_a_path_is_said(path, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        imago.load_classifier(path)


def test_a_path_that_is_not_there_is_that_of_the_argument():
    with pytest.raises(FileNotFoundError, match="^path=/nope does not exist"):
        imago.load_classifier("/nope")


def test_a_device_that_is_not_there_is_said(trained):
    with pytest.raises(ValueError, match="Type device='cuda'"):
        imago.load_classifier(trained.dir, device="gpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device='{device}': .*. It must be cpu, cuda"):
            imago.load_classifier(trained.dir, device=device)


def test_a_program_of_its_own_loads_and_predicts(trained, files):
    """Not one in which a command has run: neither torch nor Hydra is there before, and Hydra's state is untouched."""
    code = """
import sys
import imago
assert "torch" not in sys.modules
imago.load_classifier
assert "torch" in sys.modules and "hydra" not in sys.modules
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("slug", str.upper)
print(imago.load_classifier(sys.argv[1]).predict(sys.argv[2]).class_name)
from hydra.core.global_hydra import GlobalHydra
print(GlobalHydra().is_initialized(), OmegaConf.create({"a": "${slug:mine}"}).a)
"""
    words = [sys.executable, "-W", "ignore", "-c", code, str(trained.dir), str(files[0])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "blue\nFalse MINE\n", done.stderr
