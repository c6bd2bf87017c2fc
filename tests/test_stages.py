import pytest
import torch
from torchvision.transforms import v2

from imago.data.stages import CenterBox, ImageTransform, Normalize, RandomHorizontalFlip, RandomResizedBox
from imago.randomness import keyed


def picture(height: int = 300, width: int = 400) -> torch.Tensor:
    return torch.arange(3 * height * width).view(3, height, width).remainder(251).to(torch.uint8)


def test_the_centre_box_is_the_usual_resize_and_crop():
    smooth = v2.functional.resize(torch.randint(0, 256, (3, 6, 8), dtype=torch.uint8), [304, 400])
    ours = ImageTransform(CenterBox(0.875)).image(smooth, 224).float()
    theirs = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(smooth).float()
    assert (ours - theirs).abs().mean() < 1


def test_the_random_box_is_that_of_torchvision():
    image = picture()
    with keyed("a", 3):
        ours = ImageTransform(RandomResizedBox((0.1, 1.0))).image(image, 64)
    with keyed("a", 3):
        theirs = v2.RandomResizedCrop(64, scale=(0.1, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)(image)
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


def test_normalize_scales_to_one_first():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = Normalize([0.5, 0.5, 0.2], [0.5, 0.25, 1.0])({"image": image})["image"]
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([-1, 2, 0], abs=1e-6)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"share=1\.5"):
        CenterBox(1.5)
