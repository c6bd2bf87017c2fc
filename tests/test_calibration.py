import json
import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from imago.evaluation.calibration import Answers, Calibration, Wanted, describe_calibration, fit
from imago.evaluation.calibration_file import read, write
from imago.evaluation.temperature import expected_calibration_error, reliability


def answers(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities that are `sharpness` times as sure as they should be, and labels drawn from the true ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (n, 4))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(4, p=row) for row in true])
    logits = logits * sharpness
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), labels


def fitted(logs: np.ndarray, labels: np.ndarray, target: float = 0.9, coverage: float = 0.9) -> Calibration:
    return fit(Answers(logs, labels), None, Wanted(target, 0.95, coverage), "data", "now")


@pytest.mark.quick
def test_the_calibration_error_of_a_hand_made_case():
    logs = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]))
    bins = reliability(logs, np.array([0, 0, 0, 1]), bins=10)
    assert [(each.n, round(each.confidence, 6), each.accuracy) for each in bins] == [(2, 0.6, 0.5), (2, 0.9, 1.0)]
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_was_done(sharpness):
    logs, labels = answers(20000, sharpness)
    calibration = fitted(logs, labels)
    assert calibration.temperature == pytest.approx(sharpness, rel=0.05)
    other, its_labels = answers(20000, sharpness, seed=1)
    calibrated = calibration.apply(other)
    assert np.exp(calibrated).sum(axis=1) == pytest.approx(1)
    assert expected_calibration_error(reliability(calibrated, its_labels)) < 0.02
    assert log_loss(its_labels, np.exp(calibrated)) <= log_loss(its_labels, np.exp(other)) + 1e-3


@pytest.mark.parametrize("mistakes", [0, 3])
def test_a_val_without_mistakes_makes_nobody_surer(mistakes):
    """The temperature with the least cross-entropy would be 0.05, and that of test would go from 0.05 to 0.63."""
    logs, labels = answers(300, 1.0)
    logs = np.log(0.97 * np.eye(4)[labels] + 0.0075)
    labels[:mistakes] = (labels[:mistakes] + 1) % 4
    calibration = fitted(logs, labels)
    assert calibration.temperature == 1.0
    assert f"{mistakes} mistakes on 300 images are too few" in (calibration.why_not or "")
    assert (calibration.apply(logs) == logs).all() or np.allclose(calibration.apply(logs), logs)


def test_a_temperature_that_does_not_help_on_other_images_is_not_taken():
    for seed in range(20):
        logs, labels = answers(60, 1.0, seed)
        calibration = fitted(logs, labels)
        held = calibration.held_out
        helps = held["cross_entropy_after"] < held["cross_entropy_before"]
        assert (calibration.temperature != 1.0) == helps == (calibration.why_not is None)
    hopeless = np.log(np.full((100, 4), 0.25)), np.arange(100) % 4
    assert fitted(*hopeless).temperature == 1.0


def test_the_estimated_threshold_is_about_right_on_many_images():
    calibration = fitted(*answers(20000, 2.0), target=0.95)
    logs, labels = answers(20000, 2.0, seed=1)
    measured = calibration.measured(logs, labels)
    assert measured["accepted_acc"] == pytest.approx(0.95, abs=0.01)
    assert 0.1 < measured["accepted_share"] < 0.9
    assert measured["accepted_acc"] > (logs.argmax(axis=1) == labels).mean() + 0.05


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_the_conformal_sets_hold_the_true_class_as_often_as_they_should(coverage):
    calibration = fitted(*answers(5000, 2.0), coverage=coverage)
    logs, labels = answers(20000, 2.0, seed=1)
    measured = calibration.measured(logs, labels)
    assert measured["set_coverage"] == pytest.approx(coverage, abs=0.02)
    assert 1 <= measured["set_size"] <= 4


def test_too_few_images_give_whole_sets_and_an_unreachable_target_no_answers():
    logs = np.log(np.array([[0.9, 0.1], [0.8, 0.2]]))
    calibration = fitted(logs, np.array([1, 1]), coverage=0.95)
    assert calibration.set_thresholds == [0.0, 0.0]
    assert calibration.threshold is None
    assert calibration.sets(calibration.apply(logs)).all()
    assert not calibration.accepts(calibration.apply(logs)).any()
    assert "all images flagged for review" in describe_calibration(calibration.measured(logs, np.array([1, 1])))


def test_words_and_file(tmp_path, caplog):
    measured = {"accepted_acc": 0.991, "accepted_share": 0.82, "temperature": 1.0, "threshold": 0.9}
    assert describe_calibration(measured) == "99.1% right on the 82% accepted, 18% flagged for review"
    measured |= {"cross_entropy_before": 0.4, "cross_entropy": 0.3, "temperature": 1.5}
    assert describe_calibration(measured) == (
        "cross-entropy 0.4000 -> 0.3000; 99.1% right on the 82% accepted, 18% flagged for review"
    )
    worse = describe_calibration(measured | {"cross_entropy": 0.63})
    assert worse.startswith("cross-entropy 0.4000 -> 0.6300, worse than without the temperature; ")
    logs, labels = answers(100, 1.0)
    assert fitted(logs, labels).measured(logs, labels)["cross_entropy_before"] == pytest.approx(
        log_loss(labels, np.exp(logs))
    )
    calibration = fitted(np.log(0.97 * np.eye(4)[labels] + 0.0075), labels)
    write(calibration, tmp_path / "best.calibration.json")
    assert read(tmp_path / "best.calibration.json", "now", 4) == calibration
    assert "leaves the probabilities as they are (temperature 1): 0 mistakes on 100 images are too few" in caplog.text
    with pytest.raises(ValueError, match="was fitted for another checkpoint"):
        read(tmp_path / "best.calibration.json", "later", 4)
    with pytest.raises(ValueError, match=r"ml-eval ckpt_path=.*other\.ckpt calibrate=true"):
        read(tmp_path / "other.calibration.json", "now", 4)
    for edited in ({"temperature": -1}, {"temperature": math.nan}, {"threshold": 2}, {"set_thresholds": [0.5]}):
        content = json.loads((tmp_path / "best.calibration.json").read_text()) | edited
        (tmp_path / "edited.calibration.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="is damaged"):
            read(tmp_path / "edited.calibration.json", "now", 4)
    (tmp_path / "former.calibration.json").write_text(json.dumps({"temperature": 1.0, "quantile": 0.3}))
    with pytest.raises(ValueError, match=r"earlier Imago, whose threshold promises nothing. To fit it: ml-eval ckpt_p"):
        read(tmp_path / "former.calibration.json", "now", 4)
    (tmp_path / "bad.calibration.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a calibration"):
        read(tmp_path / "bad.calibration.json", "now", 4)


def test_log_probabilities_of_zero_do_no_harm():
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.4, 0.6]]))
    calibration = fitted(logs, np.array([0, 1, 1, 0]))
    assert math.isfinite(calibration.temperature)
