"""Layers of a model in the order of its forward pass, as groups of parameters: every trainable one in exactly one group.

>>> blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
>>> net = nn.ModuleDict({"table": nn.Embedding(5, 3), "blocks": blocks})
>>> [group.name for group in layer_groups(net)]
['table', 'blocks.0', 'blocks.1', 'blocks.2']
>>> layer_groups(net, groups=[["table.*", "*.bias"], ["*.weight"]])
Traceback (most recent call last):
probatum.errors.ProbatumError: groups[0] and groups[1] both hold table.weight: a parameter belongs to one group
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from probatum.errors import ProbatumError, did_you_mean

__all__ = ["Group", "layer_groups"]

Named = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Group:
    """Parameters that are worked on together, in model order."""

    name: str
    parameters: tuple[tuple[str, Tensor], ...]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.parameters]

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for _, tensor in self.parameters]

    @property
    def numel(self) -> int:
        return sum(tensor.numel() for _, tensor in self.parameters)

    @property
    def bytes(self) -> int:
        """Of the parameters, which are those of their gradients."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.parameters)


def layer_groups(
    model: nn.Module,
    groups: Sequence[Iterable[str] | str] | None = None,
    *,
    m: int = 1,
    max_bytes: int | None = None,
) -> list[Group]:
    """The trainable parameters of a model, in groups from the bottom to the top.

    A layer is a block of a stack (a `ModuleList` or `Sequential` of modules of one class), all that stands before the first stack
    (embeddings), between two, or after the last (final norm, head), in the order of registration. A model without a stack has a layer for
    each module that owns parameters. Tied weights belong to their first user.

    Args:
        groups: own ones instead: a list of patterns of parameter names ("*.bias") each.
        m: consecutive layers a group; the last group may have fewer.
        max_bytes: instead of m: layers above it are split between their modules, then between tensors, and small neighbours are joined
            as long as they stay below. A tensor above it stands alone.
    Raises:
        ProbatumError: nothing is trainable; m above the number of layers; own groups that miss a parameter, hold one twice (also as two
            names of tied weights), or have a pattern that matches nothing.
    """
    if max_bytes is not None and (m != 1 or groups is not None):
        raise ProbatumError("max_bytes makes the groups itself: leave m and groups out")
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise ProbatumError(f"m must be an integer of 1 or more, got {m!r}")
    named, tied = _trainable(model)
    if groups is not None:
        if m != 1:
            raise ProbatumError("m counts layers of the model's own structure: leave it out with groups")
        found = _own(named, tied, groups)
    else:
        layers = _layers(model, named)
        if max_bytes is not None:
            if max_bytes < 1:
                raise ProbatumError(f"max_bytes must be 1 or more, got {max_bytes!r}")
            found = _sized(layers, max_bytes)
        else:
            if m > len(layers):
                raise ProbatumError(f"m must be at most {len(layers)}, the number of layers, got {m}")
            found = [_join(layers[at : at + m]) for at in range(0, len(layers), m)]
    assert Counter(name for group in found for name in group.names) == Counter(name for name, _ in named)
    return found


def _trainable(model: nn.Module) -> tuple[Named, dict[str, str]]:
    """Trainable parameters, tied ones once under their first name; and every other name of theirs."""
    named: Named = []
    first: dict[tuple, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if not tensor.requires_grad:
            continue
        # Two objects that share memory are one weight, except where there is no memory to compare.
        key = (
            ("object", id(tensor))
            if tensor.is_meta or not tensor.numel()
            else (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        )
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            named.append((name, tensor))
    if not named:
        raise ProbatumError(
            f"{type(model).__name__} has no trainable parameter: requires_grad is off everywhere (or the model is empty)"
        )
    return named, tied


def _stacks(model: nn.Module) -> list[str]:
    """Names of the outermost containers of modules of one class, all with parameters."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < (2 if isinstance(module, nn.Sequential) else 1):
            continue
        kinds = {type(child) for child in module}
        inside = any(name.startswith(stack + ".") for stack in found)
        if len(kinds) == 1 and not inside and all(any(True for _ in child.parameters()) for child in module):
            found.append(name)
    return found


def _layers(model: nn.Module, named: Named) -> list[Group]:
    stacks = _stacks(model)
    layers: dict[tuple, Named] = {}
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in named))
    passed = 0
    for name, tensor in named:
        stack = next((i for i, s in enumerate(stacks) if s == "" or name.startswith(s + ".")), None)
        if stack is not None:
            passed = max(passed, stack)
            block = int(name.removeprefix(stacks[stack]).lstrip(".").partition(".")[0])
            key = (stack, 1, block)
        elif stacks:
            key = (passed, 2, 0) if any(k[0] == passed and k[1] == 1 for k in layers) else (passed, 0, 0)
        else:
            key = (owners.index(name.rpartition(".")[0]), 0, 0)
        layers.setdefault(key, []).append((name, tensor))
    return [Group(_common([n for n, _ in layers[key]]), tuple(layers[key])) for key in sorted(layers)]


def _own(named: Named, tied: dict[str, str], groups: Sequence[Iterable[str] | str]) -> list[Group]:
    place: dict[str, int] = {}
    everyone = [name for name, _ in named] + list(tied)
    for i, patterns in enumerate(groups):
        for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
            matched = [name for name in everyone if fnmatchcase(name, pattern)]
            if not matched:
                near = did_you_mean(pattern.strip("*."), everyone)
                raise ProbatumError(
                    f"groups[{i}]: {pattern!r} matches none of {len(named)} trainable parameters{'; ' + near if near else ''}"
                )
            for name in matched:
                first = tied.get(name, name)
                if place.setdefault(first, i) != i:
                    also = f" (tied to {first})" if first != name else ""
                    raise ProbatumError(
                        f"groups[{place[first]}] and groups[{i}] both hold {name}{also}: a parameter belongs to one group"
                    )
    missed = [name for name, _ in named if name not in place]
    if missed:
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        raise ProbatumError(
            f"groups leave out {len(missed)} trainable parameters: {', '.join(missed[:5])}{more}; add them, or freeze them"
        )
    chosen = [tuple(pair for pair in named if place[pair[0]] == i) for i in range(len(groups))]
    return [Group(_common([name for name, _ in some]), some) for some in chosen]


def _sized(layers: list[Group], limit: int) -> list[Group]:
    pieces = [piece for layer in layers for piece in _split(layer, limit)]
    joined = [pieces[0]]
    for piece in pieces[1:]:
        if joined[-1].bytes + piece.bytes <= limit:
            joined[-1] = _join([joined[-1], piece])
        else:
            joined.append(piece)
    return joined


def _split(group: Group, limit: int) -> list[Group]:
    """A group as pieces that fit: cut where the first component of the names that differs changes, again and again."""
    if group.bytes <= limit or len(group.parameters) == 1:
        return [group]
    prefix = _common(group.names)
    start = len(prefix) + 1 if prefix else 0
    parts: dict[str, Named] = {}
    for name, tensor in group.parameters:
        parts.setdefault(name[start:].partition(".")[0], []).append((name, tensor))
    if len(parts) == 1:  # the names differ in nothing but their last component
        parts = {name: [(name, tensor)] for name, tensor in group.parameters}
    return [
        piece for some in parts.values() for piece in _split(Group(_common([n for n, _ in some]), tuple(some)), limit)
    ]


def _join(groups: Sequence[Group]) -> Group:
    first, last = groups[0].name.split(" .. ")[0], groups[-1].name.split(" .. ")[-1]
    name = groups[0].name if len(groups) == 1 else f"{first} .. {last}"
    return Group(name, tuple(pair for group in groups for pair in group.parameters))


def _common(names: list[str]) -> str:
    """The longest module path that all names share; of a lone parameter its own name; else the first and last module."""
    if len(names) == 1:
        return names[0].removesuffix(".weight")
    parts = [name.split(".")[:-1] for name in names]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return ".".join(shared) or f"{names[0].split('.')[0]} .. {names[-1].split('.')[0]}"


