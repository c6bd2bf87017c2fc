"""Losses besides the cross-entropy: their values, and their effect on a training."""

import pytest
import torch
from helpers import draw_classes, rows, same
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from imago.definitions import PARTNER_LABEL, SHARE
from imago.errors import UserError
from imago.model.class_losses import FocalLoss, LogitAdjustedLoss, OneVsAllLoss
from imago.model.losses import CriterionsComposition
from imago.training.class_frequencies import frequency_weights

torch.manual_seed(0)
LOGITS, LABELS = torch.randn(6, 4) * 3, torch.tensor([0, 1, 2, 3, 0, 1])
LOSSES = {
    "focal": FocalLoss(),
    "bce": OneVsAllLoss(label_smoothing=0.1),
    "adjusted": LogitAdjustedLoss([50, 20, 5, 1]),
}


@pytest.mark.quick
def test_values_are_those_of_the_formulas():
    p = LOGITS.softmax(dim=1)[torch.arange(6), LABELS]
    assert torch.allclose(FocalLoss(gamma=1.5)(LOGITS, LABELS), ((1 - p) ** 1.5 * -p.log()).mean())
    targets = one_hot(LABELS, 4) * 0.9 + 0.1 / 4
    theirs = binary_cross_entropy_with_logits(LOGITS, targets, reduction="none").sum(dim=1).mean()
    assert torch.allclose(LOSSES["bce"](LOGITS, LABELS), theirs)
    prior = torch.tensor([50, 20, 5, 1]) / 76
    assert torch.allclose(LOSSES["adjusted"](LOGITS, LABELS), cross_entropy(LOGITS + prior.log(), LABELS))
    for loss in (FocalLoss(gamma=0), LogitAdjustedLoss([3, 1, 1, 1], tau=0)):
        assert torch.allclose(loss(LOGITS, LABELS), cross_entropy(LOGITS, LABELS))


@pytest.mark.quick
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_of_a_certain_image_has_finite_gradients(gamma):
    logits = torch.tensor([[200.0, 0.0], [30.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    FocalLoss(gamma)(logits, torch.zeros(3, dtype=torch.int64)).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[2, 0] < -0.3


@pytest.mark.quick
@pytest.mark.parametrize("name", LOSSES)
def test_mixed_images_and_class_weights_count_as_in_the_cross_entropy(name):
    loss, partner, weights = LOSSES[name], LABELS.roll(1), torch.tensor([1.0, 2.0, 5.0, 0.5])
    criterions = CriterionsComposition({name: loss, "ce": nn.CrossEntropyLoss()}, weights={name: 0.5})
    criterions.class_weights = weights
    mixed = criterions({"logits": LOGITS, "label": LABELS, PARTNER_LABEL: partner, SHARE: 0.7})
    values = {
        labels: (loss.per_image(LOGITS, target) * weights[target]).mean()
        for labels, target in (("own", LABELS), ("partner", partner))
    }
    assert torch.allclose(mixed[name], 0.7 * values["own"] + 0.3 * values["partner"])
    assert torch.allclose(mixed["total"], 0.5 * mixed[name] + mixed["ce"])


def test_effective_numbers_lie_between_equal_weights_and_inverse_frequencies():
    counts = {"rare": 10, "common": 5000}
    inverse, effective = (frequency_weights(counts, rule) for rule in ("auto", "effective"))
    for weights in (inverse, effective):
        assert sum(weights[name] * counts[name] for name in counts) / 5010 == pytest.approx(1, rel=1e-4)
    ratios = [weights["rare"] / weights["common"] for weights in (effective, inverse)]
    assert 1 < ratios[0] < ratios[1] == pytest.approx(500, rel=1e-3)


@pytest.mark.quick
def test_impossible_values_are_refused():
    for make, words in (
        (lambda: FocalLoss(-1), "gamma must be 0 or more, got -1"),
        (lambda: OneVsAllLoss(1.0), "label_smoothing must be 0 or more and below 1"),
        (lambda: LogitAdjustedLoss(), "got auto"),
        (lambda: LogitAdjustedLoss([3, 0]), "must be above 0"),
        (lambda: LogitAdjustedLoss([3, 1])(LOGITS, LABELS), "has 2 numbers for 4 classes"),
    ):
        with pytest.raises(UserError, match=words):
            make()


def test_adjusted_logits_answer_rare_classes_more_often_and_carry_their_counts(train, command, tmp_path):
    folder = draw_classes(tmp_path / "rare" / "train", {"blue": 40, "red": 4}).parent
    draw_classes(folder / "val", {"blue": 8, "red": 8}, seed=1)
    words = (f"data.data_dir={folder}", "model.class_weights=null")
    plain, run = train(*words), train(*words, "model/criterions=logit_adjusted")
    assert "class_counts=auto: blue 40, red 4" in run.output
    rare = [sum(float(row["prob_red"]) for row in rows(r, "test")) for r in (plain, run)]
    assert rare[1] > rare[0] * 1.05
    scored = command("eval", f"ckpt_path={run.dir}")
    assert scored.json("reports/metrics_test.json") == run.json("reports/metrics_test.json")
    assert "- 40\n" in run.checkpoint()["imago"]["config"]
    part = train(*words, "model/criterions=logit_adjusted", "trainer.max_epochs=1", "model.scheduler=null")
    again = command("train", f"resume={part.dir}", "trainer.max_epochs=2", folder=part.dir)
    whole = train(*words, "model/criterions=logit_adjusted", "model.scheduler=null")
    assert same(again.weights(), whole.weights())


def test_each_loss_trains_and_what_it_cannot_be_combined_with_is_refused(train):
    values = {}
    for name in ("cross_entropy", "focal", "one_vs_all"):
        run = train(f"model/criterions={name}", "model.class_weights=effective", "trainer.max_epochs=1")
        assert run.exit_code == 0, run.output
        values[name] = run.history[-1]["train/loss"]
    assert values["focal"] < values["cross_entropy"] < values["one_vs_all"]
    run = train("model/criterions=focal", "recipe=scratch")
    assert "'~model.criterions.criterions.ce', or recipe=none" in run.error
    run = train("model/criterions=logit_adjusted", "strategy=dp", "model.norm=group")
    assert "strategy=dp and a loss with class_counts=auto" in run.error
