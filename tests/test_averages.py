"""Averages of weights: of the epochs of a run, and which of them a checkpoint holds."""

import pytest
import torch


def test_swa_is_the_mean_of_the_last_epochs_and_best_ckpt_says_what_it_holds(train, command):
    words = ("model.scheduler=null", "report.splits=[val]", "trainer.max_epochs=4")
    run = train(*words, "callbacks=[default,swa]", "callbacks.swa.start=0.5")
    assert run.exit_code == 0, run.output
    three, four = train(*words, "trainer.max_epochs=3").weights(), train(*words).weights()
    for name, mean in run.weights().items():
        expected = four[name] if name.endswith("num_batches_tracked") else (three[name] + four[name]) / 2
        assert torch.allclose(mean, expected, atol=1e-6), name
    assert all(torch.equal(value, four[name]) for name, value in run.checkpoint()["current_model_state"].items())
    assert (
        run.checkpoint()["imago"]["weights"] == "the mean of the weights after 2 epochs (stochastic weight averaging)"
    )
    best = run.checkpoint("best")["imago"]["weights"]
    assert best in run.text("summary.txt")
    scored = command("eval", f"ckpt_path={run.dir}/checkpoints/last.ckpt", "split=val")
    assert "last.ckpt has the mean of the weights after 2 epochs" in scored.output
    assert scored.json("reports/metrics_val.json")["loss"] == pytest.approx(run.history[-1]["val/loss"], rel=1e-6)
    both = train("callbacks=[default,ema,swa]")
    assert "Two callbacks average weights" in both.error
