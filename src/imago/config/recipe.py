"""The recipe that a training gets: chosen by the number of train images, the rarest class, and the weights."""

from dataclasses import dataclass

AUTO, DEFAULT, NONE, HEAD, SCRATCH = "auto", "default", "none", "head", "scratch"
"""Options of the group `recipe`."""
PRETRAINED = ("small", "medium", "large")
"""Those that train all layers from pretrained weights."""
MEASURED = (HEAD, "small", "medium")
"""Those of which `benchmarks/accuracy_small.py` has shown that they pay, so that `default` may choose them."""
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


def default_recipe(facts: TrainFacts) -> tuple[str, str]:
    """The recipe of a training for which none is typed, and the line that says why; empty for `none`."""
    chosen, why = choose_recipe(facts)
    return (chosen, f"{why}. For the plain settings type recipe={NONE}") if chosen in MEASURED else (NONE, "")
