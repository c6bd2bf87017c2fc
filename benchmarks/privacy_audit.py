"""Empirical audits of strategy=dp: lower bounds of epsilon at 95% confidence, beside the epsilon that is claimed.

A bound above the claim refutes it. `one_run` guesses which of many canaries a run was trained with. `many_runs` takes
one step thousands of times with and without a canary. `neighbours` types the real command on two data sets that differ
in one image, which moves all others by a place. Variants named `broken` have a fault planted here, and show which
faults an audit of this size detects.

    python benchmarks/privacy_audit.py                                # about nine minutes on one core
    python benchmarks/privacy_audit.py --audits one_run --with_augmentation
    python benchmarks/privacy_audit.py --quick                        # about three minutes
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import beta, binom, norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from imago.data.samplers import TrainBatchSampler
from imago.data.transforms import RandomHorizontalFlip
from imago.dp.accounting import Ledger, epsilon, noise_for
from imago.dp.strategy import DifferentialPrivacy
from imago.model.losses import CriterionsComposition
from imago.model.module import DictModule
from imago.randomness import uniforms
from imago.wiring import ComposeTransform

ROOT = Path(__file__).resolve().parent.parent
RISK, DELTA, BRIGHT = 0.05, 1e-5, 10.0  # the last is the pixel of a canary, whose gradient has to be clipped
RATE, STEPS, OTHERS, GUESSES = 1 / 6, 100, 100, (0.04, 0.1, 0.2, 0.5, 1.0)  # of one_run; guesses per canary
HONEST = (
    *("clipping=flat", "clipping=per_layer", "clipping=adaptive", "grad_sample_mode=hooks", "grad_sample_mode=ghost"),
    *("physical_batch_size=7", "secure_rng=true"),
)
LESS_NOISE = {"broken: half of the noise": 0.5, "broken: a tenth of the noise": 0.1, "broken: no noise": 0.0}
UNCLIPPED, ALL, SHUFFLED = "broken: no clipping", "broken: all images in every batch", "broken: shuffled, not Poisson"
BROKEN = (*LESS_NOISE, UNCLIPPED, ALL, SHUFFLED)
COMMANDS = """
import json, os, runpy, sys
import hydra, lightning.pytorch, matplotlib.pyplot, opacus.accountants, sklearn, torchmetrics, torchvision.transforms.v2
for words in json.load(sys.stdin):
    if not os.fork():
        sys.argv = [sys.argv[1], *words]
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    assert os.wait()[1] == 0, words
"""
"""The command for several lists of words, each in a process that has imported nothing but libraries."""
WORDS = (
    *("model=mnist", "data.image_size=8", "model.net.in_features=192", "model.net.hidden=[]", "data.batch_size=1000"),
    *("trainer=cpu", "trainer.max_epochs=1", "trainer.max_steps=1", "model/optimizer=sgd", "model.scheduler=null"),
    *("model.optimizer.weight_decay=0", "data.train_transform.box.scale=[1,1]", "data.train_transform.box.ratio=[1,1]"),
    *("strategy=dp", "strategy.target_delta=0.001", "seed=42", "preflight=false", "test=false", "logger=[]"),
)


def one_run_bound(canaries: int, guesses: int, right: int, risk: float) -> float:
    """Lower bound of epsilon from `right` of `guesses` on which canaries were in, each with probability 1/2.

    Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv:2305.08846), theorem 5.2 in
    the form of corollary 5.4: under (epsilon, delta), so many right guesses have at most the probability
    P[B >= right] + 2 m delta max_i P[right > B >= right - i] / i; B is Binomial(guesses, 1 / (1 + exp(-epsilon))).
    """
    fewer = np.arange(1, right + 1)

    def excess(eps: float) -> float:
        rate = 1 / (1 + math.exp(-eps))
        between = binom.cdf(right - 1, guesses, rate) - binom.cdf(right - 1 - fewer, guesses, rate)
        most = float((between / fewer).max(initial=0.0))
        return float(binom.sf(right - 1, guesses, rate)) + 2 * canaries * DELTA * most - risk

    return brentq(excess, 0.0, 50.0) if excess(0.0) < 0 < excess(50.0) else 0.0


def errors_at_most(without: Tensor, inside: Tensor, threshold: float) -> tuple[float, float]:
    """Upper bounds of the shares of false and of missed alarms, where a score above the threshold says that the canary
    was in. Both hold at once (Clopper and Pearson 1934, with half of the risk for either)."""
    shares = []
    for wrong in (without > threshold, inside <= threshold):
        errors, count = int(wrong.sum()), len(wrong)
        shares.append(float(beta.ppf(1 - RISK / 2, errors + 1, count - errors)) if errors < count else 1.0)
    return shares[0], shares[1]


def threshold_bound(alarms: float, misses: float, delta: float = DELTA) -> float:
    """Lower bound of epsilon from the shares of errors (Kairouz, Oh and Viswanath 2015, theorem 2.1)."""
    pairs = ((alarms, misses), (misses, alarms))
    return max(0.0, *(math.log(max(1 - delta - second, 1e-9) / first) for first, second in pairs))


def gaussian_bound(alarms: float, misses: float) -> float:
    """Lower bound of epsilon, tighter, of a step that is known to add Gaussian noise to a sum: from the shares of
    errors to mu, from mu to epsilon (Dong, Roth and Su 2019, arXiv:1905.02383, corollary 2.13)."""
    mu = float(norm.isf(alarms) - norm.ppf(misses))

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)) - DELTA

    return brentq(excess, 0.0, 50.0) if mu > 0 and excess(0.0) > 0 else 0.0


class Training:
    """A linear network, trained by the product's strategy, sampler and ledger, without a Trainer."""

    def __init__(
        self, variant: str, noise: float, images: Tensor, labels: Tensor, size: int, rate: float, dropout: float
    ) -> None:
        def network(num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(images[0].numel(), num_classes))

        optimizer = partial(torch.optim.SGD, lr=rate)
        options: Any = OmegaConf.from_dotlist([variant] if variant in HONEST else [])
        self.dp = DifferentialPrivacy(noise_multiplier=noise, target_delta=DELTA, **options)
        self.sampler = self.dp.train_batch_sampler(TrainBatchSampler(labels, size, seed=0))
        self.model = DictModule(["a", "b"], network, CriterionsComposition({"ce": nn.CrossEntropyLoss()}), optimizer)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = optimizer(self.parameters.values())
        self.folder = tempfile.TemporaryDirectory()
        self.dp.attach(self.parameters, Ledger(Path(self.folder.name, "ledger")))
        plant(variant, self.dp)

    def step(self, batch: dict[str, Any]) -> Tensor:
        """The noisy sum that a step releases, as a vector."""
        self.dp.optimizer_step(self.optimizer, lambda: self.dp.forward(self.model, batch))
        expected = self.dp.sample_rate * self.dp.num_examples
        return torch.cat([parameter.grad.flatten() for parameter in self.parameters.values()]) * expected

    def directions(self, images: Tensor, labels: Tensor) -> Tensor:
        """Clipped gradients of single images at the present weights, (n, values), without the product's code."""

        def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(self.model.net, weights, image[None]), label[None])

        weights = {name.removeprefix("net."): value.detach() for name, value in self.parameters.items()}
        self.model.eval()
        rows = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
        self.model.train()
        flat = torch.cat([row.flatten(1) for row in rows.values()], dim=1)
        return flat / flat.norm(dim=1, keepdim=True).clamp_min(1)


def draw_as_in_training(dp: DifferentialPrivacy, batch: dict[str, Any]) -> dict[str, Any]:
    """Flip images and seed dropout as a training step does: `ImageDataModule.on_after_batch_transfer`, then
    `DictModule.on_train_batch_start`."""
    batch = dp.batch_stage(batch, ComposeTransform(flip=RandomHorizontalFlip(seed=42)))
    dp.seed_draws("step", 42)
    return batch


def plant(fault: str, dp: DifferentialPrivacy) -> None:
    """Break the strategy behind the back of its ledger."""
    std, left = dp.clipping.noise_std, []

    def shuffled(count: int, rate: float) -> list[int]:
        size = round(count * rate)
        if len(left) < size:
            left[:] = np.random.default_rng().permutation(count).tolist()
        return [left.pop() for _ in range(size)]

    if fault in LESS_NOISE:
        dp.clipping.noise_std = lambda noise_multiplier: LESS_NOISE[fault] * std(noise_multiplier)
    elif fault == UNCLIPPED:
        dp.clipping._factors = lambda norms, norm: torch.ones_like(norms)
    elif fault in (ALL, SHUFFLED):
        dp.draws.chosen = shuffled if fault == SHUFFLED else lambda count, rate: list(range(count))


def one_run(variant: str, noise: float, canaries: int, augmented: bool, seed: int) -> tuple[float, float]:
    """Claimed epsilon, and its lower bound, of one run with about half of the canaries."""
    torch.manual_seed(seed)
    side = math.ceil(math.sqrt(canaries / 3))
    images = torch.randn(canaries + OTHERS, 3, side, 2 * side) / 10
    images[:canaries] = 0
    place = torch.arange(canaries)  # in the left half: no pixel of a mirrored canary is that of another one
    images[place, place // side**2, place // side % side, place % side] = BRIGHT
    labels = torch.randint(2, (len(images),))
    labels[:canaries] = 0  # so that the bias moves the scores of all alike
    inside = (torch.rand(len(images)) < 0.5) | (torch.arange(len(images)) >= canaries)
    trained, targets = images[inside], labels[inside]
    dropout = 0.2 if augmented else 0.0
    training = Training(variant, noise, trained, targets, round(RATE * len(trained)), rate=0.01, dropout=dropout)
    scores = torch.zeros(canaries)
    for positions in islice(chain.from_iterable(repeat(training.sampler)), STEPS):
        chosen = torch.tensor([index for _, index in positions], dtype=torch.int64)
        batch = {"image": trained[chosen], "label": targets[chosen], "index": chosen, "epoch": 0}
        directions = training.directions(images[:canaries], labels[:canaries])
        if augmented:
            batch = draw_as_in_training(training.dp, batch)
            directions = (directions + training.directions(images[:canaries].flip(-1), labels[:canaries])) / 2
        scores += directions @ training.step(batch)
    order, bounds = scores.argsort(descending=True), []
    for half in (round(share * canaries / 2) for share in GUESSES):
        right = int(inside[order[:half]].sum() + (~inside[order[-half:]]).sum())
        bounds.append(one_run_bound(canaries, 2 * half, right, RISK / len(GUESSES)))
    return training.dp.epsilon(), max(bounds)


def many_runs(variant: str, noise: float, runs: int) -> Iterator[float]:
    """Lower bounds of epsilon, of any mechanism and of a Gaussian one, from a step on all of 20 or 21 images.

    The threshold is chosen on one half of the runs, and errors are counted on the other.
    """
    torch.manual_seed(0)
    images, labels = torch.randn(21, 3, 4, 4), torch.randint(2, (21,))
    images[20] = 0
    images[20, 0, 0, 0] = BRIGHT
    scores = []
    for batch in ({"image": images[:count], "label": labels[:count]} for count in (20, 21)):
        torch.manual_seed(0)
        training = Training(variant, noise, batch["image"], batch["label"], len(batch["label"]), rate=0.0, dropout=0.0)
        direction = training.directions(images[20:], labels[20:])[0]
        scores.append(torch.stack([training.step(batch) @ direction for _ in range(runs)]))
    chosen, counted = ([score[start::2] for score in scores] for start in (0, 1))
    thresholds = torch.cat(chosen).quantile(torch.linspace(0.005, 0.995, 199)).tolist()
    for bound in (threshold_bound, gaussian_bound):
        guesses = [bound(*errors_at_most(*chosen, threshold)) for threshold in thresholds]
        yield bound(*errors_at_most(*counted, thresholds[int(np.argmax(guesses))]))


def trained_weights(commands: Sequence[Sequence[str]], folder: str) -> list[Tensor]:
    """The weights that the real command leaves, as vectors."""
    runs = [Path(folder, "runs", str(number)) for number in range(len(commands))]
    own = [f"paths.cache_dir={folder}/cache", *WORDS]
    words = [[*own, *command, f"hydra.run.dir={run}"] for command, run in zip(commands, runs, strict=True)]
    call = [sys.executable, "-c", COMMANDS, str(ROOT / "src" / "train.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(call, input=json.dumps(words), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs]
    return [torch.cat([value.double().flatten() for value in state.values()]) for state in states]


def write_images(root: Path, mirrored: Sequence[bool], one_more: bool) -> None:
    """60 half-white images, and a grey one that sorts first."""
    left = np.zeros((8, 8, 3), np.uint8)
    left[:, :4] = 255
    files = {f"train/a/n{place:03d}": left[:, ::-1] if flip else left for place, flip in enumerate(mirrored)}
    grey = ("val/a/x", "val/b/x", "train/b/x", *(["train/a/a_person"] if one_more else []))
    for name, pixels in (files | dict.fromkeys(grey, np.full_like(left, 128))).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(root / f"{name}.png")


def neighbours(runs: int, folder: str) -> tuple[float, float, str]:
    """Claimed epsilon, its lower bound, and the scores of a step on two data sets that differ in one image.

    The images lie so that flips by `uniforms`, a public function of seed, epoch and place, would turn all the same way,
    and half of them the other way where one image more moves their places. Scores are projections on the difference
    that this would make, the threshold is in the middle: both are settled before the first private run.
    """
    flips = (uniforms(torch.arange(61), "horizontal flip", 42, 0) < 0.5).tolist()
    moved = [flips[place] != flips[place + 1] for place in range(60)]
    folders = [Path(folder, name) for name in ("without", "inside", "without_flipped", "inside_flipped")]
    for root, mirrored, one_more in zip(folders, (flips, flips, [False] * 60, moved), (0, 1, 0, 1), strict=True):
        write_images(root, mirrored[:60], bool(one_more))
    data = [[f"data.data_dir={root}", "model.optimizer.lr=1"] for root in folders]
    exact = ["strategy.noise_multiplier=0", "data.train_transform.batch.flip.p=0"]
    commands = [[data[0][0], *exact, "model.optimizer.lr=0"], [*data[2], *exact], [*data[3], *exact]]
    commands += [[*words, "strategy.target_epsilon=1"] for _ in range(runs) for words in data[:2]]
    start, *weights = trained_weights(commands, folder)
    sums = torch.stack([(start - weight) * (61 + number % 2) for number, weight in enumerate(weights)])
    apart = float((sums[1] - sums[0]).norm())
    scores = sums @ (sums[1] - sums[0]) / apart
    pair = scores[2::2], scores[3::2]
    bound = threshold_bound(*errors_at_most(*pair, float(scores[:2].mean())), delta=1e-3)
    claim = json.loads(Path(folder, "runs", "3", "reports", "privacy.json").read_text())["epsilon"]
    area = roc_auc_score([0] * runs + [1] * runs, torch.cat(pair))
    means = " and ".join(f"{float(score.mean()):.1f} ± {float(score.std()):.1f}" for score in pair)
    details = f"{runs} + {runs} runs, {means} without and with it, AUC {area:.2f}"
    return claim, bound, f"{details}; flips by the seed would make {apart:.1f} C"


def show(audit: str, variant: str, pairs: Sequence[Sequence[float]], began: float, details: str) -> None:
    """A row of the table, from claims and bounds."""
    claims, bounds = zip(*pairs, strict=True)
    above = sum(bound > claim for claim, bound in pairs)
    cells = [audit, variant, f"{statistics.mean(claims):.3f}", f"{statistics.mean(bounds):.2f} ({max(bounds):.2f})"]
    cells += [f"{above} of {len(pairs)}", f"{time.monotonic() - began:.0f}", details]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", nargs="+", default=["one_run", "many_runs", "neighbours"])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 8.0], help="claims of the first two audits")
    parser.add_argument("--canaries", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=10, help="of one_run")
    parser.add_argument("--with_augmentation", action="store_true", help="one_run with random flips and dropout")
    parser.add_argument("--steps", type=int, default=20_000, help="of many_runs, with and without the canary")
    parser.add_argument("--runs", type=int, default=40, help="of neighbours, on either data set")
    parser.add_argument("--quick", action="store_true", help="small numbers of everything: about three minutes")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.steps, options.runs = 2, 4000, 16
    torch.set_num_threads(1)
    print("| audit | variant | claimed | lower bound, mean (max) | above the claim | seconds | |\n|" + " --- |" * 7)
    for target in options.epsilons if "one_run" in options.audits else []:
        noise = noise_for(target, DELTA, RATE, STEPS, "prv")
        details = f"{options.canaries} canaries, sigma {noise:.2f}{', flips and dropout' * options.with_augmentation}"
        for variant in (*HONEST, *BROKEN):
            began, audited = time.monotonic(), (variant, noise, options.canaries, options.with_augmentation)
            show("one_run", variant, [one_run(*audited, seed) for seed in range(options.repeats)], began, details)
    for target in options.epsilons if "many_runs" in options.audits else []:
        noise = noise_for(target, DELTA, 1.0, 1, "prv")
        claim, details = epsilon([(noise, 1.0, 1)], DELTA, "prv"), f"{options.steps} + {options.steps} steps"
        for variant in (HONEST[0], BROKEN[0]):
            began, bounds = time.monotonic(), many_runs(variant, noise, options.steps)
            for bound, kind in zip(bounds, ("", ", known to be Gaussian"), strict=True):
                show("many_runs", variant, [(claim, bound)], began, f"{details}, sigma {noise:.2f}{kind}")
    if "neighbours" in options.audits:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            *pair, details = neighbours(options.runs, folder)
        show("neighbours", "target_epsilon=1", [pair], began, details)


if __name__ == "__main__":
    main()
