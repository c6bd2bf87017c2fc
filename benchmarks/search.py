"""What pruning saves in a search and what it costs, and what a search loses when it is killed.

python benchmarks/search.py --sweeps 10 --trials 50 --epochs 30 --pruner first_epoch
python benchmarks/search.py --kills 100 --trials 12 --epochs 2
python benchmarks/search.py --kills 100 --trials 40 --asleep   # trials that report values and train nothing
"""

import argparse
import importlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked
REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "src"))
SETTINGS = (
    *("-m", "experiment=digits", "hparams_search=optuna", "model.optimizer.lr=tag(log, interval(0.0001, 0.3))"),
    *("data.batch_size=choice(64, 128, 256)", "model.optimizer.weight_decay=tag(log, interval(0.00001, 0.1))"),
    *("model=tiny_net", "data.num_workers=0", "trainer.accelerator=cpu", "logger=[]", "report.splits=[]", "test=false"),
    *("callbacks.early_stopping=null", "preflight=false", "callbacks.confusion_matrix=null", "plots.format=svg"),
)


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-W", "ignore", str(REPO / "src" / "train.py"), *words]


def run(words: Sequence[str], log: Path) -> None:
    with log.open("w") as file:
        subprocess.run(command(words), stdout=file, stderr=file, check=True)


def search(folder: Path, log: Path, words: Sequence[str]) -> dict[str, Any]:
    """Runs a search; returns its results."""
    run([*SETTINGS, *words, f"hydra.sweep.dir={folder}"], log)
    return yaml.safe_load((folder / "optimization_results.yaml").read_text())


def epochs_of(results: dict[str, Any]) -> int:
    return sum(trial.get("epochs", 0) for trial in results["trials"])


def compare(arguments: argparse.Namespace, work: Path) -> int:
    """Searches with and without pruning, from the same seeds."""
    shares, regrets, same = [], [], 0
    for seed in range(arguments.sweeps):
        words = [f"hydra.sweeper.n_trials={arguments.trials}", f"trainer.max_epochs={arguments.epochs}"]
        words += [f"hydra.sweeper.sampler.seed={seed}", f"hydra.sweeper.isolation={arguments.isolation}"]
        words += [f"paths.data_dir={work}/data", f"paths.cache_dir={work}/cache", "hydra.sweeper.receipt=0"]
        whole = search(work / f"{seed}_whole", work / f"{seed}_whole.log", [*words, "hydra.sweeper.pruner=none"])
        began = time.monotonic()
        pruner = f"hydra.sweeper.pruner={arguments.pruner}"
        pruned = search(work / f"{seed}_pruned", work / f"{seed}_pruned.log", [*words, pruner])
        seconds = time.monotonic() - began
        states = [trial["state"] for trial in pruned["trials"]]
        shares.append(epochs_of(pruned) / (arguments.trials * arguments.epochs))
        regrets.append(whole["best_value"] - pruned["best_value"])
        same += regrets[-1] <= arguments.within
        print(
            f"seed {seed}: {states.count('pruned')} of {arguments.trials} trials pruned, "
            f"{epochs_of(pruned)} of {arguments.trials * arguments.epochs} epochs ({shares[-1]:.2f}), best "
            f"{pruned['best_value']:.4f} and without pruning {whole['best_value']:.4f}, {seconds:.0f} s",
            flush=True,
        )
    print(
        f"{arguments.pruner}: {statistics.mean(shares):.2f} of the epochs (at most {max(shares):.2f}); the best value "
        f"is that without pruning or at most {arguments.within} below in {same} of {arguments.sweeps} searches"
    )
    return 0


def type_search(words: Sequence[str], log: Path) -> None:
    """In a forked child, which has imported everything: what the command does, without its imports."""
    from imago.train import main as train

    with log.open("a") as file:
        for standard in (1, 2):
            os.dup2(file.fileno(), standard)
    sys.argv = ["train.py", *words]
    train()


def kill(arguments: argparse.Namespace, work: Path) -> int:
    """Kills searches at random times, and lets the same command continue them."""
    import multiprocessing

    import optuna  # noqa: F401

    from imago.search.workers import PRELOADED

    for name in PRELOADED:  # the forks have them then
        importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    drawn, killed, lost, doubled, searches = random.Random(arguments.seed), 0, 0, 0, 0
    words = [f"hydra.sweeper.n_trials={arguments.trials}", f"trainer.max_epochs={arguments.epochs}"]
    words += [f"hydra.sweeper.isolation={arguments.isolation}", f"hydra.sweeper.n_jobs={arguments.jobs}"]
    words += ["hydra.sweeper.receipt=0", f"paths.data_dir={work}/data", f"paths.cache_dir={work}/cache"]
    while killed < arguments.kills:
        folder = work / f"search_{searches}"
        searches += 1
        while True:
            process = context.Process(
                target=type_search,
                args=([*SETTINGS, *words, f"hydra.sweep.dir={folder}"], work / f"search_{searches}.log"),
            )
            process.start()
            process.join(drawn.uniform(arguments.least, arguments.most) if killed < arguments.kills else None)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            killed += 1
        file = folder / "optimization_results.yaml"
        if process.exitcode or not file.is_file():
            lost += arguments.trials
            print(f"search {searches} ended with {process.exitcode}: {work}/search_{searches}.log", flush=True)
            continue
        trials = yaml.safe_load(file.read_text())["trials"]
        lost += arguments.trials - len(
            {trial["number"] for trial in trials if trial["state"] in ("completed", "pruned")}
        )
        doubled += len(trials) - len({str(trial["params"]) for trial in trials})
        print(f"{killed} kills of {searches} searches: {lost} trials lost, {doubled} doubled", flush=True)
    return int(bool(lost or doubled))


def run_study(folder: Path, trials: int, log: Path) -> None:
    """In a forked child: a search whose trials report three values and sleep in place of training."""
    from imago.run.search_place import Outcome

    study = open_study(folder, trials)
    while (record := study.next_trial()) is not None:
        with log.open("a") as file:
            file.write(f"{record.number} {record.params['model.optimizer.lr']!r}\n")
        values = [abs(record.params["model.optimizer.lr"] - 0.01) * (4 - step) for step in range(3)]
        is_pruned = False
        for step, value in enumerate(values):
            time.sleep(0.2)
            is_pruned = is_pruned or study.report(record.number, step, value)
        study.end(record.number, Outcome("pruned") if is_pruned else Outcome("completed", (values[-1],)))


def open_study(folder: Path, trials: int) -> Any:
    from imago.search.settings import SearchSettings
    from imago.search.space import read_space
    from imago.search.study import SearchStudy

    sampler = {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 8}
    settings = SearchSettings("train", "val/loss", "asleep", trials, ("minimize",), ("val/loss",), "auto", 1, "median",
                              "none", 0.5, 0, sampler=sampler)  # fmt: skip
    return SearchStudy(folder, settings, read_space({}, ["model.optimizer.lr=tag(log, interval(0.0001, 0.3))"]))


def kill_studies(arguments: argparse.Namespace, work: Path) -> int:
    """Kills processes that run a study, wherever they are, and checks what the study has in the end."""
    import multiprocessing

    import optuna  # noqa: F401  the forks have it then

    import imago.search.study  # noqa: F401

    drawn, killed, lost, doubled, changed, studies = random.Random(arguments.seed), 0, 0, 0, 0, 0
    while killed < arguments.kills:
        folder, log = work / f"study_{studies}", work / f"study_{studies}.log"
        folder.mkdir()
        studies += 1
        while True:
            process = multiprocessing.get_context("fork").Process(
                target=run_study, args=(folder, arguments.trials, log)
            )
            process.start()
            process.join(drawn.uniform(arguments.least, arguments.most))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            killed += 1
        records = open_study(folder, arguments.trials).records()
        begun = [line.split() for line in log.read_text().splitlines()]
        lost += arguments.trials - len([r for r in records if r.state in ("completed", "pruned")])
        doubled += len(records) - len({r.params["model.optimizer.lr"] for r in records})
        changed += len({tuple(words) for words in begun}) - len({words[0] for words in begun})
        print(
            f"{killed} kills of {studies} studies, {len(begun) - arguments.trials} trials begun again in the last: "
            f"{lost} lost, {doubled} doubled, {changed} begun again with other values",
            flush=True,
        )
    return int(bool(lost or doubled or changed))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pruner", default="median")
    parser.add_argument("--isolation", default="none")
    parser.add_argument("--within", type=float, default=0.004, help="difference that counts as none: 1 image of 270")
    parser.add_argument("--kills", type=int, default=0, help="kill searches so often, in place of comparing")
    parser.add_argument("--asleep", action="store_true", help="kill the study alone, whose trials train nothing")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--least", type=float, default=8, help="seconds until a kill, at least")
    parser.add_argument("--most", type=float, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the searches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if arguments.kills and arguments.asleep:
            return kill_studies(arguments, work)
        return kill(arguments, work) if arguments.kills else compare(arguments, work)


if __name__ == "__main__":
    sys.exit(main())
