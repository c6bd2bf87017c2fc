"""`ml-visualise mode=explain`: where a network looked."""

import html
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import imago
from imago.errors import UserError
from imago.evaluation.explain import Explainer
from imago.files import write_json

pytest.importorskip("captum")


class Colours(nn.Module):
    """Logit of each class: the mean of its colour over the image. What speaks for a class is where its colour is."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.of_colour = nn.Conv2d(3, classes, 1, bias=False)
        self.of_colour.weight.data = torch.eye(3)[torch.arange(classes) % 3][..., None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.of_colour(images).mean(dim=(2, 3))


def corner(colour: int) -> torch.Tensor:
    """A grey image of 16 pixels with this colour in the lower right quarter."""
    image = torch.full((3, 16, 16), 60, dtype=torch.uint8)
    image[:, 8:, 8:] = 0
    image[colour, 8:, 8:] = 255
    return image


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_a_map_points_to_what_speaks_for_the_answer_and_depends_on_the_weights(trained, method):
    classifier = imago.load_classifier(trained.dir)
    classifier.model.net = Colours(len(classifier.class_names))
    explainer = Explainer(classifier, method)
    for colour in (0, 1):
        values = explainer(corner(colour), colour)
        assert (values.shape, values.min() >= 0, values.max()) == ((16, 16), True, 1)
        assert values[10:, 10:].mean() > 0.9
        assert values[:7].max() < 0.4
    before = explainer(corner(0), 0)
    classifier.model.net.of_colour.weight.data *= -1
    after = explainer(corner(0), 0)
    assert after[10:, 10:].max() < 0.1
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] < 0


def test_networks_without_a_map_are_explained_by_occlusion(trained):
    classifier = imago.load_classifier(trained.dir)
    classifier.model.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, len(classifier.class_names)))
    assert Explainer(classifier).method == "occlusion"
    with pytest.raises(UserError, match="Type method=occlusion"):
        Explainer(classifier, "grad_cam")


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_maps_of_a_trained_network_change_with_random_weights(trained, method):
    classifier = imago.load_classifier(trained.dir)
    explainer = Explainer(classifier, method)
    image = corner(0)
    (answer,) = classifier.forward([image])[1]
    before, mode = explainer(image, answer), classifier.model.training
    assert np.array_equal(before, explainer(image, answer))
    assert before.max() == 1
    torch.manual_seed(0)
    for part in classifier.model.net.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert np.corrcoef(before.ravel(), explainer(image, answer).ravel())[0, 1] < 0.9
    assert classifier.model.training is mode is False


def test_the_report_shows_where_the_network_looked(trained, command, tmp_path):
    run = Path(shutil.copytree(trained.dir, tmp_path / "run"))
    shown = command("visualise", "mode=explain", f"run={run}")
    assert shown.exit_code == 0, shown.output
    assert "Method: grad_cam" in shown.output
    page = html.unescape((run / "report.html").read_text())
    assert "Where the network looked in val" in page
    assert "Grad-CAM: the last map of features" in page
    later = (run / "reports" / "explained_val.json").stat().st_mtime + 1
    os.utime(run / "checkpoints" / "best.ckpt", (later, later))  # by a training that goes on
    assert command("visualise", "mode=report", f"run={run}").exit_code == 0
    assert "Where the network looked" not in (run / "report.html").read_text()
    write_json(run / "reports" / "privacy.json", {})
    private = command("visualise", "mode=explain", f"run={run}")
    assert "Type report.pictures=true to show them" in private.output
    assert private.exit_code == 1
