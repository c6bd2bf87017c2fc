"""One of each defect is found, and nothing in a clean folder."""

import errno
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_classes, photograph, swapped_profile
from PIL import Image

from imago.data.crops import CenterBox
from imago.data.decode import BadImageError, read_image
from imago.data.folders import read_tree
from imago.data.samplers import TrainBatchSampler
from imago.data.split_files import listed_paths, write_paths
from imago.inspection.issues import KINDS
from imago.inspection.scan import find_issues


def bomb() -> bytes:
    """A PNG of a few bytes whose header promises 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    root = draw_classes(tmp_path / "clean" / "train", {"blue": 12, "green": 12, "red": 12}).parent
    draw_classes(root / "val", {"blue": 5, "green": 5, "red": 5}, seed=1)
    return root


@pytest.fixture
def sick(clean: Path) -> Path:
    red, blue, val = clean / "train" / "red", clean / "train" / "blue", clean / "val"
    (red / "empty.png").write_bytes(b"")
    (red / "text.jpg").write_text("no image")
    (red / "bomb.png").write_bytes(bomb())
    photograph(1).save(red / "cut.jpg")
    (red / "cut.jpg").write_bytes((red / "cut.jpg").read_bytes()[:-900])
    Image.fromarray(np.random.default_rng(0).random((9, 9)).astype(np.float32)).save(red / "float.tiff")
    (red / "nowhere.png").symlink_to("/nowhere/at/all.png")
    shutil.copy(red / "001.png", val / "red" / "leaked.png")
    shutil.copy(red / "002.png", blue / "also_red.png")
    (red / "._003.jpg").write_bytes(b"\0\5\26\7")
    (red / "readme.txt").write_text("hello")
    (red / "IMG_0001.HEIC").write_bytes(b"....ftypheic")
    photograph(2).save(red / "really_a.png", format="jpeg")
    (red / "loop").symlink_to(red)
    (red / "up").symlink_to(clean)
    (clean / "train" / "scarlet").symlink_to(red)
    (clean / "more").mkdir()
    (clean / ".git").mkdir()
    (clean / "val" / "scarlet").mkdir()
    photograph(11).save(clean / "val" / "scarlet" / "a.png")
    whole = bytearray((red / "005.png").read_bytes())
    whole[len(whole) // 2] ^= 255
    (red / "flipped.png").write_bytes(whole)
    shutil.rmtree(val / "green")
    draw_classes(val, {"green": 1}, seed=8)
    (val / "green" / "000.png").unlink()
    draw_classes(clean / "extra", {"red": 3}, seed=4)
    shutil.move(clean / "extra" / "red", clean / "train" / "violet")
    (clean / "extra").rmdir()
    (val / "yellow").mkdir()
    photograph(9).save(val / "yellow" / "a.png")
    shutil.copy(red / "004.png", red / "copy.png")
    photograph(3).save(red / "near.png")
    photograph(3).resize((80, 80)).save(red / "near_smaller.jpg", quality=92)
    photograph(4).save(red / "near_leak.png")
    photograph(4).save(val / "red" / "near_leak.jpg", quality=92)
    photograph(5).save(blue / "near_label.png")
    photograph(5).save(red / "near_label.jpg", quality=92)
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(red / "deep.png")
    photograph(12, 400).save(red / "inside.jpg", quality=92)
    content = bytearray((red / "inside.jpg").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 120] = bytes(120)
    (red / "inside.jpg").write_bytes(content)
    photograph(13).save(red / "profile.png", icc_profile=swapped_profile())
    photograph(14).save(red / "no_profile.png", icc_profile=b"nothing of the kind")
    (clean / "test").mkdir()
    photograph(15).save(clean / "test" / "0.png")
    turned = photograph(6).getexif()
    turned[0x0112] = 6
    photograph(6).save(red / "turned.jpg", exif=turned)
    photograph(7).convert("RGBA").save(red / "clear.png")
    photograph(8).save(red / "moving.webp", save_all=True, append_images=[photograph(10)])
    for number in range(40):  # thirteen times those of the smallest class
        photograph(100 + number).save(blue / f"more_{number}.png")
    return clean


@pytest.mark.quick
def test_each_defect_is_found_and_named(sick):
    found = find_issues(sick, workers=2, box=CenterBox(0.4)).of_kind()
    paths = {kind: {fault.path for fault in faults} for kind, faults in found.items()}
    expected = {
        "unreadable": {"train/red/nowhere.png"},
        "empty file": {"train/red/empty.png"},
        "not an image": {"train/red/text.jpg"},
        "decompression bomb": {"train/red/bomb.png"},
        "damaged": {"train/red/cut.jpg", "train/red/flipped.png"},
        "unsupported pixels": {"train/red/float.tiff"},
        "empty class": {"val/green"},
        "unknown class": {"val/yellow"},
        "same folder": {"train/scarlet"},
        "refused": {"."},
        "unused folder": {"more"},
        "leak": {"train/red/001.png"},
        "dot-underscore file": {"train/red/._003.jpg"},
        "format not read": {"train/red/IMG_0001.HEIC"},
        "ignored file": {"train/red/readme.txt"},
        "wrong suffix": {"train/red/really_a.png"},
        "link loop": {"train/red/loop", "train/red/up"},
        "missing class": {"val/violet"},
        "tiny class": {"train/violet"},
        "imbalance": {"train/blue"},
        "duplicate": {"train/red/copy.png"},
        "16 bits": {"train/red/deep.png"},
        "part of the range": {"train/red/deep.png"},
        "damaged inside": {"train/red/inside.jpg"},
        "colour profile": {"train/red/profile.png"},
        "unusable colour profile": {"train/red/no_profile.png"},
        "unlabelled": {"test"},
        "cut off": {"train"},
        "turned by EXIF": {"train/red/turned.jpg"},
        "transparent": {"train/red/clear.png"},
        "several frames": {"train/red/moving.webp"},
    }
    assert {kind: paths.get(kind) for kind in expected} == expected
    pairs = {kind: {frozenset((f.path, f.other)) for f in found[kind]} for kind in found}
    assert pairs["two labels"] == {frozenset(("train/red/002.png", "train/blue/also_red.png"))}
    assert pairs["near-duplicate"] == {frozenset(("train/red/near.png", "train/red/near_smaller.jpg"))}
    assert pairs["near-leak"] == {frozenset(("train/red/near_leak.png", "val/red/near_leak.jpg"))}
    near_labels = frozenset(("train/blue/near_label.png", "train/red/near_label.jpg"))
    assert pairs["near-duplicate, two labels"] == {near_labels}
    (part,) = find_issues(sick, workers=2, box=CenterBox(0.75)).of_kind()["part of the picture"]
    assert part.detail == "the network sees 56% of an image (median)"
    elsewhere = {"part of the picture", "damaged shard"}  # the latter: test_shards.py
    assert {*paths, *elsewhere} == KINDS.keys()  # none without a test


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_found(clean):
    (clean / "train" / "red" / "001.png").chmod(0)
    (fault,) = find_issues(clean, workers=1).faults
    assert (fault.kind, fault.path) == ("unreadable", "train/red/001.png")


def test_what_training_refuses_is_an_error(clean, tmp_path):
    (tmp_path / "flat").mkdir()
    photograph(0).save(tmp_path / "flat" / "a.png")
    (fault, refused) = find_issues(tmp_path / "flat", workers=1).faults
    assert (fault.kind, refused.kind) == ("ignored file", "refused")
    assert "has no class folders" in refused.detail
    one = draw_classes(tmp_path / "one", {"red": 12})
    assert {fault.kind for fault in find_issues(one, workers=1).faults} == {"refused"}
    for file in (clean / "val").rglob("*.png"):
        file.unlink()
    assert {"empty class", "refused"} == {fault.kind for fault in find_issues(clean, workers=1).faults}


def test_of_equal_files_that_of_test_stays_and_every_leak_is_told(clean):
    draw_classes(clean / "test", {"blue": 5, "green": 5, "red": 5}, seed=2)
    for place in ("train/red/a.png", "val/red/a.png", "val/red/b.png", "test/red/a.png"):
        photograph(7).save(clean / place)
    for place in ("train/red/c.png", "train/blue/c.png", "val/blue/c.png"):
        photograph(8).save(clean / place)
    found = find_issues(clean, workers=1)
    leaks = {"train/red/a.png", "val/red/a.png", "val/red/b.png", "train/red/c.png", "train/blue/c.png"}
    assert {fault.path for fault in found.of_kind()["leak"]} == leaks
    assert set(found.to_exclude()) == leaks | {"val/blue/c.png"}


def test_each_of_many_images_that_look_alike_is_told_once(tmp_path):
    draw_classes(tmp_path / "train", {"blue": 12})
    for split, count in (("train", 330), ("val", 2)):
        (tmp_path / split / "red").mkdir(parents=True)
        for number in range(count):
            picture = photograph(1)
            picture.putpixel((number % 90, number // 90 + 40 * (split == "val")), (0, 0, 0))
            picture.save(tmp_path / split / "red" / f"{number}.png")
    found = find_issues(tmp_path, workers=2).of_kind()
    assert len(found["near-duplicate"]) + len(found["near-leak"]) == 331
    assert {fault.other for fault in found["near-leak"]} == {"val/red/0.png", "val/red/1.png"}


def test_a_damaged_later_frame_is_no_damage(clean):
    path = clean / "train" / "red" / "pages.tif"
    photograph(1).save(path, save_all=True, append_images=[photograph(2)])
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, first)
    (second,) = struct.unpack_from("<I", content, first + 2 + 12 * entries)
    struct.pack_into("<H", content, second, 0)
    path.write_bytes(content)
    with Image.open(path) as image, pytest.raises(TypeError, match="Missing dimensions"):
        image.seek(1)
    read_image(path)  # the first one is taken
    assert not {"damaged", "not an image"} & find_issues(clean, workers=1).of_kind().keys()


@pytest.mark.parametrize(
    "name", ["a\nb.png", "# c.png", " d .png", '"e".png', "caf\udce9.png", "f\x85g.png", "h\u2028.png"]
)
def test_names_of_any_kind_can_be_left_out(clean, command, name):
    red = clean / "train" / "red"
    shutil.copy(red / "001.png", red / name)
    run = command("doctor", f"data.data_dir={clean}")
    assert run.exit_code == 1, run.output
    (fault,) = run.json("doctor.json")["faults"]
    assert {fault["path"], fault["other"]} == {f"train/red/{name}", "train/red/001.png"}
    assert listed_paths(run.dir / "exclude.txt") == {fault["path"]}
    write_paths(clean / "list", {f"train/red/{name}": f"duplicate: {name}", name: name})
    assert listed_paths(clean / "list") == {f"train/red/{name}", name}


def test_a_pipe_is_no_image(clean, train):
    os.mkfifo(clean / "train" / "red" / "pipe.png")
    (fault,) = find_issues(clean, workers=1).faults
    assert (fault.kind, fault.detail) == ("unreadable", "a device or a pipe, not a file")
    assert "pipe.png: a device or a pipe, not a file" in train(f"data.data_dir={clean}").output


def test_what_is_not_the_fault_of_the_file_is_neither_skipped_nor_remembered(clean, train, monkeypatch):
    """A disk that fails for a moment, say, or a permission."""
    words = [f"data.data_dir={clean}", "data.on_bad_image=skip", "debug=preflight"]

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("PIL.Image.Image.load", fails)
    stopped = train(*words)
    assert stopped.exit_code == 1
    assert "Input/output error (and 35 more such files). The image itself may be fine" in stopped.output
    monkeypatch.undo()
    done = train(*words)
    assert done.exit_code == 0, done.output


def test_of_several_folders_the_worst_counts(clean, command, tmp_path):
    draw_classes(tmp_path / "one", {"red": 12})
    assert command("doctor", "-m", f"data.data_dir={tmp_path}/one,{clean}").exit_code == 2
    assert command("doctor", "-m", f"data.data_dir={clean},/nowhere").exit_code == 2
    assert command("doctor", f"data.data_dirr={clean}").exit_code == 2


def test_an_eps_under_another_name_is_never_run(clean):
    path = clean / "train" / "red" / "e.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(BadImageError, match="not a supported image"):
        read_image(path)


def test_nothing_is_found_in_a_clean_folder(clean, command):
    run = command("doctor", f"data.data_dir={clean}")
    assert run.exit_code == 0, run.output
    assert "51 images (train 36, val 15), 3 classes: no problems found" in run.output
    assert run.json("doctor.json")["faults"] == []


def test_the_command_writes_what_it_found_and_changes_nothing(sick, command):
    before = {path: os.lstat(path).st_mtime_ns for path in sick.rglob("*")}
    run = command("doctor", f"data.data_dir={sick}", "data.eval_transform.box.share=0.4")
    assert run.exit_code == 2
    assert {path: os.lstat(path).st_mtime_ns for path in sick.rglob("*")} == before
    told = run.json("doctor.json")
    assert told["exit_status"] == 2
    assert {fault["kind"] for fault in told["faults"]} == set(KINDS) - {"part of the picture", "damaged shard"}
    html = run.text("doctor.html")
    assert html.count("<h2") == len(KINDS) - 2
    assert "data:image/jpeg;base64," in html
    assert "http" not in html.replace("http-equiv", "")
    assert "## leak: 1 (error)" in run.text("doctor.md")
    for kind in ("leak", "two labels", "decompression bomb"):
        assert kind in run.output
    assert run.json("status.json")["status"] == "completed"


def test_warnings_alone_end_with_1(clean, command):
    shutil.copy(clean / "train" / "red" / "000.png", clean / "train" / "red" / "copy.png")
    assert command("doctor", f"data.data_dir={clean}").exit_code == 1


def test_what_it_would_leave_out_can_be_left_out(clean, command, train):
    red = clean / "train" / "red"
    (red / "text.jpg").write_text("no image")
    shutil.copy(red / "001.png", clean / "val" / "red" / "leaked.png")
    shutil.copy(red / "004.png", red / "copy.png")
    doctor = command("doctor", f"data.data_dir={clean}")
    listed = doctor.dir / "exclude.txt"
    paths = [line for line in listed.read_text().splitlines() if not line.startswith("#")]
    assert listed_paths(listed) == set(paths)
    again = command("doctor", f"data.data_dir={clean}", f"data.exclude={listed}")
    assert (again.exit_code, again.json("doctor.json")["faults"]) == (0, [])
    assert paths == ["train/red/001.png", "train/red/copy.png", "train/red/text.jpg"]
    assert "To leave out unreadable images alone, without a list: data.on_bad_image=skip" in doctor.output
    run = train(f"data.data_dir={clean}", f"data.exclude={listed}", "report.splits=[train]")
    assert run.exit_code == 0, run.output
    assert "excluded 3 files (data.exclude)" in run.text("summary.txt")
    assert run.json("reports/metrics_train.json")["n"] == 35
    missing = train(f"data.data_dir={clean}", "data.exclude=/nowhere.txt")
    assert "data.exclude=/nowhere.txt does not exist. ml-doctor" in missing.output


def test_files_that_are_no_images_are_all_named_at_the_start(clean, train):
    for name in ("a", "b"):
        (clean / "train" / "red" / f"{name}.png").write_bytes(b"")
    (clean / "val" / "blue" / "c.jpg").write_text("no image")
    run = train(f"data.data_dir={clean}")
    assert run.exit_code == 1
    for words in ("3 files cannot be used", "red/a.png: the file is empty", "red/b.png", "c.jpg: not an image"):
        assert words in run.output
    assert "ml-doctor data.data_dir=" in run.output


def test_images_that_are_left_out_do_not_change_the_others(clean):
    whole = read_tree(clean, 0.1, 0).splits["train"]
    fewer = whole.without({whole.paths[5], whole.paths[20]})
    order, rest = (
        [images.paths[index] for batch in TrainBatchSampler(images, 8, seed=3) for _, index in batch]
        for images in (whole, fewer)
    )
    left_out = {whole.paths[5], whole.paths[20]}
    assert rest == [path for path in order if path not in left_out][: len(rest)]
    assert fewer.indices([6, 35]) == [5, 33]


def test_augmentation_of_the_others_stays_when_an_image_is_skipped(clean, train, tmp_path, monkeypatch):
    """Ten images are watched; one before them is spoilt. What the network sees of them must stay."""
    (tmp_path / "watching.py").write_text(
        "import torch\n"
        "from lightning.pytorch import Callback\n"
        "class Watch(Callback):\n"
        "    def __init__(self):\n"
        "        self.seen = {}\n"
        "    def on_train_batch_start(self, trainer, module, batch, index):\n"
        "        self.seen.update({int(i): x.clone() for i, x in zip(batch['index'], batch['image'])})\n"
        "    def on_fit_end(self, trainer, module):\n"
        "        torch.save(self.seen, trainer.default_root_dir + '/seen.pt')\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [f"data.data_dir={clean}", "trainer.max_epochs=1", "+callbacks.watch._target_=watching.Watch"]
    words += ["preflight=false", "test=false", "data.batch_size=1", "model=simple_cnn", "data.image_size=24"]
    whole = train(*words)
    (clean / "train" / "blue" / "003.png").write_bytes(b"")
    skipping = train(*words, "data.on_bad_image=skip")
    before, after = (torch.load(run.dir / "seen.pt", weights_only=True) for run in (whole, skipping))
    assert 3 in before
    assert 3 not in after
    assert len(after) == 35
    assert all(torch.equal(before[index], image) for index, image in after.items())


def test_the_images_of_a_split_file_are_checked(command, own_colours, tmp_path):
    (own_colours / "train" / "red" / "000.png").write_bytes(b"no image")
    files = sorted(file.relative_to(tmp_path) for file in own_colours.rglob("*.png"))
    rows = [f"{file},{file.parent.name},{file.parent.parent.name}" for file in files]
    table = tmp_path / "splits.csv"
    table.write_text("\n".join(["path,label,split", *rows, "gone.png,red,val"]))
    run = command("doctor", f"data.split_file={table}")
    assert run.exit_code == 2, run.output
    faults = {
        (fault["kind"], fault["path"]) for fault in run.json("doctor.json")["faults"] if fault["level"] == "error"
    }
    path = str(own_colours.relative_to(tmp_path) / "train" / "red" / "000.png")
    assert {("not an image", path), ("unreadable", "gone.png"), ("refused", ".")} <= faults


def test_the_photographs_have_one_file_that_is_not_taken(hymenoptera, command):
    run = command("doctor", f"data.data_dir={hymenoptera}")
    assert run.exit_code == 1
    faults = run.json("doctor.json")["faults"]
    (ignored,) = [fault for fault in faults if fault["level"] != "note"]
    assert (ignored["kind"], ignored["path"]) == ("ignored file", "train/ants/imageNotFound.gif")
    (part,) = [fault for fault in faults if fault["kind"] == "part of the picture"]
    assert "sees 5" in part["detail"]
    assert {fault["kind"] for fault in faults} >= {"colour profile"}
