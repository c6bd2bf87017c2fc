"""Constants instead of torch's random draws, to compare an image at several places of a batch."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ConstantDraws(TorchDispatchMode):
    """Mode in which torch draws the same for all: every uniform number is 1/2, nothing is dropped, nothing is permuted.

    `own_generator` tells whether an operation used another generator than torch's own; `unknown` names an operation
    whose draws could not be replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own_generator = False
        self.unknown = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.own_generator |= any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            kept = torch.ones_like(args[0], dtype=torch.bool)
            return args[0] / (1 - args[1]) if args[1] < 1 else torch.zeros_like(args[0]), kept
        if name.startswith("rrelu_with_noise"):  # between the two slopes
            slope = (args[2] + args[3]) / 2 if len(args) > 3 else (1 / 8 + 1 / 3) / 2
            args[1].copy_(torch.where(args[0] > 0, 1.0, slope))
            return torch.nn.functional.leaky_relu(args[0], slope)
        result = func(*args, **kwargs)
        if name == "randperm":
            return torch.arange(len(result), dtype=result.dtype, device=result.device)
        if name in FILLS and isinstance(result, Tensor):
            return result.fill_(FILLS[name])
        if not (name.startswith(ATTENTION) and _drops_nothing(func, args, kwargs)):
            self.unknown = name
        return result


ATTENTION = ("_scaled_dot_product", "scaled_dot_product")
FILLS = {
    **dict.fromkeys(("rand", "rand_like", "uniform", "uniform_", "randn", "randn_like", "normal", "normal_"), 0.5),
    **dict.fromkeys(("normal_functional", "exponential_", "cauchy_", "log_normal_", "geometric_"), 1.0),
    **dict.fromkeys(("bernoulli", "bernoulli_"), 1.0),
    **dict.fromkeys(("randint", "randint_like", "random", "random_", "multinomial", "poisson"), 0),
}


def _drops_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    arguments = dict(zip(names, args, strict=False)) | kwargs
    return not arguments.get("dropout_p", 0.0)
