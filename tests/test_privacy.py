"""strategy=dp: the gradients are those of single images, the noise is there, and what is spent is what is said."""

import json
import math
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SMALL, Run, draw_classes, type_command, type_in_new_interpreter, type_in_subprocess
from lightning.pytorch.callbacks import Callback
from opacus import GradSampleModule
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.validators import ModuleValidator
from safetensors import safe_open
from scipy.stats import binom, chisquare, kstest, norm
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from imago.definitions import rounded_up
from imago.dp.accounting import Ledger, accountant_of, epsilon, noise_for, steps_within
from imago.dp.budget import LEDGER
from imago.dp.clipping import Adaptive, Clipping, PerLayer
from imago.dp.published import PART, privacy_of, warn_before_publishing
from imago.dp.report import most_hits
from imago.dp.secret import PoissonBatchSampler, SecretDraws
from imago.dp.strategy import DifferentialPrivacy
from imago.dp.tape import Tape
from imago.dp.terms import UnknownGradientError
from imago.errors import UserError
from imago.model.efficientnet import EfficientNetLite0
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.model.networks import SimpleCNN, SimpleDenseNet, TinyNet
from imago.model.surgery import with_group_norm
from imago.randomness import derive_seed

CLASSES = 3
STEPS = 5  # of an epoch of the 39 images in batches of 8
TORCHVISION = (
    *("resnet18", "resnet50", "efficientnet_b0", "regnet_y_400mf", "vit"),
    *("convnext_tiny", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11"),
)
CONVNEXT_BLOCKS = [models.convnext.CNBlockConfig(96, 192, 1), models.convnext.CNBlockConfig(192, None, 1)]
DP = ("strategy=dp", "logger=[]")
NO_AUGMENTATION = (
    *("data.train_transform.box._target_=imago.data.CenterBox", "~data.train_transform.box.scale"),
    "~data.train_transform.box.ratio",
    "data.train_transform.batch.flip=null",
)


def narrow_vgg11() -> nn.Module:
    """Its 120 million weights of linear layers are those of 512 x 64 and 64 x 3 here."""
    net = models.vgg11(num_classes=CLASSES, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(nn.Linear(512, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES))
    return net


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    own: dict[str, Callable[[], nn.Module]] = {
        "SimpleCNN": partial(SimpleCNN, CLASSES),
        "TinyNet": partial(TinyNet, CLASSES),
        "SimpleDenseNet": partial(SimpleDenseNet, CLASSES, 3 * 32 * 32, [8]),
        "efficientnet_lite0": partial(EfficientNetLite0, CLASSES),
        "vgg11": narrow_vgg11,
        # with one or two of their blocks where the whole network has many
        "vit": partial(models.VisionTransformer, 32, 16, 2, 3, 48, 96, num_classes=CLASSES),
        "resnet50": partial(models.ResNet, models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES),
        "densenet121": partial(models.DenseNet, 32, (2, 2), 64, num_classes=CLASSES),
        "convnext_tiny": partial(models.ConvNeXt, CONVNEXT_BLOCKS, num_classes=CLASSES),
    }
    net = own[name]() if name in own else models.get_model(name, weights=None, num_classes=CLASSES)
    with_group_norm(net)
    for layer in net.modules():  # what is random would be drawn anew for each image by itself
        if isinstance(layer, nn.Dropout) or type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0
    return net.train()


def batch_of(count: int, size: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def one_by_one(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Name -> gradients (n, …), each of an image that is alone."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in net.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image[None]), label[None]).backward()
        for name, parameter in net.named_parameters():
            rows[name].append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone())
    net.zero_grad()
    return {name: torch.stack(each) for name, each in rows.items()}


def taped(net: nn.Module, images: Tensor, labels: Tensor, mode: str = "auto") -> Tape:
    with Tape(dict(net.named_parameters()), len(labels), mode) as tape:
        losses = F.cross_entropy(net(images), labels, reduction="none")
    losses.sum().backward()
    return tape


@pytest.mark.parametrize("name", ["SimpleCNN", "TinyNet", "SimpleDenseNet", "efficientnet_lite0", *TORCHVISION])
def test_norms_and_sums_are_those_of_images_one_by_one(name):
    net = network(name).double()
    images, labels = batch_of(3, 64 if name == "densenet121" else 32, torch.float64)
    wanted = one_by_one(net, images, labels)
    norms = torch.stack([each.flatten(1).square().sum(dim=1) for each in wanted.values()]).sum(dim=0)
    factors = torch.tensor([0.3, 1.0, 0.7], dtype=torch.float64)
    for mode in ("auto", "hooks", "ghost"):
        parts = dict(taped(net, images, labels, mode).parts())
        assert parts.keys() == wanted.keys()
        assert torch.allclose(sum(part.squared_norms() for part in parts.values()), norms, rtol=1e-9)
        for own, part in parts.items():
            summed = torch.einsum("n,n...->...", factors, wanted[own])
            assert torch.allclose(part.weighted_sum(factors), summed, rtol=1e-6, atol=1e-9 * float(norms.max()) ** 0.5)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.quick
def test_gradients_are_those_of_opacus():
    net = network("SimpleCNN")
    images, labels = batch_of(6)
    images.requires_grad_()
    wrapped = GradSampleModule(network("SimpleCNN"), loss_reduction="sum")
    wrapped.load_state_dict({f"_module.{name}": value for name, value in net.state_dict().items()})
    F.cross_entropy(wrapped(images), labels, reduction="sum").backward()
    theirs = {name.removeprefix("_module."): each.grad_sample for name, each in wrapped.named_parameters()}
    for mode in ("hooks", "ghost"):
        for name, part in taped(net, images, labels, mode).parts():
            assert torch.allclose(part.whole(), theirs[name], atol=1e-6)


def test_a_parameter_that_is_used_twice_has_one_gradient():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 12)
            self.head = nn.Linear(12, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.layer(x.flatten(1)).tanh()))

    net = Tied().double()
    images, labels = batch_of(4, 2, torch.float64)
    wanted = one_by_one(net, images, labels)
    for name, part in taped(net, images, labels).parts():
        assert torch.allclose(part.squared_norms(), wanted[name].flatten(1).square().sum(dim=1))


def test_layers_are_replaced_as_modulevalidator_does_it_where_groups_have_four_channels():
    ours, theirs = models.resnet18(), ModuleValidator.fix(models.resnet18())
    replaced = with_group_norm(ours)
    found = {name: layer for name, layer in theirs.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert replaced == list(found)
    for name, layer in found.items():
        if layer.num_channels >= 128:
            assert repr(ours.get_submodule(name)) == repr(layer)
    assert repr(ours.bn1).startswith("GroupNorm(16, 64")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.resnet18(num_classes=CLASSES), "Type model.norm=group"),
        (lambda: models.swin_t(num_classes=CLASSES), "relative_position_bias_table is used by"),
        (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(3072, 3))), "is used by"),
    ],
)
def test_what_has_no_gradient_of_one_image_is_refused(make, words):
    with pytest.raises(UnknownGradientError, match=words):
        taped(make(), *batch_of(2))


def dp_step(
    net: nn.Module, images: Tensor, labels: Tensor, folder: Path, rate: float = 1.0, **options: Any
) -> DifferentialPrivacy:
    """One step of SGD with learning rate 1."""
    dp = DifferentialPrivacy(**options)
    dp.num_examples, dp.sample_rate = round(len(labels) / rate), rate
    dp.attach(dict(net.named_parameters()), Ledger(folder / "ledger"))

    class Model:
        criterions = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
        device = torch.device("cpu")

        def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
            return {**batch, "logits": net(batch["image"])}

    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    model: Any = Model()
    dp.optimizer_step(optimizer, lambda: dp.forward(model, {"image": images, "label": labels}))
    return dp


def moved(net: nn.Module, before: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((each.detach() - before[name]).square().sum()) for name, each in net.named_parameters()))


@pytest.mark.quick
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("mode", ["auto", "hooks", "ghost"])
def test_an_image_moves_the_weights_by_the_clipping_norm_at_most(clipping, mode, tmp_path):
    images, labels = batch_of(1)
    net = network("SimpleCNN")
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    options = {"noise_multiplier": 0, "max_grad_norm": 0.5, "clipping": clipping, "grad_sample_mode": mode}
    dp_step(net, 100 * images, labels, tmp_path, **options)
    assert 0 < moved(net, before) <= 0.5 * (1 + 1e-5)


@pytest.mark.quick
def test_noise_has_the_deviation_that_is_said(tmp_path):
    net = network("SimpleCNN")
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    images, labels = batch_of(4)
    dp_step(net, images, labels, tmp_path, noise_multiplier=50.0, max_grad_norm=0.2)
    count = sum(each.numel() for each in net.parameters())
    assert moved(net, before) / math.sqrt(count) == pytest.approx(50 * 0.2 / 4, rel=0.02)


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_gaussian_and_differs_each_time(secure):
    draws = SecretDraws(secure)
    noise = draws.normal(torch.zeros(20_001), 3.0)
    assert kstest((noise / 3).double().numpy(), norm.cdf).pvalue > 1e-6
    assert not torch.equal(noise, SecretDraws(secure).normal(torch.zeros(20_001), 3.0))
    assert not torch.equal(noise, draws.normal(torch.zeros(20_001), 3.0))


def chi_square(sizes: list[int], count: int, rate: float) -> float:
    """The p-value of sizes that should be binomial; rare ones are put together."""
    found = np.bincount(sizes, minlength=count + 1)
    wanted = binom.pmf(np.arange(count + 1), count, rate) * len(sizes)
    common = wanted >= 5
    return chisquare([*found[common], found[~common].sum()], [*wanted[common], max(wanted[~common].sum(), 1e-9)]).pvalue


@pytest.mark.parametrize("secure", [False, True])
def test_each_image_is_drawn_by_itself(secure):
    sampler = PoissonBatchSampler(40, 8, SecretDraws(secure))
    drawn = [[index for _, index in batch] for _ in range(800) for batch in sampler]
    assert len(drawn) == 4000
    assert chi_square([len(batch) for batch in drawn], 40, 0.2) > 1e-6
    assert chisquare(np.bincount([index for batch in drawn for index in batch], minlength=40)).pvalue > 1e-6
    together = sum(0 in batch and 1 in batch for batch in drawn)
    assert binom.cdf(together, 4000, 0.04) > 1e-6
    assert binom.sf(together, 4000, 0.04) > 1e-6


class Watch(Callback):
    """What a run did, seen from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.draws = 0
        step, normal = DictModule.training_step, SecretDraws.normal

        def training_step(module: DictModule, batch: dict[str, Any], batch_idx: int) -> Any:
            self.sizes.append(len(batch["image"]))
            return step(module, batch, batch_idx)

        def counted(draws: SecretDraws, like: Tensor, std: float) -> Tensor:
            self.draws += 1
            return normal(draws, like, std)

        monkeypatch.setattr(DictModule, "training_step", training_step)
        monkeypatch.setattr(SecretDraws, "normal", counted)


PARAMETERS = len(list(TinyNet(3).parameters()))


def spent(steps: int, noise: float, rate: float, delta: float, kind: type = PRVAccountant) -> float:
    """By an accountant that is stepped here."""
    accountant = kind()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    return accountant.get_epsilon(delta)


@pytest.fixture(scope="module")
def finished(colours, tmp_path_factory) -> Run:
    """A private run of two epochs that was not scored. Not to be changed."""
    folder = tmp_path_factory.mktemp("private")
    words = [f"data.data_dir={colours}", *SMALL, *DP, "test=false", f"paths.log_dir={folder}/logs"]
    return type_command("train", words, folder / "run")


@pytest.fixture
def private(finished, tmp_path) -> Run:
    """A copy of `finished` that a test may spoil."""
    copied = shutil.copytree(finished.dir, tmp_path / "private", ignore=shutil.ignore_patterns(".lock"))
    return Run(copied, finished.exit_code, finished.output)


def test_no_margins_of_single_images_are_added_up(finished):
    assert "Label margins are off: with strategy=dp they would tell of single train images" in finished.output
    assert not (finished.dir / "reports" / "label_margins.npz").exists()
    assert not any("LabelMargins" in key for key in finished.checkpoint()["callbacks"])


@pytest.mark.quick
@pytest.mark.parametrize(("name", "kind"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_what_is_spent_is_what_an_accountant_says_of_the_noise_that_was_drawn(train, monkeypatch, name, kind):
    watch = Watch(monkeypatch)
    run = train(*DP, f"strategy.accountant={name}", "trainer.max_epochs=3")
    assert run.exit_code == 0, run.output
    assert watch.draws == 3 * STEPS * PARAMETERS
    told = run.json("reports/privacy.json")
    assert (told["steps"], told["num_examples"], told["delta"]) == (3 * STEPS, 39, 1e-3)
    assert told["sample_rate"] == 8 / 39
    for epoch, row in enumerate(run.history, 1):
        wanted = spent(watch.draws * epoch // (3 * PARAMETERS), 1.1, 8 / 39, 1e-3, kind)
        assert abs(row["privacy/epsilon"] - float(rounded_up(wanted))) < 1e-9
    assert abs(told["epsilon"] - wanted) < 1e-9
    lines = [line for line in run.output.splitlines() if re.search(r" [123]/3 ", line)]
    assert [f"{row['privacy/epsilon']:.4f}" in line for row, line in zip(run.history, lines, strict=True)] == [True] * 3
    assert run.json("status.json")["epsilon"] == float(rounded_up(told["epsilon"]))
    for page in ("summary.txt", "report.html", "report.md", "reports/privacy.md"):
        assert rounded_up(told["epsilon"]) in run.text(page)
    assert "val images: they choose the best checkpoint" in run.text("reports/privacy.md")


def test_the_network_sees_batches_of_many_sizes_and_empty_ones_are_steps_too(train, monkeypatch):
    watch = Watch(monkeypatch)
    run = train(*DP, "data.batch_size=2", "trainer.max_epochs=6", "callbacks.early_stopping=null", "test=false")
    assert run.exit_code == 0, run.output
    assert chi_square(watch.sizes, 39, 2 / 39) > 1e-6
    assert watch.sizes.count(0) > 1  # 15 are expected
    assert len(watch.sizes) == run.json("reports/privacy.json")["steps"] == 6 * 20
    assert watch.draws == 6 * 20 * PARAMETERS


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_an_image_that_is_not_finite_counts_as_if_it_were_not_there(clipping, mode, tmp_path):
    images, labels = batch_of(6)
    options = {"noise_multiplier": 0, "clipping": clipping, "grad_sample_mode": mode}
    before, five, six = (network("SimpleCNN") for _ in range(3))
    dp_step(five, images[1:], labels[1:], tmp_path, **options)
    images[0, 0, 3, 3] = math.nan
    assert dp_step(six, images, labels, tmp_path, **options).ignored == 1
    for start, one, other in zip(*(net.parameters() for net in (before, five, six)), strict=True):
        assert torch.allclose(5 * (one - start), 6 * (other - start), atol=1e-5)


def test_an_empty_batch_moves_the_weights_by_noise(tmp_path):
    net = network("TinyNet")
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    images, labels = batch_of(4)
    dp = DifferentialPrivacy(noise_multiplier=1.0)
    dp.num_examples, dp.sample_rate = 10, 0.4
    dp.attach(dict(net.named_parameters()), Ledger(tmp_path / "ledger"))
    model = type("Model", (), {"criterions": CriterionsComposition({"ce": nn.CrossEntropyLoss()}), "device": "cpu"})()
    batch = {"image": images[:0], "label": labels[:0]}
    dp.optimizer_step(torch.optim.SGD(net.parameters(), lr=1.0), lambda: dp.forward(model, batch))
    assert moved(net, before) > 0
    assert dp.steps == 1


def test_without_noise_and_clipping_it_is_plain_training(train):
    """With a batch of all images each is drawn for certain."""
    words = ["data.batch_size=39", "model.norm=group", "trainer.max_epochs=3", "trainer.max_steps=3", "test=false"]
    none = "strategy.noise_multiplier=0", "strategy.max_grad_norm=1e6"
    # a step of AdamW divides by the size of the gradient, and would show how small ones are rounded
    words += ["model/optimizer=sgd", "model.optimizer.lr=0.1", *NO_AUGMENTATION]
    plain = train(*words, "strategy=none").weights()
    for more in ([], ["strategy.physical_batch_size=7", "strategy.grad_sample_mode=hooks"]):
        private = train(*DP, *words, *none, *more)
        assert "without noise there is no privacy" in private.output
        for name, weight in private.weights().items():
            assert torch.allclose(weight, plain[name], atol=1e-6), name


DIGITS = ("experiment=digits_dp", "trainer.accelerator=cpu", "logger=[]", "report.splits=[test]")


def test_much_noise_destroys_what_is_learnt(command):
    loud = command("train", *DIGITS, "trainer.max_epochs=2", "strategy.noise_multiplier=1000")
    assert loud.json("reports/metrics_test.json")["acc"] < 0.5


def test_no_two_runs_are_alike(train, finished):
    one, other = finished.weights(), train(*DP, "test=false").weights()
    assert not torch.equal(one["net.head.weight"], other["net.head.weight"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_with_little_noise_it_is_learnt_in_each_precision(command, precision):
    words = ["trainer.max_epochs=4", "strategy.noise_multiplier=0.1", f"trainer.precision={precision}"]
    assert command("train", *DIGITS, *words).json("reports/metrics_test.json")["acc"] > 0.8


def test_the_target_alone_finds_the_noise_and_all_steps_are_taken(train):
    run = train(*DP, "strategy.target_epsilon=5", "trainer.max_epochs=3")
    told = run.json("reports/privacy.json")
    assert 4.9 < told["epsilon"] <= 5
    assert told["steps"] == 3 * STEPS
    assert "reason" not in run.json("status.json")


@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_the_budget_ends_the_training_and_a_larger_one_goes_on(train, command):
    words = ["strategy.target_epsilon=8", "strategy.noise_multiplier=0.8", "trainer.max_epochs=9"]
    run = train(*DP, *words, "strategy.accountant=rdp", "callbacks.early_stopping=null")
    assert run.exit_code == 0
    status, told = run.json("status.json"), run.json("reports/privacy.json")
    assert (status["status"], status["reason"]) == ("completed", "privacy budget spent")
    assert "privacy budget spent" in run.text("summary.txt")
    assert 0 < told["steps"] < 9 * STEPS
    assert told["epsilon"] <= 8 < spent(told["steps"] + 1, 0.8, 8 / 39, 1e-3, RDPAccountant)
    assert "val/acc" in run.history[-1]  # the last, shorter epoch is validated
    assert run.checkpoint("best")["imago"]["strategy"]["history"]
    idle = command("train", f"resume={run.dir}", folder=run.dir)
    assert "nothing to do. Its privacy budget is spent. To raise it, type" in idle.output
    less = command("train", f"resume={run.dir}", "strategy.target_epsilon=1", folder=run.dir)
    assert less.exit_code == 1
    said = f"strategy.target_epsilon=1: the run has already spent epsilon {status['epsilon']:.4f}. Type a larger one"
    assert said in less.last_line
    assert run.json("status.json")["reason"] == "privacy budget spent"
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=12", folder=run.dir)
    assert again.exit_code == 1
    said = f"epsilon {status['epsilon']:.4f} of 8 is spent, and one more step would exceed it. For more steps type a"
    assert said in again.last_line
    assert "testing that the network" not in again.output
    assert run.json("status.json")["reason"] == "privacy budget spent"
    assert run.json("reports/privacy.json")["steps"] == told["steps"]
    more = command("train", f"resume={run.dir}", "strategy.target_epsilon=10", folder=run.dir)
    assert re.search(r"The privacy budget is spent after \d+ more steps? \(", more.output)
    assert more.exit_code == 0, more.output
    assert 8 < run.json("reports/privacy.json")["epsilon"] <= 10
    assert run.json("reports/privacy.json")["steps"] > told["steps"]
    page = run.text("reports/privacy.md")
    assert "- a change of steps, noise or batch size when the run was resumed, if results led to it: " in page
    assert "Nor is a change of steps" in page


def test_a_budget_that_is_too_small_is_refused(train):
    run = train(*DP, "strategy.target_epsilon=0.01", "strategy.noise_multiplier=0.5")
    assert run.exit_code == 1
    assert "a single step would spend more. Type more noise, or a larger target." in run.last_line


def test_a_run_goes_on_with_what_it_has_spent(train, finished):
    first = finished
    rest = train(*DP, "trainer.max_epochs=4", "test=false", f"ckpt_path={first.dir}/checkpoints/last.ckpt")
    assert rest.json("reports/privacy.json")["steps"] == 4 * STEPS
    assert abs(rest.json("reports/privacy.json")["epsilon"] - spent(4 * STEPS, 1.1, 8 / 39, 1e-3)) < 1e-9
    assert "a change of steps, noise or batch size" in rest.text("reports/privacy.md")
    louder = train(
        *DP, "trainer.max_epochs=4", "test=false", "strategy.noise_multiplier=2",
        f"ckpt_path={first.dir}/checkpoints/last.ckpt",
    )  # fmt: skip
    both = PRVAccountant()
    both.history = [(1.1, 8 / 39, 2 * STEPS), (2.0, 8 / 39, 2 * STEPS)]
    assert abs(louder.json("reports/privacy.json")["epsilon"] - both.get_epsilon(1e-3)) < 1e-9


def test_a_ledger_with_missing_lines_is_refused(private, command):
    run = private
    ledger = run.dir / LEDGER
    lines = ledger.read_text().splitlines(keepends=True)
    assert len(lines) == 2 * STEPS
    assert json.loads(lines[0]) == {"noise_multiplier": 1.1, "sample_rate": 8 / 39}
    ledger.write_text("".join(lines[:3]))
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=3", folder=run.dir)
    assert again.exit_code == 1
    assert "has 3 steps, the checkpoint has 10: lines are missing" in again.last_line
    ledger.write_text("nonsense\n")
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=3", folder=run.dir)
    assert "is damaged" in again.last_line


def test_a_step_that_cannot_be_noted_is_not_taken(tmp_path):
    net = network("TinyNet")
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    (tmp_path / "ledger").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        dp_step(net, *batch_of(2), tmp_path, noise_multiplier=1.0)
    assert moved(net, before) == 0


KILLED = """
import os, random, signal, sys
import imago.training.trainer, imago.training.fit, opacus.accountants
import imago.train
from imago.dp.secret import SecretDraws
normal, file, parameters = SecretDraws.normal, sys.argv.pop(1), int(sys.argv.pop(1))
chance = random.Random(3)
words, done = sys.argv[1:], False
for attempt in range(6):
    last = chance.randrange(1, 5 * parameters) if attempt < 5 else -1
    if child := os.fork():
        print(attempt, os.waitpid(child, 0)[1], flush=True)
        continue
    calls = 0
    def counted(draws, like, std):
        global calls
        if calls % parameters == 0:
            with open(file, 'ab', buffering=0) as steps:
                steps.write(b'.')
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return normal(draws, like, std)
    SecretDraws.normal = counted
    imago.train.main()
    os._exit(0)
sys.exit()
"""


def test_after_five_kills_all_noise_that_was_drawn_is_counted(tmp_path, colours):
    words = [f"data.data_dir={colours}", *SMALL, *DP, "trainer.max_epochs=3", "auto_resume=true", "test=false"]
    words += [f"hydra.run.dir={tmp_path}/run", f"paths.cache_dir={tmp_path}/cache", f"paths.log_dir={tmp_path}/logs"]
    words += ["callbacks.resume.every_n_train_steps=2", "callbacks.early_stopping=null"]
    done = type_in_subprocess(
        f"{tmp_path}/steps", str(PARAMETERS), *words, code=f"import sys; del sys.argv[1]\n{KILLED}"
    )
    assert done.stdout.count(" 9\n") >= 4, done.stdout + done.stderr
    told = json.loads((tmp_path / "run/reports/privacy.json").read_text())
    steps = len((tmp_path / "steps").read_bytes())
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "completed"
    assert told["steps"] == steps > 3 * STEPS
    assert abs(told["epsilon"] - spent(steps, 1.1, 8 / 39, 1e-3)) < 1e-9


def test_however_a_run_dies_its_report_says_no_less_than_its_files(tmp_path, colours):
    words = [f"data.data_dir={colours}", *SMALL, *DP, "trainer.max_epochs=8", "test=false", "preflight=false"]
    words += [f"hydra.run.dir={tmp_path}/run", f"paths.cache_dir={tmp_path}/cache", f"paths.log_dir={tmp_path}/logs"]
    words += ["callbacks.resume.every_n_train_steps=1"]
    code = (
        "import os, signal, imago.dp.strategy as s\n"
        "normal, calls = s.SecretDraws.normal, []\n"
        "def dying(draws, like, std):\n"
        "    calls.append(1)\n"
        f"    if len(calls) > 9 * {PARAMETERS}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return normal(draws, like, std)\n"
        "s.SecretDraws.normal = dying"
    )
    assert type_in_subprocess(*words, code=code).returncode == -signal.SIGKILL
    report = json.loads((tmp_path / "run/reports/privacy.json").read_text())
    kept = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["imago"]["strategy"]
    assert kept["history"] == [[1.1, 8 / 39, 9]]
    assert kept["epsilon"] == pytest.approx(spent(9, 1.1, 8 / 39, 1e-3))
    assert len((tmp_path / "run" / LEDGER).read_text().splitlines()) == 10
    assert report["steps"] == 10  # to the end of the second epoch
    assert report["epsilon"] == pytest.approx(spent(10, 1.1, 8 / 39, 1e-3))
    assert rounded_up(report["epsilon"]) in (tmp_path / "run/summary.txt").read_text()
    assert json.loads((tmp_path / "run/status.json").read_text())["epsilon"] == float(rounded_up(report["epsilon"]))
    page = (tmp_path / "run/reports/privacy.md").read_text()
    assert "The table is computed at the end of training." in page
    assert f"The steps are counted {report['counted']}.\n\n> We trained with DP-SGD" in page


def test_what_no_accountant_can_say_ends_before_the_first_step(train):
    run = train(*DP, "strategy.noise_multiplier=1e-200")
    assert run.exit_code == 1
    assert "no accountant can bound the epsilon of 10 steps" in run.last_line
    assert not (run.dir / LEDGER).exists()
    assert "epsilon  0" not in run.text("summary.txt")


def test_rdp_counts_where_prv_would_take_all_memory():
    """PRV alone takes 12 GB of memory here."""
    history = [(0.4, 0.2, 3000)]
    assert accountant_of(history, 1e-5, "prv") == "rdp"
    assert epsilon(history, 1e-5, "prv") == pytest.approx(1320.23, abs=0.01)
    assert accountant_of([(1.1, 0.2, 15)], 1e-5, "prv") == "prv"


def test_epsilon_is_never_negative_and_infinity_is_said(train):
    assert epsilon([(1.1, 0.2, 15)], 0.5, "prv") == 0.0
    run = train(*DP, "strategy.noise_multiplier=0", "trainer.max_epochs=1", "test=false")
    assert run.json("reports/privacy.json")["epsilon"] == "infinite"
    assert "There is no guarantee: epsilon is infinite." in run.text("reports/privacy.md")
    assert "There is no guarantee: the weights are as private as the images\n" in run.output


def test_the_report_says_what_epsilon_means_and_shows_no_image(train, command):
    run = train(*DP, "logger=tensorboard")
    page, report = run.text("reports/privacy.md"), run.json("reports/privacy.json")
    guarantee = f"({rounded_up(report['epsilon'])}, 0.001)-differentially private for adding or removing one image"
    assert guarantee in page
    assert f"at most {rounded_up(100 * most_hits(report['epsilon'], 1e-3, 0.01), 2)}% of the members" in run.text(
        "summary.txt"
    )
    assert "Publish the output of `ml-export`" in page
    assert "We trained with DP-SGD (Abadi et al. 2016) on 39 images: 10 steps" in page
    assert "knows all other images, the code, the settings and the seed" in page
    for line in (
        "val images: they choose the best checkpoint (val/acc) and the end of training (val/acc)",
        "the number of train images (39), which scales the noise, and the 3 class names",
        "the statistics of the normalisation (mean [0.485, 0.456, 0.406]",
        "in metrics.jsonl, checkpoints and reports, and in TensorBoardLogger",
        "the reports about single images of val: path, label and loss\n",
        "attacks on floating-point noise (strategy.secure_rng=false)",
    ):
        assert line in page
    for absent in (
        "the draw of val",
        "the end of training, after",
        "a change of steps",
        "public_init",
        "data.exclude",
        "data.cache=disk",
        "class_weights",
        "thumbnails",
    ):
        assert absent not in page.partition("## Not covered")[2]
    assert f"| 0.001 | {rounded_up(report['epsilon'])} |\n" in page
    assert report["epsilon_by_delta"]["0.001"] == report["epsilon"] < report["epsilon_by_delta"]["1e-08"]
    budget = f"Privacy: epsilon {rounded_up(report['epsilon'])}, delta 0.001, unit: one image."
    assert f"{budget} Publish the output of ml-export, not the run folder (docs/privacy.md)\n" in run.output
    assert f"  ml-export ckpt_path={run.dir}\n" in run.output
    assert re.search(r"Not protected: the \d+ val images: \S*reports/privacy.md\n", run.output)
    assert "because strategy=dp sets report.pictures=false" in run.text("report.html")
    assert not list((run.dir / "reports").glob("*train*"))
    for file in filter(Path.is_file, run.dir.rglob("*")):
        assert not re.search(rb"train/\w+/\d+\.png", file.read_bytes()), f"{file} names a train image"
    again = command("eval", f"ckpt_path={run.dir}", "logger=[]", "split=[train,test]")
    assert "list path, label and loss of each train image" in again.output
    assert "Pictures are left out (report.pictures=false)" in again.text("report.html")
    for page in (run, again):
        assert "data:image" not in page.text("report.html")
        assert not (page.dir / "reports" / "samples.json").exists()


def test_what_is_exported_says_what_was_spent(finished, trained, command, tmp_path):
    run = command("export", f"ckpt_path={finished.dir}")
    report = finished.json("reports/privacy.json")
    with safe_open(run.dir / "model_only.safetensors", "pt") as file:
        told = json.loads(file.metadata()["privacy"])
    assert told == {"epsilon": float(rounded_up(report["epsilon"])), "delta": 1e-3, "unit": "one image", "steps": 10}
    for words in (run.output, run.text("export.log")):
        assert f"Privacy: epsilon {rounded_up(report['epsilon'])}, delta 0.001, unit: one image" in words
    assert f"epsilon  {rounded_up(report['epsilon'])}" in run.text("summary.txt")
    assert "BatchNorm" not in run.output  # no weights are lost here
    shutil.copy(finished.dir / "checkpoints/best.ckpt", tmp_path / "copy.ckpt")
    copied = command("export", f"ckpt_path={tmp_path}/copy.ckpt")
    assert "may be published" not in copied.output
    assert "Its run may have spent more: to publish the weights, export them from the run folder" in copied.output
    with safe_open(command("export", f"ckpt_path={trained.dir}").dir / "model_only.safetensors", "pt") as file:
        assert "privacy" not in file.metadata()


def test_an_export_repeats_what_the_training_warned_of_and_loses_scores_of_val(tmp_path, caplog):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/privacy.json").write_text('{"warnings": ["target_delta=0.1 is not below 1 / 39"]}')
    calibration = {"temperature": 1.5, "held_out": {"ece_before": 0.1}}
    file = tmp_path / "checkpoints" / "best.ckpt"
    warn_before_publishing(file, calibration, file.with_suffix(".calibration.json"), tmp_path)
    assert calibration == {"temperature": 1.5, "held_out": {}, "evidence": {}, "looks": []}
    assert "determined them without noise" in caplog.messages[0]
    assert caplog.messages[1:] == ["The training warned: target_delta=0.1 is not below 1 / 39"]
    for name, epsilon_ in (("run", 3.0), ("later", 2.9944), ("latest", "infinite")):
        (tmp_path / name / "reports").mkdir(parents=True)
        (tmp_path / name / "reports/data.json").write_text('{"folder": "/photos", "fingerprint": "1"}')
        status = {"status": "completed", "epsilon": epsilon_, "delta": 1e-5}
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    later = f"Counted again: {{}} on these data below {tmp_path}: {{}} (docs/privacy.md)"
    for latest, rest in (
        ("infinite", "latest has no bound of epsilon, so that for all runs together there is no guarantee"),
        (1.5, "together, epsilon 4.4944, delta 2e-05. Those of this run come on top"),
    ):
        (tmp_path / "latest/status.json").write_text(json.dumps({"epsilon": latest, "delta": 1e-5}))
        warn_before_publishing(tmp_path / "run/checkpoints/best.ckpt", None, file, tmp_path)
        assert caplog.messages[-1] == later.format("2 other private runs", rest)
        assert "is not in its run folder: epsilon counts the steps before it" in caplog.messages[-2]
    shutil.rmtree(tmp_path / "latest")
    (tmp_path / "run/status.json").write_text(json.dumps({"status": "stopped", "epsilon": 3.0, "delta": 1e-5}))
    warn_before_publishing(tmp_path / "run/checkpoints/best.ckpt", None, file, tmp_path)
    one = "epsilon 2.9944, delta 1e-05. Those of this run come on top"
    assert caplog.messages[-1] == later.format("1 other private run", one)
    assert "The run has not ended (its status is stopped): epsilon counts its steps so far" in caplog.messages[-2]


def test_the_best_checkpoint_costs_what_its_run_has_spent(finished, tmp_path):
    """It was chosen among those of all steps; by itself it knows its own only."""
    first = finished.checkpoint("best")["imago"]
    first["strategy"] |= {"history": [[1.1, 8 / 39, 5]], "epsilon": 1.0}
    assert privacy_of(finished.dir / "checkpoints/best.ckpt", first)["steps"] == 10
    assert privacy_of(tmp_path / "best.ckpt", first) == {
        "epsilon": 1.0, "delta": 1e-3, "unit": "one image", "steps": 5, "counted": PART
    }  # fmt: skip
    first["strategy"]["delta"] = 1e-6  # resume= has changed it since
    assert privacy_of(finished.dir / "checkpoints/best.ckpt", first)["steps"] == 10
    for odd in (
        {},
        {"history": [["a"]], "epsilon": 1.0, "delta": 1.0},
        {"history": [], "epsilon": "", "delta": 1},
        [1],
    ):
        assert privacy_of(tmp_path / "best.ckpt", {"strategy": odd}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.99451, "7.9946"), (0.1, "0.1001"), (3.0, "3.0000"), (1e-9, "0.0001"), (1e300, f"{int(1e300)}.0000")],
)
def test_a_bound_is_rounded_up(value, text):
    assert rounded_up(value) == text
    assert rounded_up(1e300) == f"{int(1e300)}.0000"


@pytest.mark.parametrize(("epsilon_", "delta"), [(0.5, 1e-5), (3.0, 1e-3), (9.0, 1e-6)])
def test_no_test_of_a_gaussian_mechanism_is_better_than_is_said(epsilon_, delta):
    """The best test against the Gaussian mechanism that just has this guarantee (Balle and Wang 2018)."""
    low, high = 1e-3, 1e3
    for _ in range(200):
        sigma = math.sqrt(low * high)
        spent_delta = norm.cdf(0.5 / sigma - epsilon_ * sigma) - math.exp(epsilon_) * norm.cdf(
            -0.5 / sigma - epsilon_ * sigma
        )
        low, high = (sigma, high) if spent_delta > delta else (low, sigma)
    for false_alarms in (0.001, 0.01, 0.1):
        hits = norm.cdf(norm.ppf(false_alarms) + 1 / high)
        assert hits <= most_hits(epsilon_, delta, false_alarms) + 1e-9


def test_the_checkpoint_is_a_plain_one_and_one_without_a_count_is_refused(train, command, tmp_path):
    run = train(*DP)
    plain = train("model.norm=group", "test=false")
    assert run.weights().keys() == plain.weights().keys()
    refused = train(*DP, "trainer.max_epochs=4", f"ckpt_path={plain.dir}/checkpoints/last.ckpt")
    assert refused.exit_code == 1
    assert "last.ckpt strategy=dp: a run that was not private cannot become private" in refused.last_line
    (tmp_path / "experiment").mkdir()
    start = f"ckpt_path: {plain.dir}/checkpoints/last.ckpt\n"
    (tmp_path / "experiment" / "own.yaml").write_text(
        f"# @package _global_\ndefaults: [override /strategy: dp]\n{start}"
    )
    of_file = train(f"--config-dir={tmp_path}", "experiment=own", "model.norm=group")
    assert "last.ckpt strategy=dp: a run that was not private cannot become private" in of_file.last_line
    assert not of_file.dir.exists()
    resumed = command("train", f"resume={plain.dir}", "strategy=dp", folder=plain.dir)
    assert f"resume={plain.dir} strategy=dp: a run that was not private cannot become private" in resumed.output
    assert resumed.last_line.endswith("test=false strategy=dp strategy.target_epsilon=3")
    assert run.checkpoint()["optimizer_states"][0]["param_groups"][0].keys() >= {"lr", "betas"}
    score = command("eval", f"ckpt_path={run.dir}")
    assert score.json("reports/metrics_test.json")["acc"] == run.json("reports/metrics_test.json")["acc"]


def test_a_frozen_backbone_keeps_its_batchnorm(train, command, trained, tmp_path):
    """Its weights come from other images: about those of its own training there would be no guarantee."""
    start = ["model.freeze=backbone", f"model.init_from={trained.dir}"]
    refused = train(*DP, *start)
    assert "these weights were trained without privacy on 39 of the 39 train images" in refused.error
    others = draw_classes(tmp_path / "others" / "train", {"blue": 9, "green": 9, "red": 9}, seed=7).parent
    draw_classes(others / "val", {"blue": 3, "green": 3, "red": 3}, seed=8)
    run = command("train", f"data.data_dir={others}", *SMALL, *DP, *start, "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    assert run.checkpoint()["imago"]["unrecorded"].startswith("training began with model.init_from=")
    assert run.json("reports/privacy.json")["replaced"] == []
    assert "net.features.0.1.running_mean" in run.weights()


def test_adaptive_clipping_finds_the_median_of_the_norms():
    norms = torch.linspace(2.0, 6.0, 201)
    clipping = Adaptive(0.1)
    for _ in range(200):
        clipping._look_at(norms)
        clipping.adapt(SecretDraws(), 1.0, len(norms))
    assert clipping.norm == pytest.approx(4.0, rel=0.1)
    noise = clipping.noise_std(1.0) / clipping.norm
    counting = 2 * clipping._std_of_count(1.0)  # an image moves the count by 1/2
    assert noise**-2 + counting**-2 == pytest.approx(1.0)


def test_noise_and_steps_for_a_target():
    noise = noise_for(3.0, 1e-5, 0.05, 200, "rdp")
    assert 2.9 < epsilon([(noise, 0.05, 200)], 1e-5, "rdp") <= 3
    little = noise_for(0.02, 1e-5, 0.05, 20, "prv")
    assert 0.015 < epsilon([(little, 0.05, 20)], 1e-5, "prv") <= 0.02
    with pytest.raises(UserError, match=r"smallest epsilon that it can reach is 0\.00\d\d \(delta 1e-05\)"):
        noise_for(1e-5, 1e-5, 0.05, 20, "prv")
    count = steps_within(3.0, [(1.0, 0.05, 20)], 1.0, 0.05, 10_000, 1e-5, "rdp")
    assert epsilon([(1.0, 0.05, 20 + count)], 1e-5, "rdp") <= 3 < epsilon([(1.0, 0.05, 21 + count)], 1e-5, "rdp")
    assert epsilon([(0.0, 0.05, 1)], 1e-5, "rdp") == math.inf


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.gradient_clip_val=1"], "strategy=dp and trainer.gradient_clip_val"),
        (["trainer.accumulate_grad_batches=2"], "strategy=dp and trainer.accumulate_grad_batches"),
        (["trainer.precision=16-true"], "strategy=dp and trainer.precision: with loss scaling"),
        (["model.compile=true"], "strategy=dp and model.compile"),
        (["model.on_bad_loss=skip"], "strategy=dp and model.on_bad_loss=skip"),
        (["+data.train_transform.batch.mix._target_=torchvision.transforms.v2.MixUp"], "MixUp, CutMix"),
        (["trainer.overfit_batches=2"], "strategy=dp and trainer.overfit_batches"),
        (["+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging",
          "+callbacks.swa.swa_lrs=0.1"], "its average would be neither saved nor scored"),
        (["+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"], "average weights (SWA, EMA)"),
        (["callbacks=[default,ema]"], "average weights (SWA, EMA)"),
        (["model.optimizer._target_=torch.optim.LBFGS", "~model.optimizer.weight_decay"], "LBFGS evaluates a batch"),
        (["trainer.min_epochs=2"], "trainer.min_epochs or trainer.min_steps"),
        (["monitor=train/loss"], "strategy=dp and a monitor of train/"),
        (["model/scheduler=plateau", "model.monitor=train/loss"], "strategy=dp and a monitor of train/"),
        (["trainer.precision=bf16-true"], "strategy=dp and trainer.precision"),
        (["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"], "Type trainer.devices=1"),
        (["strategy.clipping=round"], "must be flat, per_layer or adaptive"),
        (["strategy.accountant=gdp"], "must be prv or rdp"),
        (["strategy.target_delta=2.0"], "must be auto or a number (above 0, below 1)"),
        (["strategy.noise_multiplier=-1"], "must be a number (0 or more)"),
        (["strategy.noise_multiplier=0", "strategy.target_epsilon=3"], "Type more noise"),
        (["strategy.physical_batch_size=0"], "must be a whole number (1 or more) or null"),
        (["strategy.target_epsilon=3", "trainer.max_epochs=-1", "model.scheduler=null"], "and this one has no end"),
        (["report.pictures=1"], "report.pictures must be true or false, got 1"),
        (["strategy.target_epsilon=0"], "strategy.target_epsilon must be a number (above 0) or null, got 0."),
        (["strategy.target_epsilon=-1"], "strategy.target_epsilon must be a number (above 0) or null, got -1."),
        (["strategy.max_grad_norm=0.0"], "strategy.max_grad_norm must be a number (above 0), got 0.0."),
        (["strategy.grad_sample_mode=fast"], "strategy.grad_sample_mode must be auto, hooks or ghost, got fast."),
        (["trainer=ddp_sim"], "strategy=dp and trainer.devices"),
        (["model.class_weights=auto"], "strategy=dp and model.class_weights=auto: the class frequencies"),
        (["matmul_precision=high"], "strategy=dp and matmul_precision"),
        (["model.norm=null"], "strategy=dp and model.norm other than group: BatchNorm normalises an image"),
        (["model.norm=batch"], "strategy=dp and model.norm other than group: BatchNorm normalises an image"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused_before_the_data_are_read(train, words, said):
    run = train(*DP, "data.data_dir=/nowhere", *words)
    assert run.exit_code == 1
    assert said in run.output
    assert not run.dir.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["+model.criterions.criterions.ce.reduction=sum"], "a loss value per image is needed"),
        (["+callbacks.ema._target_=own_callback.Average"], "average weights (SWA, EMA)"),
    ],
)
def test_what_the_settings_do_not_tell_is_refused_before_the_first_step(train, tmp_path, monkeypatch, words, said):
    (tmp_path / "own_callback.py").write_text(
        "from lightning.pytorch.callbacks import EMAWeightAveraging\nclass Average(EMAWeightAveraging): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train(*DP, *words)
    assert run.exit_code == 1
    assert said in run.output
    assert not (run.dir / LEDGER).exists()


def test_a_private_run_is_not_repeated(command, finished):
    run = command("train", f"replay={finished.dir}")
    assert "no run repeats another, and a second run spends an epsilon of its own" in run.error
    assert not run.dir.exists()


def test_settings_that_write_private_images_are_warned_of(train):
    words = ["report.pictures=true", "report.splits=[train,val]", "data.cache=disk", "trainer.max_epochs=1"]
    words += ["strategy.max_grad_norm=1000"]
    run = train(*DP, *words)
    for said in (
        "report.pictures=true with strategy=dp: report.html and reports/ show private images",
        "report.splits has train and val, with strategy=dp: reports/ list path, label and loss of each train and val",
        "data.cache=disk with strategy=dp: the decoded images are written to",
        "strategy.max_grad_norm=1000: the noise grows with it and drowns the gradients. Usual values are 0.1 to 10",
    ):
        assert said in run.output
        assert said in run.text("summary.txt")
    assert (run.dir / "reports/images_train.json").is_file()  # a setting that is typed counts


def test_other_batches_are_refused(train, tmp_path, monkeypatch):
    (tmp_path / "weighted.py").write_text(
        "from torch.utils.data import WeightedRandomSampler\n"
        "from imago.data.image_folder import ImageFolderDataModule\n"
        "class Weighted(ImageFolderDataModule):\n"
        "    def train_dataloader(self):\n"
        "        loader = super().train_dataloader()\n"
        "        loader.batch_sampler = WeightedRandomSampler([1.0] * 39, 5)\n"
        "        return loader\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train(*DP, "data._target_=weighted.Weighted")
    assert run.exit_code == 1
    assert "a weighted sampler" in run.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("x = x - x.mean(dim=0)", "the loss of an image depends on the others of its batch"),
        ("x = x * torch.stack([self.own, self.own]).mean()", "net.own is used in a way for which the gradient"),
        ("self.seen += x.detach().mean()", "net.seen changes with the images that the network sees"),
        ("x = x - x.detach().mean(dim=0)", "the loss of an image depends on the others of its batch"),
        ("return super().forward(x.flip(0)).flip(0)", "or the network changes their order"),
        ("return super().forward(self.norm(x))", "net.norm.running_mean changes with the images"),
    ],
)
def test_a_network_of_ones_own_that_would_falsify_the_count_is_refused(train, tmp_path, monkeypatch, change, said):
    (tmp_path / f"own_{derive_seed('own', change)}.py").write_text(
        "import torch\n"
        "from imago.model import TinyNet\n"
        "class Own(TinyNet):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__(num_classes)\n"
        "        self.own = torch.nn.Parameter(torch.ones(1))\n"
        "        self.register_buffer('seen', torch.zeros(()))\n"
        "        self.norm = torch.nn.InstanceNorm2d(3, track_running_stats=True)\n"
        "    def forward(self, x):\n"
        f"        {change}\n"
        "        return super().forward(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    run = train(*DP, f"model.net._target_=own_{derive_seed('own', change)}.Own")
    assert run.exit_code == 1
    assert said in run.output


def test_nobody_goes_on_from_it_without_privacy(train, finished):
    run = train("model.norm=group", "trainer.max_epochs=3", f"ckpt_path={finished.dir}/checkpoints/last.ckpt")
    assert run.exit_code == 1
    assert "Type the same one (strategy=dp)" in run.last_line


def test_a_refusal_leaves_the_report_as_it_is(private, command):
    run = private
    told, summary = run.json("reports/privacy.json"), run.text("summary.txt")
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=4", "trainer.accumulate_grad_batches=2",
                    folder=run.dir)  # fmt: skip
    assert again.exit_code == 1
    assert run.json("reports/privacy.json") == told
    assert "epsilon  0.0" not in run.text("summary.txt")
    assert summary


def test_the_steps_of_a_checkpoint_are_added_to_those_of_another_run_in_the_folder(train, finished, tmp_path):
    first = finished
    folder = tmp_path / "other"
    folder.mkdir()
    Ledger(folder / LEDGER).add_all([(10.0, 8 / 39, 12)])
    (folder / "status.json").write_text('{"status": "failed"}')
    more = ["trainer.max_epochs=3", "test=false", f"ckpt_path={first.dir}/checkpoints/last.ckpt"]
    run = train(*DP, *more, folder=folder)
    assert run.exit_code == 0, run.output
    told = run.json("reports/privacy.json")
    assert [each["steps"] for each in told["steps_by_noise"]] == [12, 3 * STEPS]


def test_a_removed_ledger_is_missed(private, command):
    run = private
    (run.dir / LEDGER).unlink()
    again = command("train", f"resume={run.dir}", "trainer.max_epochs=3", folder=run.dir)
    assert again.exit_code == 1
    assert "has 0 steps, the checkpoint has 10: lines are missing" in again.last_line


def test_all_bits_of_the_entropy_count(monkeypatch):
    drawn = []
    for high in (0, 1):
        monkeypatch.setattr("imago.dp.secret.entropy", lambda bits, high=high: 5 + (high << (bits - 1)))
        drawn.append((SecretDraws().normal(torch.zeros(9), 1.0), SecretDraws().chosen(99, 0.5)))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] != drawn[1][1]


def test_a_norm_that_cancels_is_not_too_small():
    inputs = torch.full((1, 64, 128), 1e4)
    outputs = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    outputs -= outputs.mean(dim=1, keepdim=True)
    from imago.dp.terms import LinearGrads

    part = LinearGrads(inputs, outputs)
    assert part.squared_norms() >= 0.99 * part.whole().double().square().sum()


def test_noise_lies_in_memory_as_the_weights_do():
    weight = torch.zeros(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    for secure in (False, True):
        assert SecretDraws(secure).normal(weight, 1.0).stride() == weight.stride()


def test_the_norm_that_is_typed_is_the_one_that_clips(train, finished):
    more = ["strategy.max_grad_norm=0.1", "trainer.max_epochs=3", f"ckpt_path={finished.dir}/checkpoints/last.ckpt"]
    assert train(*DP, *more, "test=false").json("reports/privacy.json")["max_grad_norm"] == 0.1


def test_an_epoch_has_as_many_steps_as_batches():
    for size in range(1, 130):
        for batch_size in (1, 2, 7, 64):
            expected = math.ceil(size / min(size, batch_size))
            assert len(PoissonBatchSampler(size, min(size, batch_size), SecretDraws())) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["strategy.target_delta=0.1"], "strategy.target_delta=0.1 is not below 1 / 39"),
        (["data.batch_size=64"], "data.batch_size=64 is above the 39 train images"),
    ],
)
def test_what_the_number_of_images_rules_out_leaves_no_folder(train, words, said):
    run = train(*DP, *words)
    assert said in run.output
    assert not run.dir.exists()


def test_a_small_target_is_refused_with_the_smallest_that_can_be(train):
    run = train(*DP, "strategy.target_epsilon=0.00001", "strategy.accountant=rdp")
    assert "no noise keeps 10 steps within it, as the rdp accountant counts. The smallest epsilon" in run.last_line
    assert "Type a larger target, or strategy.accountant=prv" in run.last_line


def test_a_tiny_epsilon_is_no_less_than_that_of_the_gaussian_mechanism():
    """Without sampling, epsilon is known exactly (Balle and Wang 2018)."""
    for noise, steps in ((400.0, 100), (60.0, 4)):
        mu = math.sqrt(steps) / noise

        def delta(value: float, mu: float = mu) -> float:
            return float(norm.cdf(mu / 2 - value / mu) - math.exp(value) * norm.cdf(-mu / 2 - value / mu))

        value = epsilon([(noise, 1.0, steps)], 1e-5, "prv")
        assert delta(value) < 1e-5 < delta(value - 0.011)


def test_photographs_of_ants_and_bees_to_the_end(command, hymenoptera):
    run = command(
        "train", f"data.data_dir={hymenoptera}", *DP, "model=resnet18", "model.net.weights=null", "data.image_size=32",
        "trainer.max_epochs=1", "trainer.accelerator=cpu", "data.batch_size=64", "strategy.target_epsilon=8",
        "strategy.physical_batch_size=16", "report.splits=[test]", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "strategy.accountant=rdp", "preflight=false",
    )  # fmt: skip
    assert run.exit_code == 0
    assert run.json("reports/privacy.json")["epsilon"] <= 8
    assert len(run.json("reports/privacy.json")["replaced"]) == 20
    assert "layer1.0.bn1" in run.output


def test_per_layer_clipping_bounds_each_parameter():
    net = network("TinyNet")
    images, labels = batch_of(1)
    parts = dict(taped(net, 100 * images, labels).parts())
    for _, clipped in PerLayer(1.0).clipped(parts, len(parts)):
        assert float(clipped.norm()) <= 1 / math.sqrt(len(parts)) * (1 + 1e-5)
    total = sum(float(clipped.square().sum()) for _, clipped in Clipping(1.0).clipped(parts, len(parts)))
    assert math.sqrt(total) == pytest.approx(1.0, rel=1e-5)


def test_opacus_is_imported_where_it_is_asked_for():
    code = "import atexit, sys; atexit.register(lambda: print('OPACUS', 'opacus' in sys.modules))"
    done = type_in_new_interpreter("experiment=digits", "debug=fdr", "trainer.accelerator=cpu", "test=false", code=code)
    assert "OPACUS False" in done.stdout, done.stdout + done.stderr
    assert sys.modules["opacus"]
