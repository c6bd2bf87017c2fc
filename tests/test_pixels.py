"""What a person sees in a file is what the network is given: in formats that cameras and programs write."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from helpers import photograph, swapped_profile
from PIL import Image, ImageCms

from imago.data.colour import Decoding, range_of
from imago.data.crops import CenterBox, CropBox
from imago.data.decode import BadImageError, damaged_files, read_box, read_image
from imago.data.headers import header_error, largest_value
from imago.data.transforms import ImageTransform
from imago.evaluation.pixels import read_pixels

RAMP = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)  # what is to be seen
DEEP = RAMP.astype(np.int64) * 257
BITS, COMPRESSION, PHOTOMETRIC, EXTRA, FORMAT = 258, 259, 262, 338, 339


def tiff(path: Path, values: np.ndarray, bits: int = 16, data: bytes | None = None, **more: int | list[int]) -> Path:
    """Writes a little-endian TIFF of one strip; `more` are tags by number, as `t262=0`."""
    bands = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype("<u2" if bits == 16 else "u1").tobytes() if data is None else data
    tags: dict[int, list[int]] = {
        256: [values.shape[1]], 257: [values.shape[0]], BITS: [bits] * bands, COMPRESSION: [1],
        PHOTOMETRIC: [1 if bands == 1 else 2], 273: [0], 277: [bands], 278: [values.shape[0]], 279: [len(data)],
    }  # fmt: skip
    tags |= {int(name[1:]): value if isinstance(value, list) else [value] for name, value in more.items()}
    entries, extra = [], b""
    after = 8 + 2 + 12 * len(tags) + 4
    size = sum(2 * len(value) for value in tags.values() if len(value) > 2)
    tags[273] = [after + size]
    for tag, value in sorted(tags.items()):
        kind, packed = (
            (4, struct.pack("<I", value[0])) if tag in (273, 279) else (3, struct.pack(f"<{len(value)}H", *value))
        )
        if len(packed) > 4:
            packed, extra = struct.pack("<I", after + len(extra)), extra + packed
        entries.append(struct.pack("<HHI", tag, kind, len(value)) + packed.ljust(4, b"\0"))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + extra + data)
    return path


def png(path: Path, values: np.ndarray, bits: int, colour: int, key: list[int] | None = None) -> Path:
    """Writes a PNG of 16, or of 2 or 4 bits (grey)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8) if bits == 16 else packed_rows(values, bits)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    alpha = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key is not None else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + alpha + data + chunk(b"IEND", b""))
    return path


def packed_rows(values: np.ndarray, bits: int) -> np.ndarray:
    split = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
    return np.packbits(split.reshape(len(values), -1), axis=1)


def seen(path: Path, **options: int | bool) -> np.ndarray:
    return read_image(path, decoding=Decoding(**options)).permute(1, 2, 0).numpy()  # type: ignore[arg-type]


def test_tiffs_of_16_bits(tmp_path):
    assert (seen(tiff(tmp_path / "grey.tif", DEEP)) == RAMP[..., None]).all()
    assert (seen(tiff(tmp_path / "white.tif", 65535 - DEEP, t262=0)) == RAMP[..., None]).all()


def test_a_tiff_of_12_bits(tmp_path):
    twelve = np.round(RAMP.astype(float) / 255 * 4095).astype(int)
    bits = np.unpackbits(twelve.astype(">u2").view(np.uint8).reshape(6, 8, 2), axis=2)[..., 4:]
    path = tiff(tmp_path / "twelve.tif", twelve, 12, np.packbits(bits.reshape(6, -1), axis=1).tobytes())
    assert (seen(path) == RAMP[..., None]).all()


def test_a_fourth_band_that_is_no_transparency(tmp_path):
    colours = np.stack([RAMP, RAMP[::-1], RAMP, RAMP], axis=-1)
    path = tiff(tmp_path / "infrared.tif", colours, 8)
    assert (seen(path) == colours[..., :3]).all()
    path = tiff(tmp_path / "alpha.tif", colours, 8, t338=2)
    assert not (seen(path) == colours[..., :3]).all()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"bits": 16, "t339": 2}, "a TIFF with signed pixels"),
        ({"bits": 8, "t339": 2}, "a TIFF with signed pixels"),
        ({"bits": 16, "t284": 2, "bands": 3}, "a TIFF of 16 bits with separate colour planes"),
        ({"bits": 8, "t262": 3, "t320": list(range(256)) * 3}, "with a palette of 8 bits"),
        ({"bits": 8, "t262": 6, "bands": 3, "t530": [1, 1], "t532": [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]},
         "YCbCr whose black and white"),
    ],
)  # fmt: skip
def test_pixels_that_would_be_read_wrongly_are_refused_by_name(tmp_path, what, words):
    bands = what.pop("bands", 1)
    values = RAMP if bands == 1 else np.stack([RAMP] * bands, axis=-1)
    path = tiff(tmp_path / "odd.tif", values, what.pop("bits"), **what)
    with pytest.raises(BadImageError, match=words):
        read_image(path)
    assert words in str(header_error(path)) or "YCbCr" in words


def test_pngs_of_16_bits_and_colours(tmp_path):
    colours = np.stack([DEEP, DEEP[::-1], DEEP], axis=-1)
    assert np.abs(seen(png(tmp_path / "rgb.png", colours, 16, 2)).astype(int) - colours // 257).max() <= 1
    with_alpha = np.concatenate([colours, np.full((6, 8, 1), 65535)], axis=-1)
    with_alpha[0, :, 3] = 0
    image = seen(png(tmp_path / "alpha.png", with_alpha, 16, 6)).astype(int)
    assert (image[0] == 255).all()
    assert np.abs(image[1:] - colours[1:] // 257).max() <= 1
    path = png(tmp_path / "key.png", colours, 16, 2, colours[2, 2].tolist())
    with pytest.raises(BadImageError, match="a PNG of 16 bits with a transparent colour"):
        read_image(path)


def test_colours_of_cameras_that_would_be_black_are_refused(tmp_path):
    from imago.data.image_folder import ImageFolderDataModule

    for name in ("cold", "warm"):
        (tmp_path / name).mkdir()
        for number in range(4):
            png(tmp_path / name / f"{number}.png", np.full((8, 8, 3), 900), 16, 2)
    transform = ImageTransform(CenterBox(1.0))
    with pytest.raises(ValueError, match="[4-6] images have 16 bits per colour.*data.range=65535"):
        ImageFolderDataModule(transform, transform, str(tmp_path), image_size=8, val_ratio=0.5, cache_dir=str(tmp_path))


def test_transparent_colours_of_pngs_are_white(tmp_path):
    for bits, key in ((2, 1), (4, 7)):
        values = np.arange(48).reshape(6, 8) % 2**bits
        image = seen(png(tmp_path / f"{bits}.png", values, bits, 0, [key]))
        assert (image[values == key] == 255).all()
        others = values != key
        assert (image[others][:, 0] == (values * 255 // (2**bits - 1))[others]).all()
    image = seen(png(tmp_path / "grey.png", DEEP, 16, 0, [int(DEEP[2, 3])]))
    assert image[2, 3].tolist() == [255] * 3
    assert image[2, 4, 0] == RAMP[2, 4]


def test_cameras_of_10_to_14_bits(tmp_path):
    warm = np.full((6, 8), 1090)
    path = tmp_path / "warm.png"
    Image.fromarray(warm.astype(np.uint16)).save(path)
    assert largest_value(path) == (1090, False)
    assert range_of(1090) == 4095
    assert (seen(path, greatest=4095) == round(1090 / 4095 * 255)).all()
    assert (seen(path, greatest=1000) == 255).all()
    assert largest_value(png(tmp_path / "rgb.png", np.full((2, 2, 3), 900), 16, 2)) == (771, True)
    assert [range_of(value) for value in (900, 1023, 1024, 16384)] == [1023, 1023, 4095, 65535]
    with pytest.raises(ValueError, match=r"data.range must be auto"):
        Decoding(70000)


def test_a_first_frame_that_is_smaller_than_its_screen_lies_on_white(tmp_path):
    path = tmp_path / "small.gif"
    Image.new("P", (4, 3), 1).save(path)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", 8, 6)  # the screen
    path.write_bytes(content)
    image = seen(path)
    assert image.shape == (6, 8, 3)
    assert (image[3:] == 255).all()


def test_turns_that_do_not_exist_turn_nothing(tmp_path):
    for value in (0, 9, 255):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").shape == (3, 4, 8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_colours_are_those_of_the_profile(tmp_path, name):
    red, quality = np.zeros((16, 16, 3), dtype=np.uint8), {"quality": 95} if name == "a.jpg" else {}
    red[..., 0] = 255
    options = {"lossless": True} if name == "a.webp" else quality
    Image.fromarray(red).save(tmp_path / name, icc_profile=swapped_profile(), **options)
    image = seen(tmp_path / name)[8, 8].astype(int)
    assert image[1] > 240
    assert image[0] < 15
    assert seen(tmp_path / name, icc=False)[8, 8, 0] > 240
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photograph(1).save(tmp_path / "plain.png")
    photograph(1).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert (seen(tmp_path / "srgb.png") == seen(tmp_path / "plain.png")).all()


def test_transparency_and_a_profile_go_together(tmp_path):
    image = photograph(2).convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / "clear.png", icc_profile=swapped_profile())
    assert (seen(tmp_path / "clear.png") > 250).all()


def test_texts_in_a_png_do_not_make_it_worse(tmp_path):
    from PIL import PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    texts.add_text("workflow", "1234567890," * 150_000, zip=True)
    photograph(3).save(tmp_path / "comfy.png", pnginfo=texts)
    photograph(3).save(tmp_path / "plain.png")
    assert (seen(tmp_path / "comfy.png") == seen(tmp_path / "plain.png")).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100), "it is HEIC. Convert it to JPEG or PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "it is JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "it is JPEG XL"),
        (b"8BPS\0\1" + bytes(100), "a Photoshop file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"II*\0" + bytes(30), "a TIFF of an unsupported kind"),
        (bytes(500), "nothing but zeros"),
        (b"hello", "not an image"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, words):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(BadImageError, match=words):
        read_image(tmp_path / "photo.jpg")
    assert words in str(header_error(tmp_path / "photo.jpg"))


def test_an_avif_is_read_whatever_its_name(tmp_path):
    try:
        photograph(4).save(tmp_path / "a.jpg", format="AVIF", quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    difference = seen(tmp_path / "a.jpg").astype(int) - np.asarray(photograph(4)).astype(int)
    assert np.abs(difference).mean() < 3


def test_jpegs_that_are_damaged_inside_are_counted(tmp_path):
    photograph(5, 400).save(tmp_path / "good.jpg", quality=92)
    content = bytearray((tmp_path / "good.jpg").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 120] = bytes(120)
    (tmp_path / "bad.jpg").write_bytes(content)
    damaged_files()
    read_image(tmp_path / "good.jpg")
    assert damaged_files() == {}
    assert read_image(tmp_path / "bad.jpg").shape == (3, 400, 400)
    (found,) = damaged_files().items()
    assert found[0] == str(tmp_path / "bad.jpg")
    assert "Corrupt JPEG data" in found[1] or "marker" in found[1]


def lossless_jpeg() -> bytes:
    """8x8 pixels of grey 128: a lossless JPEG (SOF3) whose differences are all 0."""
    header = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, 8, 8, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + bytes([1] + [0] * 15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + header + table + scan + bytes(8) + b"\xff\xd9"


def test_a_lossless_jpeg_is_not_decoded_at_a_part_of_its_size(tmp_path):
    (tmp_path / "a.jpg").write_bytes(lossless_jpeg())
    try:
        simplejpeg.decode_jpeg(lossless_jpeg(), "GRAY")
    except ValueError:
        pytest.skip("this libjpeg knows no lossless JPEGs")
    box = read_box(tmp_path / "a.jpg", lambda height, width: CropBox(0, 0, height, width), 2)
    assert box.shape == (3, 8, 8)
    assert box.unique().tolist() == [128]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_decoding_is_near_for_every_turn(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(6, 501).resize((501, 333)).save(tmp_path / "a.jpg", quality=92, exif=exif)
    transform = ImageTransform(CenterBox(0.9))
    whole = read_image(tmp_path / "a.jpg")
    for size in (32, 64):
        exact = transform.image(whole, size).float()
        fast = transform.resized(read_box(tmp_path / "a.jpg", transform.box, size), size).float()
        assert (exact - fast).abs().mean() < 1


def test_bytes_and_files_are_read_alike(tmp_path):
    photograph(7).save(tmp_path / "a.png", icc_profile=swapped_profile())
    content = (tmp_path / "a.png").read_bytes()
    assert torch.equal(read_image(io.BytesIO(content)), read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_arrays_of_16_bits_are_read_as_files_of_16_bits(tmp_path, colour):
    """With the white value of a camera of 12 bits, which counts for grey images only."""
    generator = np.random.default_rng(3)
    shape = {0: (6, 8), 2: (6, 8, 3), 6: (6, 8, 4)}[colour]
    values = generator.integers(0, 65536, shape).astype(np.uint16)
    decoding = Decoding(greatest=4095)
    wanted = read_pixels(png(tmp_path / "a.png", values, 16, colour), 3, decoding)
    tensor = torch.from_numpy(values if colour == 0 else values.transpose(2, 0, 1).copy())
    for given in (values, values.astype(">u2"), tensor):
        assert torch.equal(read_pixels(given, 3, decoding), wanted)
