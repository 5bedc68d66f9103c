"""A frozen prefix of a network, run once a text: later forwards start at the first block that is tuned.

A zeroth-order step runs the same few hundred texts forward thousands of times. Where only the last blocks are tuned, what the blocks
before them give never changes.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError

__all__ = ["FrozenPrefix"]


class FrozenPrefix:
    """What the blocks below one give, kept by text.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)).requires_grad_(False)
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.blocks = torch.nn.ModuleList(model)
    ...     def forward(self, x):
    ...         for block in self.blocks:
    ...             x = block(x)
    ...         return x
    >>> net, x, mask = Net(), torch.randn(3, 5, 4), torch.ones(3, 5)
    >>> prefix = FrozenPrefix(net, "blocks.2")
    >>> with prefix.of(["a", "b", "c"], mask):
    ...     first = net(x)                        # as ever, and kept
    >>> with prefix.of(["c", "a"], mask[:2]):
    ...     again = net(x[:2] * 0)                # the kept states, whatever comes in
    >>> torch.equal(again, first[[2, 0]]), prefix.bytes
    (True, 240)

    Args:
        model: in evaluation mode where it has dropout, since a dropped unit would stay dropped.
        at: name of the first block that is run anew, an entry of an `nn.ModuleList` or `nn.Sequential` ("encoder.layer.5"), not its first.
            Blocks take and give (B, T, H), alone or as the first of a tuple.
    Raises:
        ProbatumError: no such block, blocks before it that are trainable or drop units.
    """

    def __init__(self, model: nn.Module, at: str) -> None:
        path, _, number = at.rpartition(".")
        modules = dict(model.named_modules())
        blocks = modules.get(path)
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not number.isdigit() or not 0 < int(number) < len(blocks):
            stacks = [name for name, module in modules.items() if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1]
            raise ProbatumError(
                f"at must name a block of a stack, not its first, such as {stacks[0] + '.1' if stacks else '(this model has no stack)'}; "
                f"got {at!r}"
            )
        self.blocks = list(blocks)[: int(number)]
        moving = [name for i, block in enumerate(self.blocks) for name, p in block.named_parameters(f"{path}.{i}") if p.requires_grad]
        if moving:
            raise ProbatumError(f"{moving[0]} is trainable and lies before {at}: what it gives would change; freeze it, or start there")
        self._kept: dict[Hashable, Tensor] = {}
        self._tail: tuple[Any, ...] | None = None

    @property
    def bytes(self) -> int:
        """What is kept."""
        return sum(states.numel() * states.element_size() for states in self._kept.values())

    def __len__(self) -> int:
        """How many texts are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, as after other weights were loaded."""
        self._kept.clear()

    @contextmanager
    def of(self, keys: Sequence[Hashable], mask: Tensor) -> Iterator[None]:
        """Within it a forward of the batch of these texts starts at the block, once all of them were seen.

        Args:
            keys: one a text, the same whenever it comes again.
            mask: (B, T), nonzero at real tokens, which alone are kept.
        """
        if len(keys) != len(mask):
            raise ProbatumError(f"keys and mask must be of one batch, got {len(keys)} and {len(mask)}")
        if all(key in self._kept for key in keys):
            with self._replaced(self._padded(keys, mask)):
                yield
            return
        dropping = [m for block in self.blocks for m in block.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p]
        if dropping:
            raise ProbatumError("the prefix drops units, which would stay dropped: call model.eval() first")

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            self._tail = tuple(output[1:]) if isinstance(output, tuple) else None
            for key, row, valid in zip(keys, states.detach(), mask.bool(), strict=True):
                self._kept[key] = row[valid].clone()

        handle = self.blocks[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def _padded(self, keys: Sequence[Hashable], mask: Tensor) -> Any:
        rows = [self._kept[key] for key in keys]
        states = rows[0].new_zeros(*mask.shape, rows[0].shape[-1])
        valid = mask.bool()
        if int(valid.sum()) != sum(map(len, rows)):
            raise ProbatumError("the mask has other lengths than the texts had when they were first seen: keep keys and texts together")
        states[valid] = torch.cat(rows)
        return states if self._tail is None else (states, *self._tail)

    @contextmanager
    def _replaced(self, states: Any) -> Iterator[None]:
        for block in self.blocks:
            block.forward = lambda *_, **__: states  # type: ignore[method-assign]
        try:
            yield
        finally:
            for block in self.blocks:
                del block.forward
