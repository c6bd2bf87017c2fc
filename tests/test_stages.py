import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from imago.data.crops import CenterBox, CropBox, RandomResizedBox
from imago.data.mixing import CutMix, MixUp
from imago.data.transforms import ImageTransform, Normalize, RandomHorizontalFlip
from imago.definitions import INTERPOLATIONS
from imago.errors import UserError
from imago.model.losses import CriterionsComposition
from imago.randomness import seeded_scope


def picture(height: int = 300, width: int = 400) -> torch.Tensor:
    return torch.arange(3 * height * width).view(3, height, width).remainder(251).to(torch.uint8)


def test_the_centre_box_is_the_usual_resize_and_crop():
    smooth = v2.functional.resize(torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8), [304, 400])
    ours = ImageTransform(CenterBox(0.875)).image(smooth, 224).float()
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(smooth).float()
    assert (ours - theirs).abs().mean() < 1


@pytest.mark.parametrize(("height", "width"), [(300, 400), (40, 400)])
def test_random_boxes_are_distributed_as_those_of_torchvision(height, width):
    scale, ratio, count = (0.1, 1.0), (3 / 4, 4 / 3), 4000
    ours_box, theirs_box = RandomResizedBox(scale, ratio), v2.RandomResizedCrop(1, scale, ratio)
    with seeded_scope("boxes"):
        ours = np.array([ours_box(height, width) for _ in range(count)])
        drawn = [theirs_box.make_params([torch.empty(1, 1, 1).expand(1, height, width)]) for _ in range(count)]
    theirs = np.array([[each[side] for side in CropBox._fields] for each in drawn])
    assert (ours.min(axis=0) >= 0).all()
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "size"), [(8, 32), (300, 224), (224, 224)])
def test_pixels_are_resized_to_the_bit_as_torchvision_does_it(channels, side, size, interpolation):
    transform = ImageTransform(CenterBox(1.0)).completed(size, interpolation=interpolation)
    how = v2.InterpolationMode(interpolation)
    image = torch.randint(0, 256, (channels, side, side + 5), dtype=torch.uint8)
    for each in (image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1)):  # as tensors, and as decoders have them
        ours = transform.image(each, size)
        theirs = v2.functional.resized_crop(image, *CenterBox(1.0)(side, side + 5), [size, size], how, antialias=True)
        assert torch.equal(ours, theirs)


def test_pixel_transforms_of_torchvision_run_after_the_box():
    transform = ImageTransform(CenterBox(1.0), pixels={"invert": v2.RandomInvert(p=1.0), "off": None})
    plain = ImageTransform(CenterBox(1.0)).image(picture(), 32)
    assert torch.equal(transform.image(picture(), 32), 255 - plain)


def batch(index: list[int], epoch: int = 0) -> dict:
    images = torch.arange(len(index) * 12).view(-1, 3, 2, 2).to(torch.uint8)
    return {"image": images, "index": torch.tensor(index), "epoch": epoch}


def flipped(flip: RandomHorizontalFlip, index: list[int], epoch: int = 0) -> list[bool]:
    given = batch(index, epoch)
    return [not torch.equal(a, b) for a, b in zip(flip(given)["image"], given["image"], strict=True)]


def test_a_flip_depends_on_the_image_and_the_epoch_but_not_on_the_batch():
    flip = RandomHorizontalFlip(0.5, seed=1)
    whole = flipped(flip, list(range(40)))
    assert 5 < sum(whole) < 35
    assert flipped(flip, [7, 30, 2]) == [whole[7], whole[30], whole[2]]
    assert flipped(flip, list(range(40)), epoch=1) != whole
    assert flipped(RandomHorizontalFlip(0.5, seed=2), list(range(40))) != whole
    assert not any(flipped(RandomHorizontalFlip(0.0), [1, 2]))
    assert all(flipped(RandomHorizontalFlip(1.0), [1, 2]))


@pytest.mark.parametrize("mixing", [MixUp(0.3), CutMix(1.0)], ids=["mixup", "cutmix"])
def test_the_loss_of_mixed_images_is_that_of_soft_labels(mixing):
    images, labels = torch.rand(6, 3, 10, 14), torch.arange(6) % 3
    logits = torch.randn(6, 3)
    composed = CriterionsComposition({"ce": nn.CrossEntropyLoss(label_smoothing=0.1)})
    for seed in range(8):
        torch.manual_seed(seed)
        mixed = {"image": images, "label": labels, "logits": logits}
        mixed |= mixing(mixed)
        share, before = mixed["share"], images.roll(1, dims=0)
        own = (mixed["image"] == images).float().mean()
        if isinstance(mixing, CutMix):
            assert float(own) == pytest.approx(share)
            assert bool(((mixed["image"] == images) | (mixed["image"] == before)).all())
        else:
            assert torch.allclose(mixed["image"], share * images + (1 - share) * before)
            assert share >= 0.5
        soft = share * F.one_hot(labels, 3) + (1 - share) * F.one_hot(labels.roll(1), 3)
        assert torch.equal(mixed["label"], labels)
        expected = F.cross_entropy(logits, soft, label_smoothing=0.1)
        assert float(composed(mixed)["total"]) == pytest.approx(float(expected), rel=1e-5)


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(UserError, match="alpha must be above 0, got 0"):
        MixUp(0)
    batch = {"image": torch.rand(2, 3, 4, 4), "label": torch.zeros(2)}
    with pytest.raises(UserError, match="MixUp and CutMix cannot both be"):
        CutMix()(batch | MixUp()(batch))
    with pytest.raises(UserError, match="after normalize"):
        MixUp()({"image": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "label": torch.zeros(2)})


def test_normalize_scales_to_one_first():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = Normalize([0.5, 0.5, 0.2], [0.5, 0.25, 1.0])({"image": image})["image"]
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([-1, 2, 0], abs=1e-6)


def test_normalize_gives_the_same_for_both_orders_in_memory():
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    normalize = Normalize([0.5, 0.4, 0.2], [0.5, 0.25, 1.0])
    plain = normalize({"image": image})["image"]
    pixel_by_pixel = normalize({"image": image.contiguous(memory_format=torch.channels_last)})["image"]
    assert torch.equal(plain, pixel_by_pixel)
    expected = v2.functional.normalize(image / 255, [0.5, 0.4, 0.2], [0.5, 0.25, 1.0])
    assert torch.allclose(plain, expected, atol=1e-6)


def test_one_mean_stands_for_all_channels():
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    for each in (image, image.contiguous(memory_format=torch.channels_last)):
        assert torch.allclose(Normalize([0.5], [0.25])({"image": each})["image"], (image / 255 - 0.5) / 0.25, atol=1e-6)


class OwnBox(RandomResizedBox):
    """Draws from torch."""

    def __call__(self, height: int, width: int) -> CropBox:
        return CropBox(0, 0, int(torch.randint(1, height + 1, ())), width)


def test_a_box_that_inherits_from_ours_may_draw_from_any_generator():
    assert ImageTransform(RandomResizedBox()).randomness == "box"
    assert ImageTransform(OwnBox()).randomness == "any"


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 1\.5"):
        CenterBox(1.5)
