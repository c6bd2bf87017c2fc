"""Command lines that cannot be composed, beyond those of docs/errors.md; and some that a check must not refuse."""

import pytest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["name='${nope}'"], "${nope}: there is no setting nope to take a value from"),
        (["name='${oc.env:NOT_SET_HERE}'"], "The environment variable NOT_SET_HERE is not set"),
        (["+trainer.max_epochs=3"], "trainer.max_epochs is there already: leave out the +"),
        (["experiment", "digits"], "experiment is no override: type KEY=VALUE. Did you mean experiment=digits?"),
        (["data.data_dir=/a", "b/c"], "\"data.data_dir='/a b/c'\""),
        (["hydra.run.dirr=x"], "hydra.run.dirr is no setting (typed)."),
        (["deterministic=maybe"], "deterministic=maybe: give true or false."),
        (["seed=1,2"], "seed=1,2: a comma separates the values of a sweep."),
        (["experiment=digits", "-cn", "train", "seed=x"], "seed=x: give a whole number."),
        (
            ["model.scheduler={_target_: torch.optim.lr_scheduler.OneCycleLR, max_lr: 0.1}"],
            "To replace a node by one with other keys, type ++model.scheduler={…}",
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
        (["data.data_dir="], "No data is chosen"),
        (["report.splits=test"], "report.splits=test: give a list, 'report.splits=[test]' for example."),
        (["+optimizer.lr=3"], "optimizer is no setting; at the root there are data, model"),
        (["+trainer.logger=false"], "trainer.logger: loggers are a group of their own. Type logger=csv"),
        (["+trainer.callbacks=[]"], "trainer.callbacks: callbacks are a group of their own."),
        (["+model.criterions.criterions.ce.weight=[1,2]"], "ce.weight=[1, 2]: give a node with _target_, or null."),
        (["~strategy"], "strategy is missing: leave ~strategy out"),
    ],
)
def test_what_hydra_lets_through_is_refused(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.json("status.json")["error"]


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
