import io
import struct
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from imago.data.colour import Decoding
from imago.data.crops import CropBox, crop
from imago.data.decode import BadImageError, read_box, read_image
from imago.data.headers import header_error
from imago.data.transforms import ImageTransform
from imago.definitions import INTERPOLATIONS

RED = (255, 0, 0)


def save(image: Image.Image, path: Path, **options) -> torch.Tensor:
    image.save(path, **options)
    return read_image(path)


def test_rgb_comes_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = save(Image.fromarray(pixels), tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    image = save(Image.new("RGB", (8, 6), (255, 255, 255)).convert(mode), tmp_path / f"a.{suffix}")
    assert image.shape == (3, 6, 8)
    assert image.min() >= 250


def test_cmyk_keeps_its_colours(tmp_path):
    image = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "red.jpg", quality=100)
    red, green, blue = image.float().mean(dim=(1, 2)).tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert save(image, tmp_path / "a.png")[:, 0].T.tolist() == [[255, 255, 255], list(RED)]


def test_a_transparent_palette_is_white_too(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert save(image, tmp_path / "a.png", transparency=0)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 30000, 65535]], dtype=np.uint16)
    image = save(Image.fromarray(values), tmp_path / "a.png")
    assert image[0, 0].tolist() == [0, 1, 117, 255]


@pytest.mark.quick
def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image = save(picture, tmp_path / "a.png", exif=exif)
    assert image.shape == (3, 4, 2)
    assert image[:, 0, 1].tolist() == list(RED)


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=["", "progressive", "4:4:4"])
def test_jpegs_are_decoded_as_pillow_does_it(tmp_path, orientation, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((61, 43))
    picture.save(tmp_path / "a.jpg", exif=exif, **options)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), expected)


def test_the_photographs_are_decoded_as_pillow_does_it(hymenoptera):
    for path in sorted(hymenoptera.rglob("*.jpg"))[::8]:
        with Image.open(path) as image:
            expected = np.array(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        difference = np.abs(read_image(path, decoding=Decoding(icc=False)).permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= 1  # 0 where simplejpeg and Pillow bring the same libjpeg-turbo
        assert difference.mean() <= 0.05


def test_grey_jpegs_and_those_that_only_pillow_takes(tmp_path):
    grey = save(Image.new("L", (8, 6), 77), tmp_path / "a.jpg")
    assert grey.shape == (3, 6, 8)
    assert grey.unique().tolist() == [77]
    content = (tmp_path / "a.jpg").read_bytes()
    odd = content[:-2] + bytes(9) + content[-2:]  # of no harm, but libjpeg warns
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(odd)
    assert torch.equal(read_image(io.BytesIO(odd)), grey)
    assert torch.equal(read_image(io.BytesIO(content)), grey)


def test_damaged_exif_data_do_not_make_the_pixels_worse(tmp_path, monkeypatch):
    def fail(_):
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr("imago.data.colour.ImageOps.exif_transpose", fail)
    assert save(Image.new("RGB", (4, 2), RED), tmp_path / "a.png").shape == (3, 2, 4)


def test_bad_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (200, 200), RED).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("F", (3, 3)).save(tmp_path / "float.tiff")
    reasons = {"empty.jpg": "empty", "text.jpg": "not an image", "cut.jpg": "truncated", "float.tiff": "float"}
    for name, reason in {**reasons, "absent.jpg": "no such file"}.items():
        with pytest.raises(BadImageError, match=reason) as error:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_file_without_its_end_is_decoded_before_a_run(tmp_path, suffix, monkeypatch):
    file = tmp_path / f"photo.{suffix}"
    photograph(file, 200, 200)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in str(header_error(file))
    monkeypatch.setattr("imago.data.headers.read_image", lambda path: pytest.fail("a whole file is decoded"))
    for content in (whole, whole + bytes(1000)):  # some cameras append a film
        file.write_bytes(content)
        assert header_error(file) is None


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImageError, match="pixels"):
        read_image(tmp_path / "bomb.png")


def photograph(path, height: int, width: int, **options) -> None:
    """Smooth shapes, as photographs have them, and a little noise."""
    small = torch.rand(1, 3, height // 40, width // 40, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    noisy = (255 * large + 3 * torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))).clamp(
        0, 255
    )
    Image.fromarray(noisy[0].permute(1, 2, 0).byte().numpy()).save(path, quality=92, **options)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("orientation", "part"), [(1, 1), (6, 0.6), (8, 0.3), (3, 0.05)])
def test_fast_decoding_is_close_and_leaves_out_what_would_be_shrunk_away(tmp_path, orientation, part, interpolation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(tmp_path / "large.jpg", 1200, 1600, exif=exif)
    asked = []

    def box(height: int, width: int) -> CropBox:
        asked.append((height, width))
        side = 8 * round(part * 140)
        return CropBox(31, 45, side, side)

    whole = read_image(tmp_path / "large.jpg")
    transform = ImageTransform(box).completed(112, interpolation=interpolation)
    exact = transform.resized(crop(whole, box(*whole.shape[1:])), 112)
    found = read_box(tmp_path / "large.jpg", box, 112, Decoding(interpolation=interpolation))
    assert asked == [tuple(whole.shape[1:])] * 2  # a random box is drawn for the upright image, and once
    fast = transform.resized(found, 112)
    assert (exact.float() - fast.float()).abs().mean() < 1
    if part < 0.1:  # no more than the pixels that are asked for
        assert torch.equal(exact, fast)
    else:
        assert found.shape[1] == 112


def test_fast_decoding_of_other_files_is_exact(tmp_path):
    photograph(tmp_path / "large.png", 600, 800)
    whole = read_image(tmp_path / "large.png")
    box = CropBox(10, 20, 500, 600)
    assert torch.equal(read_box(tmp_path / "large.png", lambda *_: box, 64), crop(whole, box))
    Image.open(tmp_path / "large.png").convert("CMYK").save(tmp_path / "cmyk.jpg")
    whole = read_image(tmp_path / "cmyk.jpg")
    assert torch.equal(read_box(tmp_path / "cmyk.jpg", lambda *_: box, 64), crop(whole, box))


def test_a_run_that_decodes_fast_learns_and_repeats(train, tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        for name, shift in (("dark", 0.3), ("light", 1.0)):
            folder = tmp_path / "large" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                grey = np.full((96, 128, 3), 255 * shift) - np.random.default_rng(number).integers(0, 40, (96, 128, 3))
                Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
    words = [f"data.data_dir={tmp_path}/large", "data.decode=fast", "trainer.max_epochs=3", "model.optimizer.lr=0.02"]
    first, again = train(*words), train(*words, "data.num_workers=2")
    assert first.exit_code == 0, first.output
    assert first.history == again.history
    assert first.json("reports/metrics_test.json")["acc"] == 1.0
