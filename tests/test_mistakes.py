"""Command lines that cannot be composed, beyond those of docs/errors.md; and some that a check must not refuse."""

import pytest
from helpers import SMALL


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name='${nope}'"], "${nope} refers to an unknown setting: nope"),
        (["name='${oc.env:NOT_SET_HERE}'"], "The environment variable NOT_SET_HERE is not set"),
        (["+trainer.max_epochs=3"], "trainer.max_epochs already exists: remove the +"),
        (["experiment", "digits"], '"experiment digits" is not KEY=VALUE. Type experiment=digits'),
        (["data.data_dir=/a", "b/c"], "\"data.data_dir='/a b/c'\""),
        (["hydra.run.dirr=x"], "Unknown setting hydra.run.dirr (command line)."),
        (["deterministic=maybe"], "deterministic must be true or false, got maybe."),
        (["seed=1,2"], "seed=1,2: a comma separates the values of a sweep."),
        (["experiment=digits", "-cn", "train", "seed=x"], "seed must be a whole number, got x."),
        (
            ["model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}"],
            "To replace all settings of a group, type ++model.scheduler={…}",
        ),
    ],
)
def test_what_cannot_be_composed_is_explained(command, words, message):
    run = command("train", *words)
    assert run.exit_code == 1
    assert message in run.last_line + run.output
    assert "object_type" not in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.data_dir="], "No data was chosen"),
        (["report.splits=test"], "report.splits must be a list, for example 'report.splits=[test]'; got test."),
        (["+nonsense.thing=3"], "Unknown setting nonsense. The top-level settings are data, model"),
        (["+trainer.logger=false"], "trainer.logger is not supported: loggers have a config group. Type logger=csv"),
        (["+trainer.callbacks=[]"], "trainer.callbacks is not supported: callbacks have a config group."),
        (
            ["+model.criterions.criterions.ce.weight=[1,2]"],
            "ce.weight must be a group with a _target_ or null, got [1, 2].",
        ),
        (["~strategy"], "strategy is missing. Remove ~strategy"),
        (["model.optimizer=sgd"], "model.optimizer holds several settings."),
        (["model.scheduler=sine"], "model.scheduler holds several settings."),
    ],
)
def test_what_hydra_lets_through_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.error


@pytest.mark.parametrize(
    "words",
    [
        ["+data.train_transform.pixels.turn={_target_: torchvision.transforms.v2.RandomRotation, degrees: 15}"],
        ["+data.train_transform.pixels.erase={_target_: torchvision.transforms.v2.RandomErasing, value: random}"],
        ["model.scheduler._target_=torch.optim.lr_scheduler.PolynomialLR"],
        ["++model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}"],
        ["model.optimizer._target_=torch.optim.Adagrad"],
        ["+trainer.plugins=[]", "+trainer.inference_mode=false"],
        ["trainer.deterministic=warn", "trainer.limit_val_batches=2", "trainer.precision=bf16-mixed"],
    ],
)
def test_what_works_is_not_refused(train, words):
    run = train(*words, "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output


HEADER = "# @package _global_\n"
FILES = {
    "data: {image_size: 3}\n": "needs its package: the first line of an experiment must be",
    f"# mine\n{HEADER}data: {{image_size: 3}}\nnonsense: 1\n": "needs its package",
    f"{HEADER}callbacks:\n  early_stoping: {{patience: 1}}\n": "odd.yaml, line 3). Did you mean "
    "callbacks.early_stopping?",
    f"{HEADER}logger:\n  wandb: {{tags: [a]}}\n": "odd.yaml, line 3). Add logger=wandb",
    f"{HEADER}data: {{train_transform: {{pixels: {{colour: {{brightness: 2}}}}}}}}\n": "pixels.colour has no _target_",
    f"{HEADER}data:\n\timage_size: 3\n": "line 3, column 1 is not valid YAML: found character",
    f"{HEADER}model:\n  optimizer:\n    _partial_: false\n": "model.optimizer needs _partial_: true",
    f"{HEADER}model: {{net: null}}\n": "odd.yaml, line 2). Choose a network, for example model=resnet18",
    f"{HEADER}seed: 1\nseed: 2\n": "line 3, column 1 is not valid YAML: found duplicate key seed",
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_mistakes_in_files_are_said_with_their_place(command, colours, tmp_path, monkeypatch, text, message):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "odd.yaml").write_text(text)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    run = command("train", f"--config-dir={tmp_path}/mine", "experiment=odd", f"data.data_dir={colours}", *SMALL)
    assert run.exit_code == 1
    assert message in run.output
    assert "odd.yaml" in run.output
    assert "Traceback" not in run.output
