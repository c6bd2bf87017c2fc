"""Averages of weights: of the epochs of a run, and which of them a checkpoint holds."""

from pathlib import Path

import pytest
import torch

from imago.exporting.soup import Ingredient, greedy


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


def ingredient(name: str, value: float, accuracy: float) -> Ingredient:
    return Ingredient(Path(name), {"state_dict": {"w": torch.tensor([value]), "n": torch.tensor(7)}}, accuracy)


@pytest.mark.quick
def test_a_soup_keeps_what_val_does_not_lose_by():
    parts = [ingredient("a", 1.0, 0.7), ingredient("b", 3.0, 0.9), ingredient("c", 50.0, 0.8)]
    kept, weights, best = greedy(parts, lambda state: 0.95 if state["w"] == 2 else 0.1)
    assert ([str(one.file) for one in kept], best) == (["b", "a"], 0.95)
    assert weights == {"w": torch.tensor([2.0]), "n": torch.tensor(7)}
    kept, weights, best = greedy(parts, lambda state: 0.2)
    assert ([str(one.file) for one in kept], float(weights["w"]), best) == (["b"], 3.0, 0.9)


def test_a_soup_is_a_checkpoint_that_says_what_is_in_it(train, command, trained):
    other = train(f"model.init_from={trained.dir}", "trainer.max_epochs=1", "report.splits=[val]", "seed=5")
    soup = command("export", f"ckpt_path={trained.dir}", "format=soup", f"average_of=[{other.dir}]")
    assert soup.exit_code == 0, soup.output
    made = torch.load(soup.dir / "soup.ckpt", weights_only=True)
    parts = [run.weights("best") for run in (trained, other)]
    if "The mean of 2 of 2 checkpoints" in soup.output:
        means = {name: (tensor + parts[1][name]) / 2 for name, tensor in parts[0].items() if tensor.is_floating_point()}
        assert all(torch.allclose(made["state_dict"][name], mean, atol=1e-6) for name, mean in means.items())
        assert made["imago"]["weights"].startswith("the mean of 2 checkpoints (greedy soup): ")
    scored = command("eval", f"ckpt_path={soup.dir}/soup.ckpt", "split=val")
    assert f"accuracy {scored.json('reports/metrics_val.json')['acc']:.4f} on val" in soup.output
    again = train(f"ckpt_path={soup.dir}/soup.ckpt")
    assert "soup.ckpt has weights only" in again.error
    alone = command("export", f"ckpt_path={trained.dir}", "format=soup")
    assert "format=soup and average_of=[RUN,RUN] belong together" in alone.output
