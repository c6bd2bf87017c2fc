import multiprocessing
from contextlib import closing

import pytest
import torch

from imago.data.folders import Split, read_tree
from imago.data.loading import ImageDataset, KeyedBatchSampler, Loader
from imago.data.stages import ImageTransform, RandomResizedBox


def order(sampler: KeyedBatchSampler, epoch: int) -> list[int]:
    sampler.epoch = epoch
    return [index for batch in sampler for _, index in batch]


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = KeyedBatchSampler(50, 8, shuffle=True, seed=0)
    first = order(sampler, 0)
    assert sorted(first) == list(range(50))
    assert order(sampler, 1) != first
    assert order(sampler, 0) == first
    assert order(KeyedBatchSampler(50, 8, shuffle=True, seed=1), 0) != first
    assert order(KeyedBatchSampler(50, 8, shuffle=False, seed=0), 3) == list(range(50))


@pytest.mark.parametrize(
    ("size", "batch_size", "shuffle", "batches"),
    [(9, 4, True, 2), (9, 4, False, 3), (10, 4, True, 3), (8, 4, True, 2), (1, 4, True, 1), (3, 1, True, 3)],
)
def test_only_a_last_train_batch_of_one_image_is_left_out(size, batch_size, shuffle, batches):
    sampler = KeyedBatchSampler(size, batch_size, shuffle, seed=0)
    assert len(sampler) == len(list(sampler)) == batches


def loader(root, workers: int, epoch: int = 0) -> Loader:
    images = read_tree(root, 0.1, 0).splits["train"]
    dataset = ImageDataset(root, images, ImageTransform(RandomResizedBox()), 16, seed=3)
    return Loader(dataset, KeyedBatchSampler(len(images), 8, True, seed=3), workers, lambda: epoch)


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


def test_augmentation_changes_with_the_epoch_and_not_with_the_neighbours(colours):
    def by_index(epoch: int) -> dict[int, torch.Tensor]:
        return {int(i): x for b in loader(colours, 0, epoch) for i, x in zip(b["index"], b["image"], strict=True)}

    first, again, second = by_index(0), by_index(0), by_index(1)
    assert all(torch.equal(first[i], again[i]) for i in first)
    assert sum(torch.equal(first[i], second[i]) for i in first) < len(first) / 2


def test_the_epoch_is_read_when_the_first_batch_is_asked_for(colours):
    epochs = [0]
    images = read_tree(colours, 0.1, 0).splits["train"]
    dataset = ImageDataset(colours, images, ImageTransform(RandomResizedBox()), 16, seed=3)
    iterator = iter(Loader(dataset, KeyedBatchSampler(len(images), 8, True, seed=3), 0, lambda: epochs[0]))
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
    assert Split(["a", "b", "c"], [0, 1, 2]).select([2, 0]) == Split(["c", "a"], [2, 0])
