"""`budget=`: a run ends in time, with its schedule, and goes on to the same bits."""

import time
from types import SimpleNamespace

import pytest
from helpers import SMALL, same

from imago.callbacks.time_budget import Costs, Plan, seconds_of, steps_within

WORDS = [word for word in SMALL if not word.startswith("trainer.max_epochs")]
PLAN = "TimeBudget"


@pytest.fixture
def steady_clock(monkeypatch):
    """A machine on which each look at the clock takes a second, whatever else is running."""
    looks = [time.monotonic()]

    def monotonic() -> float:
        looks.append(looks[-1] + 1)
        return looks[-1]

    monkeypatch.setattr("imago.callbacks.time_budget.time", SimpleNamespace(monotonic=monotonic))


@pytest.fixture
def budgeted(command, colours):
    return lambda *words, **where: command("train", f"data.data_dir={colours}", *WORDS, *words, **where)


def state_of(run) -> dict:
    return next(state for name, state in run.checkpoint()["callbacks"].items() if name.startswith(PLAN))


@pytest.mark.usefixtures("steady_clock")
def test_a_run_ends_in_time_with_its_schedule_and_is_resumed_with_its_plan(budgeted, command, tmp_path):
    to = tmp_path / "snapshots"
    watch = ["+callbacks.snapshots._target_=snapshots.Snapshots", f"+callbacks.snapshots.to={to}"]
    whole = budgeted("budget=100s", "callbacks.resume.every_n_train_steps=1", *watch)
    assert whole.exit_code == 0, whole.output
    assert "budget=100s decides when the run ends, in place of trainer.max_epochs=10" in whole.output
    last, plan = whole.checkpoint(), state_of(whole)["plan"]
    assert last["global_step"] == plan["total"] > 5
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 1e-6  # annealed to its end
    assert whole.json("status.json")["reason"].startswith("the time budget is used after")
    assert 50 < whole.json("status.json")["budget"]["used"] <= 105
    folders = sorted(to.iterdir())
    folder = folders[-3]
    resumed = command("train", f"resume={folder}", "callbacks.snapshots=null", folder=folder)
    assert resumed.exit_code == 0, resumed.output
    assert state_of(resumed)["plan"] == plan
    assert same(resumed.weights(), whole.weights())
    again = command("train", f"resume={folder}", "callbacks.snapshots=null", folder=folder)
    assert "Its time was used. For more time type" in again.output
    (folder / "status.json").write_text(
        resumed.text("status.json").replace('"completed"', '"running"')
    )  # killed in scoring
    scored = command("train", f"resume={folder}", "callbacks.snapshots=null", folder=folder)
    assert scored.exit_code == 0, scored.output
    assert scored.history == whole.history
    assert same(scored.weights(), whole.weights())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["budget=soon"], "budget must be the time that the run may take, or null; got soon. Type a time such as 90s"),
        (["budget=5s"], "budget=5s: a run takes about"),
        (["budget=10m", "trainer.max_epochs=3"], "budget= chooses the number of epochs. Remove trainer.max_epochs"),
        (["budget=10m", "trainer.max_time=00:01:00:00"], "budget= and trainer.max_time"),
        (["budget=10m", "model/scheduler=step"], "StepLR here has steps of its own. Type model/scheduler=cosine"),
        (["budget=10m", "train=false"], "budget= and train=false: nothing is trained"),
        (["budget=10m", "callbacks=[default,ema]", "callbacks.ema.start=0.5"], "budget= and callbacks.ema.start"),
        (["budget=10m", "model.probe=only"], "budget= and model.probe=only"),
    ],
)
def test_what_contradicts_a_budget_is_refused(budgeted, words, message):
    refused = budgeted(*words)
    assert (refused.exit_code, message in refused.error) == (1, True), refused.error


def test_a_plan_takes_the_time_that_there_is():
    costs = Costs(step=1.0, epoch=5.0)
    for seconds, position in ((7.0, 0), (14.0, 3), (100.0, 0), (101.5, 7), (116.0, 9), (3.0, 0)):
        steps = steps_within(seconds, costs, 10, position)
        assert seconds_of(steps, costs, 10, position) <= seconds or steps == 0
        assert seconds_of(steps + 6, costs, 10, position) > seconds
    first = Plan(step=10, done=0.05, total=110)
    later = Plan(step=60, done=first.progress(60), total=80)  # the pace has halved
    assert later.progress(60) == first.progress(60) == pytest.approx(0.525)
    assert (later.progress(70), later.progress(80)) == (pytest.approx(0.7625), 1.0)
