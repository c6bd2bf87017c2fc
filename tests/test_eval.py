import re

import pytest
import torch
from conftest import SMALL

from imago.checkpoints import read_checkpoint


@pytest.fixture
def evaluate(command, colours, trained):
    """Scores a checkpoint (the best of `trained`) with the overrides of that run."""

    def run_it(*overrides: str, ckpt_path=trained.dir / "checkpoints" / "best.ckpt"):
        return command("eval", f"data.data_dir={colours}", *SMALL, f"ckpt_path={ckpt_path}", *overrides)

    return run_it


def test_a_checkpoint_scores_as_it_did_at_the_end_of_training(evaluate, trained):
    run = evaluate("report.splits=[train,val,test]")
    assert run.exit_code == 0, run.output
    for split in ("train", "val", "test"):
        for name in (f"metrics_{split}.json", f"predictions_{split}.csv", f"classification_report_{split}.txt"):
            assert run.text(f"reports/{name}") == trained.text(f"reports/{name}")
    assert run.json("status.json")["status"] == "completed"
    assert (run.dir / "eval.log").exists()


def test_the_predictions_do_not_depend_on_batch_size_or_workers(evaluate, trained):
    run = evaluate("data.batch_size=4", "data.num_workers=2")
    ours, theirs = run.json("reports/metrics_test.json"), trained.json("reports/metrics_test.json")
    assert ours["per_class"] == theirs["per_class"]
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_the_pretrained_weights_are_not_looked_for(command, colours, train):
    options = ["model=resnet18", "data.image_size=32", "trainer.max_epochs=1"]
    run = train(*options, "model.net.weights=null")
    checkpoint = f"ckpt_path={run.dir}/checkpoints/best.ckpt"
    scored = command("eval", f"data.data_dir={colours}", *SMALL, *options, "model.net.weights=DEFAULT", checkpoint)
    assert scored.exit_code == 0, scored.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "is damaged or no checkpoint of Imago"),
        (b"some text", "is damaged or no checkpoint of Imago"),
        ({"fc.weight": torch.zeros(2)}, "is no checkpoint of Imago; model.net.weights= takes plain weights"),
        ([1, 2], "is no checkpoint of Imago"),
    ],
)
def test_what_is_no_checkpoint_is_said(evaluate, tmp_path, content, message):
    path = tmp_path / "given.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    run = evaluate(ckpt_path=path)
    assert run.exit_code == 1
    assert message in run.output
    assert str(path) in run.output
    assert "Traceback" not in run.output
    assert run.json("status.json")["status"] == "failed"


def test_half_a_checkpoint_is_said(evaluate, trained, tmp_path):
    whole = (trained.dir / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in evaluate(ckpt_path=tmp_path / "half.ckpt").output


def test_a_folder_is_said(evaluate, trained):
    run = evaluate(ckpt_path=trained.dir)
    assert f"is a folder: give a file in it, {trained.dir}/checkpoints/best.ckpt" in run.output


def test_another_network_is_said(evaluate, train, trained):
    run = evaluate("model=simple_cnn")
    assert run.exit_code == 1
    assert re.search(r"holds another network than this run's: \d+ missing in it", run.output)
    resumed = train("model=simple_cnn", f"ckpt_path={trained.dir}/checkpoints/last.ckpt")
    assert "holds another network" in resumed.output
    assert resumed.exit_code == 1


def test_other_classes_are_said_with_both_lists(evaluate, own_colours):
    for split in ("train", "val"):
        (own_colours / split / "red").rename(own_colours / split / "rust")
    run = evaluate(f"data.data_dir={own_colours}")
    assert run.exit_code == 1
    assert "checkpoint: blue, green, red\n  data:       blue, green, rust" in run.output


def test_no_splits_are_said(evaluate):
    assert "give at least one of train, val, test" in evaluate("report.splits=[]").output


def test_a_missing_ckpt_path_is_said(command, colours):
    run = command("eval", f"data.data_dir={colours}", *SMALL)
    assert "ckpt_path is missing: type ckpt_path=" in run.output
    assert run.exit_code == 1


def test_reading_executes_nothing(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return open, ("executed", "w")

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "imago": Evil()}, "evil.ckpt")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        read_checkpoint("evil.ckpt")
    assert not (tmp_path / "executed").exists()
