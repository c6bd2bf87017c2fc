"""The recipe of `recipe=auto`: chosen by the number of train images, the rarest class, and the weights."""

from dataclasses import dataclass

AUTO, NONE, HEAD, SCRATCH = "auto", "none", "head", "scratch"
"""Options of the group `recipe`."""
PRETRAINED = ("small", "medium", "large")
"""Those that train all layers from pretrained weights."""
LEAST_IMAGES, LEAST_OF_A_CLASS = 200, 10
"""With fewer, only the head is trained."""
SIZES = (("small", 2_000), ("medium", 20_000))
"""Recipe for pretrained weights -> number of train images from which the next one is chosen, the last being `large`."""
LEAST_SIDE = 64
"""Side in pixels from which an image counts as a photograph."""


@dataclass(frozen=True)
class TrainFacts:
    """Facts that decide on the recipe.

    Args:
        images: Number of train images.
        rarest: Number of those of the rarest class.
        is_pretrained: Whether training starts from pretrained weights.
        side: Shorter side in pixels of the images that the network gets.
    """

    images: int
    rarest: int
    is_pretrained: bool
    side: int


def choose_recipe(facts: TrainFacts) -> tuple[str, str]:
    """The recipe for a training, and the line that says why."""
    why = f"{facts.images} images, rarest class {facts.rarest}"
    if facts.side < LEAST_SIDE:
        chosen, why = NONE, f"images of {facts.side} pixels, no photographs"
    elif not facts.is_pretrained:
        chosen, why = SCRATCH, f"{why}, no pretrained weights"
    elif facts.images < LEAST_IMAGES or facts.rarest < LEAST_OF_A_CLASS:
        chosen = HEAD
    else:
        chosen = next((name for name, end in SIZES if facts.images < end), "large")
    return chosen, f"{why}: recipe={chosen}"
