"""Which parameters of a model a method works on: chosen by name, once each, in an order that depends on the names alone."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError, did_you_mean

__all__ = ["select"]


def select(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    include: Iterable[str] = ("*",),
    exclude: Iterable[str] = (),
    *,
    trainable_only: bool = True,
) -> list[tuple[str, Tensor]]:
    """(name, tensor) pairs, sorted by name.

    Args:
        model: a module, or its `named_parameters()`.
        include: shell patterns of names to keep ("encoder.layer.5.*"); a name needs to match one.
        exclude: patterns to leave out again; applied after `include`.
        trainable_only: leave out what has `requires_grad` off.
    Returns:
        Each storage once: of tied tensors the first name in model order stands for all.
    Raises:
        ProbatumError: a pattern of `include` that matches nothing, or a selection that is empty.
    """
    named = list(model.named_parameters() if isinstance(model, nn.Module) else model)
    include, exclude = (
        [include] if isinstance(include, str) else list(include),
        [exclude] if isinstance(exclude, str) else list(exclude),
    )
    names = [name for name, _ in named]
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern.strip("*."), names)
            raise ProbatumError(
                f"include={pattern!r} matches none of the {len(names)} parameters{'; ' + near if near else ''}"
            )
    chosen: dict[tuple, tuple[str, Tensor]] = {}
    for name, tensor in named:
        wanted = any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
        if wanted and (tensor.requires_grad or not trainable_only):
            chosen.setdefault(_storage(tensor), (name, tensor))
    if not chosen:
        frozen = sum(not tensor.requires_grad for _, tensor in named)
        raise ProbatumError(
            f"no parameter is left of {len(named)}: {frozen} have requires_grad off, include={include}, exclude={exclude}"
        )
    return sorted(chosen.values(), key=lambda pair: pair[0])


def _storage(tensor: Tensor) -> tuple:
    """Equal for tensors that are the same numbers in memory (tied weights), also where they are two objects."""
    if tensor.is_meta or tensor.numel() == 0 or tensor.layout is not torch.strided:
        return ("object", id(tensor))
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
