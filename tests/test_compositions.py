import pytest
import torch
from torch import nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCohenKappa,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassSpecificity,
)

from imago.model.losses import CriterionsComposition, MeanLosses
from imago.model.metrics import MetricsComposition
from imago.wiring import ComposeTransform, RenameTransform, TorchVisionTransform, WrapTransform


def test_steps_see_what_earlier_ones_added():
    double = WrapTransform(lambda x: x * 2, {"a": "x"}, "b")
    add = WrapTransform(lambda x, y: x + y, {"a": "x", "b": "y"}, "c")
    assert ComposeTransform(double=double, off=None, add=add)({"a": 1}) == {"a": 1, "b": 2, "c": 3}


def test_a_wrapped_callable_without_a_key_returns_a_dictionary():
    assert WrapTransform(lambda x: {"y": x + 1}, {"a": "x"})({"a": 1}) == {"y": 2}


def test_rename_and_torchvision():
    assert RenameTransform({"image": "input"})({"image": 5, "label": 1}) == {"input": 5}
    assert TorchVisionTransform(lambda x: -x, "image")({"image": 5}) == {"image": -5}


def test_a_missing_key_is_named_with_those_that_are_there():
    with pytest.raises(KeyError, match="no pixels; it has image, label"):
        WrapTransform(abs, {"pixels": "x"}, "y")({"image": 1, "label": 2})


def test_a_step_is_named_with_the_closest_key():
    steps = ComposeTransform(double=WrapTransform(lambda x: x * 2, {"imge": "x"}, "b"))
    with pytest.raises(KeyError, match=r"^double: The batch has no imge; it has image. Did you mean image\?$"):
        steps({"image": 1})
    with pytest.raises(ValueError, match="odd returns a int. A transform of batches returns a dictionary"):
        ComposeTransform(odd=lambda batch: 3)({"image": 1})
    with pytest.raises(ValueError, match="logits: Linear.forward takes input, but is called with x"):
        ComposeTransform(logits=WrapTransform("net", {"image": "x"}, "logits")).bind(nn.Linear(2, 2))


def test_a_mapping_that_is_turned_round_is_said():
    with pytest.raises(KeyError, match=r"Did you mean image\?"):
        RenameTransform({"imag": "image"})({"image": 1})  # a typo, not a reversed mapping
    with pytest.raises(KeyError, match=r"batch key to argument. Reversed, it would be {image: x}"):
        WrapTransform(abs, {"x": "image"}, "y")({"image": 1})
    criterions = CriterionsComposition(
        {"ce": nn.CrossEntropyLoss()}, mapping={"ce": {"input": "logits", "target": "label"}}
    )
    with pytest.raises(KeyError, match="{logits: input, label: target}"):
        criterions(BATCH)


def test_steps_may_be_given_without_names():
    double = WrapTransform(lambda x: x * 2, {"a": "x"}, "b")
    assert ComposeTransform(double, None, RenameTransform({"b": "c"}))({"a": 1}) == {"a": 1, "b": 2, "c": 2}


def test_weights_of_wrapped_modules_are_parameters_and_the_bound_net_is_saved_by_its_owner():
    net = nn.Linear(2, 2)
    composed = ComposeTransform(
        own=WrapTransform(nn.Linear(2, 2), {"x": "input"}, "x"),
        inner=ComposeTransform(net=WrapTransform("net", {"x": "input"}, "logits")),
    )
    composed.bind(net)
    assert set(composed.state_dict()) == {"registered.0.transform.weight", "registered.0.transform.bias"}
    assert composed({"x": torch.ones(1, 2)})["logits"].shape == (1, 2)
    with pytest.raises(ValueError, match="'net' for the network"):
        WrapTransform("backbone", {"x": "x"}, "y")


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
BATCH = {"logits": LOGITS, "label": torch.tensor([0, 1, 1]), "soft": torch.tensor([[1.0, 0.0]] * 3)}


def test_the_total_is_the_weighted_sum():
    losses = CriterionsComposition(
        {"ce": nn.CrossEntropyLoss(), "mse": nn.MSELoss(), "off": None},
        weights={"mse": 0.5},
        mapping={"mse": {"logits": "input", "soft": "target"}},
    )(BATCH)
    ce = nn.functional.cross_entropy(LOGITS, BATCH["label"])
    mse = nn.functional.mse_loss(LOGITS, BATCH["soft"])
    assert set(losses) == {"ce", "mse", "total"}
    torch.testing.assert_close(losses["total"], ce + 0.5 * mse)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"model.criterions.weights names cee, but the criterions are ce\. Did you mean ce"
    ):
        CriterionsComposition({"ce": nn.CrossEntropyLoss()}, weights={"cee": 1})
    with pytest.raises(ValueError, match="at least one criterion"):
        CriterionsComposition({"ce": None})
    with pytest.raises(ValueError, match="mapping names f2, but the metrics are f1"):
        MetricsComposition({"f1": MulticlassF1Score(2)}, mapping={"f2": {}})


COUNTED = {
    "micro": MulticlassAccuracy(4, average="micro"),
    "macro": MulticlassAccuracy(4, average="macro"),
    "weighted": MulticlassPrecision(4, average="weighted"),
    "recall": MulticlassRecall(4, average=None),
    "f1": MulticlassF1Score(4, average="macro"),
    "specificity": MulticlassSpecificity(4),
    "mcc": MulticlassMatthewsCorrCoef(4),
    "kappa": MulticlassCohenKappa(4),
    "matrix": MulticlassConfusionMatrix(4, normalize="true"),
}
NOT_COUNTED = {
    "top2": MulticlassAccuracy(4, top_k=2),
    "ignoring": MulticlassF1Score(4, ignore_index=0),
    "auroc": MulticlassAUROC(4),
}


def four_classes(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, 4, generator=generator)
    labels = torch.randint(3, (20,), generator=generator)  # a class without images, too
    return {"logits": logits, "label": labels, "prediction": logits.argmax(dim=1)}


def of_four_classes() -> MetricsComposition:
    return MetricsComposition({name: metric.clone() for name, metric in (COUNTED | NOT_COUNTED).items()}, num_classes=4)


@pytest.mark.filterwarnings("ignore:No positive samples", "ignore:.*NaN values found")
def test_metrics_made_from_one_count_are_those_of_torchmetrics():
    metrics = of_four_classes()
    assert set(metrics.counted) == set(COUNTED)
    alone = {name: metric.clone() for name, metric in (COUNTED | NOT_COUNTED).items()}
    for epoch in range(2):
        for seed in range(3):
            batch = four_classes(10 * epoch + seed)
            metrics.update(batch)
            for metric in alone.values():
                metric.update(batch["logits"], batch["label"])
            for name, value in metrics.compute().items():  # in the middle of an epoch, too
                assert torch.equal(value, alone[name].compute()), name
        metrics.reset()
        for metric in alone.values():
            metric.reset()


@pytest.mark.filterwarnings("ignore:No positive samples", "ignore:.*NaN values found")
def test_what_metrics_have_counted_can_be_kept_and_taken_up():
    whole, first, second = (of_four_classes() for _ in range(3))
    for seed in range(4):
        whole.update(four_classes(seed))
        (first if seed < 2 else second).update(four_classes(seed))
        if seed == 1:
            second.load_state(first.state())
    for name, value in whole.compute().items():
        assert torch.equal(value, second.compute()[name]), name


def test_mean_losses_weigh_batches_by_their_samples():
    means = MeanLosses(["ce", "total"])
    means.update({"ce": torch.tensor(1.0), "total": torch.tensor(2.0)}, 3)
    means.update({"ce": torch.tensor(5.0), "total": torch.tensor(6.0)}, 1)
    assert {name: float(value) for name, value in means.compute().items()} == {"ce": 2.0, "total": 3.0}


def test_metrics_read_their_own_keys():
    metrics = MetricsComposition(
        {"acc": MulticlassAccuracy(2, average="micro"), "swapped": MulticlassAccuracy(2, average="micro")},
        mapping={"swapped": {"other": "preds", "label": "target"}},
        prefix="val/",
    )
    metrics.update(BATCH | {"other": 1 - BATCH["label"]})
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx({"val/acc": 2 / 3, "val/swapped": 0.0})
