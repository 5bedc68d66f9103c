"""What training costs in bytes, by class: predicted from shapes alone, and measured on real steps.

>>> model = torch.nn.Linear(10, 10, bias=False)
>>> adamw = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)
>>> predict(model, adamw)
Ledger(frozen=0, trainable=400, gradient=400, state=800, off=0, saved=0)
>>> x = torch.randn(3, 10)
>>> measure(model, adamw(model.parameters()), lambda: model(x).sum())
Ledger(frozen=0, trainable=400, gradient=400, state=800, off=0, saved=120)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.nn.groups import Group

__all__ = ["Ledger", "measure", "predict"]

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Ledger:
    """Bytes at the peak of a step. Step counts and other scalars of an optimizer are left out.

    Attributes:
        frozen, trainable: of the parameters; tied ones once. A parameter that is trained in another step counts as trainable.
        gradient: alive when backward ends.
        state: optimizer state alive during its step.
        off: optimizer state that waits elsewhere meanwhile.
        saved: what autograd keeps from forward to backward, parameters and shared storage counted once; 0 where only predicted.
    """

    frozen: int
    trainable: int
    gradient: int
    state: int
    off: int = 0
    saved: int = 0

    @property
    def tuning(self) -> int:
        """Gradient and state: what training needs beyond weights and activations."""
        return self.gradient + self.state

    def table(self, other: "Ledger | None" = None) -> str:
        """In MiB, a line a class; beside another ledger (prediction and measurement, full and partial)."""
        lines = []
        for name, value in vars(self).items():
            cells = [value] if other is None else [value, getattr(other, name)]
            lines.append(f"{name:10}" + "".join(f"{cell / 2**20:12.2f}" for cell in cells))
        return "\n".join(lines)


def predict(
    model: nn.Module,
    optimizer: Factory,
    *,
    groups: Sequence[Group] | None = None,
    rows: Mapping[str, int] | None = None,
) -> Ledger:
    """From shapes; the model may stand on the meta device.

    Args:
        optimizer: makes the optimizer of some parameters (`lambda p: AdamW(p, lr=1e-4)`); it is tried on meta tensors.
        groups: trained one at a time (`layer_groups`, `HiFT.groups`); the peak is the largest's. None: all at once.
        rows: table name -> rows of a batch, where only these have gradient and state on the device.
    """
    rows = rows or {}
    everything = dict(model.named_parameters())
    for name, count in rows.items():
        if name not in everything or not 0 < count <= len(everything[name]):
            raise ProbatumError(f"rows: {name!r} must name a table with {count} rows or more")
    trainable = [(name, p) for name, p in everything.items() if p.requires_grad]
    parts = [[(n, t) for n, t in group.parameters] for group in groups] if groups is not None else [list(trainable)]
    if not any(parts):
        raise ProbatumError("the model has no trainable parameter")
    known: dict[tuple, int] = {}

    def state_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
        if (shape, dtype) not in known:
            trial = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
            trial.grad = torch.empty_like(trial)
            made = optimizer([trial])
            made.step()
            known[shape, dtype] = _bytes(made.state[trial].values())
        return known[shape, dtype]

    def cost(part: Iterable[tuple[str, Tensor]]) -> tuple[int, int]:
        shapes = [((rows.get(name, len(t)), *t.shape[1:]) if t.ndim else (), t) for name, t in part]
        gradient = sum(torch.Size(shape).numel() * t.element_size() for shape, t in shapes)
        return gradient, sum(state_of(shape, t.dtype) for shape, t in shapes)

    costs = [cost(part) for part in parts]
    state = max(s for _, s in costs)
    whole = sum(state_of(tuple(t.shape), t.dtype) for part in parts for _, t in part)
    grouped = {id(t) for part in parts for _, t in part}
    return Ledger(
        frozen=_bytes(p for p in everything.values() if id(p) not in grouped),
        trainable=_bytes(t for part in parts for _, t in part),
        gradient=max(g for g, _ in costs),
        state=state,
        off=whole - state if groups is not None else 0,
    )


def measure(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], *, steps: int = 1
) -> Ledger:
    """From real steps, which train the model: the largest of each class over them.

    Args:
        optimizer: any, or a wrapper that trains a group a step (`HiFT`).
        loss: computes the loss of a batch, without backward.
        steps: how many; take one a group to see the largest.
    """
    inner = getattr(optimizer, "inner", optimizer)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()] if not t.is_meta}
    waiting = getattr(optimizer, "waiting_bytes", lambda: (0, 0))
    rows = getattr(optimizer, "row_gradient_bytes", lambda: 0)
    trained = getattr(optimizer, "groups", None)
    peak = dict.fromkeys(("gradient", "state", "off", "saved"), 0)

    def note(name: str, value: int) -> None:
        peak[name] = max(peak[name], value)

    hook = inner.register_step_post_hook(lambda *_: note("state", _state(inner)))
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            kept: dict[int, int] = {}

            def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                value = loss()
            note("saved", sum(kept.values()))
            value.backward()
            note("gradient", _bytes(p.grad for p in model.parameters() if p.grad is not None) + rows())
            optimizer.step()
            on, off = waiting()
            note("state", _state(inner) + on)
            note("off", off)
    finally:
        hook.remove()
    names = {n for group in trained for n in group.names} if trained else {n for n, p in model.named_parameters() if p.requires_grad}
    return Ledger(
        frozen=_bytes(p for n, p in model.named_parameters() if n not in names),
        trainable=_bytes(p for n, p in model.named_parameters() if n in names),
        **peak,
    )


def _state(optimizer: torch.optim.Optimizer) -> int:
    return sum(_bytes(state.values()) for state in optimizer.state.values())


def _bytes(values: Iterable[Any]) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor) and v.ndim)
