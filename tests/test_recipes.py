"""Recipes: plain settings by the size of the data, which give way to what is typed."""

import pytest
from omegaconf import DictConfig, OmegaConf

import imago
from imago.config.recipe import TrainFacts, choose_recipe


@pytest.mark.quick
@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ((244, 121, True, 224), "244 images, rarest class 121: recipe=small"),
        ((199, 90, True, 224), "199 images, rarest class 90: recipe=head"),
        ((3000, 9, True, 224), "3000 images, rarest class 9: recipe=head"),
        ((2000, 10, True, 224), "2000 images, rarest class 10: recipe=medium"),
        ((20_000, 500, True, 224), "20000 images, rarest class 500: recipe=large"),
        ((20_000, 500, False, 224), "20000 images, rarest class 500, no pretrained weights: recipe=scratch"),
        ((1300, 100, True, 16), "images of 16 pixels, no photographs: recipe=none"),
    ],
)
def test_the_data_and_the_weights_choose_the_recipe(facts, line):
    assert choose_recipe(TrainFacts(*facts)) == (line.rpartition("=")[2], line)


def loaded(*words: str) -> DictConfig:
    return imago.load_config("model=resnet18", "data.data_dir=PATH", *words)


def test_what_is_typed_or_in_an_experiment_wins():
    plain, none = loaded(), loaded("recipe=none")
    assert OmegaConf.to_container(plain) == OmegaConf.to_container(none) | {
        "name": plain.name
    }  # before the data are read
    small = loaded("recipe=small")
    assert (small.model.optimizer.lr, small.model.layer_decay, small.trainer.max_epochs) == (0.0001, 0.75, 12)
    typed = loaded("recipe=small", "model.optimizer.lr=0.5", "trainer.max_epochs=3", "model.layer_decay=null")
    assert (typed.model.optimizer.lr, typed.model.layer_decay, typed.model.head_lr) == (0.5, None, 0.001)
    assert typed.trainer.max_epochs == 3
    medium = loaded("recipe=medium", "trainer.max_epochs=3")
    assert (medium.trainer.max_epochs, medium.trainer.max_steps) == (3, -1)  # epochs take the place of steps
    assert loaded("recipe=medium", "trainer.max_steps=7").trainer.max_steps == 7
    ants = imago.load_config("experiment=resnet18_ants", "recipe=scratch")
    assert (ants.model.scheduler._target_, ants.trainer.max_epochs) == ("torch.optim.lr_scheduler.StepLR", 25)
    assert "ema" in loaded("recipe=large").callbacks
    assert "ema" not in loaded("recipe=large", "callbacks=none").callbacks
    assert loaded("recipe=scratch", "model/scheduler=step").model.scheduler.step_size == 7


def test_auto_becomes_the_plain_settings_of_its_choice(train, command, trained):
    run = train("recipe=auto", "data.image_size=64", "trainer.max_epochs=1", "test=false")
    assert run.exit_code == 0, run.output
    assert "39 images, rarest class 12, no pretrained weights: recipe=scratch" in run.output
    assert "recipe: scratch\n" in run.text(".hydra/hydra.yaml")
    assert "_target_: torch.optim.lr_scheduler.OneCycleLR" in run.text("config.yaml")
    resumed = command("train", f"resume={run.dir}", "trainer.max_epochs=2", "test=false", folder=run.dir)
    assert "Settings changed since the run began: trainer.max_epochs 1 -> 2\n" in resumed.output
    refused = command("train", f"resume={run.dir}", "recipe=small", folder=run.dir)
    assert "uses the settings of that run: remove recipe=" in refused.output
    start = [f"model.init_from={trained.dir}", "data.image_size=64"]
    head = train("recipe=auto", *start, "model.probe=false")
    assert "39 images, rarest class 12: recipe=head" in head.output
    assert "recipe=head and model.probe: the recipe is model.probe=only" in head.output


def test_a_recipe_trains_its_steps_with_groups_augmentation_and_an_average(train, trained):
    run = train("recipe=large", f"model.init_from={trained.dir}", "trainer.max_epochs=-1", "trainer.max_steps=7")
    assert run.exit_code == 0, run.output
    assert run.json("status.json")["step"] == 7
    assert "val/acc" in run.history[-1]  # also within an epoch, the last steps are validated and can be the best
    checkpoint = run.checkpoint()
    assert {group["name"] for group in checkpoint["optimizer_states"][0]["param_groups"]} >= {"head", "depth_02"}
    assert "current_model_state" in checkpoint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=small", "model.freeze=backbone"], "model.freeze and the recipe contradict each other"),
        (["recipe=small"], "recipe=small (model.freeze_batch_norm=true) needs pretrained weights: TinyNet starts from"),
        (["recipe=head"], "network of torchvision, or recipe=scratch"),
        (["recipe=auto", "strategy=dp", "model.norm=null"], "strategy=dp and recipe=auto: the choice would depend"),
        (["recipe=auto", "data.data_dir=/nowhere"], "data.data_dir=/nowhere does not exist"),
        (["recipe=auto", "data.batchsize=3"], "data.batch_size"),
    ],
)
def test_what_a_recipe_cannot_be_combined_with(train, words, message):
    run = train(*words)
    assert run.exit_code == 1
    assert message in run.output
    assert not run.dir.exists()


def test_a_recipe_for_other_weights_and_steps_that_epochs_replace_are_noted(train):
    words = ["trainer.max_epochs=1", "test=false", "preflight=only", "data.image_size=16"]
    large = train("recipe=large", *words)
    assert (
        "recipe=large is for pretrained weights, and TinyNet starts from scratch. Type recipe=scratch" in large.output
    )
    assert "trainer.max_epochs=1 takes the place of the recipe's trainer.max_steps=10000" in large.output
