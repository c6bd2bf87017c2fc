"""Small networks of Imago."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Three convolutions, each halving the image, and a linear head; for images of about 16 to 64 pixels.

    Args:
        num_classes: Outputs of the head.
        channels: Output channels of the three convolutions.
        dropout: Dropout probability before the head.
    """

    def __init__(self, num_classes: int, channels: Sequence[int] = (32, 64, 128), dropout: float = 0.2) -> None:
        super().__init__()
        widths = [3, *channels]
        self.features = nn.Sequential(
            *(_convolution(a, b, pool=True) for a, b in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float (n, 3, height, width), to logits, (n, num_classes)."""
        return self.head(self.dropout(self.features(x)))


class TinyNet(nn.Module):
    """Two convolutions and a linear head, 1,600 parameters: for trying things out in seconds.

    Args:
        num_classes: Outputs of the head.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, 8, pool=True), _convolution(8, 16, pool=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float (n, 3, height, width), to logits, (n, num_classes)."""
        return self.head(self.features(x))


class SimpleDenseNet(nn.Module):
    """Linear layers on the flattened image, with BatchNorm and ReLU between them.

    Args:
        num_classes: Outputs of the last layer.
        in_features: Values per sample: channels * image_size ** 2.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, num_classes: int, in_features: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.features = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths))
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, float (n, channels, height, width), or values, (n, in_features), to logits, (n, num_classes)."""
        return self.head(self.features(x.flatten(1)))


def _convolution(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True)) if pool else nn.Sequential(*layers)
