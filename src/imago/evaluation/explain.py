"""Where a network looks: which places of an image speak for an answer.

Grad-CAM (Selvaraju et al., ICCV 2017) and occlusion (Zeiler & Fergus, ECCV 2014), both by Captum.
"""

import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imago.data.crops import pair
from imago.errors import MissingModuleError, UserError
from imago.evaluation.classifier import Classifier

WINDOWS = 7  # along each side, of occlusion
AT_A_TIME = 32  # images of which a part is covered
LEAST_SIDE = 4  # of a map that tells places apart
MOST_BEHIND = 3  # layers with weights between the map of Grad-CAM and the logits: those of a head


class Explainer:
    """Maps of one classifier.

    Args:
        classifier: The network and its preprocessing.
        method: `grad_cam` weighs the last map of features by the gradients of the answer. `occlusion` covers a part
            after the other, and needs a hundred passes an image. `auto` is Grad-CAM, where there is such a map.

    Raises:
        MissingModuleError: Captum is not installed.
        UserError: The network has no map for Grad-CAM.
    """

    def __init__(self, classifier: Classifier, method: str = "auto") -> None:
        if importlib.util.find_spec("captum") is None:
            raise MissingModuleError("mode=explain needs captum, which is not installed: pip install 'imago[explain]'")
        self.classifier = classifier
        self.layer = None if method == "occlusion" else last_map(classifier)
        if self.layer is None and method == "grad_cam":
            raise UserError(
                "method=grad_cam: this network has no map of 4 x 4 places or more shortly before its logits, as in "
                "transformers and with small images. Type method=occlusion"
            )
        self.method = "occlusion" if self.layer is None else "grad_cam"

    def __call__(self, pixels: Tensor, answer: int) -> NDArray[np.float64]:
        """Map of an image as `Classifier.see` returns it: float64 (height, width) from 0 to 1. Places that speak
        against the class with the number `answer`, or do not matter, are 0."""
        device = self.classifier.model.device
        batch = self.classifier.transform.to_batch([pixels], 0, device=device)
        images = batch["image"].detach().clone().requires_grad_()

        def logits(changed: Tensor) -> Tensor:
            output: Tensor = self.classifier.model({**batch, "image": changed})["logits"]
            return output

        values = (
            self._grad_cam(logits, images, answer) if self.layer is not None else _occlusion(logits, images, answer)
        )
        values = values.detach().cpu().double().clamp(min=0)[0].mean(dim=0)
        return (values / values.max() if values.any() else values).numpy()

    def _grad_cam(self, logits: Any, images: Tensor, answer: int) -> Tensor:
        from captum.attr import LayerAttribution, LayerGradCam

        with torch.enable_grad():
            small = LayerGradCam(logits, self.layer).attribute(images, target=answer, relu_attributions=True)
        large: Tensor = LayerAttribution.interpolate(small, images.shape[2:], interpolate_mode="bilinear")
        return large


def _occlusion(logits: Any, images: Tensor, answer: int) -> Tensor:
    """Decrease of the logit where a window is covered in the mean colour, as the mean of the windows over a place."""
    from captum.attr import Occlusion

    _, channels, *sides = images.shape
    steps = [max(1, side // (WINDOWS + 1)) for side in sides]
    with torch.no_grad():
        values: Tensor = Occlusion(logits).attribute(
            images,
            sliding_window_shapes=(channels, *(min(2 * step, side) for step, side in zip(steps, sides, strict=True))),
            strides=(channels, *steps),
            target=answer,
            perturbations_per_eval=AT_A_TIME,
        )
    return values


def last_map(classifier: Classifier) -> nn.Module | None:
    """The last part of the network whose output is a map of features (n, channels, height, width), if it tells places
    apart and only a head comes after it; else None."""
    net = classifier.model.net
    outputs: list[tuple[nn.Module, tuple[int, ...]]] = []
    hooks = [
        part.register_forward_hook(lambda part, _, output: outputs.append((part, tuple(getattr(output, "shape", ())))))
        for part in net.modules()
        if part is not net
    ]
    try:
        height, width = pair(classifier.image_size)
        classifier.forward([torch.zeros(classifier.channels, height, width, dtype=torch.uint8)])
    finally:
        for hook in hooks:
            hook.remove()
    calls = [part for part, _ in outputs]
    behind = 0
    for part, shape in reversed(outputs):
        is_map = len(shape) == 4 and min(shape[2:]) > 1 and calls.count(part) == 1
        if is_map and not (isinstance(part, nn.LayerNorm) and part.normalized_shape[0] != shape[1]):  # channels last
            return part if min(shape[2:]) >= LEAST_SIDE else None
        is_leaf = next(part.children(), None) is None
        behind += is_leaf and next(part.parameters(), None) is not None
        if behind > MOST_BEHIND:
            return None
    return None
