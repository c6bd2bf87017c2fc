"""Per-sample gradients in one backward pass: their norms, and their weighted sums.

Calls that use a trained parameter are intercepted, so that any network made of them is supported, including in-place
activations and residual sums. For a matrix that is multiplied at T places of an image (the pixels of a convolution, the
tokens of a transformer), the norm of the gradient comes either from the gradient itself, or from two T x T Gram
matrices (ghost norm: Goodfellow 2015; of convolutions: Rochette et al. 2019); the cheaper one is chosen layer by layer
(mixed ghost clipping: Bu et al. 2022). Weighted sums are made from what is kept of the one backward pass
(book-keeping: Bu et al. 2023).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from imago.dp.terms import ConvGrads, DenseGrads, GradTerm, LinearGrads, UnknownGradientError, WithNorms, to_float32

MODES = ("auto", "hooks", "ghost")


class Tape(TorchFunctionMode):
    """Mode that records the use of `parameters`; after the backward pass of the summed losses of the `count` samples,
    it holds the gradients of every sample.

    Args:
        parameters: Name -> trained parameter. None of them gets a `grad`.
        count: Samples in the batch.
        mode: `hooks` uses all gradients themselves, `ghost` all Gram matrices, `auto` the cheaper, layer by layer.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], count: int, mode: str = "auto") -> None:
        super().__init__()
        self.count = count
        self.mode = mode
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._parts: dict[str, list[GradTerm]] = {}

    def parts(self) -> Iterator[tuple[str, GradTerm]]:
        """Yield names and gradients of the parameters that were used; those of repeated uses are summed."""
        for name, parts in self._parts.items():
            yield (
                name,
                parts[0] if len(parts) == 1 else DenseGrads(torch.stack([part.whole() for part in parts]).sum(0)),
            )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in MIXING and _is_training(args, kwargs):
            raise UnknownGradientError(
                "BatchNorm normalises an image by the others of its batch, so that gradients cannot be separated by "
                "image. Type model.norm=group"
            )
        used = [value for value in (*args, *kwargs.values()) if id(value) in self._names]
        if not used or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if rule := RULES.get(func):
            return rule(self, *args, **kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.refuse(used[0], f"is used by {resolve_name(func) or func}")
        return result  # only its shape was used, or the like

    def refuse(self, parameter: Tensor, why: str) -> None:
        """Raise UnknownGradientError for `parameter`, with the reason `why`."""
        raise UnknownGradientError(
            f"{self._names.get(id(parameter), 'a frozen weight')} {why}: its gradient for a single image is unknown. "
            "docs/privacy.md lists the networks that can be trained with strategy=dp"
        )

    def is_trained(self, weight: Tensor | None) -> bool:
        """Whether `weight` is one of the parameters."""
        return weight is not None and id(weight) in self._names

    def noted(self, output: Tensor, record: Callable[[Tensor], None]) -> Tensor:
        """Return `output`, whose gradient goes to `record` in the backward pass (half precision as float32)."""
        if not output.requires_grad:
            output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        device = output.device.type

        def take(gradient: Tensor) -> None:
            with torch.no_grad(), torch.autocast(device, enabled=False):
                record(gradient.float() if gradient.dtype in (torch.bfloat16, torch.float16) else gradient)

        output.register_hook(take)
        return output

    def add(self, weight: Tensor | None, part: Callable[[], GradTerm]) -> None:
        """Add the gradients of one use of `weight`, if it is one of the parameters."""
        if weight is None or not self.is_trained(weight):
            return
        made = part()
        if isinstance(made, LinearGrads | ConvGrads):
            gram = self.mode == "ghost" or (self.mode == "auto" and made.prefers_gram)
            made = WithNorms(made, made.squared_norms()) if gram else _kept(made)
        self._parts.setdefault(self._names[id(weight)], []).append(made)

    def check_rows(self, weight: Tensor, inputs: Tensor, ndim: int | None = None) -> None:
        """Raise UnknownGradientError if the first dimension is not that of the samples, or there are not `ndim`."""
        if inputs.ndim < 2 or len(inputs) != self.count or ndim not in (None, inputs.ndim):
            self.refuse(weight, f"is used on {tuple(inputs.shape)} values for a batch of {self.count} images")


def _kept(part: LinearGrads | ConvGrads) -> GradTerm:
    """Return the gradients, or the factors that they are made of, whichever takes less memory."""
    gradients = part.kernels() if isinstance(part, ConvGrads) else DenseGrads(part.whole())
    if gradients.gradients.numel() <= part.inputs.numel() + part.outputs.numel():
        return gradients
    return WithNorms(part, gradients.squared_norms())


def _linear(tape: Tape, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    tape.check_rows(weight, input)
    version = input._version
    inputs = input.detach()

    def record(gradient: Tensor) -> None:
        _check_unchanged(tape, weight, inputs, version)
        outputs = gradient.reshape(len(gradient), -1, gradient.shape[-1])
        tape.add(weight, lambda: LinearGrads(to_float32(inputs).reshape(len(inputs), -1, inputs.shape[-1]), outputs))
        tape.add(bias, lambda: DenseGrads(outputs.sum(dim=1)))

    return tape.noted(F.linear(input, weight.detach(), None if bias is None else bias.detach()), record)


def _conv2d(
    tape: Tape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    tape.check_rows(weight, input, ndim=4)
    if isinstance(padding, str):
        tape.refuse(weight, f"is used by a convolution with padding={padding!r}")
    version = input._version
    inputs = input.detach()

    def record(gradient: Tensor) -> None:
        _check_unchanged(tape, weight, inputs, version)
        sizes = (_pair(stride), _pair(padding), _pair(dilation))
        tape.add(weight, lambda: ConvGrads(to_float32(inputs), gradient, weight.shape, *sizes, groups))
        tape.add(bias, lambda: DenseGrads(gradient.sum(dim=(2, 3))))

    plain = None if bias is None else bias.detach()
    return tape.noted(F.conv2d(input, weight.detach(), plain, stride, padding, dilation, groups), record)


def _group_norm(
    tape: Tape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    def apply(x: Tensor, *affine: Any) -> Tensor:
        return F.group_norm(x, num_groups, *affine, eps=eps)  # type: ignore[misc]

    return _affine(tape, input, weight, bias, apply, lambda values: values.reshape(*values.shape[:2], -1).sum(dim=2))


def _layer_norm(
    tape: Tape,
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    def apply(x: Tensor, *affine: Any) -> Tensor:
        return F.layer_norm(x, normalized_shape, *affine, eps=eps)  # type: ignore[misc]

    def summed(values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, *normalized_shape).sum(dim=1)

    return _affine(tape, input, weight, bias, apply, summed)


def _affine(
    tape: Tape,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    apply: Callable[..., Tensor],
    summed: Callable[[Tensor], Tensor],
) -> Tensor:
    """Apply a normalisation, `apply(x, weight, bias)`; `summed` sums the values of an image over all places."""
    assert weight is not None
    tape.check_rows(weight, input)
    inputs, version = input.detach(), input._version

    def record(gradient: Tensor) -> None:
        _check_unchanged(tape, weight, inputs, version)
        tape.add(weight, lambda: DenseGrads(summed(gradient * apply(to_float32(inputs)))))
        tape.add(bias, lambda: DenseGrads(summed(gradient)))

    return tape.noted(apply(input, weight.detach(), None if bias is None else bias.detach()), record)


def _attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    _bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    need_weights: bool = True,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Apply self-attention among the tokens of an image, as in vision transformers; sizes (T, n, width)."""
    masks = [name for name in ("key_padding_mask", "attn_mask", "static_k", "static_v") if extra.get(name) is not None]
    if (
        in_proj_weight is None
        or not (query is key is value)
        or bias_k is not None
        or add_zero_attn
        or need_weights
        or masks
    ):
        tape.refuse(out_proj_weight, "is part of an attention with masks, biases of keys or averaged weights")
    assert in_proj_weight is not None
    tokens = query.transpose(0, 1)
    count, places, width = tokens.shape
    joined = _linear(tape, tokens, in_proj_weight, in_proj_bias)
    heads = joined.view(count, places, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    queries, keys, values = heads.unbind(0)
    mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout_p if training else 0.0)
    out = _linear(tape, mixed.transpose(1, 2).reshape(count, places, width), out_proj_weight, out_proj_bias)
    return out.transpose(0, 1), None


def _expand(tape: Tape, parameter: Tensor, *sizes: Any) -> Tensor:
    shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    return _copies(tape, parameter, shape).expand(*shape)


def _elementwise(operation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the rule for a sum or product with the values of each image."""

    def rule(tape: Tape, input: Any, other: Any, **kwargs: Any) -> Tensor:
        parameter, values = (input, other) if tape.is_trained(input) else (other, input)
        if tape.is_trained(values) or not isinstance(values, Tensor):
            tape.refuse(parameter, f"is changed by {operation.__name__}")
        copies = _copies(tape, parameter, tuple(values.shape))
        return operation(copies, values, **kwargs) if parameter is input else operation(values, copies, **kwargs)

    return rule


def _copies(tape: Tape, parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Copy the parameter for each sample, and record the gradients; the copies meet values of `shape`."""
    shared = parameter.shape[1:] if parameter.ndim == len(shape) and parameter.shape[0] == 1 else parameter.shape
    if len(shared) != len(shape) - 1 or shape[0] != tape.count:
        tape.refuse(parameter, f"of shape {tuple(parameter.shape)} meets values of shape {tuple(shape)}")
    copies = parameter.detach().view(shared).expand(tape.count, *shared).clone()
    rows = (tape.count, *parameter.shape)
    return tape.noted(copies, lambda gradient: tape.add(parameter, lambda: DenseGrads(gradient.reshape(rows))))


def _check_unchanged(tape: Tape, weight: Tensor, inputs: Tensor, version: int) -> None:
    if inputs._version != version:
        tape.refuse(weight, "is used on values that are changed in place afterwards")


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [*value, *value][:2]


def _is_training(args: Any, kwargs: Any) -> bool:
    """Value of `training` in `batch_norm(input, running_mean, running_var, weight, bias, training, …)`."""
    return bool(kwargs.get("training", args[5] if len(args) > 5 else False))


MIXING = (F.batch_norm,)
RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.multi_head_attention_forward: _attention,
    Tensor.expand: _expand,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _elementwise(torch.add)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _elementwise(torch.mul)),
}
