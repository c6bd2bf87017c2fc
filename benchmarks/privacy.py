"""A private step against Opacus' two ways, and against a step without privacy: time and peak memory.

The same network, batch, loss and SGD for all; noise and clipping on. `hooks` and `ghost` are Opacus 1.5 or newer, its
GradSampleModule with DPOptimizer, and its fast gradient clipping; what it cannot take of the networks (in-place
activations, residual sums in place) is changed for all. `ours` is the whole step of strategy=dp, ledger and noise
included. They take turns (A B C D A B C D …) in one process with one thread; ratios are of medians and of the best.
Memory is what a process that takes three such steps, and nothing else, needs more than before them.

    python benchmarks/privacy.py --turns 9
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from imago.dp.accounting import Ledger
from imago.dp.strategy import DifferentialPrivacy
from imago.model.losses import CriterionsComposition
from imago.model.networks import SimpleCNN
from imago.model.surgery import with_group_norm

CLASSES = 10
NOISE, NORM = 1.0, 1.0
WAYS = ("not private", "hooks", "ghost", "ours")


def small_vit() -> nn.Module:
    return models.VisionTransformer(
        image_size=64, patch_size=8, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=CLASSES
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "SimpleCNN": partial(SimpleCNN, CLASSES, dropout=0.0),
    "resnet18-GN": partial(models.resnet18, num_classes=CLASSES),
    "small ViT": small_vit,
}


def residual(self: BasicBlock, x: Tensor) -> Tensor:
    """As torchvision's, without working in place."""
    out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
    return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name]()
    with_group_norm(net)
    for layer in net.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
        if isinstance(layer, BasicBlock):
            layer.forward = partial(residual, layer)
    return net.train()


def step(name: str, way: str, images: Tensor, labels: Tensor, folder: Path) -> Callable[[], None]:
    """A function that takes one step."""
    net, loss = network(name), nn.CrossEntropyLoss()
    if way == "ours":
        return our_step(net, images, labels, folder)
    if way == "not private":
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

        def plain() -> None:
            optimizer.zero_grad()
            loss(net(images), labels).backward()
            optimizer.step()

        return plain
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from opacus.validators import ModuleValidator

    net = ModuleValidator.fix(net)
    inner = torch.optim.SGD(net.parameters(), lr=0.01)
    options = {"noise_multiplier": NOISE, "max_grad_norm": NORM, "expected_batch_size": len(labels)}
    if way == "hooks":
        wrapped, private, criterion = GradSampleModule(net), DPOptimizer(inner, **options), loss
    else:
        wrapped = GradSampleModuleFastGradientClipping(net, max_grad_norm=NORM, use_ghost_clipping=True)
        private = DPOptimizerFastGradientClipping(inner, **options)
        criterion = DPLossFastGradientClipping(wrapped, private, loss)

    def opacus() -> None:
        private.zero_grad()
        criterion(wrapped(images), labels).backward()
        private.step()

    return opacus


def our_step(net: nn.Module, images: Tensor, labels: Tensor, folder: Path) -> Callable[[], None]:
    dp = DifferentialPrivacy(noise_multiplier=NOISE, max_grad_norm=NORM)
    criterions = CriterionsComposition({"ce": nn.CrossEntropyLoss()})
    dp.noise_multiplier, dp.num_examples, dp.sample_rate = NOISE, 10 * len(labels), 0.1
    dp.attach(dict(net.named_parameters()), Ledger(folder / "ledger"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    class Model(SimpleNamespace):
        def __call__(self, batch: dict) -> dict:
            return batch | {"logits": net(batch["image"])}

    model = Model(criterions=criterions, device=images.device)
    batch = {"image": images, "label": labels}

    def ours() -> None:
        optimizer.zero_grad()
        dp.optimizer_step(optimizer, lambda: dp.forward(model, batch))

    return ours


def memory(name: str, way: str, size: int, pixels: int) -> float:
    """Megabytes that steps need beyond what was there before; in a process of its own."""
    words = [sys.executable, __file__, "--alone", json.dumps([name, way, size, pixels])]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(name: str, way: str, size: int, pixels: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        take = step(name, way, *data(size, pixels), Path(folder))
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        for _ in range(3):
            take()
    print(peak() - before)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def data(size: int, pixels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, pixels, pixels, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.alone:
        alone(*json.loads(given.alone))
        return
    torch.set_num_threads(1)
    print("| network | | time, median (best), of not private | ours / best of Opacus | memory, MB |\n|" + " --- |" * 5)
    for name in given.nets:
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory() as folder:
            sizes = data(given.batch_size, given.image_size)
            steps = {way: step(name, way, *sizes, Path(folder)) for way in WAYS}
            for turn in range(given.turns + 2):
                for way, take in steps.items():
                    began = time.process_time()
                    take()
                    if turn > 1:  # the first ones allocate
                        taken[way].append(time.process_time() - began)
        rival = min(statistics.median(taken[way]) for way in ("hooks", "ghost"))
        for way in WAYS:
            times, plain = taken[way], taken["not private"]
            ratios = f"{statistics.median(times) / statistics.median(plain):.2f} ({min(times) / min(plain):.2f})"
            against = f"{statistics.median(times) / rival:.2f}" if way == "ours" else ""
            needs = memory(name, way, given.batch_size, given.image_size)
            print(f"| {name} | {way} | {ratios} | {against} | {needs:.0f} |", flush=True)


if __name__ == "__main__":
    main()
