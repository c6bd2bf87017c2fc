import gc
import multiprocessing
import os
import select
import signal
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
import torch

from imago.data.columns import StringArray
from imago.data.crops import RandomResizedBox
from imago.data.dataset import ImageDataset
from imago.data.folder_images import FolderImages
from imago.data.folders import read_tree
from imago.data.loader import Loader
from imago.data.samplers import EvalBatchSampler, TrainBatchSampler
from imago.data.transforms import ImageTransform


def some(count: int) -> FolderImages:
    return FolderImages(Path(), [f"{number}.png" for number in range(count)], [0] * count)


def order(sampler: TrainBatchSampler, epoch: int) -> list[int]:
    sampler.epoch = epoch
    return [index for batch in sampler for _, index in batch]


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = TrainBatchSampler(some(50), 8, seed=0)
    first = order(sampler, 0)
    assert sorted(first) == list(range(50))
    assert order(sampler, 1) != first
    assert order(sampler, 0) == first
    assert order(TrainBatchSampler(some(50), 8, seed=1), 0) != first
    assert order(TrainBatchSampler(some(50), 8, seed=0, fixed_order=True), 3) == first


@pytest.mark.parametrize(("size", "batch_size", "batches"), [(9, 4, 2), (10, 4, 3), (8, 4, 2), (1, 4, 1), (3, 1, 3)])
def test_only_a_last_train_batch_of_one_image_is_left_out(size, batch_size, batches):
    sampler = TrainBatchSampler(some(size), batch_size, seed=0)
    assert len(sampler) == len(list(sampler)) == batches


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
@pytest.mark.parametrize(("size", "batch_size"), [(37, 12), (29, 12), (36, 12), (31, 32), (25, 9), (3, 8), (9, 4)])
def test_processes_train_on_parts_of_the_batches_of_one(size, batch_size, processes):
    whole = list(TrainBatchSampler(some(size), batch_size, seed=5))
    samplers = [
        TrainBatchSampler(some(size), batch_size, 5, rank=rank, processes=processes) for rank in range(processes)
    ]
    for number, (batch, *parts) in enumerate(zip(whole, *samplers, strict=True)):
        weights = [sampler.weight(number) for sampler in samplers]
        assert [position for part, weight in zip(parts, weights, strict=True) if weight for position in part] == batch
        shares = [len(part) if weight else 0 for part, weight in zip(parts, weights, strict=True)]
        assert weights == pytest.approx([share * processes / len(batch) for share in shares])
        assert all(part == batch[:2] for part, weight in zip(parts, weights, strict=True) if not weight)
        sizes = [share for share in shares if share]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2 or batch_size < 2 * processes
        assert len(sizes) == processes or len(batch) < 2 * processes


@pytest.mark.parametrize("size", [1, 2, 7, 24, 25])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_whole_evaluation_batches_are_dealt_and_none_twice(size, processes):
    whole = list(EvalBatchSampler(size, 4))
    dealt = [list(EvalBatchSampler(size, 4, rank, processes)) for rank in range(processes)]
    assert sorted(batch for batches in dealt for batch in batches) == whole
    assert [index for batch in whole for _, index in batch] == list(range(size))
    limited = [list(EvalBatchSampler(size, 4, rank, processes, most=2)) for rank in range(processes)]
    assert sorted(batch for batches in limited for batch in batches) == whole[:2]


def loader(root, workers: int, epoch: int = 0) -> Loader:
    images = read_tree(root, 0.1, 0).splits["train"]
    dataset = ImageDataset(images, ImageTransform(RandomResizedBox()), 16, seed=3)
    return Loader(dataset, TrainBatchSampler(images, 8, seed=3), workers, lambda: (epoch, 0))


@pytest.mark.quick
def test_batches_do_not_depend_on_the_number_of_workers(colours):
    with closing(loader(colours, 2)) as with_workers:
        one, two = list(loader(colours, 0)), list(with_workers)
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a["image"].dtype == torch.uint8
        assert all(torch.equal(a[key], b[key]) for key in ("image", "label", "index"))


def test_workers_end_when_the_loader_is_closed(colours):
    given = loader(colours, 2)
    list(given)
    assert len(multiprocessing.active_children()) == 2
    given.close()
    assert multiprocessing.active_children() == []
    assert len(list(given)) == 5
    given.close()


def test_a_worker_that_waits_for_a_slow_disk_ends_with_a_run_that_is_killed(colours, monkeypatch):
    """It holds the write end of the pipe, as it holds those that tell the other processes of the end of rank 0."""
    read, write = os.pipe()
    run = os.fork()
    if run == 0:
        slow = loader(colours, 1)
        monkeypatch.setattr(slow.dataset.images, "read_box", lambda *_: (os.write(write, b"."), time.sleep(120)))
        list(slow)
    os.close(write)
    assert os.read(read, 1) == b"."
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    assert select.select([read], [], [], 20)[0]
    assert os.read(read, 1) == b""
    os.close(read)


def test_augmentation_changes_with_the_epoch_and_not_with_the_neighbours(colours):
    def by_index(epoch: int) -> dict[int, torch.Tensor]:
        return {int(i): x for b in loader(colours, 0, epoch) for i, x in zip(b["index"], b["image"], strict=True)}

    first, again, second = by_index(0), by_index(0), by_index(1)
    assert all(torch.equal(first[i], again[i]) for i in first)
    assert sum(torch.equal(first[i], second[i]) for i in first) < len(first) / 2


def test_the_epoch_is_read_when_the_first_batch_is_asked_for(colours):
    epochs = [0]
    images = read_tree(colours, 0.1, 0).splits["train"]
    dataset = ImageDataset(images, ImageTransform(RandomResizedBox()), 16, seed=3)
    iterator = iter(Loader(dataset, TrainBatchSampler(images, 8, seed=3), 0, lambda: (epochs[0], 0)))
    epochs[0] = 4
    assert next(iterator)["epoch"] == 4


def test_loading_draws_nothing_from_the_global_generator(colours):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader(colours, 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_without_a_workers_traceback(own_colours, workers):
    (own_colours / "train" / "red" / "003.png").write_bytes(b"")
    message = r"red/003\.png: the file is empty\. .*on_bad_image=skip"
    with closing(loader(own_colours, workers)) as given, pytest.raises(ValueError, match=message) as error:
        list(given)
    assert "Traceback" not in str(error.value)


def test_a_split_selects_in_the_order_given():
    chosen = FolderImages(Path(), ["a", "b", "c"], [0, 1, 2]).select([2, 0])
    assert (list(chosen.paths), list(chosen.labels)) == (["c", "a"], [2, 0])


def test_names_are_a_sequence_of_texts():
    texts = ["a", "", "Käfer/😀.png", "z" * 300, "\udcff.png"]
    names = StringArray(texts)
    assert names == texts
    assert (len(names), names[-1], names[2]) == (5, texts[-1], texts[2])
    assert names[1:4] == texts[1:4]
    assert "a" in names
    assert names != texts[:-1]
    with pytest.raises(IndexError):
        names[5]


def test_what_is_kept_of_each_image_is_small():
    """Beside the bytes of its name at most 16, with what the loader needs for an epoch's order."""
    count = 50_000
    path = "train/class_{:02d}/picture_{:07d}.jpg"
    length = len(path.format(1, 1).encode())
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    images = FolderImages(
        Path(), [path.format(number % 50, number) for number in range(count)], [number % 50 for number in range(count)]
    )
    kept = ImageDataset(images, ImageTransform(RandomResizedBox()), 16, 0), TrainBatchSampler(images, 32, seed=0)
    next(iter(kept[1]))
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / count - length <= 16
