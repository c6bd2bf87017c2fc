import os
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_ranks import fork_context
from helpers import draw_classes, same
from PIL import Image

from imago.data.cache import Cache, CachedImages, TooLargeError, clean
from imago.data.crops import CenterBox, RandomResizedBox
from imago.data.dataset import ImageDataset
from imago.data.decode import BadImageError
from imago.data.folder_images import FolderImages
from imago.data.folders import read_tree
from imago.data.loader import Loader
from imago.data.samplers import EvalBatchSampler, TrainBatchSampler
from imago.data.transforms import ImageTransform
from imago.resources import free_memory

THREE = ("trainer.max_epochs=3", "test=false")


def kept(cache: Path) -> list[str]:
    """What stands in the folder of caches, but for locks."""
    return sorted(path.name for path in (cache / "pixels").glob("*") if path.suffix != ".lock")


def test_a_run_with_a_cache_is_the_run_without(train, tmp_path):
    plain = train(*THREE, "data.cache=none")
    assert plain.exit_code == 0, plain.output
    assert "Cached" not in plain.output
    for cache in ("ram", "auto", "disk"):
        run = train(*THREE, f"data.cache={cache}")
        assert run.exit_code == 0, run.output
        assert "Cached train: 39 images" in run.output
        assert "Cached val, resized: 15 images" in run.output
        assert run.history == plain.history
        assert same(run.weights(), plain.weights()), cache
        assert len(kept(tmp_path / "cache")) == (2 if cache == "disk" else 0)


def test_what_is_on_the_disk_is_not_decoded_again(train, own_colours, monkeypatch):
    words = [f"data.data_dir={own_colours}", *THREE, "data.cache=disk"]
    first = train(*words)
    monkeypatch.setattr("imago.data.cache._decoded", lambda *_: pytest.fail("it was decoded again"))
    again = train(*words)
    assert again.exit_code == 0, again.output
    assert "Cached" not in again.output
    assert again.history[-1]["train/loss"] == first.history[-1]["train/loss"]


def test_resuming_does_not_depend_on_the_cache(train, command):
    weights = []
    for cache in ("none", "disk"):
        half = train("trainer.max_epochs=1", "test=false", "data.cache=none")
        rest = command("train", f"resume={half.dir}", "trainer.max_epochs=3", f"data.cache={cache}", folder=half.dir)
        assert rest.exit_code == 0, rest.output
        assert ("Cached train" in rest.output) == (cache == "disk")
        weights.append(rest.weights())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_auto_caches_what_is_read_three_times_and_fits(train):
    assert "Cached" not in train("trainer.max_epochs=2", "test=false").output
    none = train(*THREE, "data.cache_gb=0")
    assert none.exit_code == 0, none.output
    assert "Cached" not in none.output


def test_a_cache_that_would_be_larger_than_it_may_be_is_refused(train):
    run = train(*THREE, "data.cache=ram", "data.cache_gb=0")
    assert run.exit_code == 1
    assert "data.cache=ram: the decoded images of train need about" in run.last_line
    assert "Type data.cache_gb=0.01, or data.cache=disk, or data.cache=none" in run.last_line


def test_a_bad_image_is_named_before_the_first_epoch(train, own_colours):
    file = own_colours / "train" / "red" / "003.png"
    content = file.read_bytes()
    file.write_bytes(content[:60] + bytes(20) + content[80:])  # only decoding shows it
    run = train(*THREE, f"data.data_dir={own_colours}", "data.cache=ram", "preflight=false")
    assert run.exit_code == 1
    assert "red/003.png" in run.last_line
    assert "data.on_bad_image=skip" in run.last_line


def test_pairs_that_cannot_work_are_refused(train):
    fast = train("data.decode=fast", "data.cache=ram")
    assert (fast.exit_code, "Type data.decode=exact" in fast.last_line) == (1, True)
    several = train("trainer=ddp_sim", "data.cache=ram")
    assert (several.exit_code, "Type data.cache=disk, which is shared" in several.last_line) == (1, True)


def test_several_processes_share_one_cache_and_train_as_without(train, tmp_path):
    plain = train(*THREE, "trainer=ddp_sim", "data.cache=none")
    run = train(*THREE, "trainer=ddp_sim", "data.cache=disk")
    assert run.exit_code == 0, run.output
    assert len(kept(tmp_path / "cache")) == 2
    for name, tensor in plain.weights().items():
        assert torch.equal(tensor, run.weights()[name]), name


def images(folder: Path) -> FolderImages:
    return read_tree(folder, 0.1, 0).splits["train"]  # type: ignore[return-value]


def keep(source: FolderImages, folder: Path, kind: str = "disk", **options) -> CachedImages:
    found = Cache(kind, folder, **options).keep(source, "train", "whole", source.read)
    assert isinstance(found, CachedImages)
    return found


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files(colours, tmp_path, kind, workers):
    source = images(colours)
    for transform in (ImageTransform(RandomResizedBox()), ImageTransform(CenterBox(0.8))):
        batches = []
        for each in (source, keep(source, tmp_path, kind)):
            loader = Loader(ImageDataset(each, transform, 16, seed=3), TrainBatchSampler(source, 8, seed=3), workers)
            with closing(loader):
                batches.append([batch["image"] for batch in loader])
        assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))


def test_images_of_one_size_are_sliced(tmp_path):
    source = images(draw_classes(tmp_path / "one_size", {"blue": 5, "red": 5}, size=20))
    source = source.select([index for index, path in enumerate(source.paths) if path.endswith(("0.png", "5.png"))])
    for each in source.paths:
        (source.root / each).write_bytes((source.root / source.paths[0]).read_bytes())
    dataset = ImageDataset(keep(source, tmp_path, "ram"), ImageTransform(CenterBox(1.0)), 20, seed=0)
    assert dataset.is_sliced
    (batch,) = Loader(dataset, EvalBatchSampler(len(source), 8), 0)
    assert torch.equal(batch["image"], torch.stack([source.read(index) for index in range(len(source))]))


@pytest.mark.quick
def test_a_file_that_has_changed_is_decoded_again(own_colours, tmp_path):
    before = keep(images(own_colours), tmp_path / "cache").read(0)
    file = own_colours / "train" / images(own_colours).paths[0].partition("/")[2]
    file.write_bytes((own_colours / "train" / "red" / "001.png").read_bytes())
    after = keep(images(own_colours), tmp_path / "cache").read(0)
    assert not torch.equal(before, after)
    assert torch.equal(after, images(own_colours).read(0))


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-1]), Path.unlink])
def test_a_cache_that_is_not_whole_is_built_again(colours, tmp_path, damage):
    source = images(colours)
    keep(source, tmp_path)
    (place,) = (tmp_path / "pixels").glob("*[!k]")
    damage(place / "pixels.bin")
    again = keep(source, tmp_path)
    assert torch.equal(again.read(5), source.read(5))
    assert (place / "pixels.bin").stat().st_size == again._starts[-1]


def build(colours: Path, cache: Path, slow: float) -> None:
    source = images(colours)

    def read(index: int) -> torch.Tensor:
        time.sleep(slow)
        return source.read(index)

    kept = Cache("disk", cache).keep(source, "train", "whole", read)
    assert all(torch.equal(kept.read(index), source.read(index)) for index in range(len(source)))


def building(colours: Path, cache: Path, slow: float) -> BaseProcess:
    builder = fork_context().Process(target=build, args=(colours, cache, slow))
    builder.start()
    return builder


def test_two_builders_at_once_leave_one_whole_cache(colours, tmp_path):
    builders = [building(colours, tmp_path, 0.01) for _ in range(2)]
    for builder in builders:
        builder.join(timeout=300)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(kept(tmp_path)) == 1
    assert torch.equal(keep(images(colours), tmp_path).read(7), images(colours).read(7))


def test_a_builder_that_is_killed_leaves_nothing_that_is_taken_for_a_cache(colours, tmp_path):
    builder = building(colours, tmp_path, 0.2)
    while not list(tmp_path.glob("pixels/.*.tmp/pixels.bin")):
        assert builder.is_alive()
        time.sleep(0.02)
    assert clean(tmp_path) == []  # it is at work
    builder.kill()
    builder.join()
    (half,) = tmp_path.glob("pixels/.*.tmp")
    assert torch.equal(keep(images(colours), tmp_path).read(7), images(colours).read(7))
    assert not half.exists()


def test_a_full_disk_is_said(colours, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imago.data.cache.os.fsync", full)
    with pytest.raises(OSError, match=r"data.cache=disk: .*No space left on device.*Type data.cache=none"):
        keep(images(colours), tmp_path)
    assert kept(tmp_path) == []
    source = images(colours)
    assert Cache("auto", tmp_path, processes=2).keep(source, "train", "whole", source.read) is source


def test_folders_that_look_alike_have_caches_of_their_own(tmp_path, train):
    for name in ("one", "two"):
        draw_classes(tmp_path / name / "train", {"blue": 6, "red": 6}, seed=ord(name[0]))
        for file in (tmp_path / name).rglob("*.png"):
            Image.open(file).save(file.with_suffix(".bmp"))  # the same size, whatever is on it
            file.unlink()
            os.utime(file.with_suffix(".bmp"), (1, 1))
    words = [*THREE, "data.cache=disk", "data.image_size=8"]
    first, second = (train(f"data.data_dir={tmp_path}/{name}", *words) for name in ("one", "two"))
    assert second.exit_code == 0, second.output
    assert "Cached train" in second.output
    assert first.history[-1]["train/loss"] != second.history[-1]["train/loss"]


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_damaged_sizes_are_no_cache(colours, tmp_path, content):
    source = images(colours)
    keep(source, tmp_path)
    (place,) = (tmp_path / "pixels").glob("*[!k]")
    (place / "sizes.npy").write_bytes(content)
    assert torch.equal(keep(source, tmp_path).read(5), source.read(5))


def test_auto_goes_without_a_cache_where_its_folder_cannot_be_made(colours, tmp_path):
    (tmp_path / "file").write_text("no folder")
    source = images(colours)
    assert Cache("auto", tmp_path / "file", processes=2).keep(source, "train", "whole", source.read) is source


def test_auto_writes_no_private_images_to_the_disk(colours, tmp_path, monkeypatch):
    monkeypatch.setattr("imago.data.cache._free", lambda kind, folder: 0 if kind == "ram" else 10**9)
    source = images(colours)
    assert Cache("auto", tmp_path, is_private=True).keep(source, "train", "whole", source.read) is source
    assert not list(tmp_path.rglob("*.bin"))
    assert Cache("auto", tmp_path).keep(source, "train", "whole", source.read) is not source
    assert list(tmp_path.rglob("*.bin"))


def test_a_cache_that_is_removed_while_it_is_used_stays_readable(colours, tmp_path):
    source, found = images(colours), keep(images(colours), tmp_path)
    assert len(clean(tmp_path)) == 1
    assert torch.equal(found.read(5), source.read(5))


class Darken(torch.nn.Module):
    """In place, as `RandomErasing(inplace=True)`."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image[...] = image // 2
        return image


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_transforms_that_work_in_place_leave_the_cache_as_it_is(tmp_path, kind):
    source = images(draw_classes(tmp_path / "images", {"blue": 2, "red": 2}))
    source = source.select([0])
    found = keep(source, tmp_path, kind)
    size = found.read(0).shape[1]
    dataset = ImageDataset(found, ImageTransform(CenterBox(1.0), pixels={"darken": Darken()}), size, seed=0)
    assert torch.equal(dataset[0, 0]["image"], dataset[1, 0]["image"])
    assert torch.equal(found.read(0), source.read(0))


def test_scoring_takes_a_cache_that_is_there_and_builds_none(train, command, tmp_path):
    run = train(*THREE, "data.cache=disk")
    before = kept(tmp_path / "cache")
    scored = command("eval", f"ckpt_path={run.dir}", "split=[train,val]")
    assert scored.exit_code == 0, scored.output
    assert "Cached" not in scored.output
    assert kept(tmp_path / "cache") == before
    ram = train(*THREE, "data.cache=ram")
    several = command("eval", f"ckpt_path={ram.dir}", "trainer=ddp_sim")
    assert several.exit_code == 0, several.output


def test_more_than_the_first_images_promise_is_noticed(tmp_path):
    source = images(draw_classes(tmp_path / "images", {"blue": 40, "red": 40}))
    sizes = iter([*[1] * 32, *[40] * 1000])
    with pytest.raises(TooLargeError, match="need more than"):
        Cache("ram", tmp_path, budget=1000).keep(
            source, "train", "whole", lambda _: torch.zeros(1, 1, next(sizes), dtype=torch.uint8)
        )


def test_clean_removes_the_caches_of_runs(command, train, tmp_path):
    train(*THREE, "data.cache=disk")
    assert len(kept(tmp_path / "cache")) == 2
    run = command("doctor", "clean")
    assert run.exit_code == 0, run.output
    assert run.output.count(f"Removed {tmp_path}") == 2
    assert kept(tmp_path / "cache") == []


def test_free_memory_is_that_of_the_machine_or_less():
    assert 10**7 < free_memory() < 10**13


def test_the_skipped_and_the_cached_go_together(train, own_colours):
    (own_colours / "train" / "red" / "003.png").write_bytes(b"no image")
    words = [f"data.data_dir={own_colours}", *THREE, "data.on_bad_image=skip"]
    plain, run = train(*words, "data.cache=none"), train(*words, "data.cache=ram")
    assert run.exit_code == 0, run.output
    assert "Cached train: 38 images" in run.output
    assert run.history == plain.history


def test_a_builder_names_the_image_at_fault(own_colours, tmp_path):
    source = images(own_colours)
    (own_colours / source.paths[0]).write_bytes(b"")
    with pytest.raises(BadImageError, match="the file is empty"):
        keep(source, tmp_path)
    assert kept(tmp_path) == []


def test_grey_pixels_have_one_channel(tmp_path):
    source = images(draw_classes(tmp_path / "images", {"blue": 4, "red": 4}))
    source.channels = 1
    found = Cache("ram", tmp_path).keep(source, "train", "grey", lambda index: source.read(index)[:1])
    assert found.read(2).shape == (1, *source.read(2).shape[1:])
    assert np.array_equal(found.read(2)[0], source.read(2)[0])
