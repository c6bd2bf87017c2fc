"""data.sampler: images of rare classes are drawn more often, as a function of (seed, epoch)."""

import re
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch
from helpers import draw_classes
from hydra.utils import instantiate
from sklearn.metrics import balanced_accuracy_score

import imago
from imago.data import ImageSets, TrainBatchSampler
from imago.data.sampling import draw_weights
from imago.data.torchvision_set import MemoryImages
from imago.errors import UserError
from imago.model import BalancedAccuracy

COUNTS = {"blue": 70, "green": 20, "red": 10}


def sets_of(counts: dict[str, int], **more) -> ImageSets:
    labels = [label for label, count in enumerate(counts.values()) for _ in range(count)]
    images = MemoryImages(
        torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), [f"{n}" for n in range(len(labels))], labels
    )
    return ImageSets("PHOTOS", list(counts), {"train": images}, **more)


def keys(sets: ImageSets, sampler: str, *, epoch: int = 0, seed: int = 1, rank: int = 0, processes: int = 1, by=None):
    weights = draw_weights(sets, sampler, by)
    batches = TrainBatchSampler(sets.splits["train"], 16, seed, rank=rank, processes=processes, weights=weights)
    batches.epoch = epoch
    return [key for number, batch in enumerate(batches) for key in batch if batches.weight(number)]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sampler", "by_class", "expected"),
    [
        ("balanced", None, [100 / 3] * 3),
        ("sqrt", None, np.sqrt([70, 20, 10]) * 100 / np.sqrt([70, 20, 10]).sum()),
        ("weights", {"red": 8, "green": 0}, [70 / 1.5, 0, 80 / 1.5]),
    ],
)
def test_an_epoch_draws_classes_and_images_as_their_weights_say(sampler, by_class, expected):
    sets = sets_of(COUNTS)
    drawn = keys(sets, sampler, by=by_class)
    labels = Counter(sets.splits["train"].labels[index] for _, index, _ in drawn)
    assert len(drawn) == 100
    assert all(abs(labels[label] - count) < 1 for label, count in enumerate(expected))
    for label, size in enumerate(COUNTS.values()):  # and each image of a class equally often, up to rounding
        often = Counter(index for _, index, _ in drawn if sets.splits["train"].labels[index] == label)
        assert all(abs(often[index] - expected[label] / size) < 1 for index in often)
    seen: Counter = Counter()
    for _, index, repeat in drawn:
        assert repeat == seen[index]
        seen[index] += 1
    assert keys(sets, sampler, by=by_class) == drawn
    assert len({tuple(keys(sets, sampler, by=by_class, **other)) for other in ({"epoch": 1}, {"seed": 2}, {})}) == 3
    for processes in (2, 3):
        parts = [keys(sets, sampler, by=by_class, rank=rank, processes=processes) for rank in range(processes)]
        assert Counter(key for part in parts for key in part) == Counter(drawn)


def test_an_image_that_is_drawn_again_is_augmented_anew_for_any_number_of_workers(tmp_path):
    folder = draw_classes(tmp_path / "photos", {"blue": 30, "red": 4}, size=24)
    words = [f"data.data_dir={folder}", "model=tiny_net", "recipe=none", "data.image_size=16", "data.sampler=balanced"]
    mixup = "+data.train_transform.batch.mixup._target_=imago.data.MixUp"

    def batches(workers: int, *more: str) -> list[dict]:
        cfg = imago.load_config(*words, *more, f"data.num_workers={workers}").data
        data = instantiate(cfg, _convert_="all")
        with closing(data.train_dataloader()) as loader:
            return [data.train_transform.batch(batch) for batch in loader]

    plain, mixed, again = batches(0), batches(0, mixup), batches(2)
    pictures: dict[int, list] = {}
    for one, two, three in zip(plain, mixed, again, strict=True):
        assert torch.equal(one["image"], three["image"])
        assert torch.equal(one["index"], two["index"])
        assert torch.equal(two["partner_label"], one["label"].roll(1))
        for index, image in zip(one["index"].tolist(), one["image"], strict=True):
            pictures.setdefault(index, []).append(image)
    several = [images for images in pictures.values() if len(images) > 1]
    assert max(map(len, several)) >= 3
    assert not any(torch.equal(images[0], image) for images in several for image in images[1:])


def test_a_run_scores_what_there_is_and_says_what_it_drew(train, command):
    run = train("data.sampler=weights", "data.sample_weights={red: 8}", "trainer.max_epochs=1", "report.splits=[val]")
    assert run.exit_code == 0, run.output
    assert "data.sampler=weights: an epoch draws blue 4 (of 14), green 4 (of 12), red 31 (of 13)" in run.text(
        "summary.txt"
    )
    assert run.json("reports/metrics_val.json")["n"] == 15
    score = run.json("reports/metrics_val.json")["balanced_acc"]
    assert run.history[-1]["val/balanced_acc"] == pytest.approx(score)
    refused = command("train", f"resume={run.dir}", "data.sampler=null", "trainer.max_epochs=2", folder=run.dir)
    assert "data.sample_weights has no effect without data.sampler=weights" in refused.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.sampler=balanced", "model.class_weights=auto"], "both make up for rare classes, and together too much"),
        (["data.sampler=sqrt", "data.sample_weights={red: 2}"], "data.sample_weights has no effect without"),
        (["data.sampler=weights"], "data.sampler=weights needs weights: 'data.sample_weights={NAME: 5}'"),
        (
            ["data.sampler=weights", "data.sample_weights={rde: 2}"],
            "weights names rde, .*Did you mean red?",
        ),
        (["data.sampler=weights", "data.sample_weights={red: -1}"], "data.sample_weights must be numbers of 0 or more"),
        (["data.sampler=balance"], "data.sampler must be balanced, sqrt, weights or null, got balance"),
        (
            ["data.sampler=balanced", "strategy=dp"],
            "strategy=dp and data.sampler: with images",
        ),
        (["sampler=weighted"], "Type data.sampler=balanced"),
    ],
)
def test_what_cannot_be_drawn_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert re.search(message, run.output), run.output


def test_balanced_accuracy_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    labels, predictions = (torch.randint(0, 4, (50,), generator=generator) for _ in range(2))
    labels[labels == 3] = 0  # a class without images, which is predicted
    metric = BalancedAccuracy(num_classes=5)
    metric.update(predictions, labels)
    with pytest.warns(UserWarning, match="classes not in y_true"):
        assert float(metric.compute()) == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_a_split_without_weight_is_refused():
    with pytest.raises(UserError, match="all train images of PHOTOS have the weight 0"):
        draw_weights(sets_of(COUNTS, weights=dict.fromkeys(map(str, range(100)), 0.0)), "weights", None)
