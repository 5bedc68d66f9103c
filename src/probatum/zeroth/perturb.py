"""What one weight of a layer does to the layer's output: a known map, so that no weight is ever written.

A handler takes a layer, the name and flat indices of P entries of one of its parameters, mu, and the layer's input and output; it
returns the P outputs that the layer would give with each of these entries moved by mu, alone: whole, or as a `Channel`, the one channel
that changes. `register` adds a kind of layer; what has no handler is called with P copies of the parameter.

>>> layer, h = torch.nn.Linear(3, 2), torch.rand(4, 3)
>>> moved = perturbed(layer, "weight", torch.tensor([0, 5]), 0.1, (h,), {}, layer(h))
>>> moved.index.tolist(), torch.allclose(moved.part[1] - layer(h)[:, 1], 0.1 * h[:, 2], atol=1e-6)
([0, 1], True)
>>> moved.whole(layer(h)).shape
torch.Size([2, 4, 2])
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

__all__ = ["HANDLERS", "Channel", "Handler", "copies", "normalised", "perturbed", "register"]


@dataclass(frozen=True)
class Channel:
    """P outputs (P, B, C, ...) that differ from the base (B, C, ...) in channel `index[p]` alone: `part` (P, B, ...) is that channel."""

    part: Tensor
    index: Tensor

    def whole(self, output: Tensor) -> Tensor:
        moved = output.expand(len(self.index), *output.shape).clone()
        moved[torch.arange(len(self.index), device=output.device), :, self.index] = self.part
        return moved


# (layer, name, indices (P,), mu, input, output) -> (P, *output.shape)
Handler = Callable[[Any, str, Tensor, float, Tensor, Tensor], Tensor | Channel]
HANDLERS: dict[type[nn.Module], Handler] = {}


def register(*kinds: type[nn.Module]) -> Callable[[Handler], Handler]:
    """Decorator: the handler of these kinds of layers (exactly these: a subclass may compute something else)."""

    def add(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(kinds, handler))
        return handler

    return add


def perturbed(
    layer: nn.Module, name: str, indices: Tensor, mu: float, args: tuple, kwargs: dict[str, Any], output: Any
) -> Any:
    """The layer's outputs with entry `indices[p]` of parameter `name` moved by mu, p = 0..P-1: (P, *output.shape)."""
    handler = HANDLERS.get(type(layer))
    plain = len(args) == 1 and not kwargs and not layer._forward_hooks and not layer._forward_pre_hooks
    if handler is not None and plain and name in layer._parameters and _batched(layer, args[0]):
        return handler(layer, name, indices, mu, args[0], output)
    with torch.no_grad():
        weight = copies(layer.get_parameter(name), indices, mu)
    return vmap(lambda w: functional_call(layer, {name: w}, args, kwargs), randomness="same")(weight)


def copies(tensor: Tensor, indices: Tensor, mu: float) -> Tensor:
    """(P, *shape): copies of a tensor, entry `indices[p]` of copy p moved by mu."""
    many = tensor.detach().expand(len(indices), *tensor.shape).clone()
    many.view(len(indices), -1)[torch.arange(len(indices)), indices] += mu
    return many


def _batched(layer: nn.Module, h: Tensor) -> bool:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):  # these also take a single sample
        return h.ndim == 2 + len(layer.kernel_size)
    return True


def _spread(output: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Copies of the output to be changed in place, and their row numbers."""
    return output.expand(count, *output.shape).clone(), torch.arange(count, device=output.device)


@register(nn.Linear)
def _linear(layer: nn.Linear, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Tensor | Channel:
    out, into = indices // layer.in_features, indices % layer.in_features
    if output.ndim == 2:
        by, out = (1.0, indices) if name == "bias" else (h[:, into].T, out)
        return Channel(output[:, out].T + mu * by, out)
    moved, rows = _spread(output, len(indices))
    flat = moved.view(len(indices), -1, layer.out_features)
    if name == "bias":
        flat[rows, :, indices] += mu
    else:
        flat[rows, :, out] += mu * h.reshape(-1, layer.in_features)[:, into].T
    return moved


@register(nn.Conv1d, nn.Conv2d)
def _conv(layer: nn.Conv2d, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Channel:
    if name == "bias":
        return Channel(_channels(output, indices) + mu, indices)
    out, into, *taps = torch.unravel_index(indices, layer.weight.shape)
    into = into + out // (layer.out_channels // layer.groups) * (layer.in_channels // layer.groups)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(h, layer._reversed_padding_repeated_twice, mode=mode).contiguous()
    # A view (C, taps..., B, places...) of what each tap of the kernel meets: nothing is unfolded in memory.
    per_sample, per_channel, *steps = padded.stride()
    window = padded.as_strided(
        (layer.in_channels, *layer.kernel_size, len(h), *output.shape[2:]),
        (
            per_channel,
            *(d * s for d, s in zip(layer.dilation, steps, strict=True)),
            per_sample,
            *(d * s for d, s in zip(layer.stride, steps, strict=True)),
        ),
    )
    return Channel(_channels(output, out) + mu * window[(into, *taps)], out)


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(layer: nn.BatchNorm2d, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Channel:
    if name == "bias":
        return Channel(_channels(output, indices) + mu, indices)
    return Channel(_channels(output, indices) + mu * normalised(layer, _channels(h, indices), indices), indices)


def normalised(layer: nn.BatchNorm2d, part: Tensor, index: Tensor) -> Tensor:
    """What batch norm makes of single channels (P, B, ...) before scale and shift, each by its own batch in training."""
    wide = (-1,) + (1,) * (part.ndim - 1)
    if layer.training or layer.running_mean is None or layer.running_var is None:
        variance, mean = torch.var_mean(part.flatten(1), 1, correction=0)
    else:
        variance, mean = layer.running_var[index], layer.running_mean[index]
    return (part - mean.view(wide)) * (variance + layer.eps).rsqrt().view(wide)


def _channels(x: Tensor, index: Tensor) -> Tensor:
    """(B, C, ...) -> (P, B, ...)."""
    return x.transpose(0, 1)[index]


@register(nn.LayerNorm)
def _layer_norm(layer: nn.LayerNorm, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Tensor:
    moved, rows = _spread(output, len(indices))
    flat = moved.view(len(indices), -1, layer.weight.numel())
    if name == "bias":
        flat[rows, :, indices] += mu
    else:
        scaled = F.layer_norm(h, layer.normalized_shape, eps=layer.eps).reshape(-1, layer.weight.numel())
        flat[rows, :, indices] += mu * scaled[:, indices].T
    return moved


@register(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Channel:
    by = 1.0 if name == "bias" else _channels(F.group_norm(h, layer.num_groups, eps=layer.eps), indices)
    return Channel(_channels(output, indices) + mu * by, indices)


@register(nn.Embedding)
def _embedding(layer: nn.Embedding, name: str, indices: Tensor, mu: float, h: Tensor, output: Tensor) -> Tensor:
    """The padding row keeps its gradient of 0, as in autograd."""
    moved, rows = _spread(output, len(indices))
    flat = moved.view(len(indices), -1, layer.embedding_dim)
    word, place = indices // layer.embedding_dim, indices % layer.embedding_dim
    hit = h.reshape(1, -1) == word.unsqueeze(1)
    if layer.padding_idx is not None:
        hit &= (word != layer.padding_idx).unsqueeze(1)
    flat[rows, :, place] += mu * hit.to(output.dtype)
    return moved
