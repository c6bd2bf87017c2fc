"""What the pruners of a search save, and what they cost: replayed over the curves of trials that nobody pruned.

    python benchmarks/search_pruning.py --record     # more searches of 50 trials of 30 epochs on the digits
    python benchmarks/search_pruning.py              # replays each pruner over them, in seconds
    python benchmarks/search_pruning.py --real 0     # the search of seed 0 itself, with pruning

The points are random ones, which do not depend on what is pruned. Curves are those of a plain loop over the images,
the order, the network, the optimizer and the schedule of Imago; the study is that of Imago, with its receipt: the best
pruned trials are finished, and their epochs count. `--real` compares with real searches: the epochs of each trial, and
its values.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO / "src"), str(REPO / "benchmarks")]

from search import SETTINGS, search  # noqa: E402

from imago.run.search_place import Outcome  # noqa: E402
from imago.search.receipt import Receipt, to_finish  # noqa: E402
from imago.search.settings import SearchSettings  # noqa: E402
from imago.search.space import Space, read_space  # noqa: E402
from imago.search.study import SearchStudy  # noqa: E402

MONITOR = "val/acc"
CURVES = Path(__file__).resolve().parent / "search_curves.json"
FASTER = (
    *("data.cache=ram", "data.image_size=8", "data.train_transform.box._target_=imago.data.WholeBox"),
    *("data.batch_size=choice(128, 256, 512)", "callbacks.lr_monitor=null", "callbacks.progress_bar=null"),
    *("plots.format=[]", "hydra.sweeper.isolation=none"),
)
"""Settings that take nothing from a trial but time."""
SEEDS_OF_BEST = (1, 2, 3, 4, 5)
"""Seeds with which the best trial of each search is trained again: how far its value depends on chance."""


def words_of(arguments: argparse.Namespace, seed: int, pruner: str, receipt: int) -> list[str]:
    words = [f"hydra.sweeper.n_trials={arguments.trials}", f"trainer.max_epochs={arguments.epochs}"]
    words += ["hydra/sweeper/sampler=random", f"hydra.sweeper.sampler.seed={seed}", f"hydra.sweeper.pruner={pruner}"]
    return [*FASTER, *words, f"hydra.sweeper.receipt={receipt}", *arguments.word]


def record(arguments: argparse.Namespace, work: Path) -> int:
    """Keep the curve of each trial of the searches, and those of their best trials with other seeds."""
    searches: list[dict[str, Any]] = json.loads(arguments.curves.read_text()) if arguments.curves.is_file() else []
    known = {entry["seed"] for entry in searches}
    train = Loop(arguments, work)
    for seed in (seed for seed in arguments.seeds if seed not in known):
        with tempfile.TemporaryDirectory() as folder:
            study = SearchStudy(Path(folder), settings_of(arguments, seed, "none", 0), space_of())
            points = [dict(study.next_trial().params) for _ in range(arguments.trials)]  # type: ignore[union-attr]
        trials = [{"params": point, "curve": train(point, train.seed)} for point in points]
        best = max(trials, key=lambda trial: max(trial["curve"]))
        again = [max(train(best["params"], other)) for other in SEEDS_OF_BEST]
        searches.append({"seed": seed, "trials": trials, "again": again})
        arguments.curves.write_text(json.dumps(searches))
        print(f"seed {seed}: best {max(best['curve']):.4f}, with other seeds {again}", flush=True)
    return 0


class Loop:
    """Trains the network of a run for each point: what Imago trains, without what else a run does."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        import torch

        from imago.train import main
        from imago.training.build import build

        self.epochs = arguments.epochs
        words = [word for word in (*SETTINGS[1:], *FASTER, *arguments.word) if "(" not in word and "hydra." not in word]
        words = [word for word in words if not word.startswith("hparams_search")]
        made: list[Any] = []
        replace(main, task=lambda cfg, run: made.append((cfg, *build(cfg, run)))).call(
            *words, f"hydra.run.dir={work}/loop"
        )
        self.cfg, data, self.model, _ = made[0]
        self.seed: int = self.cfg.seed
        self.sets = {}
        for name, transform in (("train", data.train_transform), ("val", data.eval_transform)):
            images = data.split(name)
            pixels = torch.stack([transform.resized(images.read(n), data.image_size) for n in range(len(images))])
            batch = transform.batch({"image": pixels, "label": torch.tensor(list(images.labels))})
            self.sets[name] = batch["image"].contiguous(memory_format=torch.channels_last), batch["label"]
        self.images = data.split("train")

    def __call__(self, point: Mapping[str, Any], seed: int) -> list[float]:
        """Accuracy on val after each epoch."""
        import torch

        from imago.data.samplers import TrainBatchSampler
        from imago.model.optimizers import warmup_cosine

        torch.manual_seed(seed)
        net = type(self.model.net)(10).to(memory_format=torch.channels_last)
        if seed == self.seed:
            net.load_state_dict(self.model.net.state_dict())
        batches = TrainBatchSampler(self.images, point["data.batch_size"], seed)
        batches.announced_from = None
        kinds = {key.rpartition(".")[2]: value for key, value in point.items() if key.startswith("model.optimizer.")}
        optimizer = torch.optim.AdamW(net.parameters(), **kinds, fused=True)
        schedule = warmup_cosine(optimizer, len(batches) * self.epochs)
        (images, labels), (val_images, val_labels) = self.sets["train"], self.sets["val"]
        curve = []
        for epoch in range(self.epochs):
            batches.epoch = epoch
            net.train()
            for batch in batches:
                chosen = torch.tensor([index for _, index in batch])
                loss = torch.nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            net.eval()
            with torch.inference_mode():
                right = (net(val_images).argmax(dim=1) == val_labels).float().mean()
            curve.append(round(float(right), 6))
        return curve


def curve_of(folder: Path) -> list[float]:
    """The monitored value of each epoch of a run."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [round(row[MONITOR], 6) for row in rows]


def settings_of(arguments: argparse.Namespace, seed: int, pruner: str, receipt: int) -> SearchSettings:
    sampler = {"_target_": "optuna.samplers.RandomSampler", "seed": seed}
    return SearchSettings(
        *("train", MONITOR, "replayed", arguments.trials, ("maximize",), (MONITOR,), None, 1, pruner, "none", 0.5),
        receipt=receipt,
        max_epochs=arguments.epochs,
        sampler=sampler,
    )


def space_of() -> Space:
    return read_space({}, [word for word in (*SETTINGS, *FASTER) if "(" in word])


def replay(settings: SearchSettings, trials: Sequence[Mapping[str, Any]]) -> tuple[list[int], Receipt, int]:
    """Run a study whose trials report the curves of others.

    Returns:
        Epochs of each trial before it was pruned, the receipt, and the epochs of that.
    """
    curves = {json.dumps(trial["params"], sort_keys=True): trial["curve"] for trial in trials}
    space = space_of()
    with tempfile.TemporaryDirectory() as folder:
        study = SearchStudy(Path(folder), settings, space)
        epochs: list[int] = []
        while (record := study.next_trial()) is not None:
            curve = curves[json.dumps(dict(record.params), sort_keys=True)]
            stops = (step + 1 for step, value in enumerate(curve) if study.report(record.number, step, value))
            end = next((step for step in stops if step < len(curve)), None)
            epochs.append(end or len(curve))
            outcome = Outcome("completed", (max(curve),)) if end is None else Outcome("pruned")
            study.end(record.number, outcome)
        records = study.records()
    chosen = to_finish(records, settings.receipt, settings.sign)
    of = {record.number: curves[json.dumps(dict(record.params), sort_keys=True)] for record in chosen}
    finished = {number: max(curve) for number, curve in of.items()}
    completed = tuple(record.values[0] for record in records if record.state == "completed")
    return epochs, Receipt(finished, completed, settings.sign), sum(len(of[number]) - epochs[number] for number in of)


def compare(arguments: argparse.Namespace) -> int:
    """Replay each pruner over the recorded searches."""
    searches = json.loads(arguments.curves.read_text())
    known = [[max(trial["curve"]) for trial in entry["trials"]] for entry in searches]
    deviation = deviation_of(searches)
    print(f"{len(searches)} searches; sd of a best trial over seeds: {deviation:.4f}")
    for pruner in arguments.pruner:
        shares, whole, same, within = [], [], 0, 0
        for entry, values in zip(searches, known, strict=True):
            settings = settings_of(arguments, entry["seed"], pruner, arguments.receipt)
            epochs, receipt, finishing = replay(settings, entry["trials"])
            of_all = sum(len(trial["curve"]) for trial in entry["trials"])
            shares.append(sum(epochs) / of_all)
            whole.append((sum(epochs) + finishing) / of_all)
            best = max([*receipt.completed, *receipt.finished.values()])
            same += best == max(values)
            within += best >= max(values) - deviation
        print(
            f"{pruner:12} {statistics.mean(shares):.3f} of the epochs ({min(shares):.3f} to {max(shares):.3f}), "
            f"{statistics.mean(whole):.3f} with the receipt; the best value is that without pruning in {same}, and at "
            f"most 1 sd below in {within} of {len(searches)}",
            flush=True,
        )
    return 0


def deviation_of(searches: Sequence[Mapping[str, Any]]) -> float:
    """Standard deviation over seeds of the value of a search's best trial, pooled."""
    variances = [statistics.variance(entry["again"]) for entry in searches if len(entry["again"]) > 1]
    return statistics.mean(variances) ** 0.5 if variances else 0.0


def real(arguments: argparse.Namespace, work: Path) -> int:
    """Search with pruning, and compare with the replay."""
    searches = {entry["seed"]: entry for entry in json.loads(arguments.curves.read_text())}
    differing = 0
    for seed in arguments.real:
        for pruner in arguments.pruner:
            name = f"{seed}_{pruner}"
            words = words_of(arguments, seed, pruner, arguments.receipt)
            results = search(work / name, work / f"{name}.log", words)
            settings = settings_of(arguments, seed, pruner, arguments.receipt)
            epochs, receipt, _ = replay(settings, searches[seed]["trials"])
            own = [trial["epochs"] for trial in results["trials"]]
            same = own == epochs and results["pruning"].get("finished", {}) == receipt.finished
            differing += not same
            print(
                f"seed {seed}, {pruner}: {sum(own)} of {arguments.trials * arguments.epochs} epochs, best "
                f"{results['best_value']:.4f}; the replay is {'the same' if same else f'another: {own} {epochs}'}",
                flush=True,
            )
    return int(differing > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="train all trials of the searches, in place of replaying")
    parser.add_argument("--real", type=int, nargs="+", help="seeds of searches with pruning, in place of replaying")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="seeds of the searches")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--receipt", type=int, default=3)
    parser.add_argument("--pruner", nargs="+", default=["median", "hyperband", "first_epoch"])
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--keep", type=Path, help="folder for the searches")
    parser.add_argument("word", nargs="*", help="further overrides of the searches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if arguments.record:
            return record(arguments, work)
        return real(arguments, work) if arguments.real else compare(arguments)


if __name__ == "__main__":
    sys.exit(main())
