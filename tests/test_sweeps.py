"""Sweeps: names of jobs, the table and `sweep.csv` at the end, searches that go on, and `ml-status` over all of it."""

import csv
import gc
import json
import os
import pickle
import sys
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import Run
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from imago.checkpoint.read import find_checkpoint
from imago.cli import run_table, sweep
from imago.cli.hydra_internals import singletons_kept
from imago.config.resolvers import register, remember_sweep, slug
from imago.config.root import CONFIG_DIR
from imago.errors import UserError
from imago.run.find import find_run
from imago.run.overview import Overview
from imago.run.spent import describe_totals
from imago.status import main as status

FAST = ("trainer.max_epochs=1", "callbacks.early_stopping=null", "preflight=false")


def sweep_of(run: Run) -> Path:
    return max((run.dir.parent / "logs" / "train" / "multiruns").iterdir(), key=lambda path: path.stat().st_mtime)


@contextmanager
def hydra_config(config):
    """Inside, Hydra is as in the job that `config` is of."""
    with singletons_kept():
        HydraConfig.instance().set_config(config)
        yield


def table_rows(text: str, first: str = "run ") -> list[str]:
    """The rows of the last table in `text`."""
    lines = text[text.rindex(f"\n{first}") + 1 :].splitlines()
    below = ("Best ", "Names ", "Settings ", "Written", "Hidden", "Resume")
    end = next((at for at, line in enumerate(lines) if line.startswith(below)), len(lines))
    return [line for line in lines[2:end] if line.strip()]


def csv_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def show_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object, width: int = 100
) -> str:
    monkeypatch.setattr(sys, "argv", ["ml-status", *map(str, words)])
    monkeypatch.setattr("rich._console", None)
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    status()
    return capsys.readouterr().out


def test_a_sweep_ends_with_one_table(train, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "100")
    run = train("-m", *FAST, "model.optimizer.lr=0.001,0.03", "seed=1,2")
    assert run.exit_code == 0, run.output
    folder = sweep_of(run)
    names = [f"0{number}_lr_{lr}_seed_{seed}" for number, (lr, seed) in enumerate(
        [("0.001", 1), ("0.001", 2), ("0.03", 1), ("0.03", 2)]
    )]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    assert OmegaConf.load(folder / names[0] / "config.yaml").name == "lr_0.001_seed_1"
    shown = table_rows(run.output)
    assert [line.split()[0] for line in shown[:4]] == names
    means = [line for line in shown if line.startswith("mean ± sd")]
    assert len(means) == 2
    assert all("2 seeds" in line and line.count("±") == 3 for line in means)
    assert run.output.count("Sweep: ") == 1
    rows = csv_rows(folder)
    assert [row["job"] for row in rows] == names
    assert [(row["model.optimizer.lr"], row["seed"]) for row in rows][2] == ("0.03", "1")
    best = max(rows, key=lambda row: float(row["best"]))
    assert f"Best val/acc: {float(best['best']):.4f} in {best['job']}" in run.output
    jobs = [line for line in run.output.splitlines() if ": accuracy of best.ckpt: test (on val) " in line]
    assert [Path(line.split(":")[0]).name for line in jobs] == names
    assert (run.output.count("Next:"), run.output.count("Report:")) == (1, 1)
    assert f"ml-inference ckpt_path={folder / best['job']} source=PHOTOS" in run.output
    scores = [float(row["best"]) for row in rows[:2]]
    assert run_table.mean_and_deviation(scores) in means[0]
    assert find_run("latest", tmp_path / "logs").parent == folder

    shown = show_status(monkeypatch, capsys, tmp_path / "logs", "--sort", "val/acc")
    lines = table_rows(shown)
    values = [float(line.split()[2]) for line in lines[:4]]
    assert values == sorted(values, reverse=True)
    assert [line[:9] for line in lines[4:]] == ["mean ± sd"] * 2
    assert all("2 seeds" in line for line in lines[4:])
    found = json.loads(show_status(monkeypatch, capsys, tmp_path / "logs", "--json"))
    assert [(entry["settings"]["seed"], entry["state"], entry["task"]) for entry in found][:2] == [
        (1, "completed", "train"),
        (2, "completed", "train"),
    ]
    assert found[0]["best_value"] == float(rows[0]["best"])


@pytest.mark.parametrize(
    ("epsilons", "said"),
    [
        ([3.0, 2.5], "These 2 have epsilon 5.5000, delta 2e-05 together"),
        ([2.0, "unknown"], "These 2 have no bound"),
        ([2.0, None], ""),
    ],
)
def test_what_private_jobs_spend_adds_up(epsilons, said):
    runs = [Overview(Path("a"), {} if epsilon is None else {"epsilon": epsilon, "delta": 1e-5}) for epsilon in epsilons]
    text = sweep.describe_spent(runs)
    assert said in text
    assert bool(text) == bool(said)


@pytest.mark.parametrize(
    ("drawn", "data_seed", "said"),
    [
        (
            ["val"],
            "${seed}",
            "Each seed draws its own val split, which is part of the deviation. To keep one",
        ),
        (["val", "test"], "${seed}", "its own val and test splits,"),
        (["val"], 42, ""),
        ([], "${seed}", ""),
    ],
)
def test_a_sweep_over_seeds_that_draw_their_own_val_split_says_so(tmp_path, drawn, data_seed, said):
    for seed in (1, 2):
        folder = tmp_path / f"0{seed}"
        (folder / ".hydra").mkdir(parents=True)
        (folder / "reports").mkdir()
        facts = {"folder": "/data", "fingerprint": "1", "drawn": drawn}
        (folder / "reports" / "data.json").write_text(json.dumps(facts))
        OmegaConf.save({"seed": seed, "data": {"seed": data_seed}}, folder / ".hydra" / "config.yaml")
        (folder / "status.json").write_text(json.dumps({"status": "completed", "best_value": 0.5}))
    text = run_table.describe_drawn(run_table.grouped_by_seed(sweep.jobs_of(tmp_path), ["seed"]))
    assert said in text
    assert bool(text) == bool(said)


def test_private_runs_on_the_same_data_are_summed_wherever_a_path_leads(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    runs = []
    for name, folder, print_, epsilon in (
        ("a", "data", "1", 3.0),
        ("b", "link", "2", 2.5),
        ("c", "copy", "1", 1.0),  # the same fingerprint
        ("d", "data/train", "3", 1.0),
        ("e", "other", "4", 1.0),
        ("f", "data", "1", None),
    ):
        facts = {"folder": str((tmp_path / folder).resolve()), "fingerprint": print_, "drawn": ["val"]}
        (tmp_path / name / "reports").mkdir(parents=True)
        (tmp_path / name / "reports" / "data.json").write_text(json.dumps(facts))
        runs.append(Overview(tmp_path / name, {} if epsilon is None else {"epsilon": epsilon, "delta": 1e-5}))
    (text,) = describe_totals(runs)
    assert f"the 4 private runs on {tmp_path}/data have epsilon 7.5000, delta 4e-05 together" in text


def test_a_failed_job_is_in_the_table(train, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run = train("-m", *FAST, "data.image_size=16,0", "test=false")
    assert run.exit_code == 1
    one, two = csv_rows(sweep_of(run))
    assert (one["state"], two["state"]) == ("completed", "failed")
    assert "data.image_size" in two["error"]
    rows = table_rows(run.output)
    assert "completed" in rows[0]
    assert "failed" in rows[1]
    assert "data.image_size" in rows[1]
    assert all(len(line) <= 100 for line in rows)
    assert "Traceback" not in run.output


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_search_is_kept_and_continued(train):
    optuna = pytest.importorskip("optuna")
    words = ("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=2", *FAST, "test=false")
    run = train(*words)
    assert run.exit_code == 0, run.output
    folder = sweep_of(run)
    assert "alembic" not in run.output
    assert len(table_rows(run.output)) >= 2
    more = train(*words, "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={folder}")
    assert more.exit_code == 0, more.output
    study = optuna.load_study(study_name="train", storage=f"sqlite:///{folder}/study.db")
    assert len({trial.params["model.optimizer.lr"] for trial in study.trials}) == 4  # none was drawn twice
    jobs = sorted(path.parent.name for path in folder.glob("*/status.json"))
    assert [name[:6] for name in jobs] == ["00_lr_", "01_lr_", "02_lr_", "03_lr_"]
    rows = csv_rows(folder)
    assert [float(row["best"]) for row in rows] == pytest.approx([trial.value for trial in study.trials])
    del study
    gc.collect()  # Optuna leaves its database open


def test_jobs_know_their_sweep_in_other_processes():
    """A launcher such as joblib or Slurm pickles the config of the sweep; Hydra then composes the job from it."""
    register()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        words = ["experiment=digits", "seed=1,2", "model.optimizer.lr=choice(0.1,0.2)"]
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", words, run_mode=RunMode.MULTIRUN)
        typed, jobs = sweep._planned(config)
        assert jobs == 4
        remember_sweep(config, typed, jobs)
        config = pickle.loads(pickle.dumps(config))
        job = loader.load_sweep_config(config, ["experiment=digits", "seed=2", "model.optimizer.lr=0.1"])
        job.hydra.job.num = 3
        with hydra_config(job):
            assert (job.name, job.hydra.sweep.subdir) == ("seed_2_lr_0.1", "03_seed_2_lr_0.1")
        single = compose("train", ["experiment=digits", "seed=2"], return_hydra_config=True)
        with hydra_config(single):
            assert single.name == "digits_seed_2"
        for net, name in (("nets.v1.Net", "v1.Net"), ("nets.v2.Net", "v2.Net"), ("imago.model.TinyNet", "TinyNet")):
            words = [f"data.{split}_ratio=0.25" for split in ("val", "test")] + ["trainer.limit_val_batches=2"]
            single = compose("train", [*words, f"model.net._target_={net}"], return_hydra_config=True)
            with hydra_config(single):
                assert single.name.startswith("val_ratio_0.25_test_ratio_0.25_")  # as many as there is space for
                assert single.name.endswith(f"net_{name}")


def test_secrets_are_not_written_to_a_study(capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    register()
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = ["experiment=digits", "hparams_search=optuna", "hydra.sweep.dir=sweep"]
        config = loader.load_configuration("train", words, run_mode=RunMode.MULTIRUN)
        sweep.keep_secrets_out_of_study(config)
        assert config.hydra.sweeper.storage == "auto"
        theirs = ["hydra/sweeper=optuna", "hydra.sweeper.storage=sqlite:///study.db"]
        fixed, swept = "+params.hub_token=hf_abcdefgh", "+params.hub_token=hf_abcdefgh,hf_ijklmnop"
        for more, kept in (([fixed], "auto"), ([swept], None), ([*theirs, fixed], None)):
            config = loader.load_configuration("train", [*words, *more], run_mode=RunMode.MULTIRUN)
            sweep.keep_secrets_out_of_study(config)
            assert config.hydra.sweeper.storage == kept
    assert "The study is not kept: params.hub_token is a secret" in capsys.readouterr().out


def test_names_end_with_a_whole_word():
    assert slug("a/b c") == "a_b_c"
    long = slug("_".join(["learning"] * 12))
    assert len(long) <= 60
    assert long.endswith("learning")


def test_scoring_runs_are_named_after_their_run(trained, command, monkeypatch, capsys, tmp_path):
    name = trained.dir.name
    for task, more in (("eval", ["split=test"]), ("export", [])):
        words = [f"ckpt_path={trained.dir}", *more, f"hydra.run.dir={tmp_path}/logs/{task}/runs/x"]
        assert command(task, *words).exit_code == 0
        assert OmegaConf.load(tmp_path / "logs" / task / "runs" / "x" / "config.yaml").name.startswith(f"of_{name}")
    shown = show_status(monkeypatch, capsys, tmp_path / "logs")
    assert "No training has begun" in shown
    assert "Hidden: 2 of commands that train nothing. Show them with --all" in shown
    assert len(table_rows(show_status(monkeypatch, capsys, tmp_path / "logs", "--all"))) == 2


def write_run(folder: Path, overrides: list[str], model: str, optimizer: str, lr: float) -> None:
    """What `ml-status` reads of a run of 75 seconds."""
    (folder / ".hydra").mkdir(parents=True)
    times = {"started": "2026-11-26T20:50:00+00:00", "heartbeat": "2026-11-26T20:51:15+00:00"}
    status = {"status": "completed", "epoch": 3, "best_value": 0.9 + lr, **times}
    (folder / "status.json").write_text(json.dumps(status))
    config = {"monitor": "val/acc", "model": {"optimizer": {"_target_": f"torch.optim.{optimizer}", "lr": lr}}}
    choices = {"hydra": {"runtime": {"choices": {"model": model, "model/optimizer": "sgd"}}}}
    for name, content in (("config", config), ("overrides", overrides), ("hydra", choices)):
        OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml")


@pytest.mark.quick
def test_status_shows_when_a_run_was_and_what_differs(monkeypatch, capsys, tmp_path):
    runs = tmp_path / "logs" / "train" / "runs"
    name = "2026-11-26_20-5{}-37_digits_max_epochs_3_accelerator_cpu_devices_1_{}"
    target, lr = "model.optimizer._target_=torch.optim.RMSprop", "model.optimizer.lr=0.05"
    write_run(runs / name.format(0, "base"), [], "simple_cnn", "AdamW", 0.003)
    write_run(runs / name.format(1, "optimizer_RMSprop"), [target], "simple_cnn", "RMSprop", 0.003)
    write_run(runs / name.format(2, "sgd_lr_0.05"), ["model/optimizer=sgd", lr], "simple_cnn", "SGD", 0.05)
    write_run(runs / name.format(3, "resnet18"), ["model=resnet18"], "resnet18", "AdamW", 0.003)
    for width in (80, 100, 140):
        shown = show_status(monkeypatch, capsys, tmp_path / "logs", width=width)
        header = next(line for line in shown.splitlines() if line.startswith("run "))
        assert header.split()[:7] == ["run", "state", "best", "val/acc", "optimizer", "lr", "model"]
        lines = table_rows(shown)
        assert [line[:19] for line in lines] == [f"2026-11-26_20-5{number}-37" for number in range(4)]
        assert all(len(line) <= width for line in lines)
        expected = [("AdamW", "0.003", "simple_cnn"), ("RMSprop", "0.003", "simple_cnn")]
        expected += [("SGD", "0.05", "simple_cnn"), ("AdamW", "0.003", "resnet18")]
        assert [tuple(line.split()[3:6]) for line in lines] == expected
        assert "_target_" not in shown
    assert header.split()[-3:] == ["epoch", "duration", "updated"]
    assert all("1 min 15 s" in line for line in lines)
    assert lines[2].split()[0].endswith("lr_0.05")


@pytest.mark.quick
def test_status_tells_parts_of_ones_own_apart(monkeypatch, capsys, tmp_path):
    """Classes of one name in two modules, and a file of settings that was edited between the runs."""
    for number, module in enumerate(("my.first", "my.second", "my.second")):
        folder, seed = tmp_path / f"{number}", f"seed={number}"
        write_run(folder, [f"model.net._target_={module}.Net", seed], "mine", "AdamW", 0.003 if number < 2 else 0.1)
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        config.model.net, config.seed = {"_target_": f"{module}.Net"}, number
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    shown = show_status(monkeypatch, capsys, tmp_path)
    expected = [("first.Net", "0", "0.003"), ("second.Net", "1", "0.003"), ("second.Net", "2", "0.1")]
    assert [tuple(line.split()[3:6]) for line in table_rows(shown)] == expected


@pytest.mark.quick
def test_status_says_that_scores_are_of_different_images(monkeypatch, capsys, tmp_path):
    for number, images in enumerate(("one", "one", "two")):
        write_run(tmp_path / f"{number}", [], "simple_cnn", "AdamW", 0.001 * number)
        status = json.loads((tmp_path / f"{number}" / "status.json").read_text())
        status["card"] = {"stamps": {"val": images}}
        (tmp_path / f"{number}" / "status.json").write_text(json.dumps(status))
    sentence = "These runs have 2 different sets of images for val/acc. To compare them, score each"
    for word in ("best", "val/acc"):
        assert sentence in " ".join(show_status(monkeypatch, capsys, tmp_path, "--sort", word).split())
    assert "different sets" not in show_status(monkeypatch, capsys, tmp_path, "--sort", "lr")
    assert "different sets" not in show_status(monkeypatch, capsys, tmp_path)
    config = OmegaConf.load(tmp_path / "2" / ".hydra" / "config.yaml")
    config.data = {"relabel": "my labels.csv", "exclude": "blurred.txt"}
    OmegaConf.save(config, tmp_path / "2" / ".hydra" / "config.yaml")
    sentence = "for val/acc: data.exclude and data.relabel differ. To compare them, score each with the same ones: "
    sentence += "ml-eval ckpt_path=RUN data.exclude=blurred.txt 'data.relabel='\"'\"'my labels.csv'\"'\"''"
    for words in (["--sort", "val/acc"], []):
        assert sentence in " ".join(show_status(monkeypatch, capsys, tmp_path, *words).split())
    (tmp_path / "2" / "status.json").unlink()
    assert "different sets" not in show_status(monkeypatch, capsys, tmp_path, "--sort", "best")


@pytest.mark.quick
def test_status_takes_the_words_of_its_headers_and_one_run(monkeypatch, capsys, tmp_path):
    for number, acc in enumerate((0.9, 0.7, 0.8)):
        write_run(tmp_path / f"train/runs/run{number}", [], "simple_cnn", "AdamW", 0.001)
        (tmp_path / f"train/runs/run{number}/reports").mkdir()
        (tmp_path / f"train/runs/run{number}/reports/metrics_test.json").write_text(json.dumps({"acc": acc}))
    for word in ("acc", "test acc", "test/acc", "accuracy", "test"):
        shown = table_rows(show_status(monkeypatch, capsys, tmp_path, "--sort", word))
        assert [line.split()[0] for line in shown] == ["run0", "run2", "run1"], word
    assert "0.7000" in show_status(monkeypatch, capsys, tmp_path, "--columns", "test acc, best val/acc")
    with pytest.raises(SystemExit, match=r"Unknown column acuracy\. Did you mean accuracy\?"):
        show_status(monkeypatch, capsys, tmp_path, "--sort", "acuracy")
    for run in (tmp_path / "train/runs/run1", "latest"):
        monkeypatch.setattr("imago.status.LOGS", tmp_path)
        (tmp_path / "train/runs/run1/metrics.jsonl").touch()
        shown = show_status(monkeypatch, capsys, run)
        assert f"Run {tmp_path}/train/runs/run1\n" in shown
        assert [line.split()[0] for line in table_rows(shown)] == ["run1"]


@pytest.mark.parametrize(
    ("names", "most", "cut"),
    [
        (["A_digits_max_epochs_3_lr_0.01"], 60, ["A_digits_max_epochs_3_lr_0.01"]),
        (["A_digits_max_epochs_3_lr_0.01"], 27, ["A*lr_0.01"]),
        (["A_digits_max_epochs_3_lr_0.01"], 25, ["A*"]),  # the end would be a piece of a word
        (["A_digits_seed_1_on_a_node", "A_digits_seed_2_on_a_node"], 20, ["A*1_on_a_node", "A*2_on_a_node"]),
        (["A_digits_lr_0.1", "A_digits_lr_0.01", "A_digits"], 20, ["A*.1", "A*01", "A*s"]),
        (["runs/A_digits_max_epochs_3_lr_0.01"], 27, ["runs/A*"]),
        (["multiruns/A/03_lr_0.01_and_more"], 25, ["multiruns/A/03*"]),
        (["03_weight_decay_0.1_lr_0.01"], 21, ["03_weig*y_0.1_lr_0.01"]),
        (["photos_of_ants_with_long_names", "photos_of_bees_with_long_names"], 20, ["p*ts_with_long_names"]),
    ],
)
def test_names_of_runs_are_cut_to_patterns_of_one_run(names, most, cut):
    names = [name.replace("A", "2026-11-26_20-50-37") for name in names]
    shown = run_table.cut_names(names, most)
    assert shown[: len(cut)] == [name.replace("A", "2026-11-26_20-50-37") for name in cut]
    for name, pattern in zip(names, shown, strict=True):
        assert [other for other in names if fnmatch(other, pattern)] == [name]


def test_a_run_is_named_by_a_pattern(tmp_path):
    for name in ("2026_ants", "2026_bees"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
    assert find_run(f"{tmp_path}/2026*bees", tmp_path).name == "2026_bees"
    with pytest.raises(UserError, match=r"2026\* matches 2 paths: .*ants, .*bees. Type one of them"):
        find_run(f"{tmp_path}/2026*", tmp_path)
    for wrong, meant in ((f"{tmp_path}/2026_antz", f"{tmp_path}/2026_ants"), ("latset", "latest")):
        with pytest.raises(UserError, match=rf"is not a run folder\. .* Did you mean {meant}\?$"):
            find_run(wrong, tmp_path)
        with pytest.raises(UserError, match=rf"^ckpt_path={wrong} does not exist\. Did you mean {meant}\?$"):
            find_checkpoint(wrong, tmp_path)


def test_latest_may_be_a_job_of_slurm(tmp_path):
    for number, name in enumerate(("train/runs/ants", "slurm/12_1", "slurm/13/0")):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        for file in ("status.json", "metrics.jsonl", ".hydra/config.yaml"):
            (tmp_path / name / file).touch()
        os.utime(tmp_path / name / ".hydra" / "config.yaml", (number, number))
        assert find_run("latest", tmp_path) == tmp_path / name
