"""Searches (`hparams_search=optuna`): spaces, the study across restarts, pruning, processes, results."""

import csv
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from helpers import SMALL, same, type_in_subprocess
from omegaconf import OmegaConf

from imago.cli.compose import composed
from imago.cli.entry import Command
from imago.cli.search_folder import note_search
from imago.cli.search_space import check_search
from imago.config.launcher import Launch
from imago.errors import DiskError, UserError
from imago.files import write_json
from imago.resources import CORES, workers
from imago.run import lock
from imago.run.search_place import Outcome, Trial
from imago.search.board import Board
from imago.search.pruners import stops_after_first
from imago.search.receipt import Receipt
from imago.search.results import experiment_of
from imago.search.settings import SearchSettings, check_command, gpus_of
from imago.search.space import read_space
from imago.search.study import SearchStudy, TrialRecord
from imago.search.sweep import locked
from imago.search.trials import TrialOrder
from imago.terminal import console
from imago.train import main

pytest.importorskip("optuna")
LR = "model.optimizer.lr=tag(log, interval(0.0001, 0.1))"
SPACE = read_space({"data.batch_size": "choice(32, 64)"}, ["experiment=digits", LR])
FAST = ("callbacks.early_stopping=null", "preflight=false", "test=false", "hydra.sweeper.isolation=none")


def settings(**changed) -> SearchSettings:
    plain = {
        **{"command": "train", "monitor": "val/acc", "study": "train", "n_trials": 6, "directions": ("maximize",)},
        **{"objectives": ("val/acc",), "storage": "auto", "n_jobs": 1, "pruner": "median", "isolation": "none"},
        **{"max_failure_rate": 0.5, "receipt": 3, "max_epochs": 3},
        "sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 1, "n_startup_trials": 2},
    }
    return SearchSettings(**{**plain, **changed})


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def results_of(folder: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(folder / "optimization_results.yaml"))


def test_a_space_is_what_was_typed_over_what_the_config_has():
    space = read_space(
        {"model.optimizer.lr": "interval(0.1, 1)", "data.batch_size": "choice(32, 64)"},
        ["experiment=digits", LR, "data.batch_size=16", "model=tiny_net,simple_cnn", "seed=range(1,6,2)"],
    )
    assert space.describe() == {
        "model.optimizer.lr": "tag(log, interval(0.0001, 0.1))",
        "model": "choice(tiny_net, simple_cnn)",
        "seed": "interval(1, 5, step=2)",  # the end of a range is not one of its numbers
    }
    words = space.words({"model.optimizer.lr": 0.00012345678901234, "model": "tiny_net", "seed": 3})
    assert words == ["experiment=digits", "data.batch_size=16", "model.optimizer.lr=0.00012345678901234",
                     "model=tiny_net", "seed=3"]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("seed=1", "nothing to vary. Type a setting with its values"),
        ("model.optimizer.lr=tag(log, interval(0, 1))", "needs numbers above 0, got 0."),
        ("model.optimizer.lr=interval(2, 1)", "begins below its end, got 2 to 1."),
        ("data.batch_size=tag(log, range(16, 129, 16))", "takes steps of 1, got 16. Type tag(log, interval(16, 129))."),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(typed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_space({}, [typed])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_loses_and_doubles_no_trial_when_its_process_dies(tmp_path):
    begun: list[tuple[int, tuple]] = []
    for _ in range(4):  # each process dies in its second trial
        study = SearchStudy(tmp_path, settings(), SPACE)
        for dies in (False, True):
            record = study.next_trial()
            assert record is not None
            begun.append((record.number, tuple(record.params.values())))
            if not dies:
                study.end(record.number, Outcome("completed", (0.5 + record.number / 10,)))
    assert [number for number, _ in begun] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert len({values for _, values in begun}) == 5  # one that is begun again has its values, all others are new
    study = SearchStudy(tmp_path, settings(), SPACE)
    for outcome in (Outcome("pruned"), Outcome("nan"), Outcome("failed", message="out of memory")):
        if (record := study.next_trial()) is not None:
            study.end(record.number, outcome)
    assert study.next_trial() is None
    assert [record.state for record in study.records()] == [*["completed"] * 4, "pruned", "nan"]
    with pytest.raises(UserError, match=r"for another search: it had data.batch_size=choice\(32, 64\), now"):
        SearchStudy(tmp_path, settings(), read_space({"data.batch_size": "choice(32, 128)"}, [LR]))
    longer = read_space({"data.batch_size": "choice(32, 64)"}, ["experiment=digits", LR, "trainer.max_epochs=9"])
    with pytest.raises(UserError, match=r"its overrides had nothing, now trainer.max_epochs=9\. Type another"):
        SearchStudy(tmp_path, settings(), longer)
    with pytest.raises(UserError, match=r"its monitor had val/acc, now val/f1\."):
        SearchStudy(tmp_path, settings(monitor="val/f1"), SPACE)
    with pytest.raises(UserError, match="its directions were others"):
        SearchStudy(tmp_path, settings(directions=("minimize",)), SPACE)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_trial_in_which_its_process_always_dies_fails(tmp_path):
    for _ in range(5):
        study = SearchStudy(tmp_path, settings(), SPACE)
        assert study.next_trial().number == 0
    study.stop()  # by Ctrl-C, or with a value that was reported, the process did not die of the trial
    for step in (0, None, None, None, None, None):
        study = SearchStudy(tmp_path, settings(), SPACE)
        assert study.next_trial().number == 0
        if step is not None:
            study.report(0, step, 0.5)
    study = SearchStudy(tmp_path, settings(), SPACE)
    assert study.next_trial().number == 1
    assert study.records()[0].attributes["message"] == "its process died in each of 5 starts"
    for epoch in range(9):  # a search without pruning is told of no validation
        write_json(tmp_path / "01_base" / "status.json", {"epoch": epoch})
        assert SearchStudy(tmp_path, settings(), SPACE).next_trial().number == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_trial_that_is_to_stop_stops_though_it_is_killed_before_it_does(tmp_path):
    study = SearchStudy(tmp_path, settings(pruner="first_epoch"), SPACE)
    assert [study.report(study.next_trial().number, 0, value) for value in (0.5, 0.6, 0.1)] == [False, False, True]
    assert not study.report(1, 1, float("nan"))
    study = SearchStudy(tmp_path, settings(pruner="first_epoch"), SPACE)
    again = [study.next_trial().number for _ in range(3)]
    assert [study.report(number, 1, 0.9) for number in again] == [False, False, True]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_grid_has_each_of_its_points_once(tmp_path):
    sampler = {"_target_": "optuna.samplers.GridSampler", "_partial_": True}
    space = read_space({}, ["model.optimizer.lr=0.1,0.00001", "seed=range(1,4)"])
    points = []
    for _ in range(7):  # each process dies in its second trial
        study = SearchStudy(tmp_path, settings(sampler=sampler, n_trials=20), space)
        assert study.settings.n_trials == 6
        if (record := study.next_trial()) is not None:
            points.append(tuple(record.params.values()))
            study.end(record.number, Outcome("completed", (0.5,)))
            study.next_trial()
    assert len({*points}) == len(points) == 6


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_is_searched_by_one_process_whatever_the_folder(tmp_path, monkeypatch):
    storage = settings(storage=f"sqlite:///{tmp_path}/study.db")
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(lock, "is_taken", lambda folder: folder == tmp_path / "a")
    study = SearchStudy(tmp_path / "a", storage, SPACE)
    with pytest.raises(UserError, match=rf"The study train is searched by process {os.getpid()} on .* in {tmp_path}/a"):
        SearchStudy(tmp_path / "b", storage, SPACE)
    study.close()
    SearchStudy(tmp_path / "b", storage, SPACE)


def test_a_trial_keeps_its_folder_when_more_trials_have_more_digits(tmp_path):
    (tmp_path / "05_lr_0.1").mkdir()
    words = TrialOrder(5, "train", ("seed=1",), str(tmp_path), (), 200, "", "val/acc", ("val/acc",), True).all_words
    assert f"hydra.run.dir={tmp_path}/05_lr_0.1" in words


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsgaii", "grid"])
def test_each_sampler_of_optuna_can_be_chosen(sampler):
    main.register()
    cfg = composed("train", ["hparams_search=optuna", f"hydra/sweeper/sampler={sampler}"])
    assert (cfg.plots.format, cfg.callbacks.label_margins) == ([], None)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pruners_end_bad_trials_and_let_good_ones_go_on(tmp_path):
    for pruner, ended_at in (("median", 0), ("first_epoch", 0), ("none", None)):
        (tmp_path / pruner).mkdir()
        study = SearchStudy(tmp_path / pruner, settings(pruner=pruner, n_trials=20), SPACE)
        for _ in range(6):
            number = study.next_trial().number
            assert not any(study.report(number, step, 0.5 + number / 100 + step / 10) for step in range(3))
            study.end(number, Outcome("completed", (0.7,)))
        bad, good = study.next_trial().number, study.next_trial().number
        answers = [study.report(bad, step, 0.1) for step in range(3)]
        assert (answers.index(True) if True in answers else None) == ended_at
        assert not any(study.report(good, step, 0.9) for step in range(3))
    assert stops_after_first(float("nan"), [], 1)
    assert [stops_after_first(value, [0.1, 0.2, 0.3, 0.4], -1) for value in (0.05, 0.15)] == [False, True]


def test_a_receipt_says_what_pruning_cost():
    receipt = Receipt({4: 0.91, 7: 0.89}, (0.95, 0.93, 0.8), 1)
    said = "Pruning cost nothing: 2 trials of 30 pruned ones were finished, and the best of them (0.9100, trial 5) "
    assert receipt.describe(30) == f"{said}would have come third"
    assert Receipt({4: 0.2}, (0.3, 0.5), -1).describe(1) == (
        "Pruning cost 0.1000: 1 trial of 1 pruned ones was finished, and trial 5 is the best of all, 0.2000"
    )


def test_words_of_a_trial_become_an_experiment():
    words = ["experiment=digits", "model=tiny_net", "+model.optimizer.eps=1e-07", "logger=[]", "hparams_search=optuna",
             "data.train_transform.batch.flip=null", "tags=['a b']", "paths.log_dir=/x", "trainer=cpu"]  # fmt: skip
    made = OmegaConf.create("\n".join(experiment_of(words)))
    assert made.defaults == ["digits", "_self_", {"override /model": "tiny_net"}, {"override /logger": None},
                             {"override /trainer": "cpu"}]  # fmt: skip
    assert (made.model.optimizer.eps, made.data.train_transform.batch.flip, made.tags) == (1e-7, None, ["a b"])
    assert {*made} == {"defaults", "model", "data", "tags"}
    assert experiment_of(["~trainer.max_time"]) is None
    assert experiment_of(["+params.hub_token=hf_abcdefgh"]) is None


def test_gpus_are_divided_among_the_trials_that_run_at_the_same_time():
    assert [gpus_of(slot, 1, ["4", "5"]) for slot in range(3)] == ["4", "5", "4"]
    assert [gpus_of(slot, 2, ["0", "1", "2", "3"]) for slot in range(2)] == ["0,1", "2,3"]
    assert gpus_of(0, 1, []) is None


def test_trials_at_the_same_time_divide_the_cores_for_loader_workers_too(monkeypatch):
    cores = workers(None, 1)
    for share in (1, 2, 1000):
        monkeypatch.setenv(CORES, str(share))
        assert workers(None, 1) == min(cores, share)
    monkeypatch.setenv(CORES, "many")
    assert workers(None, 1) == cores


def test_settings_that_contradict_each_other_are_refused_before_the_first_trial(train, tmp_path):
    search = ("-m", "hparams_search=optuna", *FAST, "hydra.sweeper.n_jobs=2", "hydra.sweeper.pruner=median")
    run = train(*search, "hydra.sweeper.direction=[maximize,minimize]")
    assert run.exit_code == 1
    for message in (
        "hydra.sweeper.direction has 2 directions. Type what they are of, for example",
        "hydra.sweeper.pruner=median compares one value, and hydra.sweeper.direction has 2. Type",
        "hydra.sweeper.n_jobs=2 needs a process for each trial. Type hydra.sweeper.isolation=process",
    ):
        assert message in run.output
    run = train("-m", "hparams_search=optuna", *FAST, "hydra.sweeper.objectives=[val/loss]")
    assert "Type monitor=val/loss, by which trials are pruned, too, in place of hydra.sweeper.objectives." in run.output
    run = train("-m", "hparams_search=optuna", "hydra.sweeper.pruner=medain", "hydra.sweeper.n_trials=0")
    assert "hydra.sweeper.pruner must be auto, median, hyperband, first_epoch or none, got medain." in run.output
    assert "hydra.sweeper.n_trials must be a whole number (1 or more), got 0." in run.output
    assert not list(tmp_path.rglob("status.json"))


def test_a_command_of_ones_own_is_not_replaced_by_training():
    check_command(main)
    with pytest.raises(UserError, match="this is a command of your own. Type hydra/sweeper=optuna"):
        check_command(Command("train", lambda cfg, run: None))


def test_a_search_below_a_launcher_is_refused():
    launch = Launch("torchrun", 0, 2, 0, 2, 0, 1, "127.0.0.1", 29500, True)
    with pytest.raises(
        UserError, match=r"torchrun started 2 processes, and a search starts the processes of its trial"
    ):
        check_search(["-m", "hparams_search=optuna"], "train", "python src/train.py", launch)


def test_a_folder_is_searched_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "take", lambda folder: False)
    with pytest.raises(UserError, match=r"is searched by process .* or type another hydra.sweeper.study_name="):
        locked(tmp_path).__enter__()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_search_that_is_killed_continues_with_the_same_command(train, colours, data_dir, tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\ntags: [own]\n")
    words = ["-m", f"--config-dir={tmp_path}/own", "experiment=mine", "hparams_search=optuna", LR, "data.batch_size=8",
             "hydra.sweeper.n_trials=3", *FAST]  # fmt: skip
    kill = "import os; from imago.search.study import SearchStudy as S; n = S.next_trial\n"
    kill += "S.next_trial = lambda s: (r := n(s), os.kill(os.getpid(), 9) if r and r.number == 2 else None)[0]\n"
    paths = [f"data.data_dir={colours}", *SMALL, f"paths.data_dir={data_dir}", f"paths.log_dir={tmp_path}/logs"]
    paths += [f"paths.cache_dir={tmp_path}/cache"]
    killed = type_in_subprocess(*paths, *words, code=kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    run = train(*words)
    assert run.exit_code == 0, run.output
    assert "It continues: 2 of 3 trials are done (2 completed); 1 trial that did not end will be resumed." in run.output
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert [row["job"][:3] for row in rows_of(folder)] == ["00_", "01_", "02_"]
    results = results_of(folder)
    assert [trial["number"] for trial in results["trials"]] == [0, 1, 2]
    assert results["best_value"] == max(trial["values"][0] for trial in results["trials"])
    assert float(max(row["best"] for row in rows_of(folder))) == pytest.approx(results["best_value"])
    (command,) = [line for line in run.output.splitlines() if "experiment=train_best" in line]
    again = train(*words)  # it is done: the same command searches anew
    assert again.exit_code == 0, again.output
    assert len(list(folder.parent.iterdir())) == 2
    best = train(*shlex.split(command[command.index("--config-dir") :]), "preflight=false",
                 folder=tmp_path / "best")  # fmt: skip
    assert best.exit_code == 0, best.output
    assert best.json("status.json")["best_value"] == results["best_value"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pruned_trials_are_finished_for_the_receipt(train, tmp_path):
    words = ["-m", "hparams_search=optuna", LR, "data.batch_size=8", "monitor=val/loss", "hydra.sweeper.n_trials=5"]
    run = train(*words, *FAST, "hydra.sweeper.pruner=first_epoch", "hydra.sweeper.receipt=1", "trainer.max_epochs=2",
                "plots.format=[]")  # fmt: skip
    assert run.exit_code == 0, run.output
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    results = results_of(folder)
    states = [trial["state"] for trial in results["trials"]]
    assert states[:2] == ["completed", "completed"]
    pruned = {trial["number"]: trial for trial in results["trials"] if trial["state"] == "pruned"}
    assert pruned
    assert all(trial["epochs"] == 1 for trial in pruned.values())
    assert f"Trials: {5 - len(pruned)} completed, {len(pruned)} pruned" in run.output
    assert f"1 trial of {len(pruned)} pruned ones was finished" in run.output
    ((number, value),) = results["pruning"]["finished"].items()
    status = json.loads((folder / pruned[number]["folder"] / "status.json").read_text())
    assert (status["status"], status["epoch"], status["best_value"]) == ("completed", 2, value)
    completed = [trial["values"][0] for trial in results["trials"] if trial["state"] == "completed"]
    assert results["best_value"] == min([*completed, value])
    assert results["pruning"]["regret"] == pytest.approx(max(0.0, min(completed) - value))
    again = train("-m", "hparams_search=optuna", LR, "hydra.sweeper.study_name=b", f"hydra.sweep.dir={folder}")
    assert again.exit_code == 1  # its first trial would be that of the other study
    assert f"{folder} has runs that the study b does not know: 00_" in again.output
    assert "Sweep:" not in again.output
    assert not [*folder.glob("0*/plots/*")]
    assert {path.name for path in (folder / "plots").iterdir()} == {"history.png", "slices.png"}
    page = (folder / "search.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page


FULL = """
import errno, os
from lightning.pytorch import Callback
class Full(Callback):
    def on_train_epoch_start(self, trainer, module):
        if "/01_" in trainer.default_root_dir and os.path.exists("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_full_disk_ends_a_search_and_costs_no_trial(train, tmp_path, monkeypatch):
    (tmp_path / "filling.py").write_text(FULL)
    (tmp_path / "full").touch()
    monkeypatch.chdir(tmp_path)
    words = ["-m", "hparams_search=optuna", "+callbacks.full._target_=filling.Full", "data.batch_size=8",
             "trainer.max_epochs=1", "hydra.sweeper.n_trials=2", *FAST, LR]  # fmt: skip
    run = train(*words)
    assert run.exit_code == 1, run.output
    stopped = "1 of 2 trials are done (1 completed); 1 trial that did not end will be resumed"
    assert f"The search was stopped: {stopped}. It continues with the same command" in run.output
    assert "Error: Trial 2: OSError: [Errno 28] No space left on device" in run.output
    (tmp_path / "full").unlink()
    run = train(*words)
    assert run.exit_code == 0, run.output
    assert f"It continues: {stopped}." in run.output
    assert "Trials: 2 completed" in run.output


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_study_that_cannot_be_read_is_said(tmp_path):
    study = SearchStudy(tmp_path, settings(), SPACE)
    (tmp_path / "study.db").write_bytes(b"damaged" * 20_000)
    with pytest.raises(DiskError, match=r"^The study could not be read or written: .*\(sqlite3.DatabaseError\)"):
        study.next_trial()


def test_the_table_of_a_search_fits_the_terminal(capsys):
    params = {"model.optimizer.lr": 0.00012345, "model.net.name": "efficientnet_b0" * 3, "data.batch_size": 64}
    board = Board(["val/acc", "parameters"], 1, list(params), 50, 1)
    records = [TrialRecord(0, "completed", params, (0.9123, 1_234_567.0)), TrialRecord(1, "running", params)]
    console().print(board._table(records))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= console().width
    assert lines[0].split() == ["trial", "state", "val/acc", "parameters", "epochs", "lr", "batch_size"]
    assert lines[2].split() == ["1", "completed", "0.9123", "1,234,567", "0.0001234", "64"]
    assert [line.rstrip() for line in lines[-2:]] == ["1 completed, 1 running of 50", "Not shown: name"]


CRASHING = """
import os, signal
from lightning.pytorch import Callback
class Crash(Callback):
    def on_train_epoch_start(self, trainer, module):
        if "/01_" in trainer.default_root_dir:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_crash_costs_one_trial_of_several_at_the_same_time(train, tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(CRASHING)
    monkeypatch.chdir(tmp_path)
    words = ["+callbacks.crash._target_=crashing.Crash", "data.batch_size=8", "trainer.max_epochs=1", *FAST[:3], LR]
    search = ["-m", "hparams_search=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]
    run = train(*search, "hydra.sweeper.objectives=[val/acc,parameters]", *words,
                "hydra.sweeper.direction=[maximize,minimize]")  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "Trials: 3 completed, 1 failed" in run.output
    (folder,) = (tmp_path / "logs" / "train" / "multiruns").iterdir()
    results = results_of(folder)
    assert [trial["state"] for trial in results["trials"]] == ["completed", "failed", "completed", "completed"]
    pids = [json.loads(path.read_text())["pid"] for path in folder.glob("*/status.json")]
    assert os.getpid() not in pids
    assert len({*pids}) < len(pids)  # a process that has run a short trial runs another one
    assert results["trials"][1]["message"].startswith("it was killed by SIGKILL")
    done = [trial for trial in results["trials"] if trial["state"] == "completed"]
    assert all(len(trial["values"]) == 2 for trial in done)
    assert "Pareto front: no other trial is better in all objectives" in run.output
    front = [solution["values"] for solution in results["solutions"]]
    assert max(trial["values"][0] for trial in done) in [values[0] for values in front]


def trial_words(colours: Path, tmp_path: Path, name: str) -> list[str]:
    return [f"data.data_dir={colours}", *SMALL, "trainer.max_epochs=4", "preflight=false", "test=false",
            f"paths.log_dir={tmp_path}/logs", f"paths.cache_dir={tmp_path}/cache",
            f"hydra.run.dir={tmp_path}/{name}"]  # fmt: skip


def test_a_pruned_trial_is_finished_to_the_bits_of_one_that_nobody_pruned(colours, tmp_path):
    reported = []

    def report(step: int, value: float) -> bool:
        reported.append((step, value))
        return step == 1

    words = trial_words(colours, tmp_path, "pruned")
    result, folder = main.call(*words, trial=Trial(str(tmp_path), 0, report, prunes=True))
    assert result.is_pruned
    assert json.loads((folder / "status.json").read_text())["status"] == "pruned"
    assert [step for step, _ in reported] == [0, 1]
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["val/acc"] for row in history] == pytest.approx([value for _, value in reported])
    main.call(*words, trial=Trial(str(tmp_path)))
    _, whole = main.call(*trial_words(colours, tmp_path, "whole"))
    import torch

    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (folder, whole)]
    assert same(*states)
    assert (folder / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert json.loads((folder / "status.json").read_text())["status"] == "completed"


def test_the_same_search_is_looked_for_among_those_that_were_stopped(tmp_path):
    from imago.cli.search_folder import _stopped

    for name, words, state in (("1", ["a"], "searching"), ("2", ["a"], "done"), ("3", ["b"], "searching")):
        note_search(tmp_path / name, words, state)
    assert _stopped(tmp_path, ["a"]) == tmp_path / "1"
    assert _stopped(tmp_path, ["c"]) is None
