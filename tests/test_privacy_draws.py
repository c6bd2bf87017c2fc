"""strategy=dp: what training draws is secret, and one image more changes nothing that is drawn for the others."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imago.dp.secret import SecretDraws, seed_from_entropy
from imago.dp.strategy import DifferentialPrivacy
from imago.randomness import uniforms

ONE_STEP = (
    *("strategy=dp", "strategy.noise_multiplier=0", "strategy.target_delta=0.001"),
    *("trainer.max_epochs=1", "trainer.max_steps=1", "model/optimizer=sgd", "model.optimizer.weight_decay=0"),
    *("model.scheduler=null", "preflight=false", "test=false", "logger=[]", "trainer.accelerator=cpu"),
    *("data.num_workers=0", "callbacks.model_checkpoint=null"),
)
OWN = """
import torch
from torch import nn
from torchvision.ops import StochasticDepth
from imago.randomness import uniforms

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.depth = nn.Dropout(0.5), StochasticDepth(0.5, "row")
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.depth(self.second(x))
        return self.head(self.drop(x.mean((2, 3))))

class Noisy(nn.Module):
    '''A pixel stage of one's own.'''
    def forward(self, image):
        return (image.float() + 40 * torch.rand(image.shape)).clamp(0, 255).to(torch.uint8)

class Tint(nn.Module):
    '''A batch stage of one's own, drawn for each image by its index and the public seed.'''
    draws = False
    def __init__(self, seed):
        super().__init__()
        self.seed = seed
    def forward(self, batch):
        tint = 0.5 + uniforms(batch["index"], "tint", self.seed, batch["epoch"])
        return {"image": batch["image"] * tint[:, None, None, None]}
"""


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def neighbours(tmp_path: Path) -> tuple[Path, Path]:
    """Two sets of train images; the second has one more, which sorts first. In the first, the public flips of seed 42
    would show all images of class a the same way round."""
    flipped = (uniforms(torch.arange(61), "horizontal flip", 42, 0) < 0.5).tolist()
    left = np.zeros((8, 8, 3))
    left[:, :4] = 255
    for name in ("D0", "D1"):
        for label in ("a", "b"):
            write(tmp_path / name / "val" / label / "x.png", np.full((8, 8, 3), 128))
        write(tmp_path / name / "train" / "b" / "x.png", np.full((8, 8, 3), 128))
        for number in range(60):
            write(tmp_path / name / f"train/a/n{number:03d}.png", left[:, ::-1] if flipped[number] else left)
    write(tmp_path / "D1" / "train" / "a" / "a_person.png", np.full((8, 8, 3), 128))
    return tmp_path / "D0", tmp_path / "D1"


def clipped_sum(command: Any, folder: Path, *words: str) -> Tensor:
    """The sum of all clipped gradients of a step on all images."""
    count = len(list((folder / "train").rglob("*.png")))
    runs = [
        command(
            *("train", f"data.data_dir={folder}", *ONE_STEP, f"data.batch_size={count}", *words),
            f"model.optimizer.lr={rate}",
        )
        for rate in (0, 1)
    ]
    assert all(run.exit_code == 0 for run in runs), runs[0].output + runs[1].output
    before, after = (torch.cat([each.flatten() for each in run.weights().values()]) for run in runs)
    return count * (before - after)


LINEAR = ("model=mnist", "data.image_size=8", "model.net.in_features=192", "model.net.hidden=[]")
WHOLE = ("data.train_transform.box.scale=[1,1]", "data.train_transform.box.ratio=[1,1]")


def test_the_public_flips_of_a_seed_are_not_those_of_private_training(command, neighbours):
    """They would move the sum by 52.9 times the clipping norm."""
    one, other = (clipped_sum(command, folder, *LINEAR, *WHOLE) for folder in neighbours)
    assert float((one - other).norm()) < 30


def coupled(monkeypatch: pytest.MonkeyPatch, images: int, most: int = 61) -> None:
    """The image at each place, counted from the last one, draws the same in a set of `images` and in one of `most`."""
    numbers = torch.randint(2**62, (most,), generator=torch.Generator().manual_seed(5))
    first = most - images

    def rows(shape: torch.Size) -> Tensor:
        """As many uniform numbers as the largest batch needs, of which the last rows are taken."""
        generator = torch.Generator().manual_seed(7)
        return torch.rand((most, *shape[1:]), generator=generator)[-shape[0] :]

    def dropout(values: Tensor, p: float = 0.5, training: bool = True, _: bool = False) -> Tensor:
        return values * (rows(values.shape) >= p) / (1 - p) if training else values

    def depth(values: Tensor, p: float, _: str, training: bool = True) -> Tensor:
        kept = rows(torch.Size([len(values), 1, 1, 1])) >= p
        return values * kept / (1 - p) if training else values

    monkeypatch.setattr(
        DifferentialPrivacy,
        "draw_key",
        staticmethod(lambda what, seed, epoch, number: int(numbers[first + number])),
    )
    monkeypatch.setattr(SecretDraws, "numbers", lambda self, count, device: numbers[-count:])
    monkeypatch.setattr("imago.dp.strategy.try_network", lambda *_: None)  # it would refuse these draws of the test
    monkeypatch.setattr("torch.nn.functional.dropout", dropout)
    monkeypatch.setattr(sys.modules["torchvision.ops.stochastic_depth"], "stochastic_depth", depth)


@pytest.mark.parametrize("physical", [None, 1])
def test_one_image_more_moves_the_sum_by_the_clipping_norm(command, neighbours, monkeypatch, tmp_path, physical):
    """With all that is drawn: boxes, flips, dropout, stochastic depth, and stages of one's own."""
    import torchvision.ops  # noqa: F401  # so that its module is there

    (tmp_path / "private_net.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["model.net._target_=private_net.Net", "data.image_size=16", "model.channels_last=false"]
    words += ["+data.train_transform.pixels.noisy._target_=private_net.Noisy"]
    words += ["+data.train_transform.batch.tint={_target_: private_net.Tint, seed: ${seed}}"]
    words += [f"strategy.physical_batch_size={physical}"] if physical else []
    sums = []
    for folder, images in zip(neighbours, (61, 62), strict=True):
        coupled(monkeypatch, images, most=62)
        sums.append(clipped_sum(command, folder, *words))
    assert 0.5 < float((sums[0] - sums[1]).norm()) <= 1.0001


def test_all_generators_are_filled_anew():
    drawn = []
    for _ in range(2):
        seed_from_entropy()
        state = torch.default_generator.get_state()
        assert len(set(state[24:5016].view(torch.int64).tolist())) > 600  # all words of the state
        drawn.append((torch.rand(2).tolist(), np.random.rand(), __import__("random").random()))
    assert all(one != other for one, other in zip(*drawn, strict=True))


def test_two_runs_with_one_seed_augment_differently(train, monkeypatch):
    seen: list[Tensor] = []
    step = DifferentialPrivacy.forward

    def forward(self: Any, model: Any, batch: Any) -> Any:
        seen.append(batch["image"].clone())
        return step(self, model, batch)

    monkeypatch.setattr(DifferentialPrivacy, "forward", forward)
    for _ in range(2):
        run = train("strategy=dp", "data.batch_size=39", "trainer.max_steps=1", "trainer.max_epochs=1", "test=false")
        assert run.exit_code == 0, run.output
    assert not torch.equal(*seen)


STATEFUL = """
import numpy as np, torch
from torch import nn
class Stateful(nn.Module):
    '''Draws from a generator of its own, which nobody seeds anew.'''
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)
    def forward(self, image):
        return image.flip(-1) if self.generator.random() < 0.5 else image
class Mixing(nn.Module):
    draws = False
    def forward(self, batch):
        return {"image": batch["image"].float() + batch["image"].float().roll(1, 0)}
class ByPlace(nn.Module):
    draws = False
    def forward(self, batch):
        n = len(batch["image"])
        return {"image": batch["image"].float() * torch.linspace(0, 1, n + 1)[1:, None, None, None]}
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("+data.train_transform.pixels.own._target_=stateful_stage.Stateful", "draws from a generator of its own"),
        (
            "+data.train_transform.batch.own._target_=stateful_stage.Mixing",
            "depends on the rest of its batch",
        ),
        (
            "+data.train_transform.batch.own._target_=stateful_stage.ByPlace",
            "depends on the rest of its batch",
        ),
    ],
)
def test_stages_that_draw_or_mix_by_other_means_are_refused(train, tmp_path, monkeypatch, words, said):
    (tmp_path / "stateful_stage.py").write_text(STATEFUL)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = train("strategy=dp", words)
    assert run.exit_code == 1
    assert said in run.output


def test_an_image_whose_gradient_is_not_finite_does_not_end_the_run(train, tmp_path, monkeypatch):
    (tmp_path / "poisoned.py").write_text(
        "from imago.model import TinyNet\n"
        "class Poisoned(TinyNet):\n"
        "    '''Images that are rather red give infinities.'''\n"
        "    def forward(self, x):\n"
        "        red = x[:, 0].mean((1, 2)) > 1.05\n"
        "        return super().forward(x) + (red / (1 - red.float()))[:, None]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for physical in ("null", "3"):
        run = train("strategy=dp", "model.net._target_=poisoned.Poisoned", "trainer.limit_val_batches=0",
                    f"strategy.physical_batch_size={physical}", "test=false", "monitor=val/loss",
                    "callbacks.early_stopping=null", "callbacks.model_checkpoint=null")  # fmt: skip
        assert run.exit_code == 0, run.output
        assert run.json("reports/privacy.json")["images_ignored"] > 0
        assert "The gradient of an image is not finite" in run.output
        assert all(torch.isfinite(each).all() for each in run.weights().values())
