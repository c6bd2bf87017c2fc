"""The checkpoint that is scored is the best one, and the number that is called best is its own."""

import re

import pytest

NOISY = ("model.optimizer.lr=0.05", "model.scheduler=null", "report.splits=[val]")  # validations go up and down


def own_value(run, command) -> float:
    scored = command("eval", f"ckpt_path={run.dir}", "split=val")
    assert scored.exit_code == 0, scored.output
    return scored.json("reports/metrics_val.json")["acc"]


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks.model_checkpoint.save_top_k=3"],
        ["callbacks.model_checkpoint.save_top_k=-1"],
        ["callbacks.model_checkpoint.save_top_k=2", "callbacks.model_checkpoint.filename='epoch_{epoch:03d}'"],
        ["callbacks.model_checkpoint.filename='epoch_{epoch:03d}'"],
        ["trainer.val_check_interval=0.25"],
        ["trainer.val_check_interval=2", "trainer.check_val_every_n_epoch=null"],
        ["+callbacks.more={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/loss}"],
    ],
    ids=lambda words: words[0].rpartition(".")[2][:25],
)
def test_the_scored_checkpoint_has_the_best_value(train, command, words):
    run = train(*NOISY, "trainer.max_epochs=4", *words)
    assert run.exit_code == 0, run.output
    best = run.json("status.json")["best_value"]
    assert run.json("reports/metrics_val.json")["acc"] == pytest.approx(best)
    assert own_value(run, command) == pytest.approx(best)
    assert re.search(rf"Best\n *val/acc +{best:.4f}", run.text("summary.txt"))
    assert best >= max(row["val/acc"] for row in run.history) - 1e-6
    assert "it is not the best checkpoint" not in run.output


def test_several_best_are_kept_and_resumed(train, command):
    words = [*NOISY, "callbacks.model_checkpoint.save_top_k=2", "report.splits=[val]"]
    whole = train(*words, "trainer.max_epochs=4")
    part = train(*words, "trainer.max_epochs=2")
    again = command("train", f"resume={part.dir}", "trainer.max_epochs=4", folder=part.dir)
    assert again.exit_code == 0, again.output
    names = [sorted(file.name for file in run.dir.glob("checkpoints/*")) for run in (whole, again)]
    assert names[0] == names[1]
    assert len(names[0]) == 4  # two, best.ckpt and last.ckpt
    assert again.json("status.json")["best_value"] == whole.json("status.json")["best_value"]
    assert again.json("reports/metrics_val.json") == whole.json("reports/metrics_val.json")


@pytest.mark.parametrize(
    "word",
    [
        "+callbacks.model_checkpoint.every_n_train_steps=7",
        "+callbacks.model_checkpoint.every_n_epochs=2",
        "+callbacks.model_checkpoint.save_weights_only=true",
        "+callbacks.model_checkpoint.train_time_interval='00:01'",
        "+callbacks.model_checkpoint.save_on_exception=true",
        "callbacks.model_checkpoint.monitor=null",
        "callbacks.model_checkpoint.monitor=val/loss",
    ],
)
def test_what_would_make_it_another_one_is_refused(train, word):
    run = train(word)
    assert run.exit_code == 1
    assert f"{word.lstrip('+').partition('=')[0]}=" in run.last_line
    assert "best.ckpt must be the checkpoint of the best epoch" in run.last_line
    assert "epoch 1" not in run.output


def test_a_checkpoint_that_is_not_the_best_is_said_above_the_table(train):
    other = "_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: best"
    mine = f"+callbacks.mine={{{other}, dirpath: '${{paths.output_dir}}/checkpoints'}}"
    run = train(*NOISY, "trainer.max_epochs=4", "~callbacks.model_checkpoint", mine)
    assert run.exit_code == 0, run.output
    values = [row["val/acc"] for row in run.history]
    if values[-1] == max(values):
        pytest.skip("the last epoch is the best one")
    warning = f"which is scored, has val/acc {values[-1]:.4f}; the best in training was {max(values):.4f}"
    assert warning in run.output
    assert run.output.index(warning) < run.output.index("Scores of")


@pytest.mark.quick
def test_an_epoch_without_validation_is_no_candidate(train, command):
    words = [*NOISY, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"]
    run = train(*words, "callbacks.model_checkpoint.save_top_k=2")
    assert run.exit_code == 0, run.output
    names = {file.name for file in run.dir.glob("checkpoints/*.ckpt")}
    assert names == {"best.ckpt", "last.ckpt", "best_001_10.ckpt", "best_003_20.ckpt"}
    assert own_value(run, command) == pytest.approx(run.json("status.json")["best_value"])


def test_files_of_the_run_belong_to_the_run(train):
    other = "_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: '${paths.output_dir}/checkpoints'"
    for name in ("best", "last"):
        run = train(f"+callbacks.mine={{{other}, filename: {name}}}")
        assert f"ModelCheckpoint.filename={name} is reserved for the run" in run.output
        assert run.exit_code == 1
    replaced = train(
        "callbacks.model_checkpoint._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        "callbacks.model_checkpoint.save_top_k=3",
    )
    assert "save_top_k=3 with a fixed filename keeps the last, not the best" in replaced.output
